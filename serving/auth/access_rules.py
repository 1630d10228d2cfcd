"""Access that each route requires: the scope of a key, and the models that the route concerns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

from starlette.routing import BaseRoute, Match
from starlette.types import Scope as Request

from serving.auth.api_keys import ApiKey, Scope
from serving.errors import Forbidden

F = TypeVar("F", bound=Callable[..., Any])


class Concern(StrEnum):
    """The models that a route discloses or calls."""

    NO_MODEL = "no model"
    MODELS_OF_KEY = "the models of the key"
    """The handler limits itself to the models that the caller's key gives access to."""
    ALL_MODELS = "all models"


@dataclass(frozen=True, slots=True)
class Access:
    """The requirements of a route; the defaults apply to a route without a declaration."""

    scope: Scope | None = Scope.ADMIN
    """None: the route is open."""
    concern: Concern = Concern.ALL_MODELS
    for_operators: bool = True
    """Serve the route on `SERVING_ADMIN_PORT` alone, if that is set."""
    is_probe: bool = False
    """Accept any host name, since supervisors use addresses."""
    needs_media_type: bool = True
    """Reject a body without `Content-Type`."""

    def check(self, key: ApiKey) -> None:
        """Check that a valid key gives access.

        Raises:
            Forbidden: the scope of the key is too small, or the key is limited to some models and the route
                concerns all.
        """
        if self.scope is Scope.ADMIN and key.scope is not Scope.ADMIN:
            raise Forbidden("This API key is limited to predictions.")
        if key.models and self.concern is Concern.ALL_MODELS:
            raise Forbidden("This API key is limited to some models, and this endpoint concerns all models.")


UNDECLARED = Access()
PREDICT = Access(Scope.PREDICT, Concern.MODELS_OF_KEY, for_operators=False)
PREDICT_UNTYPED = replace(PREDICT, needs_media_type=False)
"""TensorFlow Serving ignores the media type, so its clients may omit it."""
GENERAL = Access(Scope.PREDICT, Concern.NO_MODEL, for_operators=False)
"""Any key is enough, regardless of its models."""
NO_ROUTE = Access(Scope.PREDICT, Concern.NO_MODEL, for_operators=False, needs_media_type=False)
"""A path without a route: any key is enough for the 404."""
PROBE = Access(None, Concern.NO_MODEL, for_operators=False, is_probe=True)
SIGNED = Access(None, Concern.NO_MODEL, for_operators=False)
"""The handler verifies a signature."""
PAGE = Access(None, Concern.NO_MODEL)
ADMIN = Access()
ADMIN_OF_MODEL = Access(Scope.ADMIN, Concern.MODELS_OF_KEY)


def requires(access: Access) -> Callable[[F], F]:
    """Declare what an endpoint requires; goes below the decorator that makes it a route."""

    def declare(endpoint: F) -> F:
        endpoint.access = access  # type: ignore[attr-defined]  # functions take attributes
        return endpoint

    return declare


def declared(endpoint: Any) -> Access:
    """Return what an endpoint requires."""
    access = getattr(endpoint, "access", UNDECLARED)
    return access if isinstance(access, Access) else UNDECLARED


def allowed_methods(routes: Iterable[BaseRoute], request: Request) -> set[str]:
    """Return the methods of the routes at the path of a request; every route for GET also serves HEAD."""
    methods: set[str] = set()
    for route in routes:
        if route.matches(request)[0] is not Match.NONE:
            methods.update(getattr(route, "methods", None) or ())
    return methods | {"HEAD"} if "GET" in methods else methods


def required(routes: Iterable[BaseRoute], request: Request) -> Access:
    """Return what the route requires that the router will choose for a request.

    A path without a route requires any key. The routes match the path themselves, so that this choice cannot
    differ from the router's.
    """
    access = NO_ROUTE
    for route in routes:
        match, _ = route.matches(request)
        if match is Match.FULL:
            return declared(getattr(route, "endpoint", None))
        if match is Match.PARTIAL and access is NO_ROUTE:
            access = declared(getattr(route, "endpoint", None))
    return access
