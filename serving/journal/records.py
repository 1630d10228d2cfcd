"""Predictions on their way from the front to the journal's process: one Arrow batch for many of them.

The front does no more than it must: bodies and answers go as the bytes they are, tables as Arrow has them.
What they say in JSON is made in the other process, by `rows.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa

from serving.codecs.model_input import stream
from serving.codecs.prediction_schema import ClassLabels, Probabilities, Regression
from serving.codecs.predictions import LazyPredictions
from serving.hooks import InferenceEvent
from serving.models.loaded_model import LoadedModel
from serving.models.model_calls import Part

_PROTOCOLS = {
    "predict": "predict",
    "batch": "batch",
    "stream": "stream",
    "invocations": "invocations",
    "infer": "v2",
    "ModelInfer": "grpc",
}
"""By the last part of a request's path."""
_TYPED = frozenset({"predict", "batch", "stream"})
"""Those whose bodies and answers are JSON of rows."""
_OVERHEAD = 600
_BINARIES, _NUMBERS = pa.list_(pa.binary()), pa.list_(pa.int32())


class Record(NamedTuple):
    """What is kept of one exchange, and nothing of what it was made with.

    To hold on to requests until they are packed would take longer than all else here: their memory could not
    be used again at once, and the garbage collector would look at it.
    """

    id: str
    live: LoadedModel
    protocol: str
    rows: int
    params: str | None
    body: bytes
    answer: bytes
    given: Sequence[bytes] | None
    """Where rows and what the model answered are tables, of which body and answer were made: those."""
    answered: Sequence[bytes] | None
    order: Any
    """Where the rows of all tables stood in the request."""
    latency: float
    request_id: str

    @property
    def size(self) -> int:
        """The bytes that it takes, about."""
        tables = sum(map(len, [*self.given, *self.answered])) if self.given and self.answered else 0
        return _OVERHEAD + len(self.body) + len(self.answer) + tables


def record(exchange: InferenceEvent) -> Record:
    """What is kept of an exchange, which has its id in its state, as `prediction_id`."""
    context, answer = exchange.context, exchange.answer
    parts = exchange.source_parts
    protocol = _protocol(context.path)
    seconds = exchange.ended - exchange.began
    ends = context.state["prediction_id"], exchange.live, protocol
    params = parts[0][1].key.params or None
    if protocol not in _TYPED:
        rows = np.concatenate([np.asarray(rows, np.int32) for rows, _ in parts])
        tables = _input_tables(parts), _output_tables(parts), rows
        return Record(*ends, len(rows), params, b"", b"", *tables, seconds, context.request_id)
    told = answer[0] if len(answer) == 1 else (b"," if protocol == "stream" else b"").join(answer)
    count = sum([len(rows) for rows, _ in parts])
    return Record(*ends, count, params, exchange.body, told, None, None, None, seconds, context.request_id)


@lru_cache(maxsize=1024)
def _protocol(path: str) -> str:
    return _PROTOCOLS[path.rpartition("/")[2]]


def _input_tables(parts: Sequence[Part]) -> list[bytes]:
    return [stream(ticket.rows) for _, ticket in parts]


def _output_tables(parts: Sequence[Part]) -> list[bytes]:
    found = [ticket.future.result() for _, ticket in parts]
    return [stream(answer.table) for answer in found if isinstance(answer, LazyPredictions)]


def pack(records: Sequence[Record]) -> bytes:
    """Records as an Arrow stream of one batch; its metadata tells of their versions."""
    columns = dict(zip(Record._fields, zip(*records, strict=True), strict=True))
    places = {live: place for place, live in enumerate(dict.fromkeys(columns["live"]))}
    columns["live"] = tuple(map(places.__getitem__, columns["live"]))
    arrays = [pa.array(columns[name], kind) for name, kind in _KINDS.items()]
    facts = orjson.dumps([_facts(live) for live in places])
    batch = pa.RecordBatch.from_arrays(arrays, names=[*_KINDS])
    return stream(batch.replace_schema_metadata({"versions": facts}))


_KINDS = {
    "id": pa.string(),
    "live": pa.int32(),
    "protocol": pa.string(),
    "rows": pa.int32(),
    "params": pa.string(),
    "body": pa.large_binary(),
    "answer": pa.large_binary(),
    "given": _BINARIES,
    "answered": _BINARIES,
    "order": _NUMBERS,
    "latency": pa.float64(),
    "request_id": pa.string(),
}
"""The columns of a batch; `live` is a place among the versions."""


def _facts(live: LoadedModel) -> dict[str, Any]:
    """What the journal keeps of a version; `outputs` is how its answers are read."""
    version = live.version
    outputs: Any = live.contract.outputs
    task = "classification" if isinstance(outputs, Probabilities | ClassLabels) else None
    identity = orjson.dumps([version.name, version.version, version.model_id, version.source])
    return {
        "id": int.from_bytes(hashlib.sha256(identity).digest()[:8]) >> 1,
        "model": version.name,
        "version": version.version,
        "model_id": version.model_id,
        "run_id": version.run_id,
        "source": version.source,
        "task": "regression" if isinstance(outputs, Regression) else task,
        "outputs": orjson.dumps({"form": type(outputs).__name__, **asdict(outputs)}).decode(),
    }
