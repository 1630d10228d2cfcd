"""The typed routes of each model: lean in the request path, and ordinary FastAPI routes in the documentation.

A prediction's request goes round FastAPI's machinery: the body is read, leased a version, validated by that
version's own contract, queued and answered in bytes. For `/openapi.json` the same routes are declared as
FastAPI declares any, with the types of the contracts that are live at that moment.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Annotated, Any
from urllib.parse import parse_qs, quote

import orjson
from fastapi import Query
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from serving.errors import DeadlineExceeded, ModelFailed, ProcessDied, UnknownModel
from serving.http.body import read_json
from serving.http.problems import documented
from serving.runtime.batcher import Rows
from serving.runtime.contract import Contract, Param
from serving.runtime.loaded import Loaded, Part
from serving.runtime.replay import Recorded
from serving.runtime.slot import Slot
from serving.settings import Limits

_ERRORS = documented(400, 404, 413, 415, 422, 500, 503, 504)
# A caller who has waited this long is watched, to drop the request if the caller goes.
_PATIENCE_SECONDS = 0.05
_JSON = (b"content-type", b"application/json")


class Predict:
    """The ASGI application of one typed route."""

    def __init__(self, lease: Callable[[], Loaded], batch: bool, limits: Limits) -> None:
        self._lease, self._batch, self._limits = lease, batch, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; errors are raised, for the application's error table to answer."""
        if scope["method"] != "POST":
            raise HTTPException(405, "Predictions are asked for with POST.", {"Allow": "POST"})
        body = await read_json(scope, receive, self._limits.max_body_bytes)
        began = time.perf_counter()
        with self._lease() as live:
            rows, params = self._read(live.contract, scope, body)
            parts = live.submit(rows, params, self._limits.deadline_seconds)
            ticket = parts[0][1]
            try:
                predictions = await _answers(live, parts, len(rows), receive)
            except (ModelFailed, ProcessDied):
                live.tally.failed += 1
                raise
            except DeadlineExceeded:
                live.tally.failed += ticket.hung  # one that only waited is none of the version's fault
                raise
            live.tally.answered += 1
            live.recorder.add(Recorded(rows, params, predictions, ticket.finished - ticket.started))
            answer = self._write(live, predictions)
        timing = (
            f"validate;dur={(ticket.queued - began) * 1e3:.2f}, "
            f"queue;dur={(ticket.started - ticket.queued) * 1e3:.2f}, "
            f"model;dur={(ticket.finished - ticket.started) * 1e3:.2f}"
        )
        headers = [
            _JSON,
            (b"content-length", str(len(answer)).encode()),
            (b"server-timing", timing.encode()),
            (b"x-request-id", scope["request_id"].encode()),
            *live.headers,
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def _read(self, contract: Contract, scope: Scope, body: bytes) -> tuple[Rows, dict[str, Any]]:
        if self._batch:
            return contract.read_batch(body)
        query = scope["query_string"]
        params = (
            contract.read_query(parse_qs(query.decode("latin-1"), keep_blank_values=True)) if query else {}
        )
        return [contract.read_row(body)], params

    def _write(self, live: Loaded, predictions: list[Any]) -> bytes:
        if self._batch:
            return orjson.dumps({"predictions": predictions, "model": live.told})
        return orjson.dumps(predictions[0] | {"model": live.told})


async def _answers(live: Loaded, parts: list[Part], rows: int, receive: Receive) -> list[Any]:
    watch: asyncio.Task[None] | None = None

    def slow() -> None:
        nonlocal watch
        watch = asyncio.create_task(_withdraw_if_left(live, parts, receive))

    patience = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, slow)
    try:
        if len(parts) == 1:
            return await parts[0][1].future
        answers: list[Any] = [None] * rows
        for indices, ticket in parts:
            for index, prediction in zip(indices, await ticket.future, strict=True):
                answers[index] = prediction
        return answers
    finally:
        patience.cancel()
        if watch is not None:
            watch.cancel()
        live.withdraw(parts)


async def _withdraw_if_left(live: Loaded, parts: list[Part], receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    live.withdraw(parts)


class TypedRoutes:
    """All typed routes: found by their path in one look, however many models there are."""

    def __init__(self, slots: Sequence[Slot], limits: Limits) -> None:
        self._slots, self._limits = slots, limits
        self._paths: dict[str, Predict] = {}
        for slot in reversed(slots):  # of several references to one model the first is the model's
            for prefix in ("", f"/models/{slot.reference.name}"):
                self._paths[f"{prefix}/predict"] = Predict(slot.lease, False, limits)
                self._paths[f"{prefix}/predict/batch"] = Predict(slot.lease, True, limits)

    def find(self, path: str) -> Predict | None:
        """The application of the typed route at this path, of a served model or not; None for other paths."""
        return self._paths.get(path) or self._pinned(path)

    def _pinned(self, path: str) -> Predict | None:
        if not path.startswith("/models/"):
            return None
        match path.split("/")[1:]:
            case ["models", name, "predict", *rest] if rest in ([], ["batch"]):
                return Predict(lambda: _unknown(name), bool(rest), self._limits)
            case ["models", name, "versions", version, *rest] if rest in _PINNED:
                return Predict(lambda: self._version(name, version), len(rest) == 2, self._limits)
        return None

    def _version(self, name: str, version: str) -> Loaded:
        for slot in self._slots:
            for loaded in (slot.live, slot.warm):
                if loaded and slot.reference.name == name and loaded.version.version == version:
                    return loaded
        if all(slot.reference.name != name for slot in self._slots):
            return _unknown(name)
        raise UnknownModel(f"Version {version[:50]} of model {name} is not loaded.")

    # -- documentation

    def documentation(self) -> list[APIRoute]:
        """The typed routes of what is live now, as FastAPI would have them."""
        default = self._slots[0]
        routes = list(_declared("", "", default.live.contract)) if default.live else []
        named: dict[str, Contract] = {}
        for slot in self._slots:
            if slot.live:
                named.setdefault(slot.reference.name, slot.live.contract)
        for name, contract in named.items():
            prefix = f"/models/{quote(name)}"
            routes += _declared(prefix, f"_{name}", contract)
            routes += _declared(f"{prefix}/versions/{{version}}", f"_{name}", contract)
        return routes


_PINNED = (["predict"], ["predict", "batch"])


def _unknown(name: str) -> Loaded:
    raise UnknownModel(f"No model {name[:100]!r} is served here.")


def _declared(prefix: str, suffix: str, contract: Contract) -> Iterator[APIRoute]:
    tags: list[str | Enum] = [contract.name]
    pinned = "{version}" in prefix
    yield APIRoute(
        f"{prefix}/predict",
        _endpoint(contract.row, contract.params, pinned),
        methods=["POST"],
        response_model=contract.answer,
        responses=_ERRORS,
        tags=tags,
        summary=f"Predict one row with {contract.name}",
        operation_id=f"{'pinned_' * pinned}predict{suffix}",
    )
    yield APIRoute(
        f"{prefix}/predict/batch",
        _endpoint(contract.batch, (), pinned),
        methods=["POST"],
        response_model=contract.answers,
        responses=_ERRORS,
        tags=tags,
        summary=f"Predict several rows with {contract.name}",
        operation_id=f"{'pinned_' * pinned}batch_predict{suffix}",
    )


def _endpoint(body: Any, params: Sequence[Param], pinned: bool) -> Callable[..., None]:
    """A function with the signature of the route, from which FastAPI makes the documentation."""

    def declared() -> None:
        """Answers carry X-Model-Name, X-Model-Version, X-Request-ID and Server-Timing."""

    named = [_parameter("version", str)] if pinned else []
    # The model's parameters may have names that Python's may not.
    queries = [
        _parameter(
            f"param_{index}", Annotated[param.annotation, Query(alias=param.name)], _shown(param.default)
        )
        for index, param in enumerate(params)
    ]
    declared.__signature__ = inspect.Signature([*named, _parameter("body", body), *queries])  # type: ignore[attr-defined]
    return declared


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)


def _shown(default: Any) -> Any:
    """A default as JSON has it; None where JSON can't say it."""
    return None if isinstance(default, float) and not math.isfinite(default) else default
