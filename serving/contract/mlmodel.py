"""Derives the contract of a logged model from the content of its `MLmodel` file (`model_files`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from serving.codecs.model_input import InputKind
from serving.codecs.prediction_schema import PredictionSchema, declared, prediction_schema_of
from serving.contract import reference_profile
from serving.contract.contract import Contract
from serving.contract.params import Param
from serving.contract.reference_profile import Profile
from serving.promotion_errors import UnsupportedSignature
from serving.types.columns import UNNAMED, Column, column
from serving.types.nested import nested
from serving.types.scalars import SCALARS

HOW_TO_LOG = (
    "log it with signature=mlflow.models.infer_signature(inputs, outputs), where inputs is a DataFrame "
    "with named columns, and input_example=inputs.head()"
)


def unverified(version: str, reason: str) -> str:
    """Return the warning about a version that went live without a verified input example."""
    return f"{version} went live unverified, because it has no input example in rows ({reason}): {HOW_TO_LOG}"


_UNEXPECTED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Raised if a file contains values that MLflow does not write."""
_MAX_LISTED = 10
MAX_COLUMNS = 5000
"""Limit on the columns of a signature; compiling a contract for more would take seconds."""
_TASKS = (None, "classification", "regression")
_SERVING = {"task", "classes", "inputs", "description", "profile", "batching"}


def contract(mlmodel: Mapping[str, Any], name: str, max_rows: int) -> Contract:
    """Return the contract of a model.

    Args:
        mlmodel: The content of its `MLmodel` file.
        name: The name of the registered model.
        max_rows: Limit on the rows of a request.

    Raises:
        UnsupportedSignature: There is no signature, or the signature or metadata cannot be served.
    """
    try:
        return _contract(mlmodel, name, max_rows)
    except _UNEXPECTED as error:
        raise UnsupportedSignature(
            f"its signature or metadata has an unknown form: {error!r:.200}"
        ) from error


def _contract(mlmodel: Mapping[str, Any], name: str, max_rows: int) -> Contract:
    signature = mlmodel.get("signature")
    if not signature:
        raise UnsupportedSignature(f"it has no signature: {HOW_TO_LOG}")
    metadata = _mapping(mlmodel.get("metadata") or {}, "metadata")
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
        raise UnsupportedSignature(f"metadata serving.classes has no effect when serving.task is {task}")
    inputs = _specs(signature, "inputs")
    batching = serving.get("batching")
    if batching not in (None, True, False):
        raise UnsupportedSignature(f"metadata serving.batching is {batching!r:.100}: write true or false")
    has_hint = bool(mlmodel.get("is_signature_from_type_hint"))
    columns = _columns(inputs, serving.get("inputs") or {}, has_hint)
    outputs = prediction_schema_of(_specs(signature, "outputs"), task, classes)
    result = Contract(
        name,
        columns,
        tuple(_param(spec) for spec in _specs(signature, "params")),
        outputs,
        max_rows,
        _form(inputs, has_hint),
        _streams(mlmodel),
        declared(_specs(signature, "outputs")),
        *_profile(serving.get("profile"), columns, outputs),
        batching=batching,
    )
    result.compile()
    return result


def _streams(mlmodel: Mapping[str, Any]) -> bool:
    """Return whether the model has a `predict_stream`."""
    flavors = _mapping(mlmodel.get("flavors") or {}, "flavors")
    return bool(_mapping(flavors.get("python_function") or {}, "flavor").get("streamable"))


def _form(specs: Sequence[Mapping[str, Any]], has_hint: bool) -> InputKind:
    tensors = {spec.get("type") == "tensor" for spec in specs}
    named = {spec.get("name") is not None for spec in specs}
    if len(tensors) != 1 or len(named) != 1:
        raise UnsupportedSignature(f"its signature has no inputs, or inputs of different kinds: {HOW_TO_LOG}")
    if tensors == {True} and named == {False} and len(specs) > 1:
        raise UnsupportedSignature("its signature has several tensors without names")
    if tensors == {True}:
        return InputKind.ARRAYS if named == {True} else InputKind.ARRAY
    if has_hint:
        return InputKind.LIST
    return InputKind.FRAME if named == {True} else InputKind.UNNAMED_FRAME


def _columns(specs: Sequence[Mapping[str, Any]], constraints: Any, has_hint: bool) -> tuple[Column, ...]:
    """Return the columns. pandas numbers the columns of an array; the numbers are strings for clients."""
    defaults = [UNNAMED if len(specs) == 1 else str(index) for index in range(len(specs))]
    names = [str(spec.get("name", default)) for spec, default in zip(specs, defaults, strict=True)]
    if len({*names}) < len(names):
        raise UnsupportedSignature(f"its signature has several inputs of one name: {_join_names(names)}")
    by_name = _mapping(constraints, "metadata serving.inputs")
    if unknown := by_name.keys() - set(names):
        raise UnsupportedSignature(f"metadata serving.inputs has unknown columns: {_join_names(unknown)}")
    return tuple(
        column(
            _loosen(spec) if has_hint else spec,
            _mapping(by_name.get(name) or {}, f"metadata serving.inputs.{name}"),
            name,
        )
        for name, spec in zip(names, specs, strict=True)
    )


def _loosen(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a spec that MLflow derived from a type hint, with type `any` for objects.

    MLflow writes a field with a default as required, and a union as anything. The model process validates the
    input against the type hint itself.
    """
    return {"type": "any", "required": spec.get("required", True)} if spec["type"] not in SCALARS else spec


def _profile(
    entry: Any, columns: Sequence[Column], outputs: PredictionSchema
) -> tuple[Profile | None, tuple[str, ...]]:
    """Return the reference profile, or a warning: an invalid profile does not prevent serving."""
    if entry is None:
        return None, ()
    try:
        return reference_profile.read(entry, columns, outputs.fields), ()
    except ValueError as error:
        return None, (f"drift is not measured, because metadata serving.profile can't be read: {error}",)


def _classes(value: Any) -> tuple[str, ...]:
    names = [str(name) for name in value] if isinstance(value, list) else None
    if names is None or len(set(names)) < len(names):
        raise UnsupportedSignature(
            f"metadata serving.classes is {value!r:.100}: write a list of different names"
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
        raise UnsupportedSignature(f"its signature's {part} are not a list of columns")
    if len(specs) > MAX_COLUMNS:
        raise UnsupportedSignature(
            f"its signature's {part} are {len(specs)} columns: at most {MAX_COLUMNS} are served"
        )
    return specs


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UnsupportedSignature(f"its {what} is not a mapping")
    return value
