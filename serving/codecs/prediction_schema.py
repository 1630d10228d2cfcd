"""Turn the output of a model into predictions, by its output signature and metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, TypeAlias

import numpy as np
import orjson
import pyarrow as pa
from pydantic import WithJsonSchema

from serving.codecs.output_columns import columns
from serving.codecs.output_json import JsonFragments, OutputColumn, number_fragments
from serving.codecs.predictions import Predictions, interleave
from serving.errors import ModelFailed
from serving.promotion_errors import UnsupportedSignature

_NUMPY_KINDS = {"f": "number", "i": "integer", "u": "integer", "b": "boolean", "U": "string"}
_MLFLOW_KINDS = {
    "boolean": "boolean",
    "integer": "integer",
    "long": "integer",
    "float": "number",
    "double": "number",
    "string": "string",
    "binary": "binary",
    "datetime": "datetime",
}


# Each schema has
# - `description`: a prediction in a few words, for messages;
# - `fields`: the fields of a prediction and their types, for OpenAPI;
# - `predictions(table)`: one prediction per row; raises ModelFailed if the table violates the signature.


@dataclass(frozen=True, slots=True)
class GenericOutput:
    """Any output, with types from the signature: a prediction is one value, or an object of named values.

    With `flexible`, an output that does not fit the signature is a prediction too: no example has shown what
    the model returns.
    """

    values: tuple[OutputColumn, ...]
    flexible: bool = field(default=False, compare=False)

    @property
    def description(self) -> str:
        """The columns and the kinds of their values."""
        return ", ".join(f"{value.name or 'a value'} ({value.description})" for value in self.values)

    @property
    def fields(self) -> dict[str, Any]:
        """`prediction`: a value, or an object with one field per output column."""
        if len(self.values) == 1:
            return {"prediction": _typed(self.values[0].schema)}
        properties = {str(value.name): value.schema for value in self.values}
        schema = {"type": "object", "properties": properties, "required": [*properties]}
        return {"prediction": _typed(schema)}

    def predictions(self, table: pa.RecordBatch) -> Predictions:
        """Return one `{"prediction": …}` per row."""
        try:
            return self._predictions(self.values, columns(table, [value.name for value in self.values]))
        except ModelFailed:
            if not self.flexible:
                raise
        names = table.schema.names if table.num_columns > 1 else [None]
        return self._predictions([OutputColumn(name, "any", required=False) for name in names], table.columns)

    @staticmethod
    def _predictions(values: Sequence[OutputColumn], arrays: Sequence[pa.Array]) -> Predictions:
        texts = [value.to_json(array) for value, array in zip(values, arrays, strict=True)]
        if len(texts) == 1:
            return interleave(b'{"prediction":', texts[0], b"},")
        parts: list[bytes | JsonFragments] = []
        for index, (value, text) in enumerate(zip(values, texts, strict=True)):
            before = b"," if index else b'{"prediction":{'
            parts += [before + orjson.dumps(str(value.name)) + b":", text]
        return interleave(*parts, b"}},")


@dataclass(frozen=True, slots=True)
class WholeOutput:
    """The output of a model that does not return one result per row. It is returned as a whole.

    `schema` is its JSON Schema, as JSON.
    """

    schema: str

    @property
    def description(self) -> str:
        """One result for all rows."""
        return "one result for all rows of a request"

    @property
    def fields(self) -> dict[str, Any]:
        """`predictions`: the output, as `/invocations` returns it."""
        return {"predictions": _typed(json.loads(self.schema))}

    def predictions(self, table: pa.RecordBatch) -> Predictions:
        """Raise an error: there is no prediction per row.

        Raises:
            ModelFailed: always.
        """
        raise ModelFailed("it does not return one result per row")


@dataclass(frozen=True, slots=True)
class Regression:
    """One number per row."""

    name: str | None

    @property
    def description(self) -> str:
        """A number."""
        return "a number"

    @property
    def fields(self) -> dict[str, Any]:
        """`prediction`: a number."""
        return {"prediction": float}

    def predictions(self, table: pa.RecordBatch) -> Predictions:
        """Return one `{"prediction": number}` per row."""
        (array,) = columns(table, [self.name])
        if pa.types.is_fixed_size_list(array.type) and array.type.list_size == 1:
            array = array.flatten()
        return interleave(b'{"prediction":', OutputColumn(self.name, "number").to_json(array), b"},")


@dataclass(frozen=True, slots=True)
class Probabilities:
    """A probability per class and row, as `predict_proba` returns them."""

    classes: tuple[str, ...]

    @property
    def description(self) -> str:
        """The classes."""
        return f"the probabilities of {', '.join(self.classes)}"

    @property
    def fields(self) -> dict[str, Any]:
        """The class id, its name, and the probabilities by name."""
        properties = {name: {"type": "number"} for name in self.classes}
        schema = {"type": "object", "properties": properties, "required": [*self.classes]}
        return _class_fields(self.classes) | {
            "confidence": float,
            "probabilities": _typed(schema),
        }

    def predictions(self, table: pa.RecordBatch) -> Predictions:
        """Return the most likely class of each row; the first of equally likely ones."""
        probabilities = probability_matrix(table, self.classes)
        best, finite = probabilities.argmax(axis=1), np.isfinite(probabilities).all(axis=1)
        texts, width = number_fragments(probabilities), len(self.classes)
        heads = [head + b',"confidence":' for head in _heads(self.classes)]
        highest = np.arange(0, probabilities.size, width) + best
        parts: list[bytes | JsonFragments] = [
            JsonFragments([*map(heads.__getitem__, best.tolist())]),
            JsonFragments([*map(texts.__getitem__, highest.tolist())], np.flatnonzero(~finite).tolist()),
        ]
        for index, name in enumerate(self.classes):
            before = b"," if index else b',"probabilities":{'
            parts += [before + orjson.dumps(name) + b":", JsonFragments(texts[index::width])]
        return interleave(*parts, b"}},")


@dataclass(frozen=True, slots=True)
class ClassLabels:
    """A class per row, by id or by name, as `predict` returns them."""

    classes: tuple[str, ...]
    name: str | None

    @property
    def description(self) -> str:
        """The classes."""
        return f"one of the classes {', '.join(self.classes)}"

    @property
    def fields(self) -> dict[str, Any]:
        """The class id and its name."""
        return _class_fields(self.classes)

    def predictions(self, table: pa.RecordBatch) -> Predictions:
        """Return the class of each row."""
        (array,) = columns(table, [self.name])
        if pa.types.is_integer(array.type):
            indices = [int(value) for value in array.to_pylist() if value is not None]
        else:
            ids = {name: index for index, name in enumerate(self.classes)}
            indices = [ids.get(str(value), -1) for value in array.to_pylist()]
        if len(indices) != len(array) or not all(0 <= index < len(self.classes) for index in indices):
            raise ModelFailed("the model returned a class that its metadata does not list")
        heads = _heads(self.classes)
        return interleave(JsonFragments([heads[index] for index in indices]), b"},")


PredictionSchema: TypeAlias = GenericOutput | WholeOutput | Regression | Probabilities | ClassLabels


def prediction_schema_of(
    specs: Sequence[Mapping[str, Any]], task: str | None, classes: tuple[str, ...]
) -> PredictionSchema:
    """Return the schema for a signature's `outputs` and the `task` and `classes` of the metadata.

    Raises:
        UnsupportedSignature: task and signature contradict each other.
    """
    values = declared(specs) or (OutputColumn(None, "any", required=False),)
    if task == "classification":
        return _classification(values, classes)
    if task == "regression":
        if len(values) != 1 or values[0].kind not in ("number", "integer", "any"):
            raise UnsupportedSignature(
                "its task is regression, but its output signature is not one number a row"
            )
        return Regression(values[0].name)
    return GenericOutput(values)


def declared(specs: Sequence[Mapping[str, Any]]) -> tuple[OutputColumn, ...]:
    """Return the output columns that a signature's `outputs` declare."""
    return tuple(_value(spec) for spec in specs)


def _classification(values: tuple[OutputColumn, ...], classes: tuple[str, ...]) -> PredictionSchema:
    if not classes:
        raise UnsupportedSignature(
            "its task is classification, but metadata serving.classes names no classes"
        )
    wide = len(values) > 1 or bool(values[0].shape)
    if not wide:
        return ClassLabels(classes, values[0].name)
    width = len(values) if len(values) > 1 else values[0].shape[-1]
    if width not in (-1, len(classes)):
        raise UnsupportedSignature(
            f"its output signature has {width} columns, but metadata serving.classes names "
            f"{len(classes)} classes"
        )
    return Probabilities(classes)


def _value(spec: Mapping[str, Any]) -> OutputColumn:
    name = None if spec.get("name") is None else str(spec["name"])
    if spec["type"] == "tensor":
        tensor = spec["tensor-spec"]
        kind = _NUMPY_KINDS.get(np.dtype(tensor["dtype"]).kind, "any")
        return OutputColumn(name, kind, tuple(tensor["shape"][1:]))
    if spec["type"] in ("array", "object", "map"):
        type = json.dumps({key: value for key, value in spec.items() if key not in ("name", "required")})
        return OutputColumn(name, "nested", (), bool(spec.get("required", True)), type)
    return OutputColumn(name, _MLFLOW_KINDS.get(spec["type"], "any"), (), bool(spec.get("required", True)))


def probability_matrix(table: pa.RecordBatch, classes: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """Return the probabilities in an output, of shape (rows, classes).

    Raises:
        ModelFailed: the output has another form.
    """
    width = len(classes)
    if table.num_columns == 1 and pa.types.is_fixed_size_list(table.schema.field(0).type):
        array = table.column(0)
        if array.type.list_size == width:
            flat: np.ndarray[Any, Any] = array.flatten().to_numpy(zero_copy_only=False)
            return flat.reshape(-1, width)
    elif table.num_columns == width:
        by_name = set(table.schema.names) == set(classes)
        columns = [table.column(name) for name in classes] if by_name else table.columns
        return np.column_stack([column.to_numpy(zero_copy_only=False) for column in columns])
    raise ModelFailed(f"the model did not return one probability for each of {width} classes")


@lru_cache(maxsize=64)
def _heads(classes: tuple[str, ...]) -> list[bytes]:
    """Return the beginning of the prediction of each class."""
    return [
        orjson.dumps({"prediction": index, "label": name}).removesuffix(b"}")
        for index, name in enumerate(classes)
    ]


def _class_fields(classes: tuple[str, ...]) -> dict[str, Any]:
    ids = {"type": "integer", "minimum": 0, "maximum": len(classes) - 1}
    return {
        "prediction": _typed(ids),
        "label": _typed({"type": "string", "enum": [*classes]}),
    }


def _typed(schema: dict[str, Any]) -> Any:
    return Annotated[Any, WithJsonSchema(schema)]
