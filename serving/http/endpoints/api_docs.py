"""`/openapi.json`, generated once for each set of live versions, and `/docs`, which shows it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Hashable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from cachetools import LRUCache
from fastapi import APIRouter, FastAPI, Request, Response

from serving.auth.access_rules import GENERAL, PREDICT, requires
from serving.http.endpoints.status_page import add_file, etag, is_unchanged
from serving.http.model_visibility import visible_models
from serving.http.openapi import build_openapi
from serving.models.loaded_model import LoadedModel
from serving.models.selector import ModelSelector

log = logging.getLogger("serving.api_document")
_FILES = Path(__file__).parents[1] / "swagger"
_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css")
_MAX_DOCUMENTS = 16


class ApiDocument:
    """Generates OpenAPI documents in a thread, one at a time, and caches the latest ones as bytes."""

    def __init__(self, app: FastAPI, *, has_keys: bool) -> None:
        self._app, self._has_keys = app, has_keys
        self._cache: LRUCache[Hashable, bytes] = LRUCache(_MAX_DOCUMENTS)
        self._tasks: dict[Hashable, asyncio.Task[bytes]] = {}
        self._one_at_a_time = asyncio.Lock()

    async def get(self, models: ModelSelector) -> bytes:
        """Return the document of the live versions of these models; callers share one generation."""
        live = {name: slot.live for name, slot in models.named().items() if slot.live}
        default = models.default.live if models.default else None
        versions = [(name, model.version.label, model.loaded_at) for name, model in live.items()]
        key = (default and default.loaded_at, *versions)
        if document := self._cache.get(key):
            return document
        if key not in self._tasks:
            self._tasks[key] = task = asyncio.create_task(self._write(key, default, live))
            task.add_done_callback(lambda _: self._tasks.pop(key))
        return await asyncio.shield(self._tasks[key])

    async def _write(
        self, key: Hashable, default: LoadedModel | None, live: Mapping[str, LoadedModel]
    ) -> bytes:
        async with self._one_at_a_time:
            document = await asyncio.to_thread(self._render, default, live)
        self._cache[key] = document
        log.info("wrote the OpenAPI document of %d models: %d bytes", len(live), len(document))
        return document

    def _render(self, default: LoadedModel | None, live: Mapping[str, LoadedModel]) -> bytes:
        document: dict[str, Any] = build_openapi(self._app, default, live, has_keys=self._has_keys)
        return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _with_server(document: bytes, root_path: str) -> bytes:
    """Return a document with the path prefix of the service, without parsing it."""
    return (
        b'{"servers":%s,%s' % (json.dumps([{"url": root_path}]).encode(), document[1:])
        if root_path
        else document
    )


def router(app: FastAPI, models: ModelSelector, *, has_keys: bool) -> APIRouter:
    """Return the routes of the document and of the page that shows it; the page needs no other server."""
    routes = APIRouter(include_in_schema=False)
    document = ApiDocument(app, has_keys=has_keys)

    @routes.get("/openapi.json")
    @requires(PREDICT)
    async def openapi(request: Request) -> Response:
        content = _with_server(
            await document.get(visible_models(models, request.scope)), request.scope.get("root_path", "")
        )
        headers = {"ETag": etag(content)}
        if is_unchanged(request, headers["ETag"]):
            return Response(status_code=304, headers=headers | {"Vary": "Accept-Encoding"})
        return Response(content, headers=headers, media_type="application/json")

    add_file(routes, "/docs", (_FILES / "docs.html").read_bytes(), GENERAL)
    add_file(routes, "/swagger/docs.js", (_FILES / "docs.js").read_bytes(), GENERAL)
    packaged = resources.files("fastapi_swagger.resources")
    for name in _ASSETS:
        add_file(routes, f"/swagger/{name}", (packaged / name).read_bytes(), GENERAL)
    return routes
