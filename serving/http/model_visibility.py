"""Limits what a caller sees to the models of its key, and reasons to those who operate the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serving.auth.api_keys import ApiKey, Scope
from serving.errors import not_served
from serving.models.selector import ModelSelector
from serving.registry.follower import Follower

HIDDEN_REASON = "the log, the version's page in MLflow and a key with the scope admin show why"


def visible_models(models: ModelSelector, scope: Mapping[str, Any]) -> ModelSelector:
    """Return the models that the caller's key gives access to, all without one."""
    key: ApiKey | None = scope.get("key")
    return models if key is None else models.only(key.models)


def visible_followers(followers: Sequence[Follower], scope: Mapping[str, Any]) -> Sequence[Follower]:
    """Return the followers of the models that the caller's key gives access to, all without one."""
    key: ApiKey | None = scope.get("key")
    if key is None or not key.models:
        return followers
    return [each for each in followers if each.slot.reference.name in key.models]


def check_visible(scope: Mapping[str, Any], model: str) -> None:
    """Check that the caller's key gives access to a model.

    Raises:
        UnknownModel: it does not; the error is that for a model that does not exist.
    """
    key: ApiKey | None = scope.get("key")
    if key is not None and key.models and model not in key.models:
        raise not_served(model)


def sees_reasons(scope: Mapping[str, Any]) -> bool:
    """Check whether the caller may read reasons, which can contain texts of model code.

    Where keys are on, these are for administrators.
    """
    if "key" not in scope:
        return True
    key: ApiKey | None = scope["key"]
    return key is not None and key.scope is Scope.ADMIN
