"""Parsing of JSON bodies in MLflow's scoring protocol, as `mlflow models serve` accepts them.

https://mlflow.org/docs/latest/genai/serving/#request-formats lists the forms: `dataframe_split`,
`dataframe_records`, `instances` and `inputs`. A body may also be a single chat, completion or embedding
request: an object with `messages`, `prompt` or `input`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import orjson
import pyarrow as pa

from serving.codecs.json_fields import refuse_repeats
from serving.codecs.model_input import InputKind
from serving.contract.column_validator import ColumnValidator
from serving.contract.contract import Contract
from serving.errors import FieldError, Malformed, Unprocessable
from serving.types.columns import Column
from serving.types.nested import Nested
from serving.types.tensors import Tensor

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
UNWRAPPED = ("messages", "prompt", "input")
"""A body with one of these fields is one input, and the response is its output without `predictions`."""
Columns = dict[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """The rows and model parameters of a body."""

    rows: pa.RecordBatch
    params: Mapping[str, Any]
    unwrapped: bool = False


class ScoringParser:
    """Parses bodies for one contract."""

    def __init__(self, contract: Contract, validator: ColumnValidator) -> None:
        self._contract, self._validator = contract, validator
        self._names = [column.name for column in contract.columns]
        self._one_row = any(isinstance(column.kind, Nested) for column in contract.columns)

    def read(self, body: bytes) -> ParsedRequest:
        """Return the rows and the parameters of a JSON body.

        Raises:
            Malformed: the body is not JSON, or repeats a field.
            BodyTooLarge: there are more rows than the contract allows.
            Unprocessable: the body has none of the forms, or does not match the contract.
        """
        return self.parse(parse_object(body))

    def parse(self, document: dict[str, Any]) -> ParsedRequest:
        """Return the rows and the parameters of a parsed body; raises as `read`."""
        if not document.keys().isdisjoint(UNWRAPPED):
            return self._unwrapped(document)
        forms = [form for form in FORMS if form in document]
        unknown = document.keys() - {*FORMS, "params"}
        if len(forms) != 1 or unknown:
            fields = ", ".join(sorted(name[:50] for name in document)) or "nothing"
            _refuse(f"Send exactly one of {', '.join(FORMS)}, and params if need be; the body has {fields}.")
        content = document[forms[0]]
        options: dict[str, Any] = {}
        match forms[0]:
            case "dataframe_split":
                columns = self._from_columns(*_split(content, self._contract.form, self._names))
                options = {"index": self._index(content.get("index"), len(content["data"]))}
            case "dataframe_records":
                columns = self._from_columns(*_records(content, forms[0]))
                options = {"gaps": self._contract.layout.gaps(content)}
            case "instances":
                columns = self._instances(content)
            case _:
                columns = self._inputs(content)
        params = document.get("params")
        params = self._contract.read_params({} if params is None else params)
        return ParsedRequest(self._validator.validate(columns, **options), params)

    def _unwrapped(self, document: dict[str, Any]) -> ParsedRequest:
        """Return a body that is one input; its fields are columns, or parameters that the model declares."""
        named = {param.name for param in self._contract.params}
        params = {name: value for name, value in document.items() if name in named}
        fields = {name: value for name, value in document.items() if name not in named}
        if self._contract.form is InputKind.FRAME:
            columns: Columns = {name: [value] for name, value in fields.items()}
        elif self._contract.form is InputKind.LIST:
            columns = {self._names[0]: [document]}
        else:
            (value, *_) = fields.values()
            columns = {self._only("the body"): value if isinstance(value, list) else [value]}
        return ParsedRequest(
            self._validator.validate(columns), self._contract.read_params(params), unwrapped=True
        )

    def _index(self, index: Any, rows: int) -> list[Any] | None:
        """Return the index of a data frame; None if it only counts the rows."""
        if index is None or self._contract.form not in (InputKind.FRAME, InputKind.UNNAMED_FRAME):
            return None
        if not isinstance(index, list) or not all(isinstance(label, int | float | str) for label in index):
            _refuse("dataframe_split.index should be a list of numbers or texts.")
        if len(index) != rows:
            _refuse(f"dataframe_split.index should have {rows} labels, one for each row of data.")
        return None if index == [*range(rows)] else index

    def from_table(self, table: Mapping[str, pa.Array]) -> pa.RecordBatch:
        """Return the rows of a table of Arrow arrays; raises as `read`."""
        if self._contract.form is InputKind.FRAME:
            # pandas represents a missing text in a table as NaN, and null in JSON as None.
            empty = (name for name, array in table.items() if array.null_count == len(array) > 0)
            texts = {column.name for column in self._contract.columns if column.type == "string"}
            return self._validator.validate(
                table, gaps={name: [*range(len(table[name]))] for name in empty if name in texts}
            )
        return self._validator.validate(
            self._from_columns([*table], [array.to_pylist() for array in table.values()])
        )

    def from_named_table(self, table: Mapping[str, pa.Array]) -> pa.RecordBatch:
        """Return the rows of a table with the contract's column names, in any order; raises as `read`.

        An unknown column is an error, as an unknown field is in a typed row.
        """
        if unknown := [name for name in table if name not in self._names]:
            errors = [FieldError((name,), "Extra inputs are not permitted") for name in unknown]
            raise self._contract.refusal(errors)
        if not table and not any(column.required for column in self._contract.columns):
            _refuse(f"The rows have no values: send {', '.join(self._names)}.")
        if self._contract.form is InputKind.FRAME:
            return self.from_table(table)
        return self._validator.validate(table)

    def _from_columns(self, names: Sequence[str], columns: Sequence[Sequence[Any]]) -> Columns:
        """Return the columns of a table under the names of the contract."""
        form = self._contract.form
        if form is InputKind.LIST:
            _refuse("This model takes values, not a table: send inputs.")
        if form is InputKind.UNNAMED_FRAME:
            return dict(zip(self._names, columns, strict=False))
        if form is InputKind.ARRAY:
            rows = columns[0] if len(columns) == 1 else [[*row] for row in zip(*columns, strict=True)]
            return {self._names[0]: _shaped(rows, self._contract.columns[0])}
        sent = dict(zip(names, columns, strict=True))
        known = [column for column in self._contract.columns if column.name in sent]
        return {column.name: _shaped(sent[column.name], column) for column in known}

    def _instances(self, rows: Any) -> Columns:
        if not isinstance(rows, list):
            _refuse("instances should be a list of rows.")
        if rows and isinstance(rows[0], dict) and self._contract.form is not InputKind.LIST:
            return self._from_columns(*_records(rows, "instances"))
        return {self._only("instances"): rows}

    def _inputs(self, inputs: Any) -> Columns:
        if self._contract.form is InputKind.LIST:
            return {self._names[0]: inputs if isinstance(inputs, list) else [inputs]}
        if isinstance(inputs, dict):
            if self._contract.form is InputKind.ARRAY:
                _refuse("This model takes one array without a name: send inputs as lists.")
            if self._contract.form is InputKind.ARRAYS:
                return {name: _list(values, name) for name, values in inputs.items()}
            alone = self._one_row or not any(isinstance(value, list) for value in inputs.values())
            return {name: [value] if alone else _list(value, name) for name, value in inputs.items()}
        if isinstance(inputs, list) and inputs and all(isinstance(row, dict) for row in inputs):
            return self._from_columns(*_records(inputs, "inputs"))
        return {self._only("inputs"): inputs if isinstance(inputs, list) else [inputs]}

    def _only(self, form: str) -> str:
        if len(self._names) != 1:
            _refuse(f"This model has {len(self._names)} inputs: {form} should name them.")
        return self._names[0]


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises:
        Malformed: the body is not JSON, or repeats a field.
        Unprocessable: the body is no object.
    """
    try:
        document = orjson.loads(body)
    except ValueError as error:
        raise Malformed(f"The body is not JSON: {error}") from None
    if not isinstance(document, dict):
        _refuse("The body should be a JSON object.")
    refuse_repeats(body, _fields(document))
    return document


def _fields(document: Mapping[str, Any]) -> int:
    """Return the number of fields of a body in which only rows and the protocol's own objects are nested."""
    nested = [part for value in document.values() for part in (value if isinstance(value, list) else [value])]
    return len(document) + sum(len(part) for part in nested if isinstance(part, dict))


def _split(
    frame: Any, form: InputKind, known: Sequence[str]
) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
    if not isinstance(frame, dict) or "data" not in frame or frame.keys() - {"data", "columns", "index"}:
        _refuse("dataframe_split should be an object with data, columns, and perhaps an index.")
    rows = frame["data"]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        _refuse("dataframe_split.data should be a list of lists.")
    names = frame.get("columns")
    numbered = [str(index) for index in range(len(rows[0]) if rows else len(known))]
    if names is None and (form not in (InputKind.FRAME, InputKind.ARRAYS) or numbered == [*known]):
        names = numbered
    if not isinstance(names, list) or len({*map(str, names)}) != len(names):
        _refuse("dataframe_split.columns should be a list of different names.")
    if any(len(row) != len(names) for row in rows):
        _refuse(f"dataframe_split.data should have {len(names)} values in each row, one for each column.")
    return [*map(str, names)], [*zip(*rows, strict=True)] if rows else [()] * len(names)


def _records(rows: Any, form: str) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        _refuse(f"{form} should be a list of objects.")
    names = [*dict.fromkeys(name for row in rows for name in row)]
    return names, [[row.get(name) for row in rows] for name in names]


def _shaped(values: Sequence[Any], column: Column) -> Sequence[Any]:
    """Return the cells of a table in the shape of their tensor.

    A cell may be a flat list, or a number if the tensor has one element.
    """
    type_ = column.kind
    if not isinstance(type_, Tensor) or min(type_.shape, default=1) < 0:
        return values
    if type_.shape == (1,):
        return [value if isinstance(value, list) else [value] for value in values]
    if len(type_.shape) > 1 and all(isinstance(value, list) and _is_flat(value) for value in values):
        size = int(np.prod(type_.shape))
        return [_reshaped(value, type_.shape) if len(value) == size else value for value in values]
    return values


def _is_flat(value: list[Any]) -> bool:
    return not any(isinstance(element, list) for element in value)


def _reshaped(flat: list[Any], shape: tuple[int, ...]) -> list[Any]:
    if len(shape) == 1:
        return flat
    width = len(flat) // shape[0]
    return [_reshaped(flat[start : start + width], shape[1:]) for start in range(0, len(flat), width)]


def _list(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list):
        _refuse(f"{name[:50]} should be a list.")
    return value


def _refuse(detail: str) -> NoReturn:
    raise Unprocessable(detail)
