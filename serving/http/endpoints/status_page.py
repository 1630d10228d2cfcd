"""The status page at `/`: files of this package, which send requests to this service only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from serving.auth.access_rules import PAGE, Access, requires

_FILES = Path(__file__).parents[1] / "static"
_MEDIA_TYPES = {"": "text/html", ".css": "text/css", ".js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""Browsers allow own scripts and styles, and requests to this origin; text never becomes HTML."""


_HTML_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def router() -> APIRouter:
    """Return the routes of the page's files, which are read once."""
    routes = APIRouter(include_in_schema=False)
    for file in sorted(_FILES.iterdir()):
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        add_file(routes, path, file.read_bytes(), PAGE)
    return routes


def etag(content: bytes) -> str:
    """Return the entity tag of a content."""
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def is_unchanged(request: Request, tag: str) -> bool:
    """Check whether the client has the content with this tag; compressed content has a weak tag."""
    tags = request.headers.get("if-none-match", "").split(",")
    return tag in (sent.strip().removeprefix("W/") for sent in tags)


def add_file(routes: APIRouter, path: str, content: bytes, access: Access) -> None:
    """Add the route of a file; a path without a suffix is HTML.

    All pages send the same security headers. The relative links of the page at `/` need a base behind a
    proxy, since its address may lack the final slash there.
    """
    media_type = _MEDIA_TYPES[Path(path).suffix]

    @requires(access)
    async def file(request: Request) -> Response:
        root_path = request.scope.get("root_path", "") if path == "/" else ""
        body, headers = _with_base(content, root_path)
        if is_unchanged(request, headers["ETag"]):
            return Response(status_code=304, headers={**headers, "Vary": "Accept-Encoding"})
        return Response(body, headers=headers, media_type=media_type)

    routes.add_api_route(path, file, methods=["GET", "HEAD"])


@lru_cache(64)
def _with_base(content: bytes, root_path: str) -> tuple[bytes, Mapping[str, str]]:
    """Return a page, whose links are relative to this path unless it is empty, and its headers."""
    headers = dict(_HTML_HEADERS)
    if root_path:
        content = content.replace(b"<head>", b'<head>\n  <base href="%s/">' % root_path.encode(), 1)
        headers["Content-Security-Policy"] = _POLICY.replace("base-uri 'none'", "base-uri 'self'")
    # Browsers revalidate each time: an upgrade of the service changes the files.
    return content, headers | {"ETag": etag(content), "Cache-Control": "no-cache"}
