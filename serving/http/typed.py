"""The typed routes of each model: lean in the request path, and ordinary FastAPI routes in the documentation.

For `/openapi.json` they are declared as FastAPI declares any, with the types of the contracts that are live
at that moment.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from typing import Annotated, Any
from urllib.parse import parse_qs, quote

from fastapi import Query
from fastapi.routing import APIRoute
from starlette.types import Scope

from serving.errors import UnknownModel
from serving.http.invocations import Invocations
from serving.http.predict import Predict, PredictBatch
from serving.http.problems import documented
from serving.runtime.contract import Contract, Param
from serving.runtime.loaded import Loaded
from serving.runtime.slot import Slot
from serving.settings import Limits

_ERRORS = documented(400, 404, 413, 415, 422, 500, 503, 504)


class TypedRoutes:
    """All typed routes: found by their path in one look, however many models there are."""

    def __init__(self, slots: Sequence[Slot], limits: Limits) -> None:
        self._slots, self._limits = slots, limits
        self._paths: dict[str, Predict] = {}
        for slot in reversed(slots):  # of several references to one model the first is the model's
            for prefix in ("", f"/models/{slot.reference.name}"):
                lease = partial(_leased, slot)
                self._paths[f"{prefix}/predict"] = Predict(lease, limits)
                self._paths[f"{prefix}/predict/batch"] = PredictBatch(lease, limits)
        self._paths["/invocations"] = Invocations(self._chosen, limits)

    def find(self, path: str) -> Predict | None:
        """The application of the typed route at this path, of a served model or not; None for other paths."""
        return self._paths.get(path) or self._pinned(path)

    def _pinned(self, path: str) -> Predict | None:
        if not path.startswith("/models/"):
            return None
        match path.split("/")[1:]:
            case ["models", name, *rest] if kind := _KINDS.get(tuple(rest)):
                return kind(lambda _: _unknown(name), self._limits)
            case ["models", name, "versions", version, *rest] if kind := _KINDS.get(tuple(rest)):
                return kind(lambda _: self._version(name, version), self._limits)
        return None

    def _version(self, name: str, version: str) -> Loaded:
        for slot in self._slots:
            for loaded in (slot.live, slot.warm):
                if loaded and slot.reference.name == name and loaded.version.version == version:
                    return loaded
        if all(slot.reference.name != name for slot in self._slots):
            return _unknown(name)
        raise UnknownModel(f"Version {version[:50]} of model {name} is not loaded.")

    def _chosen(self, scope: Scope) -> Loaded:
        """The model that a header or the query names, or the default one."""
        name = chosen(scope)
        for slot in self._slots:
            if name in (None, slot.reference.name, slot.reference.uri):
                return slot.lease()
        return _unknown(str(name))

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


_KINDS: dict[tuple[str, ...], type[Predict]] = {("predict",): Predict, ("predict", "batch"): PredictBatch}


def _leased(slot: Slot, scope: Scope) -> Loaded:
    return slot.lease()


def chosen(scope: Scope) -> str | None:
    """The model that a request names with the header `X-Model` or, in the query, `model`."""
    for name, value in scope["headers"]:
        if name == b"x-model":
            return str(value.decode("latin-1"))
    named: list[str] = parse_qs(scope["query_string"].decode("latin-1")).get("model", [])
    return named[-1] if named else None


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
