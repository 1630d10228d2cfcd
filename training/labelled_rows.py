"""Labelled rows that are logged with a model, on which the service evaluates its version."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.contract import Contract

FILE = "serving_evaluation.parquet"
TARGET = "target"
"""The column of the labels."""
_MAX_SHOWN_CLASSES = 20


@contextmanager
def files(
    evaluation: tuple[Any, Any] | None, columns: Sequence[str], model: Any, contract: Contract
) -> Iterator[list[str]]:
    """Write the rows and labels to a file, and yield the paths of files to add to the model.

    Args:
        evaluation: the rows and their labels; None yields no file.
        columns: the input columns of the model.
        model: the fitted model.
        contract: names its classes.

    Raises:
        ValueError: a column is missing, the labels do not fit the rows, or one is no class of the model.
    """
    if evaluation is None:
        yield []
        return
    rows, labels = evaluation
    if missing := [name for name in columns if name not in rows.columns]:
        raise ValueError(f"the rows of evaluation lack the columns {', '.join(missing)}")
    if TARGET in rows.columns:
        raise ValueError(f"the rows of evaluation must not have a column {TARGET!r}: it holds the labels")
    values = _flat(labels)
    if len(rows) != len(values):
        raise ValueError(f"evaluation has {len(rows)} rows and {len(values)} labels")
    if contract.classes is not None:
        values = _names(values, getattr(model, "classes_", None), contract.classes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        rows.reset_index(drop=True).assign(**{TARGET: values}).to_parquet(path, index=False)
        yield [str(path)]


def _flat(labels: Any) -> list[Any]:
    """Return labels as a list; as in scikit-learn, they may be a table of one column."""
    import numpy as np

    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array.ravel()
    if array.ndim != 1:
        raise ValueError(f"the labels of evaluation have {array.ndim} dimensions: use one label per row")
    return list(array.tolist())


def _names(labels: Sequence[Any], ids: Any, names: Sequence[str]) -> list[str]:
    """Return the names of classes. The service does not know how the labels were encoded for training.

    Labels may be those of the training (`model.classes_`), the names, or, unless classes are numbers in
    the training, the numbers of the classes from 0.

    Raises:
        ValueError: a label is no class.
    """
    ids = list(names) if ids is None else list(getattr(ids, "tolist", lambda: ids)())
    encodings = [dict(zip(ids, names, strict=True)), {name: name for name in names}]
    if all(isinstance(identifier, str) for identifier in ids):
        encodings.append(dict(enumerate(names)))
    present = {*labels}
    encoding = max(encodings, key=lambda known: sum(label in known for label in present))
    for row, label in enumerate(labels):
        if label not in encoding:
            classes = ", ".join(map(repr, list(encoding)[:_MAX_SHOWN_CLASSES]))
            raise ValueError(
                f"row {row} of evaluation has the label {label!r}, which is no class of the model: "
                f"the classes are {classes}"
            )
    return [encoding[label] for label in labels]
