"""JSON Lines, one of SageMaker's formats: one row or one prediction per line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from serving.codecs.json_fields import refuse_repeats
from serving.errors import BodyTooLarge, Malformed

JSON_LINES = "application/jsonlines"


def read(body: bytes, max_rows: int) -> list[Any]:
    """Return the values of all lines that are not empty.

    Raises:
        Malformed: a line is not JSON, or repeats a field.
        BodyTooLarge: there are more than `max_rows` lines.
    """
    lines = [(number, line) for number, line in enumerate(body.splitlines(), 1) if line.strip()]
    if len(lines) > max_rows:
        raise BodyTooLarge(f"There are more than {max_rows} rows.")
    return [_value(number, line) for number, line in lines]


def _value(number: int, line: bytes) -> Any:
    try:
        value = orjson.loads(line)
    except ValueError as error:
        raise Malformed(f"Line {number} is not JSON: {error}") from None
    refuse_repeats(line, len(value) if isinstance(value, dict) else 0)
    return value


def write(predictions: Iterable[bytes]) -> bytes:
    """Return a line for each item of a JSON list, given in pieces, or the only line of another value."""
    value = orjson.loads(b"".join(predictions))
    return b"".join(orjson.dumps(item) + b"\n" for item in (value if isinstance(value, list) else [value]))
