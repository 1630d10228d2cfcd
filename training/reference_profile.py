"""Reference profile of a model: the distributions of its training rows and of its predictions for them.

It is stored in the metadata of the logged model, so that the service can detect drift of its inputs and
predictions. The values of a column are counted in bins; the shares of the bins and the share of missing
values add up to 1.

Numbers are divided approximately at their deciles, halfway between two values that occur, so that a
frequent value stays in one bin. A value on an edge belongs to the bin above it. Frequent strings, booleans
and integers with few distinct values have a bin each; the others share one bin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

MIN_ROWS = 100
"""Fewer rows are not representative."""
MAX_ROWS = 10_000
"""More rows add little precision."""
_MIN_ROWS_PER_BIN = 30
_MAX_COLUMNS = 200
_MAX_BINS = 10
_MAX_CATEGORIES = 20
_MIN_SHARE = 0.01
_MAX_CATEGORY_LENGTH = 100

Column = Mapping[str, Any]
"""A dict with `edges` or `categories`, their `shares` (one more than of them), and the share `missing`."""


def profile(table: Any, predictions: Any, classes: Sequence[str] | None) -> dict[str, Any]:
    """Return the profile of a DataFrame (at most 200 columns) and of a model's predictions.

    Args:
        table: The rows. Columns of dates, bytes or mixed types are omitted.
        predictions: One number, string or boolean per row, or the probabilities of the classes; other
            outputs are omitted.
        classes: The names of the classes with ids 0, 1, …, if the model is a classifier.
    """
    columns = {name: _column(_builtin_values(table[name])) for name in [*table][:_MAX_COLUMNS]}
    output = {"label": _labels(predictions, classes)} if classes else {"prediction": _values(predictions)}
    return {
        "rows": len(table),
        "inputs": {name: column for name, column in columns.items() if column},
        "outputs": {name: column for name, values in output.items() if (column := _column(values))},
    }


# -- values: built-in types, None for missing


def _builtin_values(series: Any) -> list[Any]:
    return [
        None if missing else value
        for value, missing in zip(series.tolist(), series.isna().tolist(), strict=True)
    ]


def _labels(predictions: Any, classes: Sequence[str]) -> list[Any]:
    import numpy as np

    present = np.asarray(predictions)
    if present.ndim == 2:
        present = present.argmax(axis=1)
    ids = range(len(classes)) if present.dtype.kind in "iu" else classes
    names: dict[Any, str] = dict(zip(ids, classes, strict=True))
    return [names.get(value if isinstance(value, int) else str(value)) for value in present.tolist()]


def _values(predictions: Any) -> list[Any]:
    import numpy as np
    import pandas as pd

    present = np.asarray(predictions)
    if present.ndim == 2 and present.shape[1] == 1:
        present = present[:, 0]
    return _builtin_values(pd.Series(present)) if present.ndim == 1 else []


# -- columns


def _column(values: list[Any]) -> Column | None:
    """Return the distribution of a column; None for unsupported or mixed types."""
    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    if kinds in ({str}, {bool}) or (kinds == {int} and len({*present}) <= _MAX_CATEGORIES):
        return _of_categories(present, len(values))
    return _of_numbers(present, len(values)) if kinds and kinds <= {int, float} else None


def _of_categories(present: list[Any], rows: int) -> Column:
    frequent = [
        (value, count)
        for value, count in Counter(present).most_common(min(_MAX_CATEGORIES, rows // _MIN_ROWS_PER_BIN))
        if count >= rows * _MIN_SHARE and len(str(value)) <= _MAX_CATEGORY_LENGTH
    ]
    counts = [count for _, count in frequent]
    counts.append(len(present) - sum(counts))
    return {"categories": [value for value, _ in frequent], **_shares(counts, rows)}


def _of_numbers(values: list[float], rows: int) -> Column:
    import numpy as np

    present = np.asarray(values, float)
    present = present[np.isfinite(present)]  # JSON requests cannot contain other numbers
    edges = _edges(present)
    counts = np.bincount(np.searchsorted(edges, present, side="right"), minlength=len(edges) + 1)
    return {"edges": edges, **_shares(counts.tolist(), rows)}


def _edges(present: Any) -> list[float]:
    """Return the edges that divide numbers into about equal bins: ten, if there are enough rows."""
    import numpy as np

    distinct, counts = np.unique(present, return_counts=True)
    below = counts.cumsum()
    edges: list[float] = []
    done = 0
    while (bins := min(_MAX_BINS - len(edges), (len(present) - done) // _MIN_ROWS_PER_BIN)) > 1:
        at = int(np.searchsorted(below, done + (len(present) - done) / bins))
        if at + 1 >= len(distinct):
            break
        edges.append(float((distinct[at] + distinct[at + 1]) / 2))
        done = int(below[at])
    return edges


def _shares(counts: list[int], rows: int) -> dict[str, Any]:
    return {
        "shares": [round(count / rows, 6) for count in counts],
        "missing": round((rows - sum(counts)) / rows, 6),
    }
