"""Labelled rows that are logged with a model, on which the service evaluates its version."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILE = "serving_evaluation.parquet"
TARGET = "target"
"""The column of the labels."""


@contextmanager
def files(evaluation: tuple[Any, Any] | None, columns: Sequence[str]) -> Iterator[list[str]]:
    """Write the rows and labels to a file, and yield the paths of files to add to the model.

    Raises:
        ValueError: a column is missing, or the labels do not fit the rows.
    """
    if evaluation is None:
        yield []
        return
    rows, labels = evaluation
    if missing := [name for name in columns if name not in rows.columns]:
        raise ValueError(f"the rows of evaluation lack the columns {', '.join(missing)}")
    if TARGET in rows.columns:
        raise ValueError(f"the rows of evaluation must not have a column {TARGET!r}: it holds the labels")
    if len(rows) != len(labels):
        raise ValueError(f"evaluation has {len(rows)} rows and {len(labels)} labels")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        rows.reset_index(drop=True).assign(**{TARGET: list(labels)}).to_parquet(path, index=False)
        yield [str(path)]
