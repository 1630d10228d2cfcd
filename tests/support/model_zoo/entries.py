"""Entries of the zoo: a model, the function that saves it, and its requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

Save = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Request:
    """One request, independent of any protocol.

    Args:
        rows: an object by column name for each row, or a value for each row where the input has no name.
        params: the model's parameters.
        frame: the same rows as a DataFrame, for the tabular formats.
        body: a body without a wrapper, as chat models take it; there are no rows then.
        named: False where a row is one value, although it may be an object.
        datatype: the datatype of tensors in place of the columns' own; `JSON` for values in JSON as `BYTES`.
        is_refused: True where the service must reject a request that MLflow accepts.
    """

    rows: tuple[Any, ...] = ()
    params: Mapping[str, Any] | None = None
    frame: pd.DataFrame | None = None
    body: Mapping[str, Any] | None = None
    named: bool = True
    datatype: str | None = None
    is_refused: bool = False

    @property
    def is_uniform(self) -> bool:
        """Return whether all rows name the same columns."""
        return self.named and len({tuple(row) for row in self.rows}) == 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A model and its requests.

    Args:
        save: writes the model into a folder.
        requests: what it is sent.
        whole: True where one output belongs to all rows of a request, None where a request decides it.
        classes: names of the classes, for a model whose metadata declare the task classification.
        streams: True if the model can stream.
        outputs: the declared names of the columns of a matrix, by which typed routes and tensors return it.
        lenient: True where the service accepts dates in JSON for a date hint, which MLflow's server rejects.
        tolerance: how far numbers may be off, relatively, where the shape of a batch changes them.
    """

    save: Save
    requests: tuple[Request, ...]
    whole: bool | None = False
    classes: tuple[str, ...] = ()
    streams: bool = False
    outputs: tuple[str, ...] = ()
    lenient: bool = False
    tolerance: float = 1e-6


def table(frame: pd.DataFrame, params: Mapping[str, Any] | None = None, **more: Any) -> Request:
    """Return a request with the rows of a DataFrame."""
    rows = [{str(name): _in_json(value) for name, value in row.items()} for row in frame.to_dict("records")]
    return Request(tuple(rows), params, frame, **more)


def _in_json(value: Any) -> Any:
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    return None if isinstance(value, float) and value != value else value


def records(*rows: Mapping[str, Any], params: Mapping[str, Any] | None = None, **more: Any) -> Request:
    """Return a request with these rows, which may leave columns out."""
    return Request(rows, params, **more)


def values(*rows: Any, params: Mapping[str, Any] | None = None, **more: Any) -> Request:
    """Return a request with one value for each row."""
    return Request(rows, params, named=False, **more)


def unwrapped(**body: Any) -> Request:
    """Return a request whose body is the model's own input."""
    return Request(body=body)


def scoring_bodies(request: Request) -> dict[str, dict[str, Any]]:
    """Return the bodies of MLflow's scoring protocol that express a request, by form.

    The first is the usual one: other protocols must return what MLflow's server returns for it.
    """
    if request.body is not None:
        return {"unwrapped": dict(request.body)}
    params = {} if request.params is None else {"params": dict(request.params)}
    forms = _forms(request, [*request.rows])
    usual = "inputs" if request.datatype else "split" if _is_numbered(request) else next(iter(forms))
    return {form: forms[form] | params for form in sorted(forms, key=lambda form: form != usual)}


def row_request(request: Request, row: Any) -> Request:
    """Return a request for one of the rows alone."""
    frame = request.frame if _is_numbered(request) else None
    return replace(request, rows=(row,), frame=frame)


def _forms(request: Request, rows: list[Any]) -> dict[str, dict[str, Any]]:
    if not request.named:
        return {"inputs": {"inputs": rows}, "instances": {"instances": rows}}
    forms: dict[str, dict[str, Any]] = {
        "records": {"dataframe_records": rows},
        "instances": {"instances": rows},
    }
    if request.is_uniform:
        names = [*rows[0]]
        columns = [*map(int, names)] if _is_numbered(request) else names
        forms["split"] = {"dataframe_split": {"columns": columns, "data": [[*row.values()] for row in rows]}}
        forms["inputs"] = {"inputs": {name: [row[name] for row in rows] for name in names}}
    return forms


def _is_numbered(request: Request) -> bool:
    """Return whether the columns have numbers for names, which JSON cannot express but in the split form."""
    return request.frame is not None and all(isinstance(name, int) for name in request.frame.columns)


def entries(module: str) -> dict[str, Entry]:
    """Return the entries that a module of the zoo lists."""
    listed: dict[str, Entry] = import_module(f"tests.support.model_zoo.{module}").ENTRIES
    return listed
