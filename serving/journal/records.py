"""Encode predictions for the journal's process, many in one Arrow batch.

The front does as little as possible: it copies the bytes of bodies and responses, and the Arrow buffers of
tables. `row_builder.py` converts them to JSON in the other process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa

from serving.codecs.model_input import stream
from serving.codecs.prediction_schema import ClassLabels, Probabilities, Regression
from serving.codecs.predictions import LazyPredictions
from serving.hooks import InferenceEvent
from serving.http.http_context import HttpContext
from serving.models.loaded_model import LoadedModel
from serving.models.model_calls import Part
from serving.protocols.tabular import ARROW
from serving.version import Version

_TYPED = frozenset({"predict", "batch", "stream"})
"""The protocols whose responses are JSON of rows; so are their bodies, unless a batch is a table."""
_OVERHEAD = 600
_BINARIES, _NUMBERS = pa.list_(pa.binary()), pa.list_(pa.int32())


class Record(NamedTuple):
    """The data of one prediction, without references to the request.

    Holding requests until they are packed would cost more than everything else here: their memory could not
    be reused at once, and the garbage collector would scan it.
    """

    id: str
    live: LoadedModel
    protocol: str
    rows: int
    params: str | None
    body: bytes
    response: bytes
    input_tables: Sequence[bytes] | None
    """The input tables, for bodies that are not JSON of rows."""
    output_tables: Sequence[bytes] | None
    """The output tables, for responses that are not JSON of rows."""
    order: Any
    """The positions of the rows of all tables in the request."""
    latency: float
    request_id: str

    @property
    def size(self) -> int:
        """Return the approximate size in bytes."""
        tables = sum(map(len, [*(self.input_tables or ()), *(self.output_tables or ())]))
        return _OVERHEAD + len(self.body) + len(self.response) + tables


def record(event: InferenceEvent) -> Record:
    """Return the record of a request, whose id is `prediction_id` in the state of its context."""
    context, pieces = event.context, event.response
    parts = event.source_parts
    protocol = context.protocol
    seconds = event.ended - event.began
    head = context.state["prediction_id"], event.live, protocol
    params = parts[0][1].key.params or None
    if protocol not in _TYPED:
        order = _order(parts)
        tables = _input_tables(parts), _output_tables(parts), order
        return Record(*head, len(order), params, b"", b"", *tables, seconds, context.request_id)
    response = pieces[0] if len(pieces) == 1 else (b"," if protocol == "stream" else b"").join(pieces)
    if protocol == "batch" and isinstance(context, HttpContext) and context.media_type == ARROW:
        order, inputs = _order(parts), _input_tables(parts)
        return Record(
            *head, len(order), params, b"", response, inputs, None, order, seconds, context.request_id
        )
    count = sum([len(rows) for rows, _ in parts])
    return Record(*head, count, params, event.body, response, None, None, None, seconds, context.request_id)


def _order(parts: Sequence[Part]) -> Any:
    return np.concatenate([np.asarray(rows, np.int32) for rows, _ in parts])


def _input_tables(parts: Sequence[Part]) -> list[bytes]:
    return [stream(pending.rows) for _, pending in parts]


def _output_tables(parts: Sequence[Part]) -> list[bytes]:
    outputs = [pending.future.result() for _, pending in parts]
    return [stream(output.table) for output in outputs if isinstance(output, LazyPredictions)]


def pack(records: Sequence[Record]) -> bytes:
    """Return records as an Arrow stream of one batch, with their versions in its metadata."""
    columns = dict(zip(Record._fields, zip(*records, strict=True), strict=True))
    indices = {live: index for index, live in enumerate(dict.fromkeys(columns["live"]))}
    columns["live"] = tuple(map(indices.__getitem__, columns["live"]))
    arrays = [pa.array(columns[name], dtype) for name, dtype in _COLUMN_TYPES.items()]
    versions = orjson.dumps([_version_fields(live) for live in indices])
    batch = pa.RecordBatch.from_arrays(arrays, names=[*_COLUMN_TYPES])
    return stream(batch.replace_schema_metadata({"versions": versions}))


_COLUMN_TYPES = {
    "id": pa.string(),
    "live": pa.int32(),
    "protocol": pa.string(),
    "rows": pa.int32(),
    "params": pa.string(),
    "body": pa.large_binary(),
    "response": pa.large_binary(),
    "input_tables": _BINARIES,
    "output_tables": _BINARIES,
    "order": _NUMBERS,
    "latency": pa.float64(),
    "request_id": pa.string(),
}
"""The columns of a batch; `live` is an index of the versions."""


def version_id(version: Version) -> int:
    """Return the id of a version in the journal."""
    identity = orjson.dumps([version.name, version.version, version.model_id, version.source])
    return int.from_bytes(hashlib.sha256(identity).digest()[:8]) >> 1


def _version_fields(live: LoadedModel) -> dict[str, Any]:
    """Return the journal's fields of a version; `outputs` is the schema of its predictions."""
    version = live.version
    outputs: Any = live.contract.outputs
    task = "classification" if isinstance(outputs, Probabilities | ClassLabels) else None
    return {
        "id": version_id(version),
        "model": version.name,
        "version": version.version,
        "model_id": version.model_id,
        "run_id": version.run_id,
        "source": version.source,
        "task": "regression" if isinstance(outputs, Regression) else task,
        "outputs": orjson.dumps({"form": type(outputs).__name__, **asdict(outputs)}).decode(),
    }
