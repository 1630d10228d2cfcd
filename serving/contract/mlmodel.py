"""The contract of a logged model, as the content of its `MLmodel` file describes it (`model_files`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from serving.codecs.model_input import InputKind
from serving.codecs.prediction_schema import PredictionSchema, declared, prediction_schema_of
from serving.contract import reference_profile
from serving.contract.contract import Contract, Param
from serving.contract.reference_profile import Profile
from serving.errors import UnsupportedSignature
from serving.types.columns import UNNAMED, Column, column
from serving.types.nested import nested
from serving.types.scalars import SCALARS

HOW_TO_LOG = (
    "log it with signature=mlflow.models.infer_signature(inputs, outputs), inputs being a DataFrame "
    "with named columns, and input_example=inputs.head()"
)


def unverified(version: str, reason: str) -> str:
    """Warn of a version that went live without having answered an input example."""
    return f"{version} went live unverified, as it has no input example in rows ({reason}): {HOW_TO_LOG}"


_UNEXPECTED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Raised where a file that was not written by MLflow has other values than MLflow writes."""
_MAX_LISTED = 10
MAX_COLUMNS = 5000
"""Columns of a signature; compiling a contract for more would take seconds."""
_TASKS = (None, "classification", "regression")
_SERVING = {"task", "classes", "inputs", "description", "profile", "batching"}


def contract(described: Mapping[str, Any], name: str, max_rows: int) -> Contract:
    """Return the contract that an `MLmodel` file's content describes.

    Raises:
        Untypable: there is no signature, or one from which no typed endpoint can be made.
    """
    try:
        return _contract(described, name, max_rows)
    except _UNEXPECTED as error:
        raise UnsupportedSignature(
            f"its signature or metadata has no form that is known: {error!r:.200}"
        ) from error


def _contract(described: Mapping[str, Any], name: str, max_rows: int) -> Contract:
    signature = described.get("signature")
    if not signature:
        raise UnsupportedSignature(f"it has no signature: {HOW_TO_LOG}")
    metadata = _mapping(described.get("metadata") or {}, "metadata")
    serving = _mapping(metadata.get("serving") or {}, "metadata serving")
    if unknown := serving.keys() - _SERVING:
        raise UnsupportedSignature(f"metadata serving has unknown entries: {_join_names(unknown)}")
    task = serving.get("task")
    if task not in _TASKS:
        raise UnsupportedSignature(
            f"metadata serving.task is {task!r:.100}: write classification or regression"
        )
    classes = _classes(serving.get("classes") or [])
    if classes and task != "classification":
        raise UnsupportedSignature(f"metadata serving.classes means nothing where serving.task is {task}")
    inputs = _specs(signature, "inputs")
    batching = serving.get("batching")
    if batching not in (None, True, False):
        raise UnsupportedSignature(f"metadata serving.batching is {batching!r:.100}: write true or false")
    of_hints = bool(described.get("is_signature_from_type_hint"))
    columns = _columns(inputs, serving.get("inputs") or {}, of_hints)
    answer = prediction_schema_of(_specs(signature, "outputs"), task, classes)
    found = Contract(
        name,
        columns,
        tuple(_param(spec) for spec in _specs(signature, "params")),
        answer,
        max_rows,
        _form(inputs, of_hints),
        _streams(described),
        declared(_specs(signature, "outputs")),
        *_profile(serving.get("profile"), columns, answer),
        batching=batching,
    )
    found.compile()
    return found


def _streams(described: Mapping[str, Any]) -> bool:
    """Whether the model has a `predict_stream`."""
    flavors = _mapping(described.get("flavors") or {}, "flavors")
    return bool(_mapping(flavors.get("python_function") or {}, "flavor").get("streamable"))


def _form(specs: Sequence[Mapping[str, Any]], of_type_hint: bool) -> InputKind:
    tensors = {spec.get("type") == "tensor" for spec in specs}
    named = {spec.get("name") is not None for spec in specs}
    if len(tensors) != 1 or len(named) != 1:
        raise UnsupportedSignature(f"its signature has no inputs, or inputs of several forms: {HOW_TO_LOG}")
    if tensors == {True} and named == {False} and len(specs) > 1:
        raise UnsupportedSignature("its signature has several tensors without names")
    if tensors == {True}:
        return InputKind.ARRAYS if named == {True} else InputKind.ARRAY
    if of_type_hint:
        return InputKind.LIST
    return InputKind.FRAME if named == {True} else InputKind.UNNAMED_FRAME


def _columns(specs: Sequence[Mapping[str, Any]], constraints: Any, of_hints: bool) -> tuple[Column, ...]:
    """The columns; a DataFrame made of an array has numbers for names, which are text to clients."""
    unnamed = [UNNAMED if len(specs) == 1 else str(index) for index in range(len(specs))]
    names = [str(spec.get("name", other)) for spec, other in zip(specs, unnamed, strict=True)]
    if len({*names}) < len(names):
        raise UnsupportedSignature(f"its signature has several inputs of one name: {_join_names(names)}")
    words = _mapping(constraints, "metadata serving.inputs")
    if unknown := words.keys() - set(names):
        raise UnsupportedSignature(f"metadata serving.inputs names no column: {_join_names(unknown)}")
    return tuple(
        column(
            _as_hinted(spec) if of_hints else spec,
            _mapping(words.get(name) or {}, f"metadata serving.inputs.{name}"),
            name,
        )
        for name, spec in zip(names, specs, strict=True)
    )


def _as_hinted(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spec of an input that MLflow wrote after a type hint: of objects it says less than the hint does.

    A field with a default stands there as required, and a union as anything. Pydantic has the last word, in
    the model process.
    """
    return {"type": "any", "required": spec.get("required", True)} if spec["type"] not in SCALARS else spec


def _profile(
    told: Any, columns: Sequence[Column], answer: PredictionSchema
) -> tuple[Profile | None, tuple[str, ...]]:
    """The reference profile, or why there is none: it says nothing about how the model is asked."""
    if told is None:
        return None, ()
    try:
        return reference_profile.read(told, columns, answer.fields), ()
    except ValueError as error:
        return None, (f"drift can't be told, since its metadata serving.profile can't be read: {error}",)


def _classes(named: Any) -> tuple[str, ...]:
    names = [str(each) for each in named] if isinstance(named, list) else None
    if names is None or len(set(names)) < len(names):
        raise UnsupportedSignature(
            f"metadata serving.classes is {named!r:.100}: write a list of different names"
        )
    return tuple(names)


def _join_names(names: Iterable[Any]) -> str:
    shown = sorted(str(name)[:100] for name in names)
    more = len(shown) - _MAX_LISTED
    return ", ".join(shown[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _param(spec: Mapping[str, Any]) -> Param:
    name, type = str(spec["name"]), str(spec["type"])
    is_nested = type in ("object", "map", "array")
    if type == "binary" or (type not in SCALARS and not is_nested):
        raise UnsupportedSignature(
            f"the parameter {name!r} is of type {type}: log one of {', '.join(SCALARS)}, or an object"
        )
    if is_nested:
        type = nested(spec).type
    return Param(name, type, spec.get("default"), spec.get("shape") is not None)


def _specs(signature: Any, part: str) -> list[dict[str, Any]]:
    text = _mapping(signature, "signature").get(part)
    try:
        specs = json.loads(text) if text else []
    except (TypeError, ValueError, RecursionError) as error:
        raise UnsupportedSignature(f"its signature's {part} can't be read: {error}") from error
    if not isinstance(specs, list) or not all(isinstance(spec, dict) for spec in specs):
        raise UnsupportedSignature(f"its signature's {part} are no list of columns")
    if len(specs) > MAX_COLUMNS:
        raise UnsupportedSignature(
            f"its signature's {part} are {len(specs)} columns: at most {MAX_COLUMNS} are served"
        )
    return specs


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UnsupportedSignature(f"its {what} is no mapping")
    return value
