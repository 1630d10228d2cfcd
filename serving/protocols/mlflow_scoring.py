"""MLflow's scoring protocol: the rows and parameters in a JSON body that `mlflow models serve` takes.

https://mlflow.org/docs/latest/genai/serving/#request-formats names the forms: `dataframe_split`,
`dataframe_records`, `instances` and `inputs`. A body may also be one input without such a name, of a chat, a
completion or an embedding: an object with `messages`, `prompt` or `input`.
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
from serving.errors import Malformed, Unprocessable
from serving.types.columns import Column
from serving.types.nested import Nested
from serving.types.tensors import Tensor

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
UNWRAPPED = ("messages", "prompt", "input")
"""A body with one of these fields is one input, and its answer stands alone, not under `predictions`."""
Columns = dict[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """The rows that a body asks for, and the parameters."""

    rows: pa.RecordBatch
    params: Mapping[str, Any]
    unwrapped: bool = False


class ScoringParser:
    """Reads the bodies of one contract."""

    def __init__(self, contract: Contract, intake: ColumnValidator) -> None:
        self._contract, self._intake = contract, intake
        self._names = [column.name for column in contract.columns]
        self._one_row = any(isinstance(column.kind, Nested) for column in contract.columns)

    def read(self, body: bytes) -> ParsedRequest:
        """The rows and the parameters of a JSON body.

        Raises:
            Malformed: it is not JSON, or names a field twice.
            BodyTooLarge: there are more rows than the contract takes.
            Unprocessable: it has none of the forms, or does not fit the contract.
        """
        document = _parsed(body)
        if not document.keys().isdisjoint(UNWRAPPED):
            return self._unwrapped(document)
        forms = [form for form in FORMS if form in document]
        unknown = document.keys() - {*FORMS, "params"}
        if len(forms) != 1 or unknown:
            told = ", ".join(sorted(name[:50] for name in document)) or "nothing"
            _refuse(f"Send exactly one of {', '.join(FORMS)}, and params if need be; the body has {told}.")
        found = document[forms[0]]
        own: dict[str, Any] = {}
        match forms[0]:
            case "dataframe_split":
                columns = self._arranged(*_split(found, self._contract.form, self._names))
                own = {"index": self._index(found.get("index"), len(found["data"]))}
            case "dataframe_records":
                columns = self._arranged(*_records(found, forms[0]))
                own = {"gaps": self._contract.layout.gaps(found)}
            case "instances":
                columns = self._instances(found)
            case _:
                columns = self._inputs(found)
        params = document.get("params")
        params = self._contract.read_params({} if params is None else params)
        return ParsedRequest(self._intake.validate(columns, **own), params)

    def _unwrapped(self, document: dict[str, Any]) -> ParsedRequest:
        """One input: its fields are columns, or parameters where the model has such."""
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
            self._intake.validate(columns), self._contract.read_params(params), unwrapped=True
        )

    def _index(self, index: Any, rows: int) -> list[Any] | None:
        """The index of a DataFrame; None where it only counts the rows."""
        if index is None or self._contract.form not in (InputKind.FRAME, InputKind.UNNAMED_FRAME):
            return None
        if not isinstance(index, list) or not all(isinstance(label, int | float | str) for label in index):
            _refuse("dataframe_split.index should be a list of numbers or texts.")
        if len(index) != rows:
            _refuse(f"dataframe_split.index should have {rows} labels, one for each row of data.")
        return None if index == [*range(rows)] else index

    def from_table(self, table: Mapping[str, pa.Array]) -> pa.RecordBatch:
        """Return the rows of a table of Arrow arrays; raises as `read` does."""
        if self._contract.form is InputKind.FRAME:
            # pandas reads a missing text as NaN, where JSON's null is None.
            empty = (name for name, array in table.items() if array.null_count == len(array) > 0)
            texts = {column.name for column in self._contract.columns if column.type == "string"}
            return self._intake.validate(
                table, gaps={name: [*range(len(table[name]))] for name in empty if name in texts}
            )
        return self._intake.validate(
            self._arranged([*table], [array.to_pylist() for array in table.values()])
        )

    def _arranged(self, names: Sequence[str], columns: Sequence[Sequence[Any]]) -> Columns:
        """The columns of a table as those of the contract."""
        form = self._contract.form
        if form is InputKind.LIST:
            _refuse("This model takes values, not a table: send inputs.")
        if form is InputKind.UNNAMED_FRAME:
            return dict(zip(self._names, columns, strict=False))
        if form is InputKind.ARRAY:
            rows = columns[0] if len(columns) == 1 else [[*row] for row in zip(*columns, strict=True)]
            return {self._names[0]: _shaped(rows, self._contract.columns[0])}
        given = dict(zip(names, columns, strict=True))
        known = [column for column in self._contract.columns if column.name in given]
        return {column.name: _shaped(given[column.name], column) for column in known}

    def _instances(self, found: Any) -> Columns:
        if not isinstance(found, list):
            _refuse("instances should be a list of rows.")
        if found and isinstance(found[0], dict) and self._contract.form is not InputKind.LIST:
            return self._arranged(*_records(found, "instances"))
        return {self._only("instances"): found}

    def _inputs(self, found: Any) -> Columns:
        if self._contract.form is InputKind.LIST:
            return {self._names[0]: found if isinstance(found, list) else [found]}
        if isinstance(found, dict):
            if self._contract.form is InputKind.ARRAY:
                _refuse("This model takes one array without a name: send inputs as lists.")
            if self._contract.form is InputKind.ARRAYS:
                return {name: _list(values, name) for name, values in found.items()}
            alone = self._one_row or not any(isinstance(value, list) for value in found.values())
            return {name: [value] if alone else _list(value, name) for name, value in found.items()}
        if isinstance(found, list) and found and all(isinstance(row, dict) for row in found):
            return self._arranged(*_records(found, "inputs"))
        return {self._only("inputs"): found if isinstance(found, list) else [found]}

    def _only(self, form: str) -> str:
        if len(self._names) != 1:
            _refuse(f"This model has {len(self._names)} inputs: {form} should name them.")
        return self._names[0]


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except ValueError as error:
        raise Malformed(f"The body is not JSON: {error}") from None
    if not isinstance(document, dict):
        _refuse("The body should be a JSON object.")
    refuse_repeats(body, _fields(document))
    return document


def _fields(document: Mapping[str, Any]) -> int:
    """How many fields a body has that nests no objects but rows and the protocol's own."""
    below = [each for value in document.values() for each in (value if isinstance(value, list) else [value])]
    return len(document) + sum(len(each) for each in below if isinstance(each, dict))


def _split(
    found: Any, form: InputKind, known: Sequence[str]
) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
    if not isinstance(found, dict) or "data" not in found or found.keys() - {"data", "columns", "index"}:
        _refuse("dataframe_split should be an object with data, columns, and perhaps an index.")
    rows = found["data"]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        _refuse("dataframe_split.data should be a list of lists.")
    names = found.get("columns")
    numbered = [str(index) for index in range(len(rows[0]) if rows else len(known))]
    if names is None and (form not in (InputKind.FRAME, InputKind.ARRAYS) or numbered == [*known]):
        names = numbered
    if not isinstance(names, list) or len({*map(str, names)}) != len(names):
        _refuse("dataframe_split.columns should be a list of different names.")
    if any(len(row) != len(names) for row in rows):
        _refuse(f"dataframe_split.data should have {len(names)} values in each row, one for each column.")
    return [*map(str, names)], [*zip(*rows, strict=True)] if rows else [()] * len(names)


def _records(found: Any, form: str) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        _refuse(f"{form} should be a list of objects.")
    names = [*dict.fromkeys(name for row in found for name in row)]
    return names, [[row.get(name) for row in found] for name in names]


def _shaped(values: Sequence[Any], column: Column) -> Sequence[Any]:
    """The cells of a table in the shape of their tensor: one may be flat, or a number for an array of one."""
    kind = column.kind
    if not isinstance(kind, Tensor) or min(kind.shape, default=1) < 0:
        return values
    if kind.shape == (1,):
        return [value if isinstance(value, list) else [value] for value in values]
    if len(kind.shape) > 1 and all(isinstance(value, list) and _is_flat(value) for value in values):
        size = int(np.prod(kind.shape))
        return [_folded(value, kind.shape) if len(value) == size else value for value in values]
    return values


def _is_flat(value: list[Any]) -> bool:
    return not any(isinstance(each, list) for each in value)


def _folded(flat: list[Any], shape: tuple[int, ...]) -> list[Any]:
    if len(shape) == 1:
        return flat
    width = len(flat) // shape[0]
    return [_folded(flat[start : start + width], shape[1:]) for start in range(0, len(flat), width)]


def _list(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list):
        _refuse(f"{name[:50]} should be a list.")
    return value


def _refuse(detail: str) -> NoReturn:
    raise Unprocessable(detail)
