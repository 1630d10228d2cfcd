"""Tables that came in other protocols, and what models answered, in the JSON of the typed routes."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pyarrow as pa

from serving.codecs.json_values import OutputColumn, to_jsonable
from serving.codecs.model_input import objects
from serving.codecs.observed_output import is_whole
from serving.codecs.prediction_schema import GenericOutput, PredictionSchema
from serving.errors import ModelFailed
from serving.protocols.mlflow_scoring_output import predictions_json

_NOTHING = b'{"prediction":null}'


def to_json_rows(
    rows: Sequence[bytes], answer: Sequence[bytes], places: Sequence[int], outputs: PredictionSchema
) -> tuple[bytes, bytes]:
    """The rows of a record and its predictions: JSON arrays, in the order of their places in the request.

    What JSON can't say of a prediction is null. An output that is not one result per row is one prediction.
    """
    given = [_read(each) for each in rows]
    answered = [_read(each) for each in answer]
    order = sorted(range(len(places)), key=places.__getitem__)
    inputs = [row for each in given for row in objects(each)]
    asked = orjson.dumps([inputs[index] for index in order], default=to_jsonable)
    if len(answered) == 1 and is_whole(answered[0], len(inputs)):
        whole = b"".join(predictions_json((), answered[0]))
        return asked, b'[{"prediction":%s}]' % whole
    texts = [text for each in answered for text in _predictions(outputs, each)]
    return asked, b"[%s]" % b",".join([texts[index] for index in order])


def _read(encoded: bytes) -> pa.RecordBatch:
    return pa.ipc.open_stream(encoded).read_next_batch()


def _predictions(outputs: PredictionSchema, table: pa.RecordBatch) -> list[bytes]:
    """The prediction of each row; as it is, where it is something else than the signature says."""
    try:
        made = outputs.predictions(table)
    except ModelFailed:
        names = table.schema.names if table.num_columns > 1 else [None]
        made = GenericOutput(tuple(OutputColumn(name, "any", required=False) for name in names)).predictions(
            table
        )
    return [_NOTHING if row in made.invalid_rows else made.row_json(row) for row in range(len(made))]
