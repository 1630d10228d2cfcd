"""What a logged model says of itself, read from the files MLflow wrote: its contract, its example."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serving.errors import RequestError, Untypable, VerificationFailed
from serving.runtime import profile
from serving.runtime.columns import UNNAMED, Column, column
from serving.runtime.contract import Contract, Param, Row
from serving.runtime.intake import Intake
from serving.runtime.outputs import Outputs, declared, outputs
from serving.runtime.profile import Profile
from serving.runtime.scalars import SCALARS
from serving.runtime.scoring import FORMS, Scoring
from serving.runtime.table import Form, objects
from serving.runtime.values import in_json

HOW_TO_LOG = (
    "log it with signature=mlflow.models.infer_signature(inputs, outputs), inputs being a DataFrame "
    "with named columns, and input_example=inputs.head()"
)
_TASKS = (None, "classification", "regression")
_SERVING = {"task", "classes", "inputs", "description", "profile"}
_MOST_EXAMPLE_ROWS = 100


@dataclass(frozen=True, slots=True)
class Example:
    """The input example that a model was logged with, as rows of its own contract."""

    rows: Sequence[Row]
    params: Mapping[str, Any]
    shown: Row
    """The first row as JSON has it, for the documentation."""


def read(folder: Path) -> Mapping[str, Any]:
    """The content of the `MLmodel` file in `folder`.

    Raises:
        Untypable: there is none, or it is no YAML mapping.
    """
    try:
        described = yaml.load((folder / "MLmodel").read_bytes(), Loader=yaml.CSafeLoader)
    except (OSError, yaml.YAMLError) as error:
        raise Untypable(f"its MLmodel file can't be read: {error}") from error
    return _mapping(described, "MLmodel")


def contract(described: Mapping[str, Any], name: str, max_rows: int) -> Contract:
    """The contract that an `MLmodel` file's content describes.

    Raises:
        Untypable: there is no signature, or one from which no typed endpoint can be made.
    """
    signature = described.get("signature")
    if not signature:
        raise Untypable(f"it has no signature: {HOW_TO_LOG}")
    metadata = _mapping(described.get("metadata") or {}, "metadata")
    serving = _mapping(metadata.get("serving") or {}, "metadata serving")
    if unknown := serving.keys() - _SERVING:
        raise Untypable(f"metadata serving has unknown entries: {_listed(unknown)}")
    task = serving.get("task")
    if task not in _TASKS:
        raise Untypable(f"metadata serving.task is {task!r}: write classification or regression")
    classes = _classes(serving.get("classes") or [])
    if classes and task != "classification":
        raise Untypable(f"metadata serving.classes means nothing where serving.task is {task}")
    inputs = _specs(signature, "inputs")
    columns = _columns(inputs, serving.get("inputs") or {})
    answer = outputs(_specs(signature, "outputs"), task, classes)
    found = Contract(
        name,
        columns,
        tuple(_param(spec) for spec in _specs(signature, "params")),
        answer,
        max_rows,
        _form(inputs, bool(described.get("is_signature_from_type_hint"))),
        _streams(described),
        declared(_specs(signature, "outputs")),
        *_profile(serving.get("profile"), columns, answer),
    )
    found.compile()
    return found


def example(folder: Path, described: Mapping[str, Any], contract: Contract) -> Example | None:
    """The logged input example; None where there is none in rows.

    Raises:
        VerificationFailed: it does not fit the model's own contract.
    """
    info = described.get("saved_input_example_info") or {}
    try:
        logged = json.loads((folder / info["serving_input_path"]).read_bytes())
    except (OSError, ValueError, KeyError):
        return None
    if not isinstance(logged, dict) or not logged.keys() & {*FORMS}:
        return None
    try:
        rows = _example_rows(logged, contract)[: min(_MOST_EXAMPLE_ROWS, contract.max_rows)]
        if not rows:
            return None
        body: dict[str, Any] = {"rows": rows}
        if params := logged.get("params"):
            body["params"] = params
        return Example(*contract.read_batch(json.dumps(body).encode()), rows[0])
    except RequestError as error:
        faults = "; ".join(f"{_where(fault.loc)}: {fault.msg}" for fault in error.faults[:3])
        raise VerificationFailed(
            f"its input example does not fit its own signature: {faults or error}"
        ) from error


def _example_rows(logged: Mapping[str, Any], contract: Contract) -> list[Any]:
    if contract.form is not Form.FRAME or "dataframe_split" not in logged:
        asked = Scoring(contract, Intake(contract)).read(json.dumps(logged).encode())
        return [in_json(row) for row in objects(asked.rows)]
    split = logged["dataframe_split"]
    dates = {column.name for column in contract.columns if column.type == "datetime"}
    return [
        {name: _or_null(value, name in dates) for name, value in zip(split["columns"], row, strict=True)}
        for row in split["data"]
    ]


def _or_null(value: Any, is_date: bool) -> Any:
    """A value as JSON has it: MLflow writes a missing number or text as NaN, a missing datetime as "NaT"."""
    return None if value != value or (is_date and value == "NaT") else value


def _where(loc: Sequence[str | int]) -> str:
    """A place in a batch, as a person would name it: `rows, 0, x` is `row 1, x`."""
    if len(loc) > 1 and loc[0] == "rows" and isinstance(loc[1], int):
        return ", ".join([f"row {loc[1] + 1}", *map(str, loc[2:])])
    return ", ".join(map(str, loc))


def _streams(described: Mapping[str, Any]) -> bool:
    """Whether the model has a `predict_stream`."""
    flavors = _mapping(described.get("flavors") or {}, "flavors")
    return bool(_mapping(flavors.get("python_function") or {}, "flavor").get("streamable"))


def _form(specs: Sequence[Mapping[str, Any]], of_type_hint: bool) -> Form:
    tensors = {spec.get("type") == "tensor" for spec in specs}
    named = {spec.get("name") is not None for spec in specs}
    if len(tensors) != 1 or len(named) != 1 or any(isinstance(spec.get("name"), int) for spec in specs):
        raise Untypable(f"its signature has no inputs, or inputs of several forms: {HOW_TO_LOG}")
    if tensors == {True} and named == {False} and len(specs) > 1:
        raise Untypable("its signature has several tensors without names")
    if tensors == {True}:
        return Form.ARRAYS if named == {True} else Form.ARRAY
    if of_type_hint:
        return Form.LIST
    return Form.FRAME if named == {True} else Form.UNNAMED_FRAME


def _columns(specs: Sequence[Mapping[str, Any]], facets: Any) -> tuple[Column, ...]:
    names = [spec.get("name", UNNAMED if len(specs) == 1 else str(index)) for index, spec in enumerate(specs)]
    words = _mapping(facets, "metadata serving.inputs")
    if unknown := words.keys() - set(names):
        raise Untypable(f"metadata serving.inputs names no column: {_listed(unknown)}")
    return tuple(
        column({**spec, "name": name}, _mapping(words.get(name) or {}, f"metadata serving.inputs.{name}"))
        for name, spec in zip(names, specs, strict=True)
    )


def _profile(told: Any, columns: Sequence[Column], answer: Outputs) -> tuple[Profile | None, tuple[str, ...]]:
    """The reference profile, or why there is none: it says nothing about how the model is asked."""
    if told is None:
        return None, ()
    try:
        return profile.read(told, columns, answer.fields), ()
    except ValueError as error:
        return None, (f"drift can't be told, since its metadata serving.profile can't be read: {error}",)


def _classes(named: Any) -> tuple[str, ...]:
    names = [str(each) for each in named] if isinstance(named, list) else None
    if names is None or len(set(names)) < len(names):
        raise Untypable(f"metadata serving.classes is {named!r:.100}: write a list of different names")
    return tuple(names)


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(sorted(str(name)[:100] for name in names))


def _param(spec: Mapping[str, Any]) -> Param:
    name, kind = spec["name"], str(spec["type"])
    if kind not in SCALARS or kind == "binary":
        raise Untypable(f"the parameter {name!r} is of type {kind}, which can't be typed yet")
    return Param(name, kind, spec.get("default"), spec.get("shape") is not None)


def _specs(signature: Any, part: str) -> list[dict[str, Any]]:
    text = _mapping(signature, "signature").get(part)
    try:
        specs = json.loads(text) if text else []
    except (TypeError, ValueError) as error:
        raise Untypable(f"its signature's {part} can't be read: {error}") from error
    if not isinstance(specs, list) or not all(isinstance(spec, dict) for spec in specs):
        raise Untypable(f"its signature's {part} are no list of columns")
    return specs


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Untypable(f"its {what} is no mapping")
    return value
