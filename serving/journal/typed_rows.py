"""Convert the tables of other protocols to the JSON of the typed routes."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pyarrow as pa

from serving.codecs.model_input import objects
from serving.codecs.observed_output import is_whole
from serving.codecs.output_json import OutputColumn, to_jsonable
from serving.codecs.prediction_schema import GenericOutput, PredictionSchema
from serving.errors import ModelFailed
from serving.protocols.mlflow_scoring_output import predictions_json

_INVALID = b'{"prediction":null}'


def to_json_rows(
    inputs: Sequence[bytes], results: Sequence[bytes], positions: Sequence[int], outputs: PredictionSchema
) -> tuple[bytes, bytes]:
    """Return the rows of a record and its predictions as JSON arrays.

    A prediction that is invalid in JSON is null. An output that is not one result per row is one prediction.

    Args:
        inputs: The input tables, as Arrow streams.
        results: The output tables, as Arrow streams.
        positions: The position in the request of each row of the tables.
        outputs: The schema of the predictions.
    """
    tables = [_read(stream) for stream in results]
    order = sorted(range(len(positions)), key=positions.__getitem__)
    rows_json = input_rows(inputs, positions)
    if len(tables) == 1 and is_whole(tables[0], len(order)):
        whole = b"".join(predictions_json((), tables[0]))
        return rows_json, b'[{"prediction":%s}]' % whole
    texts = [text for table in tables for text in _predictions(outputs, table)]
    return rows_json, b"[%s]" % b",".join([texts[index] for index in order])


def input_rows(inputs: Sequence[bytes], positions: Sequence[int]) -> bytes:
    """Return the rows of input tables as a JSON array; see `to_json_rows`."""
    rows = [row for stream in inputs for row in objects(_read(stream))]
    order = sorted(range(len(positions)), key=positions.__getitem__)
    return orjson.dumps([rows[index] for index in order], default=to_jsonable)


def _read(encoded: bytes) -> pa.RecordBatch:
    return pa.ipc.open_stream(encoded).read_next_batch()


def _predictions(outputs: PredictionSchema, table: pa.RecordBatch) -> list[bytes]:
    """Return the JSON of each prediction, even if the output differs from the signature."""
    try:
        made = outputs.predictions(table)
    except ModelFailed:
        names = table.schema.names if table.num_columns > 1 else [None]
        made = GenericOutput(tuple(OutputColumn(name, "any", required=False) for name in names)).predictions(
            table
        )
    return [_INVALID if row in made.invalid_rows else made.row_json(row) for row in range(len(made))]
