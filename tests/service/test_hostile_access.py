"""Attacks on access control: paths, keys, models of others, reasons, other origins, and the key file."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.app import create_app
from serving.auth.access_rules import Access, Concern, declared
from serving.auth.api_keys import Scope
from serving.grpc import inference_pb2 as protos
from serving.grpc import inference_pb2_grpc as services
from serving.grpc.servicer import _Service
from serving.http.application import ServingApp
from serving.settings.settings import Settings
from tests.service.test_auth import Keys
from tests.support.faulty_proxy import free_port
from tests.support.registry import NewRegistry, Registry
from tests.support.service import SELDOM, Service, served, until

SECRET = "opaque-hunter2"
ROW = {"x": 21}
TENSOR = {"name": "x", "datatype": "FP64", "shape": [1], "data": [21.0]}
BODIES: dict[str, Any] = {
    "/predict": ROW,
    "/predict/batch": {"rows": [ROW]},
    "/predict/stream": ROW,
    "/invocations": {"dataframe_records": [ROW]},
    "/infer": {"inputs": [TENSOR]},
    ":predict": {"instances": [{"x": 1.0}]},
    "/score": {"input_data": {"columns": ["x"], "data": [[1.0]]}},
}
DEFAULT_MODEL = frozenset(
    {"/predict", "/predict/batch", "/predict/stream", "/invocations", "/ping", "/score"}
)
"""Paths that concern the default model."""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def send(
    url: str, method: str, path: str, headers: dict[str, str] | None = None, body: Any = None
) -> Response:
    """Send a request whose path and headers reach the service as they are."""
    address = url.removeprefix("http://")
    connection = HTTPConnection(address, timeout=60)
    sent, content = headers or {}, None
    if body is not None:
        sent, content = {"Content-Type": "application/json"} | sent, json.dumps(body).encode()
    try:
        connection.request(method, path, content, {k: v for k, v in sent.items() if v})
        response = connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, named, response.read())
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class Target:
    """A service of `iris` (the default), `other`, and the on-demand models `asleep` and `broken`."""

    service: Service
    keys: Keys
    admin_url: str
    key: dict[str, str]
    """Keys by purpose; the keys `iris` and `other` are limited to these models."""
    app: ServingApp
    """The same application in this process, to inspect its routes."""

    def get(self, key: str, path: str, *, admin_port: bool = False, **headers: str) -> Response:
        return self.send(key, "GET", path, admin_port=admin_port, **headers)

    def send(
        self, key: str, method: str, path: str, body: Any = None, *, admin_port: bool = False, **headers: str
    ) -> Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            named["Authorization"] = f"Bearer {self.key[key]}"
        return send(self.admin_url if admin_port else self.service.url, method, path, named, body)

    def states(self) -> dict[str, str]:
        status = self.get("admin", "/status", admin_port=True).json
        return {each["name"]: each["state"] for each in status["models"]}


@pytest.fixture(scope="module")
def target(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("hostile-access")
    registry, ring = Registry(new_registry(folder)), Keys(folder)
    for name in ("iris", "other", "asleep"):
        registry.promote(name, registry.add(name, factor=2.0, streams=True))
    registry.promote("broken", registry.add("broken", on_load=f"raise:{SECRET}"))
    key = {
        "admin": ring.create("admin", "--scope", "admin"),
        "admin of iris": ring.create("admin-iris", "--scope", "admin", "--models", "iris"),
        "any": ring.create("any"),
        "iris": ring.create("iris", "--models", "iris"),
        "other": ring.create("other", "--models", "other"),
        "expired": ring.create("expired", "--expires", "2999-01-01"),
    }
    expired = ring.file.read_text().replace("2999-01-01", "2001-01-01")
    ring.file.write_text(expired)
    settings: dict[str, Any] = {
        "models": "models:/iris/1,models:/other/Production",
        "on_demand": "models:/asleep/1,models:/broken/1",
        "keys_file": ring.file,
        "keys_stale_seconds": 1,
        "admin_port": free_port(),
        "grpc_port": 0,
        "webhook_secret": "hush",
        "journal_url": f"sqlite:///{folder}/journal.db",
        "poll_seconds": SELDOM,
    }
    with served(registry.uri, folder, **settings, _key=key["admin"]) as running:
        running.until_ready()
        own = running.logged(re.compile(r"history\) are at (http://[\d.:]+)"))[1]
        registry.promote("other", registry.add("other", on_load=f"raise:{SECRET}", streams=True))
        known = Settings(**settings | {"store_dir": folder / "unused", "tracking_uri": registry.uri})
        found = Target(running, ring, own, key, create_app(known))
        until(lambda: SECRET in found.get("admin", "/status", admin_port=True).text)
        yield found


# -- declarations


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    access: Access


def routes(app: ServingApp) -> list[Route]:
    """Return all routes of the application, for the model `iris`."""
    collected = []
    for route in app.router.routes:
        path = route.path.format(name="iris", version="1", label="Production")  # type: ignore[attr-defined]
        collected += [
            Route(method, path, declared(route.endpoint))  # type: ignore[attr-defined]
            for method in sorted(route.methods)  # type: ignore[attr-defined]
        ]
    paths = [path for path in app.predictions._paths if "models" not in path or "/iris" in path]
    paths += [re.sub("/iris([/:])", r"/iris/versions/1\1", path) for path in paths if "/iris" in path]
    for path in paths:
        predict = app.predictions.match(path)
        assert predict
        collected.append(Route("POST", path, predict.access))
    return collected


def test_every_route_declares_its_access(target: Target) -> None:
    for route in target.app.router.routes:
        assert isinstance(route.endpoint.access, Access), route  # type: ignore[attr-defined]
    for name in services.GRPCInferenceServiceServicer.__dict__:
        if name[0] != "_":
            assert isinstance(getattr(_Service, name).access, Access), name


def test_every_route_demands_what_it_declares(target: Target) -> None:
    all_routes = routes(target.app)
    assert len(all_routes) > 35
    for route in all_routes:
        body: Any = next((each for end, each in BODIES.items() if route.path.endswith(end)), {})
        sent = None if route.method in ("GET", "HEAD") else body

        def status(key: str, route: Route = route, sent: Any = sent) -> int:
            admin_port = route.access.for_operators
            return target.send(key, route.method, route.path, sent, admin_port=admin_port).status

        is_open, is_admin = route.access.scope is None, route.access.scope is Scope.ADMIN
        is_signed = route.path == "/webhooks/mlflow"
        names_model = "/iris" in route.path or route.path in DEFAULT_MODEL
        concern = route.access.concern
        for key in ("", "expired"):
            assert (status(key) == 401) is (not is_open or is_signed), (route, key)
        for key in ("iris", "any"):
            assert (status(key) == 403) is is_admin, (route, key)
            assert is_admin or is_signed or status(key) not in (401, 404), (route, key)
        assert status("admin") not in (401, 403, 404) or is_signed, route
        refused = 403 if is_admin else 404 if names_model and concern is Concern.MODELS_OF_KEY else None
        if refused:
            assert status("other") == refused, route
        elif not is_signed:
            assert status("other") not in (401, 403, 404), route
        assert (status("admin of iris") == 403) is (concern is Concern.ALL_MODELS), route
        if route.access.for_operators:
            for key in ("", "any", "admin"):
                assert target.send(key, route.method, route.path, sent).status == 404, (route, key)
        if not is_open:
            for method in ("HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
                assert target.send("", method, route.path, admin_port=True).status == 401, (route, method)


def test_undeclared_route_requires_admin_access(target: Target) -> None:
    assert declared(lambda: None) == Access(Scope.ADMIN, Concern.ALL_MODELS, for_operators=True)


def test_row_46_path_variants_do_not_bypass_scopes(target: Target) -> None:
    for path in ("/metrics", "/status", "/models/iris/history"):
        assert target.get("admin", path, admin_port=True).status == 200
        escaped = path.replace("/", "%2f")
        forms = [
            f"{path}{end}" for end in ("%0a", "%0A%0a", "%0d", "%00", "%09", "%20", "/", "%2f", "//", "/.")
        ]
        forms += [f"{path}{end}" for end in ("?", "#", ";x", "%3f", "%23", "/%0a", "%e2%80%a8", "%c2%85")]
        forms += [
            f"/{path}",
            f"/.{path}",
            f"/x/..{path}",
            path.upper(),
            escaped,
            escaped.replace("%2f", "/", 1),
        ]
        forms += [f"http://localhost{path}", f"{path}%0a?{path}", path.replace("s", "%73")]
        for form in forms:
            for key in ("", "any"):
                response = target.get(key, form, admin_port=True)
                assert response.status in (400, 401, 403, 404), (form, key)
            for key in ("any", "admin"):
                assert target.get(key, form).status in (400, 404), (form, key)


# -- models of others


NAMED = [
    ("GET", "/models/{}", None),
    ("GET", "/v2/models/{}", None),
    ("GET", "/v2/models/{}/ready", None),
    ("GET", "/v2/models/{}/versions/1", None),
    ("GET", "/v2/models/{}/versions/1/ready", None),
    ("POST", "/models/{}/predict", ROW),
    ("POST", "/models/{}/predict/batch", {"rows": [ROW]}),
    ("POST", "/models/{}/predict/stream", ROW),
    ("POST", "/models/{}/versions/1/predict", ROW),
    ("POST", "/models/{}@champion/predict", ROW),
    ("POST", "/models/models:%2F{}%2F1/predict", ROW),
    ("POST", "/v2/models/{}/infer", {"inputs": [TENSOR]}),
    ("POST", "/v2/models/{}/versions/1/infer", {"inputs": [TENSOR]}),
    ("POST", "/invocations?model={}", {"dataframe_records": [ROW]}),
    ("POST", "/invocations?model=models:/{}/1", {"dataframe_records": [ROW]}),
]


def test_row_54_foreign_models_are_not_found(target: Target) -> None:
    def form(response: Response, name: str) -> tuple[int, str]:
        text = re.sub(r'"request_id":"[^"]*"', "", response.text.replace(name, "NAME"))
        return response.status, text

    for method, path, body in NAMED:
        missing = form(target.send("iris", method, path.format("missing"), body), "missing")
        assert missing[0] == 404
        for name in ("other", "asleep", "broken"):
            assert form(target.send("iris", method, path.format(name), body), name) == missing, path
        assert target.send("other", method, path.format("iris"), body).status == 404
    for path, body in (("/predict", ROW), ("/invocations", {"dataframe_records": [ROW]})):
        for reference in ("{}", "{}/1", "models:/{}/1", "{}@champion", "{}/Production"):
            missing = form(
                target.send("iris", "POST", path, body, X_Model=reference.format("missing")), "missing"
            )
            for name in ("other", "asleep"):
                sent = reference.format(name)
                assert form(target.send("iris", "POST", path, body, X_Model=sent), name) == missing
        assert target.send("other", "POST", path, body).status == 404
        assert target.send("other", "POST", path, body, X_Model="other").status == 200
    assert target.send("iris", "POST", "/models/iris/predict", ROW).status == 200
    assert target.send("iris", "POST", "/models/iris/versions/1/predict", ROW).status == 200
    assert target.get("admin of iris", "/models/other/history", admin_port=True).status == 404
    assert target.get("other", "/ping").status == 404
    assert target.states()["asleep"] == "asleep"


def test_row_54_lists_contain_only_models_of_the_key(target: Target) -> None:
    for key, names in (("iris", ["iris"]), ("any", ["iris", "other", "asleep", "broken"])):
        assert [each["name"] for each in target.get(key, "/models").json["models"]] == names
        index = target.send(key, "POST", "/v2/repository/index", {}).json
        assert [each["name"] for each in index] == names
    paths = target.get("iris", "/openapi.json").json["paths"]
    assert {"/predict", "/models/iris/predict"} <= paths.keys()
    assert not [path for path in paths if "other" in path]
    assert "/models/other/predict" in target.get("any", "/openapi.json").json["paths"]
    others = target.get("other", "/openapi.json").json["paths"]
    assert "/predict" not in others
    assert "/models/other/predict" in others


def test_row_54_feedback_on_foreign_predictions_is_rejected(target: Target) -> None:
    prediction = target.send("other", "POST", "/models/other/predict", ROW)
    sent = {"prediction_id": prediction.headers["x-prediction-id"], "outcome": 1.0}
    until(lambda: target.send("other", "POST", "/feedback", sent).status == 200)
    missing = sent | {"prediction_id": "01890a5d-ac96-774b-bcce-b302099a8057"}
    foreign, unknown = (target.send("iris", "POST", "/feedback", each) for each in (sent, missing))
    assert foreign.status == unknown.status == 404
    assert {**foreign.json, "request_id": ""} == {**unknown.json, "request_id": ""}


def call(target: Target, key: str, method: str, **request: Any) -> Any:
    """Call a method over gRPC; return the response, or the code and the details of the error."""
    port = target.service.logged(re.compile(r"serving gRPC at [\d.]+:(\d+)"))[1]
    metadata = (("x-api-key", target.key[key]),) if key else ()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = services.GRPCInferenceServiceStub(channel)
        try:
            return getattr(stub, method)(getattr(protos, f"{method}Request")(**request), metadata=metadata)
        except grpc.RpcError as error:
            return error.code(), error.details()


def test_row_54_foreign_models_are_not_found_over_grpc(target: Target) -> None:
    tensor = {"name": "x", "datatype": "FP64", "shape": [1], "contents": {"fp64_contents": [21.0]}}
    for version in ("", "1"):
        for method in ("ModelReady", "ModelMetadata", "ModelInfer"):

            def ask(name: str, key: str = "iris", method: str = method, version: str = version) -> Any:
                if method == "ModelInfer":
                    sent = {"model_name": name, "model_version": version, "inputs": [tensor]}
                else:
                    sent = {"name": name, "version": version}
                return call(target, key, method, **sent)

            code, details = ask("missing")
            assert code is grpc.StatusCode.NOT_FOUND
            for name in ("other", "asleep", "broken"):
                assert ask(name) == (code, details.replace("missing", name))
            assert not isinstance(ask("iris"), tuple)
            assert ask("iris", "")[0] is ask("iris", "expired")[0] is grpc.StatusCode.UNAUTHENTICATED
    assert call(target, "", "ServerMetadata")[0] is grpc.StatusCode.UNAUTHENTICATED
    assert call(target, "", "ServerLive").live
    assert target.states()["asleep"] == "asleep"


# -- reasons


def test_row_53_only_admin_keys_receive_reasons(target: Target) -> None:
    assert SECRET in target.get("admin", "/models/other").text
    assert SECRET in target.get("admin", "/status", admin_port=True).text
    broken = target.send("admin", "POST", "/models/broken/predict", ROW)
    assert (broken.status, SECRET in broken.text) == (503, True)
    for key in ("", "any"):
        for method, path, body in (
            ("GET", "/ready", None),
            ("GET", "/readyz", None),
            ("GET", "/v2/health/ready", None),
            ("GET", "/ping", None),
            ("GET", "/models", None),
            ("GET", "/models/other", None),
            ("GET", "/models/broken", None),
            ("GET", "/v2/models/broken", None),
            ("GET", "/v2/models/broken/ready", None),
            ("POST", "/v2/repository/index", {}),
            ("POST", "/models/broken/predict", ROW),
            ("POST", "/models/broken/versions/1/predict", ROW),
            ("POST", "/models/broken/predict/stream", ROW),
            ("POST", "/invocations?model=broken", {"dataframe_records": [ROW]}),
            ("POST", "/v2/models/broken/infer", {"inputs": [TENSOR]}),
        ):
            response = target.send(key, method, path, body)
            assert SECRET not in response.text, path
            assert response.status in ((401, 200) if not key else (200, 503)), path
    candidate = target.get("", "/ready").json["models"][1]["candidate"]
    assert (candidate["version"], candidate["state"]) == ("2", "rejected")
    assert "show why" in candidate["reason"]
    for method in ("ModelMetadata", "ModelReady"):
        assert SECRET not in str(call(target, "any", method, name="broken"))
    assert SECRET not in str(call(target, "any", "ModelInfer", model_name="broken"))


# -- the API document


def test_row_51_api_document_is_generated_once(target: Target) -> None:
    with ThreadPoolExecutor(8) as pool:
        responses = [*pool.map(lambda _: target.get("any", "/openapi.json"), range(40))]
    assert len({each.body for each in responses}) == 1
    bodies = responses[0].json
    assert bodies["security"] == [{"key": []}]
    assert target.get("any", "/openapi.json", If_None_Match=responses[0].headers["etag"]).status == 304
    lines = [each for each in target.service.log if "wrote the OpenAPI document of 2 models" in each]
    assert len(lines) == 1


# -- pages of other origins


ACTING = [
    ("/predict", ROW),
    ("/models/iris/predict", ROW),
    ("/models/iris/predict/batch", {"rows": [ROW]}),
    ("/invocations", {"dataframe_records": [ROW]}),
    ("/v2/models/iris/infer", {"inputs": [TENSOR]}),
    ("/v2/repository/index", {}),
    ("/feedback", {}),
    ("/webhooks/mlflow", {}),
]


def test_row_52_other_origins_and_host_names_are_rejected(target: Target) -> None:
    port = target.service.url.rpartition(":")[2]
    for host in ("evil.example.com", f"evil.example.com:{port}", "localhost.evil.example.com", "front"):
        for path in ("/", "/ready", "/health", "/models", "/openapi.json", "/metrics"):
            assert target.get("admin", path, Host=host).status == 400, (host, path)
            assert target.get("admin", path, admin_port=True, Host=host).status == 400, (host, path)
        for path, body in ACTING:
            assert target.send("admin", "POST", path, body, Host=host).status == 400, (host, path)
    for host in (f"localhost:{port}", f"a.localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert target.get("admin", "/models", Host=host).status == 200
    own = f"localhost:{port}"
    for path, body in ACTING:
        usual = target.send("admin", "POST", path, body).status
        forged: list[dict[str, Any]] = [
            {"Origin": "https://evil.example.com"},
            {"Origin": "null"},
            {"Origin": "http://localhost:1"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site", "Origin": "http://localhost:3000"},
        ]
        for headers in forged:
            assert target.send("admin", "POST", path, body, Host=own, **headers).status == 403, (
                path,
                headers,
            )
        own_page: list[dict[str, Any]] = [{"Origin": f"http://{own}"}, {"Sec_Fetch_Site": "same-origin"}]
        for headers in own_page:
            assert target.send("admin", "POST", path, body, Host=own, **headers).status == usual


def test_row_52_body_requires_content_type(target: Target) -> None:
    for path, body in ACTING:
        assert target.send("admin", "POST", path, body, Content_Type="").status == 415, path
        assert target.send("admin", "POST", path, body, Content_Type="text/plain").status in (415, 200), path
    chunked = target.send(
        "admin", "POST", "/v2/models/iris/infer", {}, Content_Type="", Transfer_Encoding="chunked"
    )
    assert chunked.status in (400, 415)


# -- the key file


def test_row_56_commands_preserve_file_owner_and_mode(tmp_path: Path) -> None:
    ring = Keys(tmp_path)
    ring.create("one")
    assert stat.S_IMODE(ring.file.stat().st_mode) == 0o600
    ring.file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(ring.file, 65534, 65533)
    before = ring.file.stat()
    link = tmp_path / "link.json"
    link.symlink_to(ring.file)
    ring.create("two")
    assert ring.command("revoke", "one", "--file", str(link)).returncode == 0
    after = ring.file.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert "one" not in ring.file.read_text()
    assert link.is_symlink()
    assert [*tmp_path.glob(".new-*")] == []


def test_row_56_unreadable_key_file_denies_access(target: Target) -> None:
    text = target.keys.file.read_text()
    target.keys.file.write_text(text[:-20])
    try:
        until(lambda: target.get("", "/ready").json["keys"] == "unreadable")
        until(lambda: target.get("", "/ready").json["keys"] == "stale")
        response = target.get("", "/ready")
        assert (response.status, response.json["status"]) == (503, "not ready")
        for key in ("admin", "any"):
            assert target.get(key, "/models").status == 401
        assert call(target, "any", "ServerMetadata")[0] is grpc.StatusCode.UNAUTHENTICATED
    finally:
        target.keys.file.write_text(text)
    until(lambda: target.get("admin", "/models").status == 200)
    assert target.get("", "/ready").json["keys"] == "readable"
    assert "serving_keys_readable 1.0" in target.get("admin", "/metrics", admin_port=True).text
