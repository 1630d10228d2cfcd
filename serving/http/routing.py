"""Routing of inference requests: one dictionary look-up, however many models are served."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from urllib.parse import parse_qs

from serving.dataplane import DataPlane, Selector
from serving.errors import ConflictingModel, not_served
from serving.http.endpoints.invocations import InvocationsEndpoint
from serving.http.endpoints.open_inference import InferEndpoint
from serving.http.endpoints.platforms import ScoreEndpoint
from serving.http.endpoints.predict import PredictEndpoint
from serving.http.endpoints.predict_batch import PredictBatchEndpoint
from serving.http.endpoints.predict_stream import PredictStreamEndpoint
from serving.http.endpoints.tf_serving import TfPredictEndpoint, UnsupportedVerbEndpoint
from serving.http.http_context import HttpContext
from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot

_ENDPOINTS: Mapping[tuple[str, tuple[str, ...]], type[PredictEndpoint]] = {
    ("models", ("predict",)): PredictEndpoint,
    ("models", ("predict", "batch")): PredictBatchEndpoint,
    ("models", ("predict", "stream")): PredictStreamEndpoint,
    ("v2", ("infer",)): InferEndpoint,
}
_VERBS: Mapping[str, type[PredictEndpoint]] = {
    "predict": TfPredictEndpoint,
    "explain": UnsupportedVerbEndpoint,
    "classify": UnsupportedVerbEndpoint,
    "regress": UnsupportedVerbEndpoint,
}


class Router:
    """The endpoints of inference requests, by path.

    Args:
        dataplane: runs the requests.
        predict_route: an additional path for predictions of the default model, as Vertex AI names it.
    """

    def __init__(self, dataplane: DataPlane, predict_route: str | None = None) -> None:
        self._dataplane, self._models = dataplane, dataplane.models
        self._default = self._models.slots[0].reference.name
        self._paths: dict[str, PredictEndpoint] = {
            "/predict": PredictEndpoint(self._by_header, dataplane),
            "/predict/batch": PredictBatchEndpoint(self._by_header, dataplane),
            "/predict/stream": PredictStreamEndpoint(self._by_header, dataplane),
            "/invocations": InvocationsEndpoint(self._by_query_or_header, dataplane),
            "/score": ScoreEndpoint(self._by_query_or_header, dataplane),
        }
        for name, slot in self._models.named().items():
            select = partial(self._by_path, self._selector(name, slot))
            self._paths[f"/models/{name}/predict"] = PredictEndpoint(select, dataplane)
            self._paths[f"/models/{name}/predict/batch"] = PredictBatchEndpoint(select, dataplane)
            self._paths[f"/models/{name}/predict/stream"] = PredictStreamEndpoint(select, dataplane)
            self._paths[f"/v2/models/{name}/infer"] = InferEndpoint(select, dataplane)
            self._paths[f"/v1/models/{name}:predict"] = TfPredictEndpoint(select, dataplane)
        if predict_route:
            self._paths[predict_route] = TfPredictEndpoint(self._by_header, dataplane)

    def match(self, path: str) -> PredictEndpoint | None:
        """Return the endpoint at a path, whether or not its model is served; None for other paths."""
        return self._paths.get(path) or self._match_pattern(path)

    def _match_pattern(self, path: str) -> PredictEndpoint | None:
        if path.startswith("/v1/models/"):
            return self._match_verb(path)
        select: Selector[HttpContext]
        match path.removeprefix("/v2").split("/"):
            case ["", "models", name, "versions", version, *rest]:
                select = partial(self._dataplane.select_version, name=name, version=version)
            case ["", "models", name, *rest]:
                select = partial(self._dataplane.select, name=name)
            case _:
                return None
        endpoint = _ENDPOINTS.get((path[1:].partition("/")[0], tuple(rest)))
        return endpoint(partial(self._by_path, select), self._dataplane) if endpoint else None

    def _match_verb(self, path: str) -> PredictEndpoint | None:
        """Return the endpoint of a path that ends with a verb, such as `:predict`."""
        address, _, verb = path.rpartition(":")
        select: Selector[HttpContext]
        match address.split("/")[3:]:
            case [name]:
                select = partial(self._dataplane.select, name=name)
            case [name, "versions", version]:
                select = partial(self._dataplane.select_version, name=name, version=version)
            case [name, "labels", label]:
                select = partial(self._dataplane.select_label, name=name, label=label)
            case _:
                return None
        endpoint = _VERBS.get(verb)
        return endpoint(partial(self._by_path, select), self._dataplane) if endpoint else None

    def _selector(self, name: str, slot: Slot) -> Selector[HttpContext]:
        """Return the selector of a served model, the faster one unless references share the model."""
        if name in self._models.splits:
            return partial(self._dataplane.select, name=name)
        return partial(_of_slot, slot)

    def _by_path(self, select: Selector[HttpContext], context: HttpContext) -> LoadedModel:
        """Return the version that the path names; a header that names another one is an error."""
        model, name = select(context), _header(context)
        if name and not self._models.matches(name, model):
            raise ConflictingModel("The path names one model, and X-Model another.")
        return model

    def _by_header(self, context: HttpContext) -> LoadedModel:
        """Return the version that the header `X-Model` names, or the default model's."""
        return self._by_name(_header(context), context)

    def _by_query_or_header(self, context: HttpContext) -> LoadedModel:
        named = parse_qs(context.scope["query_string"].decode("latin-1")).get("model", [])
        return self._by_name(named[-1] if named else _header(context), context)

    def _by_name(self, name: str | None, context: HttpContext) -> LoadedModel:
        models = self._dataplane.visible_models(context)
        if not models.splits:
            return models.lease(name)
        return models.lease(name, partial(self._dataplane.routing_key, context, name or self._default))


def _of_slot(slot: Slot, context: HttpContext) -> LoadedModel:
    key = context.key
    if key is not None and key.models and slot.reference.name not in key.models:
        raise not_served(slot.reference.name)
    return slot.lease()


def _header(context: HttpContext) -> str | None:
    for name, value in context.headers:
        if name == b"x-model":
            return value.decode("latin-1")
    return None
