"""Access control: API keys, their scopes and expiry; host names and origins; TLS; the admin port."""

from __future__ import annotations

import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.staticfiles import StaticFiles
from typer.testing import CliRunner

from serving.app import create_app
from serving.auth import api_keys
from serving.auth.access_rules import ADMIN, PREDICT
from serving.auth.api_keys import Scope
from serving.auth.authenticator import Authenticator
from serving.auth.host_and_origin import HostNames, is_cross_site, lacks_media_type
from serving.cli import keys as commands
from serving.errors import ApiKeyFileError, Forbidden, RateExceeded, Unauthenticated
from serving.settings.settings import Settings
from serving.telemetry.rate_limit import TokenBucket
from tests.service.test_http_service import problem
from tests.support.certificates import write_certificate
from tests.support.faulty_proxy import free_port
from tests.support.registry import NewRegistry, Registry
from tests.support.service import PROGRAM, SELDOM, Service, environment, served, until
from tests.system.test_deployment import is_healthy

ROW = {"x": 21}
PROFILE = {"rows": 1000, "inputs": {"x": {"edges": [0.0], "shares": [0.5, 0.5]}}}
CHOICES: dict[str, dict[str, Any]] = {
    "default": {"url": "/predict", "json": ROW},
    "batch": {"url": "/predict/batch", "json": {"rows": [ROW]}},
    "name": {"url": "/models/actor/predict", "json": ROW},
    "version": {"url": "/models/actor/versions/1/predict", "json": ROW},
    "alias": {"url": "/models/actor@best/predict", "json": ROW},
    "header": {"url": "/predict", "json": ROW, "headers": {"X-Model": "actor"}},
    "reference": {"url": "/predict", "json": ROW, "headers": {"X-Model": "actor/1"}},
    "query": {"url": "/invocations?model=actor", "json": {"dataframe_records": [ROW]}},
    "infer": {
        "url": "/v2/models/actor/infer",
        "json": {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [21.0]}]},
    },
}


class Keys:
    """A key file, and the commands that change it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "keys.json"

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, "keys", *words, "--file", self.file], capture_output=True, text=True, check=False
        )

    def create(self, name: str, *options: str) -> str:
        """Create a key with the command, in this process, since the tests create many."""
        done = CliRunner().invoke(commands.app, ["create", name, *options, "--file", str(self.file)])
        assert done.exit_code == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def admin(ring: Keys) -> str:
    return ring.create("ops", "--scope", "admin")


@pytest.fixture(scope="module")
def service(
    new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory, ring: Keys, admin: str
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("access")
    registry = Registry(new_registry(folder))
    for name in ("actor", "other"):
        registry.add(name, factor=2.0, metadata={"serving": {"profile": PROFILE}})
        registry.alias(name, "best", "1")
    settings = {
        "models": "models:/actor@best,models:/other/1",
        "keys_file": ring.file,
        "grpc_port": 0,
        "webhook_secret": "hush",
        "journal_url": f"sqlite:///{folder}/journal.db",
        "poll_seconds": SELDOM,
    }
    with served(registry.uri, folder, **settings, _key=admin) as running:
        running.until_ready()
        yield running


def bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def ask(service: Service) -> Iterator[Callable[..., httpx.Response]]:
    """Send a request with a key, or without one."""
    with httpx.Client(base_url=service.url, timeout=60) as client:

        def ask(
            key: str | None, url: str, headers: dict[str, str] | None = None, **more: Any
        ) -> httpx.Response:
            sent = (headers or {}) | (bearing(key) if key else {})
            return client.request("POST" if "json" in more else "GET", url, headers=sent, **more)

        yield ask


def refuses(answer: httpx.Response, status: int) -> None:
    """Check that a response is this error, in the format of its protocol."""
    if answer.request.url.path.startswith(("/invocations", "/v2/models")):
        assert answer.status_code == status, answer.text
        assert answer.json().keys() & {"error_code", "error"}
    else:
        problem(answer, status)


# -- keys


@pytest.mark.parametrize("choice", CHOICES)
def test_row_34_prediction_requires_a_known_key(
    ask: Callable[..., httpx.Response], choice: str, admin: str
) -> None:
    wrong = f"{admin[:-1]}{'A' if admin[-1] != 'A' else 'B'}"
    for key in (None, "hush", wrong, api_keys.create_key("stranger")[0], "é", "é" * 9):
        answer = ask(None, **_with(CHOICES[choice], key))
        refuses(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert not key or key not in answer.text
    assert ask(admin, **CHOICES[choice]).status_code == 200


def _with(request: dict[str, Any], key: str | None) -> dict[str, Any]:
    sent = {} if key is None else {"Authorization": f"Bearer {key}".encode("latin-1")}
    return request | {"headers": request.get("headers", {}) | sent}


def test_row_34_prediction_key_is_rejected_on_admin_routes(
    ask: Callable[..., httpx.Response], ring: Keys, admin: str
) -> None:
    key = ring.create("client")
    until(lambda: ask(key, **CHOICES["default"]).status_code == 200)
    for path in ("/metrics", "/status", "/models/actor/history"):
        refuses(ask(key, path), 403)
        refuses(ask(None, path), 401)
        assert ask(admin, path).status_code == 200
    for path in ("/models", "/docs", "/openapi.json", "/v2", "/version"):
        refuses(ask(None, path), 401)
        assert ask(key, path).status_code == 200


def test_row_34_revoked_key_is_rejected(ask: Callable[..., httpx.Response], ring: Keys, admin: str) -> None:
    key, other = ring.create("leaver"), ring.create("leaver")
    until(lambda: ask(key, **CHOICES["default"]).status_code == 200)
    assert ask(None, "/predict", {"X-API-Key": other}, json=ROW).status_code == 200
    assert ring.command("revoke", "leaver").returncode == 0
    until(lambda: ask(key, **CHOICES["default"]).status_code == 401)
    assert ask(other, **CHOICES["default"]).status_code == 401
    assert ask(admin, **CHOICES["default"]).status_code == 200


@pytest.mark.parametrize("choice", CHOICES)
def test_model_key_is_rejected_for_other_models(
    ask: Callable[..., httpx.Response], ring: Keys, choice: str
) -> None:
    if not (kept := [key for key in api_keys.read(ring.file) if key.name == "choosy"]):
        KEYS["choosy"] = ring.create("choosy", "--models", "other,third")
    assert len(kept) < 2
    key = KEYS["choosy"]
    until(lambda: ask(key, "/models/other/predict", json=ROW).status_code == 200)
    refuses(ask(key, **CHOICES[choice]), 404)


KEYS: dict[str, str] = {}


def test_key_allows_feedback_on_its_models_only(
    ask: Callable[..., httpx.Response], ring: Keys, admin: str
) -> None:
    key = ring.create("critic", "--models", "other")
    until(lambda: ask(key, "/models/other/predict", json=ROW).status_code == 200)
    for name, asker, status in [("actor", key, 404), ("other", key, 200), ("actor", admin, 200)]:
        answer = ask(admin, f"/models/{name}/predict", json=ROW)
        outcome = {"prediction_id": answer.headers["x-prediction-id"], "outcome": 40.0}
        assert ask(asker, "/feedback", json=outcome).status_code == status
        refuses(ask(None, "/feedback", json=outcome), 401)


def test_row_13_rate_limit_applies_per_key(
    ask: Callable[..., httpx.Response], ring: Keys, admin: str
) -> None:
    key = ring.create("eager", "--rate", "0.01")
    until(lambda: ask(key, **CHOICES["default"]).status_code == 200)
    for choice in CHOICES.values():
        answer = ask(key, **choice)
        refuses(answer, 429)
        assert 1 <= int(answer.headers["retry-after"]) <= 100
        assert ask(admin, **choice).status_code == 200


def test_probes_and_webhooks_need_no_key(ask: Callable[..., httpx.Response]) -> None:
    for path in ("/health", "/livez", "/ready", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert ask(None, path).status_code == 200
    unsigned = ask(None, "/webhooks/mlflow", json={})
    assert "not signed" in problem(unsigned, 401)["detail"]


def test_drifted_columns_are_hidden_without_a_key(ask: Any, admin: str) -> None:
    assert ask(admin, "/models/other/predict/batch", json={"rows": [ROW] * 200}).is_success
    drifted = until(lambda: ask(admin, "/models/other").json()["drift"])
    assert [column["column"] for column in drifted] == ["x"]
    _, other = ask(None, "/ready").json()["models"]
    assert other["drift"] is None
    assert other["warnings"] == ["drifted inputs and outputs: 1; /models/other names them"]


def test_openapi_declares_the_api_key(ask: Callable[..., httpx.Response], admin: str) -> None:
    document = ask(admin, "/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["security"] == [{"key": []}]


def test_keys_apply_to_grpc(service: Service, ring: Keys, admin: str) -> None:
    from serving.grpc import inference_pb2 as protos
    from serving.grpc import inference_pb2_grpc as services

    port = service.logged(re.compile(r"serving gRPC at [\d.]+:(\d+)"))[1]
    kept = ring.create("rpc", "--models", "other")
    until(lambda: service.client.get("/models", headers=bearing(kept)).status_code == 200)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = services.GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(protos.ServerLiveRequest()).live
        tensor = {"name": "x", "datatype": "FP64", "shape": [1], "contents": {"fp64_contents": [21.0]}}

        def infer(model: str, *metadata: tuple[str, str]) -> Any:
            return stub.ModelInfer(
                protos.ModelInferRequest(model_name=model, inputs=[tensor]), metadata=metadata
            )

        assert infer("actor", ("authorization", f"Bearer {admin}")).model_version == "1"
        assert infer("other", ("x-api-key", kept)).model_version == "1"
        for metadata, code in [
            ((), grpc.StatusCode.UNAUTHENTICATED),
            ((("x-api-key", kept),), grpc.StatusCode.NOT_FOUND),
        ]:
            with pytest.raises(grpc.RpcError) as error:
                infer("actor", *metadata)
            assert error.value.code() is code


def test_the_key_file_contains_no_usable_key(ring: Keys) -> None:
    plaintext = ring.create("secret")
    text = ring.file.read_text()
    assert plaintext not in text
    assert plaintext[20:] not in text
    assert api_keys.digest(plaintext) in text
    assert stat.S_IMODE(ring.file.stat().st_mode) == 0o600
    listed = ring.command("list").stdout
    assert "secret" in listed
    assert api_keys.digest(plaintext)[:12] not in listed


def test_key_commands_report_mistakes(ring: Keys, tmp_path: Path) -> None:
    assert ring.command("revoke", "nobody").returncode == 2
    assert ring.command("create", "x", "--expires", "2001-01-01").returncode == 2
    assert ring.command("create", "x", "--expires", "soon").returncode == 2
    garbled = Keys(tmp_path)
    garbled.file.write_text("[{}]")
    done = garbled.command("list")
    assert done.returncode == 2
    assert "is not a key file" in done.stderr


def test_missing_key_file_prevents_the_start(tmp_path: Path) -> None:
    env = environment("sqlite:///none.db", tmp_path, keys_file=tmp_path / "none.json")
    done = subprocess.run(
        [PROGRAM, "run", "--port", "0"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "SERVING_KEYS_FILE" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# -- unit tests


def test_keys_stay_valid_while_the_file_is_invalid(tmp_path: Path) -> None:
    file, now = tmp_path / "keys.json", [0.0]
    plaintext, record = api_keys.create_key("x")
    api_keys.write(file, [record])
    guard = Authenticator(file, lambda: now[0])
    sent = [(b"authorization", f"bearer {plaintext}".encode())]
    assert guard.authenticate(sent, PREDICT) == record
    with pytest.raises(Forbidden):
        guard.authenticate(sent, ADMIN)
    file.write_text("garbled")
    now[0] += 2
    assert guard.authenticate(sent, PREDICT) == record
    api_keys.write(file, [])
    now[0] += 2
    with pytest.raises(Unauthenticated):
        guard.authenticate(sent, PREDICT)


@pytest.mark.anyio
async def test_undeclared_routes_require_an_admin_key(tmp_path: Path) -> None:
    created = {
        name: api_keys.create_key(name, scope=scope)
        for name, scope in (("any", Scope.PREDICT), ("ops", Scope.ADMIN))
    }
    api_keys.write(tmp_path / "keys.json", [record for _, record in created.values()])
    (tmp_path / "file.txt").write_text("content")
    app = create_app(Settings(store_dir=tmp_path / "store", keys_file=tmp_path / "keys.json", admin_port=1))
    app.mount("/files", StaticFiles(directory=tmp_path))
    app.mount("/metrics2", PlainTextResponse("metrics"))
    app.add_route("/old", lambda _: PlainTextResponse("old"))
    app.add_api_route("/new", lambda: "new")
    for path in ("/files/file.txt", "/metrics2/", "/metrics2/x", "/old", "/new"):
        for url, expected in (("http://front:1", [401, 403, 200]), ("http://front:2", [404, 404, 404])):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=url) as client:
                sent = [{}, bearing(created["any"][0]), bearing(created["ops"][0])]
                statuses = [(await client.get(path, headers=each)).status_code for each in sent]
            assert statuses == expected, (path, url)


def test_unreadable_key_file_soon_rejects_all_keys(tmp_path: Path) -> None:
    file, now = tmp_path / "keys.json", [0.0]
    plaintext, record = api_keys.create_key("x")
    api_keys.write(file, [record])
    guard = Authenticator(file, lambda: now[0], stale_seconds=60)
    sent = [(b"x-api-key", plaintext.encode())]
    content = file.read_bytes()
    file.unlink()
    for now[0], state in ((2.0, "unreadable"), (61.0, "unreadable"), (62.0, "stale"), (600.0, "stale")):
        assert guard.state() == state
        if state == "stale":
            with pytest.raises(Unauthenticated):
                guard.authenticate(sent, PREDICT)
        else:
            assert guard.authenticate(sent, PREDICT) == record
    file.write_bytes(content)
    now[0] += 1
    assert guard.authenticate(sent, PREDICT) == record
    assert guard.state() == "readable"


def test_guard_stores_no_key_in_plain_text(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    plaintext, record = api_keys.create_key("x", rate=100)
    api_keys.write(file, [record])
    guard = Authenticator(file)
    guard.authenticate([(b"x-api-key", plaintext.encode())], PREDICT)
    held = repr(vars(guard))
    assert record.sha256 in held
    assert plaintext not in held


def test_irreplaceable_key_file_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.json"
    _, first = api_keys.create_key("a name that is longer than the other one's")
    _, second = api_keys.create_key("x")
    api_keys.write(file, [first])
    inode = file.stat().st_ino

    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.fchmod", refuse)
    api_keys.write(file, [second])
    assert api_keys.read(file) == (second,)
    assert file.stat().st_ino == inode
    assert [*tmp_path.iterdir()] == [file]


def test_expired_key_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    plaintext, record = api_keys.create_key("x", expires=datetime.now(UTC) - timedelta(seconds=1))
    api_keys.write(file, [record])
    with pytest.raises(Unauthenticated, match="expired"):
        Authenticator(file).authenticate([(b"x-api-key", plaintext.encode())], PREDICT)


def test_authenticator_requires_its_file(tmp_path: Path) -> None:
    with pytest.raises(ApiKeyFileError):
        Authenticator(tmp_path / "none")


def test_token_bucket_allows_a_burst_then_the_rate() -> None:
    bucket = TokenBucket(10)
    assert [bucket.acquire(0.0) for _ in range(10)] == [0.0] * 10
    assert bucket.acquire(0.0) == pytest.approx(0.1)
    assert bucket.acquire(0.1) == 0.0
    assert bucket.acquire(0.1) > 0
    assert [bucket.acquire(100.0) for _ in range(11)].count(0.0) == 10


def test_every_key_has_a_separate_rate(tmp_path: Path) -> None:
    created = [api_keys.create_key(name, rate=1) for name in "ab"]
    api_keys.write(file := tmp_path / "keys.json", [record for _, record in created])
    guard = Authenticator(file, lambda: 0.0)
    first, second = ([(b"x-api-key", plaintext.encode())] for plaintext, _ in created)
    guard.authenticate(first, PREDICT)
    with pytest.raises(RateExceeded):
        guard.authenticate(first, PREDICT)
    guard.authenticate(second, PREDICT)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("serving.example.org", True),
        ("SERVING.example.org:8000", True),
        ("a.b.example.net", True),
        ("example.net", False),
        ("evilexample.net", False),
        ("serving.example.org.evil.net", False),
        ("[::1]:8000", True),
        ("", False),
    ],
)
def test_service_accepts_its_own_host_names(host: str, expected: bool) -> None:
    names = ("serving.example.org", "*.example.net", "::1")
    assert HostNames(names).accepts(host.encode()) is expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (b"localhost", True),
        (b"LOCALHOST:8000", True),
        (b"front.localhost:8000", True),
        (b"127.0.0.1:8000", True),
        (b"[::1]:8000", True),
        (b"10.0.0.7", True),
        (b"evil.example.com", False),
        (b"evillocalhost", False),
        (b"localhost.evil.example.com", False),
        (b"127.0.0.1.evil.example.com", False),
        (b"localhost.", False),
        (b"", False),
        (None, True),  # HTTP/1.0 needs no host
    ],
)
def test_local_hosts_and_addresses_are_accepted_by_default(host: bytes | None, expected: bool) -> None:
    names = HostNames(())
    assert [names.accepts(host) for _ in range(2)] == [expected] * 2


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, False),
        ({b"sec-fetch-site": b"same-origin", b"origin": b"https://proxied.example.org"}, False),
        ({b"sec-fetch-site": b"none"}, False),
        ({b"sec-fetch-site": b"cross-site"}, True),
        ({b"sec-fetch-site": b"same-site"}, True),
        ({b"sec-fetch-site": b"cross-site", b"origin": b"https://page.example.org"}, False),
        ({b"origin": b"https://page.example.org"}, False),
        ({b"origin": b"http://localhost:8000"}, False),
        ({b"origin": b"http://localhost:3000"}, True),
        ({b"origin": b"https://evil.example.com"}, True),
        ({b"origin": b"null"}, True),
        ({b"origin": b""}, True),
    ],
)
def test_requests_of_other_origins_are_cross_site(headers: dict[bytes, bytes], expected: bool) -> None:
    sent, origins = {b"host": b"localhost:8000"} | headers, ("https://page.example.org",)
    assert is_cross_site("POST", sent, origins) is expected
    assert is_cross_site("DELETE", sent, origins) is expected
    assert not is_cross_site("GET", sent, origins)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({b"content-length": b"2"}, True),
        ({b"transfer-encoding": b"chunked"}, True),
        ({b"content-length": b"0"}, False),
        ({}, False),
        ({b"content-length": b"2", b"content-type": b"application/json"}, False),
        ({b"content-length": b"2", b"inference-header-content-length": b"2"}, False),
        ({b"content-length": b"2", b"user-agent": b"python/gevent-http-client-2.3.4"}, False),
        ({b"content-length": b"2", b"user-agent": b"Mozilla/5.0 python/gevent-http-client-"}, True),
    ],
)
def test_body_requires_a_media_type(headers: dict[bytes, bytes], expected: bool) -> None:
    assert lacks_media_type("POST", headers) is expected
    assert not lacks_media_type("GET", headers)


# -- names, origins, ports, TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write a certificate for this machine, and its private key."""
    return write_certificate(tmp_path_factory.mktemp("tls"), "0.0.0.0")


@pytest.fixture(scope="module")
def guarded(
    new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]
) -> Iterator[Service]:
    """Run a service without keys, with TLS, host names, a CORS origin and an admin port."""
    folder = tmp_path_factory.mktemp("guarded")
    registry = Registry(new_registry(folder))
    registry.add("actor", factor=2.0)
    settings = {
        "models": "models:/actor/1",
        "tls_cert": certificate[0],
        "tls_key": certificate[1],
        "host": "0.0.0.0",
        "allowed_hosts": "0.0.0.0,serving.example.org",
        "cors_origins": "https://page.example.org",
        "admin_port": free_port(),
        "poll_seconds": SELDOM,
    }
    with served(registry.uri, folder, **settings, _ca=certificate[0]) as running:
        running.until_ready()
        yield running


def test_tls_port_rejects_plain_http(guarded: Service) -> None:
    assert guarded.url.startswith("https://")
    for _ in range(3):
        assert guarded.client.post("/predict", json=ROW).json()["prediction"] == 42.0
    large = {"rows": [ROW] * 50_000}
    assert len(guarded.client.post("/predict/batch", json=large).json()["predictions"]) == 50_000
    with pytest.raises(httpx.HTTPError):
        httpx.get(guarded.url.replace("https", "http"))


def test_image_health_check_succeeds_over_tls(guarded: Service) -> None:
    assert is_healthy(guarded)
    assert not is_healthy(guarded, tls_cert="")


def test_row_33_foreign_host_is_rejected(guarded: Service) -> None:
    for path in ("/predict", "/models", "/"):
        problem(guarded.client.get(path, headers={"Host": "evil.example.com"}), 400)
    fine = guarded.client.post("/predict", json=ROW, headers={"Host": "serving.example.org:8000"})
    assert fine.status_code == 200
    assert guarded.client.get("/ready", headers={"Host": "10.0.0.7:8000"}).status_code == 200


def test_cors_allows_only_configured_origins(guarded: Service) -> None:
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    for origin, allowed in [("https://page.example.org", True), ("https://evil.example.com", False)]:
        before = guarded.client.options("/predict", headers=preflight | {"Origin": origin})
        answer = guarded.client.post("/predict", json=ROW, headers={"Origin": origin})
        for each in (before, answer):
            assert (each.headers.get("access-control-allow-origin") == origin) is allowed
        assert "X-Model-Version" in answer.headers.get("access-control-expose-headers", "X-Model-Version")


def test_admin_endpoints_are_only_on_the_admin_port(guarded: Service) -> None:
    own = guarded.logged(re.compile(r"metrics, history\) are at (https://[\d.:]+)"))[1]
    for path in ("/metrics", "/models/actor/history"):
        problem(guarded.client.get(path), 404)
        assert guarded.client.get(f"{own}{path}").status_code == 200
    assert guarded.client.get(f"{own}/ready").status_code == 200


def test_responses_forbid_caching_and_sniffing(guarded: Service) -> None:
    for answer in (
        guarded.client.post("/predict", json=ROW),
        guarded.client.post("/predict", json={}),
        guarded.client.get("/ready"),
        guarded.client.get("/nowhere"),
    ):
        assert answer.headers.get_list("cache-control") == ["no-store"]
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]


def test_unusable_certificate_is_reported_in_one_line(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    for cert, key in [(certificate[0], None), (certificate[1], certificate[1]), (tmp_path / "no", tmp_path)]:
        pair = {"tls_cert": cert} | ({"tls_key": key} if key else {})
        env = environment("sqlite:///none.db", tmp_path, **pair)
        done = subprocess.run(
            [PROGRAM, "run", "--port", "0"], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "SERVING_TLS_CERT" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_listening_without_keys_logs_a_warning(guarded: Service) -> None:
    assert guarded.logged(re.compile(r"listening on https://0\.0\.0\.0:\d+ without API keys"))
