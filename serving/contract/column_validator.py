"""Validates columns from any protocol against a contract, and returns the rows for the model.

Validation follows MLflow: columns that are not in the signature are ignored, and nulls are valid wherever
pyfunc accepts them, also in required columns, because MLflow requires the column and not its values. Types
are as strict as on the typed endpoints.
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
"""The values of a column: JSON values, with None for null, or an Arrow array."""


class _InvalidColumn(ValueError):
    """The values of a column do not match its type."""


class ColumnValidator:
    """Validates columns against one contract."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._validators = {column.name: _validator(column) for column in contract.columns}

    def validate(self, columns: Mapping[str, Given], **metadata: Any) -> pa.RecordBatch:
        """Return the rows of columns.

        Args:
            columns: The values by column name. The type of an array may be narrower than the column's type:
                integers are valid for doubles.
            metadata: `gaps`, the rows in which a column was omitted, and `index`, that of the DataFrame.

        Raises:
            BodyTooLarge: There are more rows than the contract allows.
            Unprocessable: They do not match the contract.
        """
        self._check_lengths(columns)
        arrays: dict[str, pa.Array] = {}
        errors: list[FieldError] = []
        for column in self._contract.columns:
            values = columns.get(column.name)
            try:
                if values is not None:
                    is_array = isinstance(values, pa.Array)
                    convert = self._convert_array if is_array else self._convert_values
                    arrays[column.name] = convert(column, values)
                elif column.required:
                    errors.append(FieldError((column.name,), "Field required"))
            except ValidationError as error:
                details = error.errors(include_url=False, include_input=False, include_context=False)
                errors += [FieldError((column.name, *detail["loc"]), detail["msg"]) for detail in details]
            except _InvalidColumn as error:
                errors.append(FieldError((column.name,), str(error)))
        if errors:
            raise self._contract.refusal(errors)
        table = self._contract.layout.table(arrays)
        # Without columns the model receives no rows, so there is nothing to label.
        encoded = {name: json.dumps(value) for name, value in metadata.items() if value and arrays}
        return table.replace_schema_metadata(encoded) if encoded else table

    def revalidate(self, rows: Rows) -> Rows:
        """Return rows that another version's contract accepted in the types of this contract.

        Raises:
            BodyTooLarge: There are more rows than the contract allows.
            Unprocessable: They do not match the contract.
        """
        if not isinstance(rows, pa.RecordBatch):
            return rows
        columns = zip(rows.schema, rows.columns, strict=True)
        metadata = {name.decode(): json.loads(value) for name, value in (rows.schema.metadata or {}).items()}
        return self.validate(
            {field.name: to_python(column) if field.type == JSON else column for field, column in columns},
            **metadata,
        )

    def _check_lengths(self, columns: Mapping[str, Sized]) -> None:
        known = [columns[column.name] for column in self._contract.columns if column.name in columns]
        lengths = {len(values) for values in known}
        if len(lengths) > 1:
            raise self._contract.refusal([FieldError((), "The columns differ in length")])
        rows = lengths.pop() if lengths else 0
        if rows > self._contract.max_rows:
            raise BodyTooLarge(f"There are more than {self._contract.max_rows} rows.")
        if known and not rows:
            raise self._contract.refusal([FieldError((), "There are no rows")])

    def _convert_values(self, column: Column, values: Sequence[Any]) -> pa.Array:
        validated = self._validators[column.name].validate_python(values)
        try:
            return column.kind.array(validated)
        except ValueError:
            raise _InvalidColumn("The arrays of all rows should have one shape") from None

    def _convert_array(self, column: Column, array: pa.Array) -> pa.Array:
        kind = column.kind
        if types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if isinstance(kind, Scalar) and _accepts(kind.arrow, array.type):
            cast = _cast(array, kind)
            if not {keyword for keyword, _ in column.constraints} - ANNOTATIONS:
                return cast
        if isinstance(kind, Tensor) and types.is_fixed_size_list(array.type) == bool(kind.shape):
            return _tensor(kind, from_list_array(array))
        return self._convert_values(column, array.to_pylist(maps_as_pydicts="strict"))


def _validator(column: Column) -> Any:
    kind = column.kind
    value: Any = kind.annotation(dict(column.constraints))
    if kind.nullable:
        value = value | None
    return validator(list[value])


def _accepts(target: pa.DataType, source: pa.DataType) -> bool:
    """Return whether all values of type `source` are valid for `target`, apart from its range."""
    return any(
        is_target(target) and any(is_source(source) for is_source in sources)
        for is_target, sources in _ACCEPTED
    )


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
        raise _InvalidColumn(f"MLflow accepts no null in a column of type {kind.name}: omit the column")
    if types.is_timestamp(array.type) and array.type.tz:
        array = array.cast(pa.timestamp(array.type.unit, "UTC")).cast(pa.timestamp(array.type.unit))
    try:
        cast = array.cast(kind.arrow)
    except pa.ArrowInvalid:
        raise _InvalidColumn(f"Input should be in the range of a {kind.name}") from None
    if types.is_floating(cast.type) and not compute.all(compute.is_finite(cast), min_count=0).as_py():
        raise _InvalidColumn("Input should be a finite number")
    return cast


def _tensor(kind: Tensor, array: np.ndarray[Any, Any]) -> pa.Array:
    shape = array.shape[1:]
    if len(shape) != len(kind.shape) or any(
        size not in (expected, -1) and expected != -1
        for size, expected in zip(shape, kind.shape, strict=True)
    ):
        raise _InvalidColumn(f"Input should be of shape {[*kind.shape]} a row")
    if kind.dtype in ("str", "object"):
        return kind.array([*array])
    dtype = np.dtype(kind.dtype)
    kinds = array.dtype.kind + dtype.kind
    if kinds not in ("iu", "ui", "bb") and ("b" in kinds or not np.can_cast(array.dtype, dtype, "same_kind")):
        raise _InvalidColumn(f"Input should be of type {kind.dtype}")
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(cast, array):
        raise _InvalidColumn(f"Input should be in the range of {kind.dtype}")
    if dtype.kind == "f" and not np.isfinite(cast).all():
        raise _InvalidColumn("Input should be a finite number")
    return to_list_array(cast)
