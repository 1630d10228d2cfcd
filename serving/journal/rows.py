"""Records as they came from the front → rows of the tables."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa
from pydantic import TypeAdapter

from serving.runtime.outputs import Labels, Outputs, Probabilities, Regression, Values

log = logging.getLogger("serving.journal")
_FORMS: Mapping[str, TypeAdapter[Outputs]] = {
    form.__name__: TypeAdapter(form) for form in (Values, Regression, Probabilities, Labels)
}


@dataclass(frozen=True, slots=True)
class Rows:
    """What is to be inserted, and how many records nothing could be made of."""

    versions: list[dict[str, Any]]
    predictions: list[dict[str, Any]]
    lost: int


def outputs(told: str) -> Outputs:
    """How a version's answers are read, of what the journal keeps of the version."""
    facts = orjson.loads(told)
    return _FORMS[facts.pop("form")].validate_python(facts)


def unpack(payload: bytes) -> Rows:
    """The rows of the tables for what `records.pack` made."""
    batch = pa.ipc.open_stream(payload).read_next_batch()
    versions = orjson.loads(batch.schema.metadata[b"versions"])
    tails = [_tail(version) for version in versions]
    found, lost = [], 0
    for record in _each(batch):
        try:
            found.append(_row(record, versions[record["version"]], tails[record["version"]]))
        except Exception:  # whatever it is, the others are written
            log.exception("a record could not be read")
            lost += 1
    return Rows(versions, found, lost)


def _each(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    names = batch.schema.names
    for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
        yield dict(zip(names, values, strict=True))


def _tail(version: Mapping[str, Any]) -> int:
    """The length of what ends each typed answer, which tells the version."""
    model = orjson.dumps({"name": version["model"], "version": version["version"]})
    return len(b',"model":%s}' % model)


def _row(record: Mapping[str, Any], version: Mapping[str, Any], tail: int) -> dict[str, Any]:
    if record.get("given") is not None:
        from serving.journal.tables import in_words  # heavy, and mostly not needed

        rows, params = record["rows"], record["params"]
        given, answered = in_words(record, outputs(version["outputs"]))
    else:
        rows, params, given, answered = _READERS.get(record["protocol"], _as_it_came)(record, tail)
    return {
        "id": record["id"],
        "at": moment(record["id"]),
        "version": version["id"],
        "protocol": record["protocol"],
        "rows": rows,
        "inputs": given.decode(),
        "params": params,
        "outputs": answered.decode(),
        "latency": record["latency"],
        "request_id": record["request_id"],
    }


def moment(identity: str) -> datetime:
    """The time in an id."""
    return datetime.fromtimestamp(int(identity[:8] + identity[9:13], 16) / 1000, UTC)


# -- what typed routes take and answer; rows are not counted by the front where the cache answered

_Read = tuple[int, str | None, bytes, bytes]


def _one(record: Mapping[str, Any], tail: int) -> _Read:
    return 1, record["params"], b"[%s]" % record["body"], b"[%s}]" % record["answer"][:-tail]


def _batch(record: Mapping[str, Any], tail: int) -> _Read:
    asked = orjson.loads(record["body"])
    params = orjson.dumps(asked["params"]).decode() if asked.get("params") else None
    answered = record["answer"][len(b'{"predictions":') : -tail]
    return len(asked["rows"]), params, orjson.dumps(asked["rows"]), answered


def _stream(record: Mapping[str, Any], tail: int) -> _Read:
    return 1, record["params"], b"[%s]" % record["body"], b"[[%s]]" % record["answer"]


def _as_it_came(record: Mapping[str, Any], tail: int) -> _Read:
    """Of another protocol, from the cache: the whole body and the whole answer, as one thing."""
    return 1, None, b"[%s]" % _as_json(record["body"]), b"[%s]" % _as_json(record["answer"])


def _as_json(body: bytes) -> bytes:
    try:
        return orjson.dumps(orjson.loads(body))
    except ValueError:
        return orjson.dumps(base64.b64encode(body).decode())


_READERS = {"predict": _one, "batch": _batch, "stream": _stream}
