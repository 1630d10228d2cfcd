"""Limits what a client sees to the models of its API key, and reasons to administrators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serving.errors import not_served
from serving.http.http_context import context_of
from serving.models.selector import ModelSelector
from serving.registry.follower import Follower

HIDDEN_REASON = "the log, the version's page in MLflow and a key with the scope admin show why"


def visible_models(models: ModelSelector, scope: Mapping[str, Any]) -> ModelSelector:
    """Return the models that the client's key gives access to, all of them without a key."""
    key = context_of(scope).key
    return models if key is None else models.only(key.models)


def visible_followers(followers: Sequence[Follower], scope: Mapping[str, Any]) -> Sequence[Follower]:
    """Return the followers of the models that the client's key gives access to, all without a key."""
    key = context_of(scope).key
    if key is None or not key.models:
        return followers
    return [follower for follower in followers if follower.slot.reference.name in key.models]


def without_address(source: str | None) -> str | None:
    """Return a source without the address of a server: it may be that of the registry."""
    return source if source is None or not source.lower().startswith(("http:", "https:")) else None


def check_visible(scope: Mapping[str, Any], model: str) -> None:
    """Check that the client's key gives access to a model.

    Raises:
        UnknownModel: it does not; the error is the one for a model that does not exist.
    """
    key = context_of(scope).key
    if key is not None and key.models and model not in key.models:
        raise not_served(model)


def sees_registry(scope: Mapping[str, Any]) -> bool:
    """Check whether the client may read the address of the registry."""
    return context_of(scope).sees_registry


def sees_reasons(scope: Mapping[str, Any]) -> bool:
    """Check whether the client may read reasons, which can contain texts of model code."""
    return context_of(scope).sees_reasons
