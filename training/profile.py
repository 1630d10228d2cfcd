"""The reference profile of a model: how its training rows, and its answers to them, were distributed.

It travels in the metadata of the logged model, so that a serving front can tell when what it is
asked has become another thing. Each column is counted in bins; the bins' shares of all rows and the
share of missing values are together 1.

Numbers are cut at about their deciles, half-way between two values that occur, so that a frequent
value stays in one bin; a value on an edge is in the bin above it. Texts,
booleans and whole numbers with few values are counted each by itself if they are frequent, and
otherwise together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

LEAST_ROWS = 100
"""What fewer rows tell is chance."""
MOST_ROWS = 10_000
"""More rows tell hardly more."""
_ROWS_A_BIN = 30
_MOST_COLUMNS = 200
_MOST_BINS = 10
_MOST_CATEGORIES = 20
_LEAST_SHARE = 0.01
_LONGEST_CATEGORY = 100

Column = Mapping[str, Any]
"""`edges` or `categories`; `shares`, of which there is one more than of these; what is `missing`."""


def profile(table: Any, answer: Any, classes: Sequence[str] | None) -> dict[str, Any]:
    """The profile of a DataFrame, of which at most 200 columns are told, and of a model's answer.

    Args:
        table: The rows. Nothing is told of columns of dates, bytes or several types.
        answer: One number, text or boolean for each of them, or the probabilities of the classes;
            nothing is told of others.
        classes: The names of the classes if it classifies: those of ids 0, 1, ….
    """
    columns = {name: _column(_plain(table[name])) for name in [*table][:_MOST_COLUMNS]}
    output = {"label": _labels(answer, classes)} if classes else {"prediction": _values(answer)}
    return {
        "rows": len(table),
        "inputs": {name: column for name, column in columns.items() if column},
        "outputs": {name: column for name, values in output.items() if (column := _column(values))},
    }


# -- values: Python's own, None where there is none


def _plain(series: Any) -> list[Any]:
    return [
        None if missing else value
        for value, missing in zip(series.tolist(), series.isna().tolist(), strict=True)
    ]


def _labels(answer: Any, classes: Sequence[str]) -> list[Any]:
    import numpy as np

    found = np.asarray(answer)
    if found.ndim == 2:
        found = found.argmax(axis=1)
    ids = range(len(classes)) if found.dtype.kind in "iu" else classes
    names: dict[Any, str] = dict(zip(ids, classes, strict=True))
    return [names.get(each if isinstance(each, int) else str(each)) for each in found.tolist()]


def _values(answer: Any) -> list[Any]:
    import numpy as np
    import pandas as pd

    found = np.asarray(answer)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    return _plain(pd.Series(found)) if found.ndim == 1 else []


# -- columns


def _column(values: list[Any]) -> Column | None:
    """What is told of a column; None where its values are of another kind, or of several."""
    found = [value for value in values if value is not None]
    kinds = {type(value) for value in found}
    if kinds in ({str}, {bool}) or (kinds == {int} and len({*found}) <= _MOST_CATEGORIES):
        return _of_categories(found, len(values))
    return _of_numbers(found, len(values)) if kinds and kinds <= {int, float} else None


def _of_categories(found: list[Any], rows: int) -> Column:
    frequent = [
        (value, count)
        for value, count in Counter(found).most_common(min(_MOST_CATEGORIES, rows // _ROWS_A_BIN))
        if count >= rows * _LEAST_SHARE and len(str(value)) <= _LONGEST_CATEGORY
    ]
    counts = [count for _, count in frequent]
    counts.append(len(found) - sum(counts))
    return {"categories": [value for value, _ in frequent], **_shares(counts, rows)}


def _of_numbers(values: list[float], rows: int) -> Column:
    import numpy as np

    found = np.asarray(values, float)
    found = found[np.isfinite(found)]  # no client can send another
    edges = _edges(found)
    counts = np.bincount(np.searchsorted(edges, found, side="right"), minlength=len(edges) + 1)
    return {"edges": edges, **_shares(counts.tolist(), rows)}


def _edges(found: Any) -> list[float]:
    """Where numbers are cut so that about as many are in each bin: of ten, if there are enough."""
    import numpy as np

    distinct, counts = np.unique(found, return_counts=True)
    below = counts.cumsum()
    edges: list[float] = []
    done = 0
    while (bins := min(_MOST_BINS - len(edges), (len(found) - done) // _ROWS_A_BIN)) > 1:
        at = int(np.searchsorted(below, done + (len(found) - done) / bins))
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
