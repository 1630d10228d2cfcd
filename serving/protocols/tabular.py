"""Parsing and rendering of tables: CSV, Parquet and Arrow streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from serving.codecs import model_output
from serving.errors import BodyTooLarge, Malformed
from serving.text import shorten
from serving.types.column_type import ColumnType
from serving.types.columns import Column
from serving.types.nested import JSON
from serving.types.scalars import Scalar
from serving.types.tensors import from_list_array

CSV = "text/csv"
PARQUET = "application/vnd.apache.parquet"
ARROW = "application/vnd.apache.arrow.stream"
_MAX_EXPANSION_FACTOR = 20
# The texts that pandas reads as missing values; MLflow reads CSV with pandas.
NULL_VALUES = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A",
    "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip

Columns = Mapping[str, pa.Array]


def read(media_type: str, body: bytes, columns: Mapping[str, Column], max_rows: int) -> Columns:
    """Return the columns of a table; the types of `columns` apply to CSV.

    Raises:
        Malformed: the body is not in this format, or repeats a column name.
        BodyTooLarge: the table has more than `max_rows` rows, or expands to many times the size of the body.
    """
    try:
        table = _READERS[media_type](body, columns, max_rows)
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Malformed(f"The body is no {media_type}: {shorten(str(error), 200)}") from None
    if table.num_rows > max_rows:
        raise BodyTooLarge(f"There are more than {max_rows} rows.")
    if len({*table.column_names}) != table.num_columns:
        raise Malformed("A column is named twice.")
    return {name: _combine_chunks(table.column(name)) for name in table.column_names}


def write(media_type: str, output: pa.RecordBatch) -> bytes:
    """Return a model's output in a format."""
    sink = BytesIO()
    names = (
        ["predictions"]
        if model_output.form(output) is model_output.OutputForm.VALUES
        else output.schema.names
    )
    columns = [column.storage if column.type == JSON else column for column in output.columns]
    _WRITERS[media_type](pa.table(columns, names=names), sink)
    return sink.getvalue()


def _combine_chunks(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([])])


def _csv(body: bytes, columns: Mapping[str, Column], max_rows: int) -> pa.Table:
    options = csv.ConvertOptions(
        column_types={name: _csv_type(column.kind) for name, column in columns.items()},
        null_values=NULL_VALUES,
        strings_can_be_null=True,
        true_values=["true", "True", "TRUE"],
        false_values=["false", "False", "FALSE"],
    )
    return csv.read_csv(BytesIO(body), csv.ReadOptions(use_threads=False), convert_options=options)


def _csv_type(kind: ColumnType) -> pa.DataType:
    return kind.arrow if isinstance(kind, Scalar) and kind.convert is None else pa.string()


def _parquet(body: bytes, columns: Mapping[str, Column], max_rows: int) -> pa.Table:
    with parquet.ParquetFile(BytesIO(body)) as file:
        meta = file.metadata
        size = sum(meta.row_group(index).total_byte_size for index in range(meta.num_row_groups))
        if meta.num_rows > max_rows or size > _MAX_EXPANSION_FACTOR * max(len(body), 2**16):
            raise BodyTooLarge(f"There are more than {max_rows} rows, or too many bytes when unpacked.")
        return file.read(use_threads=False)


def _arrow(body: bytes, columns: Mapping[str, Column], max_rows: int) -> pa.Table:
    return pa.ipc.open_stream(body).read_all()


def _write_csv(table: pa.Table, sink: BytesIO) -> None:
    columns: dict[str, pa.Array] = {}
    for name in table.column_names:
        column = _combine_chunks(table.column(name))
        if not pa.types.is_fixed_size_list(column.type):
            columns[name] = column
            continue
        matrix = from_list_array(column).reshape(len(column), -1)
        columns |= {f"{name}_{index}": pa.array(matrix[:, index]) for index in range(matrix.shape[1])}
    csv.write_csv(pa.table(columns), sink)


def _write_parquet(table: pa.Table, sink: BytesIO) -> None:
    parquet.write_table(table, sink)


def _write_arrow(table: pa.Table, sink: BytesIO) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


_READERS: Mapping[str, Callable[[bytes, Mapping[str, Column], int], Any]] = {
    CSV: _csv,
    PARQUET: _parquet,
    ARROW: _arrow,
}
_WRITERS: Mapping[str, Callable[[pa.Table, BytesIO], None]] = {
    CSV: _write_csv,
    PARQUET: _write_parquet,
    ARROW: _write_arrow,
}
