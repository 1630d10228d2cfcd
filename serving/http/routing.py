"""The routes of predictions, found by their path in one look however many models there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import random
from urllib.parse import parse_qs

from starlette.types import Scope

from serving.errors import ConflictingModel
from serving.hooks import RequestHook
from serving.http.endpoints.invocations import InvocationsEndpoint
from serving.http.endpoints.open_inference import InferEndpoint
from serving.http.endpoints.predict import PredictEndpoint
from serving.http.endpoints.predict_batch import PredictBatchEndpoint
from serving.http.endpoints.predict_stream import PredictStreamEndpoint
from serving.http.model_visibility import check_visible, visible_models
from serving.models.loaded_model import LoadedModel
from serving.models.selector import ModelSelector
from serving.models.slot import Slot
from serving.models.traffic_split import hash_bucket
from serving.settings.groups import LimitSettings

_KINDS: Mapping[tuple[str, tuple[str, ...]], type[PredictEndpoint]] = {
    ("models", ("predict",)): PredictEndpoint,
    ("models", ("predict", "batch")): PredictBatchEndpoint,
    ("models", ("predict", "stream")): PredictStreamEndpoint,
    ("v2", ("infer",)): InferEndpoint,
}


class Router:
    """The applications that answer requests for predictions."""

    def __init__(
        self,
        models: ModelSelector,
        limits: LimitSettings,
        observers: Sequence[RequestHook] = (),
        sticky: bytes | None = None,
    ) -> None:
        self._models = models
        self._sticky = sticky
        self._default = models.slots[0].reference.name
        self._made = limits, models.ensure_loaded, observers
        self._paths: dict[str, PredictEndpoint] = {
            "/predict": PredictEndpoint(self._by_header, *self._made),
            "/predict/batch": PredictBatchEndpoint(self._by_header, *self._made),
            "/predict/stream": PredictStreamEndpoint(self._by_header, *self._made),
            "/invocations": InvocationsEndpoint(self._by_header_or_query, *self._made),
        }
        for name, slot in models.named().items():
            lease = partial(self._by_path, self._leasing(name, slot))
            self._paths[f"/models/{name}/predict"] = PredictEndpoint(lease, *self._made)
            self._paths[f"/models/{name}/predict/batch"] = PredictBatchEndpoint(lease, *self._made)
            self._paths[f"/models/{name}/predict/stream"] = PredictStreamEndpoint(lease, *self._made)
            self._paths[f"/v2/models/{name}/infer"] = InferEndpoint(lease, *self._made)

    def match(self, path: str) -> PredictEndpoint | None:
        """The application of the route at this path, of a served model or not; None for other paths."""
        return self._paths.get(path) or self._other(path)

    def _other(self, path: str) -> PredictEndpoint | None:
        match path.removeprefix("/v2").split("/"):
            case ["", "models", name, "versions", version, *rest]:
                lease = partial(self._by_version, name, version)
            case ["", "models", name, *rest]:
                lease = partial(self._by_name, name)
            case _:
                return None
        kind = _KINDS.get((path[1:].partition("/")[0], tuple(rest)))
        return kind(partial(self._by_path, lease), *self._made) if kind else None

    def _leasing(self, name: str, slot: Slot) -> Callable[[Scope], LoadedModel]:
        """How what answers requests to a model is leased: in one step, unless references share it."""
        return partial(self._by_name, name) if name in self._models.splits else partial(_of_slot, slot)

    def _by_name(self, name: str, scope: Scope) -> LoadedModel:
        return visible_models(self._models, scope).lease(
            name, partial(routing_key, name, scope, self._sticky)
        )

    def _by_version(self, name: str, version: str, scope: Scope) -> LoadedModel:
        return visible_models(self._models, scope).version(name, version)

    def _by_path(self, lease: Callable[[Scope], LoadedModel], scope: Scope) -> LoadedModel:
        """The model that the path names; a header that names another is a mistake, whichever was meant."""
        leased, named = lease(scope), _header(scope)
        if named and not self._models.matches(named, leased):
            raise ConflictingModel("The path names one model, and X-Model another.")
        return leased

    def _by_header(self, scope: Scope) -> LoadedModel:
        """The model that the header `X-Model` names, or the default one."""
        return self._chosen(_header(scope), scope)

    def _by_header_or_query(self, scope: Scope) -> LoadedModel:
        named = parse_qs(scope["query_string"].decode("latin-1")).get("model", [])
        return self._chosen(named[-1] if named else _header(scope), scope)

    def _chosen(self, chosen: str | None, scope: Scope) -> LoadedModel:
        models = visible_models(self._models, scope)
        if not models.splits:
            return models.lease(chosen)
        return models.lease(chosen, partial(routing_key, chosen or self._default, scope, self._sticky))


def _of_slot(slot: Slot, scope: Scope) -> LoadedModel:
    check_visible(scope, slot.reference.name)
    return slot.lease()


def routing_key(model: str, scope: Scope, sticky: bytes | None) -> float:
    """What chooses among references that share a model: chance, or whom the `sticky` header names."""
    caller = _header(scope, sticky) if sticky else None
    return random() if caller is None else hash_bucket(model, caller)  # noqa: S311 — no secret


def _header(scope: Scope, wanted: bytes = b"x-model") -> str | None:
    for name, value in scope["headers"]:
        if name == wanted:
            return str(value.decode("latin-1"))
    return None
