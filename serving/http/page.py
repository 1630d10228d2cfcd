"""The status page at `/`: files of this package, which ask this service for what they show, nobody else."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Request, Response

_FILES = Path(__file__).with_name("static")
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""What browsers let the page do: own scripts and styles, requests to where it came from, no text as HTML."""


def router() -> APIRouter:
    """The routes of the page's files, which are read once."""
    routes = APIRouter(include_in_schema=False)
    for file in sorted(_FILES.iterdir()):
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        routes.add_api_route(path, _giving(file), methods=["GET", "HEAD"])
    return routes


def _giving(file: Path) -> Callable[[Request], Awaitable[Response]]:
    content = file.read_bytes()
    headers = {
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        "Cache-Control": "no-cache",  # kept, but asked for again: another version of the service has others
        "Content-Security-Policy": _POLICY,
        "Referrer-Policy": "no-referrer",
    }

    async def give(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=_MEDIA_TYPES[file.suffix])

    return give
