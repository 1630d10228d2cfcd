"""Errors of registries as typed states: each keeps its cause, names a remedy, and discloses no address."""

from __future__ import annotations

import sqlite3
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import (
    DriverMissing,
    ReferenceNotFound,
    RegistryDenied,
    RegistryFault,
    RegistryRejected,
    RegistryUnavailable,
)
from serving.reference import Reference
from serving.registry.client import RegistryClient
from serving.registry.mlflow_client import with_driver
from serving.registry.mlflow_errors import map_exceptions
from serving.settings.parsing import parse_journal_url
from serving.settings.settings import Settings
from serving.text import shorten
from serving.version import Version
from tests.support.faulty_proxy import free_port
from tests.support.service import Service, served, until

IRIS = Reference.parse("models:/iris/Production")
PAGE = "<!doctype html><html><head><title>Sign in</title></head><body>proxy.internal</body></html>"


class Reply(BaseHTTPRequestHandler):
    """Sends the reply of its server to each request."""

    def do_GET(self) -> None:
        status, body = self.server.reply  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def replying(status: int, body: str, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Run a server with the same reply to all requests; yield its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Reply) as server:
        server.reply = status, body  # type: ignore[attr-defined]
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http{'s' if context else ''}://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


async def failure(uri: str, reference: Reference = IRIS) -> tuple[RegistryUnavailable, str | None]:
    """Return the error of a poll of the registry at `uri`, and the state of the client afterwards."""
    with closing(RegistryClient(Settings(tracking_uri=uri))) as client:
        with pytest.raises(RegistryUnavailable) as caught:
            await client.resolve(reference)
        return caught.value, client.state


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "body", "kind", "cause"),
    [
        (401, "You are not authenticated.", RegistryDenied, "MLFLOW_TRACKING_USERNAME"),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}', RegistryDenied, "permission to read"),
        (403, "Invalid Host header - possible DNS rebinding attack", RegistryDenied, "--allowed-hosts"),
        (403, PAGE, RegistryDenied, "a page with the title 'Sign in'"),
        (404, PAGE, RegistryRejected, "path prefix"),
        (400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "bad"}', RegistryRejected, "bad"),
        (500, '{"error_code": "INTERNAL_ERROR", "message": "disk full"}', RegistryFault, "disk full"),
        (503, PAGE, RegistryUnavailable, "503"),
        (200, PAGE, RegistryUnavailable, "a page with the title 'Sign in'"),
    ],
)
async def test_reply_is_classified_by_its_cause(
    status: int, body: str, kind: type[RegistryUnavailable], cause: str
) -> None:
    with replying(status, body) as url:
        error, state = await failure(url)
    assert (type(error), state) == (kind, kind.state)
    assert cause in str(error)
    assert "127.0.0.1" not in str(error)
    assert "<" not in str(error)


@pytest.mark.anyio
async def test_invalid_parameter_is_not_a_missing_alias() -> None:
    with replying(400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "bad"}') as url:
        error, _ = await failure(url, Reference.parse("models:/iris@champion"))
    assert type(error) is RegistryRejected


@pytest.mark.anyio
async def test_untrusted_certificate_is_the_reported_cause(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    with replying(200, "{}", context) as url:
        error, _ = await failure(url)
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in str(error)


def self_signed(folder: Path) -> Path:
    """Return a file with a self-signed certificate and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    file = folder / "server.pem"
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    )
    return file


@pytest.mark.anyio
async def test_file_store_is_reported_with_its_remedy(tmp_path: Path) -> None:
    error, _ = await failure(f"file:{tmp_path}")
    assert type(error) is RegistryRejected
    assert "MLFLOW_ALLOW_FILE_STORE" in str(error)


@pytest.mark.anyio
async def test_outdated_database_is_reported_with_its_remedy(registry: str) -> None:
    with closing(sqlite3.connect(registry.removeprefix("sqlite:///"))) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'c48cb773bb87'")
    error, state = await failure(registry)
    assert (type(error), state) == (RegistryFault, "internal error")
    assert str(error).endswith("; make a backup of the database, then run mlflow db upgrade")


@pytest.mark.anyio
async def test_missing_driver_is_reported_with_the_command(registry: str, tmp_path: Path) -> None:
    version = Version(name="iris", version="1", location="gs://bucket/iris", source="")
    command = r"pip install 'mlflow-serving-front\[gcs\]'"
    with (
        closing(RegistryClient(Settings(tracking_uri=registry))) as client,
        pytest.raises(DriverMissing, match=command),
    ):
        await client.download(version, tmp_path / "new", lambda _: None)


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("boto3", "s3"),
        ("google.cloud.storage", "gcs"),
        ("azure.storage.blob", "azure"),
        ("MySQLdb", "mysql"),
        ("pymysql", "mysql"),
        ("psycopg2", "postgres"),
        ("psycopg", "postgres"),
    ],
)
def test_driver_of_each_store_has_an_extra(module: str, extra: str) -> None:
    command = rf"pip install 'mlflow-serving-front\[{extra}\]'"
    with pytest.raises(DriverMissing, match=command), map_exceptions("the artifacts"):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def test_missing_object_is_still_not_found() -> None:
    class Missing(Exception):
        error_code = "RESOURCE_DOES_NOT_EXIST"

    with (
        pytest.raises(ReferenceNotFound, match="names nothing in the registry"),
        map_exceptions("models:/iris/1"),
    ):
        raise Missing("no such version")


def test_client_without_a_live_model_reads_no_address(tmp_path: Path) -> None:
    with (
        replying(403, PAGE) as url,
        served(url, tmp_path, models="models:/iris/Production") as service,
    ):
        detail = until(lambda: denial(service))
        assert "Sign in" in detail
        assert "127.0.0.1" not in detail
        ready = service.ready()
        assert ready["registry"]["state"] == "denied"
        assert ready["registry"]["uri"] == url
        assert "proxy.internal" not in str(ready)
        assert any("proxy.internal" in line.get("cause", "") for line in service.lines())


def test_main_port_does_not_name_a_registry_that_cannot_be_resolved(tmp_path: Path) -> None:
    url = "http://mlflow.internal.invalid:5000"
    with served(url, tmp_path, models="models:/iris/Production", admin_port=free_port()) as service:
        until(lambda: "the registry is away" in service.client.get("/ready").text)
        index = service.client.post("/v2/repository/index", json={}).text
        for text in (service.client.get("/ready").text, failed_prediction(service), index):
            assert "the registry is away" in text
            assert "Failed to resolve" in text
            assert "internal" not in text
            assert "5000" not in text
        assert any("mlflow.internal.invalid" in line.get("cause", "") for line in service.lines())


def failed_prediction(service: Service) -> str:
    """Return the body of the response to a prediction."""
    return service.client.post("/predict", json={}).text


def denial(service: Service) -> str | None:
    """Return the detail of a rejected request once the service knows that the registry denies access."""
    detail: str = service.client.post("/predict", json={}).json()["detail"]
    return detail if "the registry denies access" in detail else None


@given(st.text(), st.integers(min_value=3, max_value=60))
def test_shortened_text_keeps_its_beginning_and_its_end(text: str, length: int) -> None:
    shortened = shorten(text, length)
    assert len(shortened) <= length
    assert shortened == text or (len(text) > length and shortened.count(" … ") >= 1)


def test_shortened_message_keeps_the_cause() -> None:
    message = f"the artifacts of iris: {'x' * 5000} (Caused by SSLError(CERTIFICATE_VERIFY_FAILED))"
    shortened = shorten(message, 500)
    assert shortened.startswith("the artifacts of iris: ")
    assert shortened.endswith("(Caused by SSLError(CERTIFICATE_VERIFY_FAILED))")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql://me@host/db", "postgresql+psycopg2://me@host/db"),
        ("postgres://me@host/db", "postgresql+psycopg2://me@host/db"),
        ("postgresql+psycopg://me@host/db", "postgresql+psycopg://me@host/db"),
        ("postgresql+psycopg2://me@host/db", "postgresql+psycopg2://me@host/db"),
        ("mysql://me@host/db", "mysql+pymysql://me@host/db"),
        ("sqlite:////mlflow.db", "sqlite:////mlflow.db"),
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("databricks", "databricks"),
    ],
)
def test_registry_uri_gets_an_installed_driver(uri: str, expected: str) -> None:
    assert with_driver(uri) == expected


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"])
def test_journal_accepts_each_postgresql_driver(scheme: str) -> None:
    assert parse_journal_url(f"{scheme}://me:x@host/db") == "postgresql+psycopg://me:x@host/db"
