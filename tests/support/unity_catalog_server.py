"""A stand-in for Unity Catalog: the part of its REST API that MLflow's client calls for models.

`python unity_catalog_server.py PORT` serves the API of Databricks below `/api/2.0` and that of the
open-source server below `/api/2.1`, on the same models. Tests register versions with a POST to `/versions`.
Artifacts stay in the folders that tests name: the API of Databricks offers them by signed URLs, the
open-source one by file URLs. As in Databricks, names of tags must not contain dots. A page of versions has
two entries. A POST to `/interruptions` makes the next responses with each file end early.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

TOKEN = "a-token"
_PAGE_SIZE = 2
_SIGNATURE = "signature=valid"
_DATABRICKS = "/api/2.0/mlflow/unity-catalog"
_OPEN_SOURCE = "/api/2.1/unity-catalog"
_FORBIDDEN_IN_TAGS = set(".,-=/:")

Json = dict[str, Any]


class Missing(Exception):
    """No such model, version or alias."""


class NoFolder(Exception):
    """A path of artifacts that is no folder."""


class Invalid(Exception):
    """A value that the catalog rejects."""


class Models:
    """The registered models with their versions, tags and aliases."""

    def __init__(self) -> None:
        self._versions: dict[str, list[Json]] = {}
        self._aliases: dict[str, dict[str, str]] = {}
        self.read_only: set[str] = set()
        self.interruptions: dict[str, int] = {}
        self.max_interruptions = 0
        self.calls: list[str] = []

    def register(self, name: str, folder: str) -> str:
        versions = self._versions.setdefault(name, [])
        at = int(1000 * time.time())
        number = str(len(versions) + 1)
        versions.append({"name": name, "version": number, "folder": folder, "tags": {}, "at": at})
        return number

    def version(self, name: str, number: str) -> Json:
        for version in self.versions(name):
            if version["version"] == str(number):
                return version
        raise Missing(f"Routine or Model '{name}' version {number} does not exist.")

    def versions(self, name: str) -> list[Json]:
        if name not in self._versions:
            raise Missing(f"Routine or Model '{name}' does not exist.")
        return self._versions[name]

    def aliases(self, name: str) -> dict[str, str]:
        self.versions(name)
        return self._aliases.setdefault(name, {})

    def by_alias(self, name: str, alias: str) -> Json:
        if (number := self.aliases(name).get(alias)) is None:
            raise Missing(f"Alias '{alias}' does not exist.")
        return self.version(name, number)

    def interrupts(self, path: str) -> bool:
        """Return whether the response with this file ends early, and count it."""
        self.interruptions[path] = self.interruptions.get(path, 0) + 1
        return self.interruptions[path] <= self.max_interruptions

    def set_tag(self, name: str, number: str, key: str, value: str) -> None:
        if _FORBIDDEN_IN_TAGS & {*key}:
            raise Invalid(f"Invalid tag key '{key}': it contains one of . , - = / :")
        if len(value) > 1000:
            raise Invalid("Tag values are limited to 1000 characters.")
        self.version(name, number)["tags"][key] = value


class Databricks:
    """The API that MLflow's client calls for `databricks-uc`."""

    def __init__(self, models: Models, url: str) -> None:
        self._models, self._url = models, url

    def handle(self, method: str, path: str, body: Json) -> Json:
        handlers: dict[tuple[str, str], Callable[[Json], Json]] = {
            ("GET", "/model-versions/get"): lambda b: self._found(
                self._models.version(b["name"], b["version"])
            ),
            ("GET", "/model-versions/search"): self._search,
            ("GET", "/model-versions/get-download-uri"): self._location,
            ("POST", "/model-versions/generate-temporary-credentials"): lambda b: {
                "credentials": {"storage_mode": "DEFAULT_STORAGE"}
            },
            ("POST", "/model-versions/emit-lineage"): lambda b: {},
            ("POST", "/model-versions/set-tag"): self._set_tag,
            ("DELETE", "/model-versions/delete-tag"): self._delete_tag,
            ("GET", "/registered-models/get"): self._model,
            ("GET", "/registered-models/alias"): lambda b: self._found(
                self._models.by_alias(b["name"], b["alias"])
            ),
            ("POST", "/registered-models/alias"): self._set_alias,
            (
                "GET",
                "/registered-models:is-databricks-sdk-models-artifact-repository-enabled",
            ): lambda b: {"is_databricks_sdk_models_artifact_repository_enabled": False},
        }
        if (method, path) not in handlers:
            raise Missing(f"no endpoint {method} {path}")
        return handlers[method, path](body)

    def _found(self, version: Json) -> Json:
        aliases = self._models.aliases(version["name"]).items()
        named = [{"alias": alias, "version": v} for alias, v in aliases if v == version["version"]]
        tags = [{"key": key, "value": value} for key, value in version["tags"].items()]
        return {"model_version": self._entry(version) | {"tags": tags, "aliases": named}}

    def _entry(self, version: Json) -> Json:
        return {
            "name": version["name"],
            "version": version["version"],
            "creation_timestamp": version["at"],
            "last_updated_timestamp": version["at"],
            "source": f"dbfs:/databricks/mlflow-tracking/0/run-{version['version']}/artifacts/model",
            "run_id": f"run-{version['version']}",
            "status": "READY",
        }

    def _search(self, body: Json) -> Json:
        name = body["filter"].partition("'")[2].rstrip("'")
        first = int(body.get("page_token") or 0)
        page = self._models.versions(name)[first : first + _PAGE_SIZE]
        more = first + _PAGE_SIZE < len(self._models.versions(name))
        following = {"next_page_token": str(first + _PAGE_SIZE)} if more else {}
        return {"model_versions": [self._entry(version) for version in page]} | following

    def _location(self, body: Json) -> Json:
        version = self._models.version(body["name"], body["version"])
        return {"artifact_uri": f"s3://managed-storage/{version['name']}/{version['version']}"}

    def _set_tag(self, body: Json) -> Json:
        self._models.set_tag(body["name"], body["version"], body["key"], body["value"])
        return {}

    def _delete_tag(self, body: Json) -> Json:
        self._models.version(body["name"], body["version"])["tags"].pop(body["key"], None)
        return {}

    def _set_alias(self, body: Json) -> Json:
        self._models.version(body["name"], body["version"])
        self._models.aliases(body["name"])[body["alias"]] = body["version"]
        return {}

    def _model(self, body: Json) -> Json:
        aliases = [{"alias": a, "version": v} for a, v in self._models.aliases(body["name"]).items()]
        return {"registered_model": {"name": body["name"], "aliases": aliases}}

    def directory(self, path: str) -> Json:
        """List a folder of artifacts: `Models/catalog/schema/name/version/…`."""
        folder = self._file(path)
        if not folder.is_dir():
            raise NoFolder(f"{path} is no folder")
        return {
            "contents": [
                {
                    "path": f"/{path}/{entry.name}",
                    "name": entry.name,
                    "is_directory": entry.is_dir(),
                    "file_size": entry.stat().st_size,
                }
                for entry in sorted(folder.iterdir())
            ]
        }

    def download_url(self, path: str) -> Json:
        return {"url": f"{self._url}/files{quote(path)}?{_SIGNATURE}", "headers": []}

    def read(self, path: str) -> bytes:
        return self._file(path).read_bytes()

    def _file(self, path: str) -> Path:
        _, *levels, number, rest = (path.strip("/") + "/").split("/", 5)
        return Path(self._models.version(".".join(levels), number)["folder"]) / rest.strip("/")


class OpenSource:
    """The API that MLflow's client calls for `uc:http://…`: no tags, no aliases, artifacts in files."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def handle(self, method: str, path: str, body: Json) -> Json:
        match [method, *path.strip("/").split("/")]:
            case ["GET", "models", name, "versions"]:
                return {"model_versions": [self._entry(v) for v in self._models.versions(name)]}
            case ["GET", "models", name, "versions", number]:
                return self._entry(self._models.version(name, number))
            case ["GET", "models", name]:
                self._models.versions(name)
                catalog, schema, model = name.split(".")
                return {"catalog_name": catalog, "schema_name": schema, "name": model, "full_name": name}
        raise Missing(f"no endpoint {method} {path}")

    def _entry(self, version: Json) -> Json:
        catalog, schema, model = version["name"].split(".")
        return {
            "catalog_name": catalog,
            "schema_name": schema,
            "model_name": model,
            "version": int(version["version"]),
            "created_at": version["at"],
            "updated_at": version["at"],
            "source": version["folder"],
            "storage_location": Path(version["folder"]).as_uri(),
            "status": "READY",
        }


def handler(models: Models, url: str) -> type[BaseHTTPRequestHandler]:
    """Return the handler of requests."""
    databricks, open_source = Databricks(models, url), OpenSource(models)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            url = urlsplit(self.path)
            length = int(self.headers.get("content-length") or 0)
            content = self.rfile.read(length)
            body = dict(parse_qsl(url.query)) | (json.loads(content) if content else {})
            models.calls.append(f"{self.command} {url.path}")
            try:
                self._respond(200, self._result(unquote(url.path), url.query, body))
            except Missing as error:
                self._fail(404, "RESOURCE_DOES_NOT_EXIST", error)
            except NoFolder as error:
                self._fail(404, "NOT_FOUND", error)
            except Invalid as error:
                self._fail(400, "INVALID_PARAMETER_VALUE", error)
            except PermissionError as error:
                self._fail(403, "PERMISSION_DENIED", error)

        do_GET = do_POST = do_PATCH = do_DELETE = _handle

        def _result(self, path: str, query: str, body: Json) -> Json | bytes:
            if path == "/versions":
                return {"version": models.register(body["name"], body["folder"])}
            if path == "/read-only":
                (models.read_only.add if body["value"] else models.read_only.discard)(body["name"])
                return {}
            if path == "/interruptions":
                models.max_interruptions = body["each"]
                models.interruptions.clear()
                return {}
            if path == "/.well-known/databricks-config":  # the SDK of Databricks reads it with every client
                return {}
            if path == "/calls":
                return {"calls": models.calls}
            if path.startswith("/files/"):
                if query != _SIGNATURE:
                    raise PermissionError("the signature is missing")
                return databricks.read(path.removeprefix("/files"))
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                raise PermissionError("the token is missing")
            if path.endswith("-tag") and body["name"] in models.read_only:
                raise PermissionError("User does not have APPLY TAG on Routine or Model.")
            if path.startswith("/api/2.0/fs/directories/"):
                return databricks.directory(path.removeprefix("/api/2.0/fs/directories/"))
            if path == "/api/2.0/fs/create-download-url":
                return databricks.download_url(body["path"])
            if path.startswith(_DATABRICKS):
                return databricks.handle(self.command, path.removeprefix(_DATABRICKS), body)
            if path.startswith(_OPEN_SOURCE):
                return open_source.handle(self.command, path.removeprefix(_OPEN_SOURCE), body)
            raise Missing(f"no endpoint {self.command} {path}")

        def _fail(self, status: int, code: str, error: Exception) -> None:
            self._respond(status, {"error_code": code, "message": str(error)})

        def _respond(self, status: int, result: Json | bytes) -> None:
            content = result if isinstance(result, bytes) else json.dumps(result).encode()
            kind = "application/octet-stream" if isinstance(result, bytes) else "application/json"
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            is_file = isinstance(result, bytes)
            if is_file and content and models.interrupts(self.path):
                self.close_connection = True
                content = content[: len(content) // 2]
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    return Handler


def main() -> None:
    """Serve until terminated."""
    port = int(sys.argv[1])
    ThreadingHTTPServer(("127.0.0.1", port), handler(Models(), f"http://127.0.0.1:{port}")).serve_forever()


if __name__ == "__main__":
    main()
