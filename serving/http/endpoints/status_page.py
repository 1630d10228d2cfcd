"""The status page at `/`: files of this package, which ask this service for what they show, nobody else."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request, Response

from serving.auth.access_rules import PAGE, Access, requires

_FILES = Path(__file__).parents[1] / "static"
_MEDIA_TYPES = {"": "text/html", ".css": "text/css", ".js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""What browsers let the page do: own scripts and styles, requests to where it came from, no text as HTML."""


_HTML_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def router() -> APIRouter:
    """The routes of the page's files, which are read once."""
    routes = APIRouter(include_in_schema=False)
    for file in sorted(_FILES.iterdir()):
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        add_file(routes, path, file.read_bytes(), PAGE)
    return routes


def etag(content: bytes) -> str:
    """Return the entity tag of a content."""
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def add_file(routes: APIRouter, path: str, content: bytes, access: Access) -> None:
    """Add the route of a file of a page; a path without an ending is one of HTML.

    Every page restricts in the same way what browsers let it do.
    """
    headers = _HTML_HEADERS | {
        "ETag": etag(content),
        "Cache-Control": "no-cache",  # kept, but asked for again: another version of the service has others
    }
    media_type = _MEDIA_TYPES[Path(path).suffix]

    @requires(access)
    async def give(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    routes.add_api_route(path, give, methods=["GET", "HEAD"])
