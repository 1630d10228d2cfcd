"""Columns that came in any protocol, checked by a contract: the rows that a model is asked with.

They are taken as MLflow takes them: columns that the signature does not name are passed over, and a null may
stand wherever pyfunc takes one, in required columns too, since to MLflow a column is required, not a value.
Types are as strict as on the typed endpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from pyarrow import compute, types
from pydantic import ValidationError

from serving.codecs.model_input import Rows
from serving.contract.contract import Contract, validator
from serving.errors import BodyTooLarge, FieldError
from serving.types.columns import Column
from serving.types.constraints import ANNOTATIONS
from serving.types.nested import JSON, to_python
from serving.types.scalars import Scalar
from serving.types.tensors import Tensor, from_list_array, to_list_array

Given: TypeAlias = Sequence[Any] | pa.Array


class _InvalidColumn(ValueError):
    """A column is not of its type."""


class ColumnValidator:
    """Checks columns by one contract."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._readers = {column.name: _reader(column) for column in contract.columns}

    def validate(self, columns: Mapping[str, Given], **metadata: Any) -> pa.RecordBatch:
        """Return the rows of columns of values as JSON has them, None for null, or of Arrow arrays.

        The arrays are of the columns' types or such as those hold: integers for doubles, say. The
        `metadata` are `gaps`, the rows in which a column was left out, and `index`, that of the DataFrame.

        Raises:
            BodyTooLarge: there are more rows than the contract takes.
            Unprocessable: they do not fit the contract.
        """
        self._check_lengths(columns)
        found: dict[str, pa.Array] = {}
        faults: list[FieldError] = []
        for column in self._contract.columns:
            given = columns.get(column.name)
            try:
                if given is not None:
                    is_array = isinstance(given, pa.Array)
                    found[column.name] = (self._of_array if is_array else self._of_values)(column, given)
                elif column.required:
                    faults.append(FieldError((column.name,), "Field required"))
            except ValidationError as error:
                found_out = error.errors(include_url=False, include_input=False, include_context=False)
                faults += [FieldError((column.name, *fault["loc"]), fault["msg"]) for fault in found_out]
            except _InvalidColumn as error:
                faults.append(FieldError((column.name,), str(error)))
        if faults:
            raise self._contract.refusal(faults)
        table = self._contract.layout.table(found)
        own = {name: json.dumps(value) for name, value in metadata.items() if value}
        return table.replace_schema_metadata(own) if own else table

    def revalidate(self, rows: Rows) -> Rows:
        """Rows that another version's contract has taken, in the types of this one; raises as `take` does."""
        if not isinstance(rows, pa.RecordBatch):
            return rows
        columns = zip(rows.schema, rows.columns, strict=True)
        own = {name.decode(): json.loads(value) for name, value in (rows.schema.metadata or {}).items()}
        return self.validate(
            {field.name: to_python(column) if field.type == JSON else column for field, column in columns},
            **own,
        )

    def _check_lengths(self, columns: Mapping[str, Sized]) -> None:
        known = [columns[column.name] for column in self._contract.columns if column.name in columns]
        lengths = {len(given) for given in known}
        if len(lengths) > 1:
            raise self._contract.refusal([FieldError((), "The columns differ in length")])
        rows = lengths.pop() if lengths else 0
        if rows > self._contract.max_rows:
            raise BodyTooLarge(f"There are more than {self._contract.max_rows} rows.")
        if known and not rows:
            raise self._contract.refusal([FieldError((), "There are no rows")])

    def _of_values(self, column: Column, values: Sequence[Any]) -> pa.Array:
        read = self._readers[column.name].validate_python(values)
        try:
            return column.kind.array(read)
        except ValueError:
            raise _InvalidColumn("The arrays of all rows should have one shape") from None

    def _of_array(self, column: Column, array: pa.Array) -> pa.Array:
        kind = column.kind
        if types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if isinstance(kind, Scalar) and _accepts(kind.arrow, array.type):
            cast = _cast(array, kind)
            if not {word for word, _ in column.constraints} - ANNOTATIONS:
                return cast
        if isinstance(kind, Tensor) and types.is_fixed_size_list(array.type) == bool(kind.shape):
            return _tensor(kind, from_list_array(array))
        return self._of_values(column, array.to_pylist(maps_as_pydicts="strict"))


def _reader(column: Column) -> Any:
    kind = column.kind
    value: Any = kind.annotation(dict(column.constraints))
    if kind.nullable:
        value = value | None
    return validator(list[value])


def _accepts(wanted: pa.DataType, given: pa.DataType) -> bool:
    """Whether every value of a type, but for its range, is one of another."""
    return any(is_wanted(wanted) and any(holds(given) for holds in held) for is_wanted, held in _ACCEPTED)


_ACCEPTED: tuple[tuple[Callable[[pa.DataType], bool], tuple[Callable[[pa.DataType], bool], ...]], ...] = (
    (types.is_floating, (types.is_floating, types.is_integer)),
    (types.is_integer, (types.is_integer,)),
    (types.is_boolean, (types.is_boolean,)),
    (types.is_timestamp, (types.is_timestamp, types.is_date)),
    (types.is_string, (types.is_string, types.is_large_string, types.is_string_view)),
    (types.is_binary, (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)),
)


def _cast(array: pa.Array, kind: Scalar) -> pa.Array:
    if array.null_count and not kind.nullable:
        raise _InvalidColumn(f"MLflow takes no null in a column of type {kind.told}: leave the column out")
    if types.is_timestamp(array.type) and array.type.tz:
        array = array.cast(pa.timestamp(array.type.unit, "UTC")).cast(pa.timestamp(array.type.unit))
    try:
        cast = array.cast(kind.arrow)
    except pa.ArrowInvalid:
        raise _InvalidColumn(f"Input should be in the range of a {kind.told}") from None
    if types.is_floating(cast.type) and not compute.all(compute.is_finite(cast), min_count=0).as_py():
        raise _InvalidColumn("Input should be a finite number")
    return cast


def _tensor(kind: Tensor, given: np.ndarray[Any, Any]) -> pa.Array:
    shape = given.shape[1:]
    if len(shape) != len(kind.shape) or any(
        size not in (wanted, -1) and wanted != -1 for size, wanted in zip(shape, kind.shape, strict=True)
    ):
        raise _InvalidColumn(f"Input should be of shape {[*kind.shape]} a row")
    if kind.dtype in ("str", "object"):
        return kind.array([*given])
    wanted = np.dtype(kind.dtype)
    kinds = given.dtype.kind + wanted.kind
    if kinds not in ("iu", "ui", "bb") and (
        "b" in kinds or not np.can_cast(given.dtype, wanted, "same_kind")
    ):
        raise _InvalidColumn(f"Input should be of type {kind.dtype}")
    with np.errstate(over="ignore"):
        cast = given.astype(wanted)
    if wanted.kind in "iu" and not np.array_equal(cast, given):
        raise _InvalidColumn(f"Input should be in the range of {kind.dtype}")
    if wanted.kind == "f" and not np.isfinite(cast).all():
        raise _InvalidColumn("Input should be a finite number")
    return to_list_array(cast)
