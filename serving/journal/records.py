"""Predictions on their way from the front to the journal's process: one Arrow batch for many of them.

The front does no more than it must: bodies and answers go as the bytes they are, tables as Arrow has them.
What they say in JSON is made in the other process, by `rows.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import orjson
import pyarrow as pa

from serving.runtime.exchange import Exchange
from serving.runtime.loaded import Loaded
from serving.runtime.outputs import Labels, Probabilities, Regression
from serving.runtime.predictions import Later, Whole
from serving.runtime.table import Rows, in_text, stream

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
_TABLES = {"given": pa.list_(pa.binary()), "answered": pa.list_(pa.binary()), "order": pa.list_(pa.int32())}
"""The columns of those that came in tables."""


def size(exchange: Exchange) -> int:
    """The bytes that it takes to keep an exchange, about."""
    if _is_in_tables(exchange):
        tables = [(ticket.rows, _answer(ticket.future.result())) for _, ticket in exchange.parts]
        return _OVERHEAD + sum([_bytes(rows) + _bytes(answer) for rows, answer in tables])
    return _OVERHEAD + len(exchange.body) + sum(map(len, exchange.answer))


def pack(exchanges: Sequence[Exchange]) -> bytes:
    """What is kept of exchanges, as an Arrow stream of one batch; its metadata tells of their versions.

    Each has its id in the scope, as `prediction_id`.
    """
    places: dict[Loaded, int] = {}
    for each in exchanges:
        places.setdefault(each.live, len(places))
    protocols = [_protocol(each.scope["path"]) for each in exchanges]
    texts = [_texts(each) for each in exchanges]
    columns = {
        "id": pa.array([each.scope["prediction_id"] for each in exchanges], pa.string()),
        "version": pa.array([places[each.live] for each in exchanges], pa.int32()),
        "protocol": pa.array(protocols, pa.string()),
        "rows": pa.array([sum([len(rows) for rows, _ in each.parts]) for each in exchanges], pa.int32()),
        "params": pa.array([_params(each) for each in exchanges], pa.string()),
        "body": pa.array([body for body, _ in texts], pa.large_binary()),
        "answer": pa.array([answer for _, answer in texts], pa.large_binary()),
        "latency": pa.array([each.ended - each.began for each in exchanges], pa.float64()),
        "request_id": pa.array([each.scope["request_id"] for each in exchanges], pa.string()),
    }
    if any(map(_is_in_tables, exchanges)):
        tables = [_tables(each) for each in exchanges]
        for index, (name, kind) in enumerate(_TABLES.items()):
            columns[name] = pa.array([each[index] for each in tables], kind)
    facts = orjson.dumps([_facts(live) for live in places])
    batch = pa.RecordBatch.from_arrays([*columns.values()], names=[*columns])
    return stream(batch.replace_schema_metadata({"versions": facts}))


def _is_in_tables(exchange: Exchange) -> bool:
    """Whether rows and what the model answered are tables, of which body and answer were made."""
    return bool(exchange.parts) and _protocol(exchange.scope["path"]) not in _TYPED


@lru_cache(maxsize=1024)
def _protocol(path: str) -> str:
    return _PROTOCOLS[path.rpartition("/")[2]]


def _bytes(rows: Rows) -> int:
    return int(rows.nbytes) if isinstance(rows, pa.RecordBatch) else 0


def _texts(exchange: Exchange) -> tuple[bytes, bytes]:
    if _is_in_tables(exchange):
        return b"", b""
    if len(exchange.answer) == 1:
        return exchange.body, exchange.answer[0]
    between = b"," if _protocol(exchange.scope["path"]) == "stream" else b""
    return exchange.body, between.join(exchange.answer)


def _tables(exchange: Exchange) -> tuple[Any, Any, Any]:
    """Each part's rows and answer, and where its rows stood in the request; nothing of typed routes."""
    if not _is_in_tables(exchange):
        return None, None, None
    given = [stream(ticket.rows) for _, ticket in exchange.parts]
    answered = [stream(_answer(ticket.future.result())) for _, ticket in exchange.parts]
    return given, answered, np.concatenate([np.asarray(rows, np.int32) for rows, _ in exchange.parts])


def _answer(answer: Any) -> pa.RecordBatch:
    assert isinstance(answer, Later | Whole)
    return answer.table


def _params(exchange: Exchange) -> str | None:
    if exchange.parts:
        return exchange.parts[0][1].key.params or None
    query = exchange.scope["query_string"]
    if query and _protocol(exchange.scope["path"]) == "predict":  # answered from the cache, so that they fit
        asked = parse_qs(query.decode("latin-1"), keep_blank_values=True)
        return in_text(exchange.live.contract.read_query(asked)) or None
    return None


def _facts(live: Loaded) -> dict[str, Any]:
    """What the journal keeps of a version; `outputs` is how its answers are read."""
    version = live.version
    outputs: Any = live.contract.outputs
    task = "classification" if isinstance(outputs, Probabilities | Labels) else None
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
