"""What fits our schemas and yet is refused, for want of a word in JSON Schema."""

import hypothesis
import schemathesis

# Half of the cases would be the others made smaller, in search of answers with 200, which there are enough of
# as it is; and that search takes longer than the cases. All are to be new ones instead.
hypothesis.target = lambda *observed, **label: None


@schemathesis.hook
def filter_body(context, body):
    """No dates before 1678 or after 2261, which pandas can't hold in nanoseconds."""
    rows = body.get("rows", [body]) if isinstance(body, dict) else []
    dates = [row.get("built") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return all("1678" <= date[:4] < "2262" for date in dates if isinstance(date, str))
