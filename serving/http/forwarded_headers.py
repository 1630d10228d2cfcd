"""Client address, scheme and path prefix of requests that come through reverse proxies.

The application has this layer only if `SERVING_ROOT_PATH` or `SERVING_FORWARDED_ALLOW_IPS` is set.
"""

from __future__ import annotations

from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.auth.trusted_proxies import TrustedProxies
from serving.settings.parsing import parse_root_path

_MAX_PREFIX_BYTES = 256
_SCHEMES = frozenset({"http", "https"})


class ForwardedHeaders:
    """Sets `client`, `scheme`, `root_path` and `path` of each request's scope, and passes the request on.

    A request may have the root path or not: some proxies remove it and others do not. Only the root path from
    the settings is removed here. A prefix from a header describes what the proxy has removed. If the header
    could also remove a part of the path, a client whose header a proxy lets through could get around the
    rules of that proxy for paths.

    Args:
        app: the application.
        root_path: the prefix below which the proxy publishes the service; may be empty.
        allowed: the peers whose headers are valid.
    """

    def __init__(self, app: ASGIApp, root_path: str, allowed: tuple[str, ...]) -> None:
        self._app, self._root_path, self._proxies = app, root_path, TrustedProxies(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or the lifespan."""
        if scope["type"] == "http":
            self._update(scope)
        await self._app(scope, receive, send)

    def _update(self, scope: Scope) -> None:
        root_path, client = scope.get("root_path", ""), scope.get("client")
        path = _without_prefix(_without_prefix(scope["path"], root_path), self._root_path)
        root_path = self._root_path or root_path
        if self._proxies.trusts(client[0] if client else None):
            root_path = self._apply_headers(scope) or root_path
        scope["root_path"], scope["path"] = root_path, root_path + path

    def _apply_headers(self, scope: Scope) -> str:
        """Set address and scheme of the client, and return the prefix that proxies have removed."""
        addresses, prefixes = [], []
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                addresses.append(value.decode("latin-1"))
            elif name == b"x-forwarded-proto":
                # Several proxies write a list, which begins with the client's own scheme.
                scheme = value.decode("latin-1").partition(",")[0].strip().lower()
                if scheme in _SCHEMES:
                    scope["scheme"] = scheme
            elif name == b"x-forwarded-prefix":
                prefixes.append(value)
        if addresses and (address := self._proxies.client(",".join(addresses))):
            scope["client"] = address
        return _parse_prefixes(b",".join(prefixes)) if prefixes else ""


def _without_prefix(path: str, prefix: str) -> str:
    """Return a path without a prefix, if it has that prefix; the root is `/` and never empty."""
    return path[len(prefix) :] or "/" if f"{path}/".startswith(f"{prefix}/") else path


def _parse_prefixes(value: bytes) -> str:
    """Return a list of prefixes, the outer one first, as one path; empty if any of them is malformed."""
    return _join(value) if len(value) <= _MAX_PREFIX_BYTES else ""


@lru_cache(64)
def _join(value: bytes) -> str:
    try:
        return "".join(parse_root_path(part.strip()) for part in value.decode("latin-1").split(","))
    except ValueError:
        return ""
