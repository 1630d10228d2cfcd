"""The service behind reverse proxies: a real nginx with TLS and a path prefix, and a real browser."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from playwright.sync_api import Browser, expect
from pydantic import ValidationError

from serving.auth.trusted_proxies import TrustedProxies
from serving.grpc import inference_pb2 as protos
from serving.grpc import inference_pb2_grpc as services
from serving.http.forwarded_headers import ForwardedHeaders
from serving.http.http_context import HttpContext
from serving.settings.settings import Settings, format_errors
from tests.support.browser import CHROMIUM
from tests.support.faulty_proxy import free_port
from tests.support.nginx import NGINX, create_certificate, nginx
from tests.support.registry import NewRegistry, Registry
from tests.support.service import SELDOM, Service, served

expect.set_options(timeout=60_000)

LOCAL = ("127.0.0.1",)
LINK = "https://mlflow.example/team"
_HEADERS = """
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;"""
_SERVERS = """
  server {{
    listen 127.0.0.1:{tls} ssl;
    ssl_certificate {cert};
    ssl_certificate_key {key};
    location ~ ^/kept(/|$) {{{headers}
      proxy_pass {url};
    }}
    location /removed {{{headers}
      proxy_set_header X-Forwarded-Prefix /removed;
      rewrite ^/removed/?(.*)$ /$1 break;
      proxy_pass {url};
    }}
  }}
  server {{
    listen 127.0.0.1:{plain};
    location /kept/ {{{headers}
      proxy_pass {url}/;
    }}
  }}
"""


@dataclass(frozen=True)
class Proxied:
    """A service, and the addresses at which nginx publishes it."""

    service: Service
    urls: Mapping[str, str]
    tls: ssl.SSLContext

    def request(self, name: str, path: str, method: str = "GET", **more: Any) -> httpx.Response:
        """Send a request through nginx."""
        return httpx.request(method, self.urls[name] + path, verify=self.tls, **more)


@pytest.fixture(scope="module")
def proxied(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    """Run a service and nginx, which keeps the prefix, or removes it with or without a header."""
    if NGINX is None:
        pytest.skip("no nginx is installed: apt-get install nginx-light")
    folder = tmp_path_factory.mktemp("proxied")
    registry = Registry(new_registry(folder))
    registry.add("moved", streams=True, factor=2.0)
    (cert, key), tls, plain = create_certificate(folder), free_port(), free_port()
    settings: dict[str, Any] = {"models": "models:/moved/1", "poll_seconds": SELDOM, "log_format": "json"}
    settings |= {"root_path": "/kept/", "forwarded_allow_ips": "127.0.0.1", "mlflow_ui_url": LINK}
    settings |= {"access_log": 1, "grpc_port": 0}
    with served(registry.uri, folder, **settings) as service:
        service.until_ready()
        servers = _SERVERS.format(tls=tls, plain=plain, cert=cert, key=key, url=service.url, headers=_HEADERS)
        with nginx(folder, servers, tls):
            urls = {
                "kept": f"https://127.0.0.1:{tls}/kept",
                "removed": f"https://127.0.0.1:{tls}/removed",
                "removed-without-header": f"http://127.0.0.1:{plain}/kept",
            }
            yield Proxied(service, urls, ssl.create_default_context(cafile=cert))


NAMES = ("kept", "removed", "removed-without-header")
WITH_BROWSER = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium"
)


# -- pages in a browser


@WITH_BROWSER
@pytest.mark.parametrize("slash", ["/", ""])
@pytest.mark.parametrize("name", NAMES)
def test_status_page_works_behind_a_prefix(proxied: Proxied, browser: Browser, name: str, slash: str) -> None:
    url = proxied.urls[name]
    context = browser.new_context(ignore_https_errors=True)
    page, requests, errors = context.new_page(), [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.goto(url + slash)
    expect(page.locator("#overall")).to_have_text("Ready")
    article = page.get_by_role("article")
    expect(article.get_by_role("link", name="1", exact=True).first).to_have_attribute(
        "href", f"{LINK}/#/models/moved/versions/1"
    )
    article.get_by_label("x", exact=True).fill("4")
    page.get_by_role("button", name="Predict").click()
    expect(article.locator(".result")).to_have_text("8.0")
    article.get_by_label("Stream the output", exact=True).check()
    article.get_by_label("act", exact=True).fill("say:hello say:you")
    page.get_by_role("button", name="Predict").click()
    expect(article.locator(".output")).to_contain_text("Version 1 streamed 2 chunks in")
    expect(article.locator(".command code")).to_contain_text(f"{url}/models/moved/predict/stream")
    page.get_by_role("link", name="API documentation").click()
    expect(page.locator("#operations-moved-predict")).to_be_visible()
    context.close()
    assert errors == []
    assert [sent for sent in requests if not sent.startswith((f"{url}/", "data:")) and sent != url] == []


@WITH_BROWSER
@pytest.mark.parametrize("name", NAMES)
def test_docs_send_requests_below_the_prefix(proxied: Proxied, browser: Browser, name: str) -> None:
    context = browser.new_context(ignore_https_errors=True)
    page = context.new_page()
    page.goto(f"{proxied.urls[name]}/docs")
    operation = page.locator("#operations-moved-predict")
    operation.locator("button.opblock-summary-control").click()
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".request-url")).to_contain_text(f"{proxied.urls[name]}/predict")
    response = operation.locator(".live-responses-table .response-col_description code").first
    expect(response).to_contain_text('"prediction"')
    context.close()


# -- requests through nginx


@pytest.mark.parametrize("name", NAMES)
def test_openapi_names_the_prefix(proxied: Proxied, name: str) -> None:
    document = proxied.request(name, "/openapi.json").json()
    assert document["servers"] == [{"url": "/removed" if name == "removed" else "/kept"}]
    assert "/models/moved/predict" in document["paths"]


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_route_works_behind_a_prefix(proxied: Proxied, name: str) -> None:
    for path in ("/health", "/ready", "/models/moved", "/v2/models/moved", "/metrics", "/page/app.js"):
        assert proxied.request(name, path).status_code == 200, path
    response = proxied.request(name, "/predict", "POST", json={"x": 3})
    assert response.json()["prediction"] == 6.0
    assert proxied.request(name, "/kept/models/moved").status_code == (404 if name == "kept" else 200)
    assert proxied.request(name, "/nowhere").status_code == 404


def test_direct_requests_work_with_and_without_the_prefix(proxied: Proxied) -> None:
    for path in ("/livez", "/kept/livez", "/kept", "/kept/", "/"):
        assert proxied.service.client.get(path).status_code == 200, path
    assert proxied.service.client.get("/keptlivez").status_code == 404


@pytest.mark.parametrize("name", NAMES)
def test_access_log_has_client_and_scheme(proxied: Proxied, name: str) -> None:
    headers = {"X-Request-ID": f"log-{name}", "X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "gopher"}
    proxied.request(name, "/predict", "POST", json={"x": 3}, headers=headers)
    line = proxied.service.wait_for_log(request_id=f"log-{name}")
    # nginx, whose address is trusted, appends 127.0.0.1, which is trusted too.
    assert line["client"] == "203.0.113.9"
    assert line["scheme"] == ("http" if name == "removed-without-header" else "https")
    assert line["path"] == "/predict"
    assert line["root_path"] == ("/removed" if name == "removed" else "/kept")


def test_prefix_of_a_header_is_not_removed_from_the_path(proxied: Proxied) -> None:
    response = proxied.service.client.get("/x/metrics", headers={"X-Forwarded-Prefix": "/x"})
    assert response.status_code == 404


def test_grpc_client_has_the_forwarded_address(proxied: Proxied) -> None:
    target = proxied.service.logged(re.compile(r"serving gRPC at ([\d.:]+)"))[1]
    inputs = [{"name": "x", "datatype": "FP64", "shape": [1], "contents": {"fp64_contents": [1.0]}}]
    with grpc.insecure_channel(target) as channel:
        stub: Any = services.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(
            protos.ModelInferRequest(model_name="moved", inputs=inputs),
            metadata=[("x-forwarded-for", "203.0.113.77, 127.0.0.1")],
        )
    assert proxied.service.wait_for_log(client="203.0.113.77")["path"] == "ModelInfer"


# -- addresses


@pytest.mark.parametrize(
    ("allowed", "forwarded", "client"),
    [
        ("127.0.0.1", "203.0.113.9", ("203.0.113.9", 0)),
        ("127.0.0.1", " 203.0.113.9:4711 ", ("203.0.113.9", 4711)),
        ("127.0.0.1", "2001:db8::1", ("2001:db8::1", 0)),
        ("127.0.0.1", "[2001:db8::1]", ("2001:db8::1", 0)),
        ("127.0.0.1", "[2001:db8::1]:4711", ("2001:db8::1", 4711)),
        ("127.0.0.1", "::ffff:203.0.113.9", ("203.0.113.9", 0)),
        ("127.0.0.1", "6.6.6.6, 203.0.113.9", ("203.0.113.9", 0)),
        ("10.0.0.0/8", "6.6.6.6, 203.0.113.9, 10.1.2.3", ("203.0.113.9", 0)),
        ("10.0.0.0/8", "203.0.113.9,10.1.2.3:80,::ffff:10.9.9.9", ("203.0.113.9", 0)),
        ("10.0.0.0/8,2001:db8::/32", "203.0.113.9, 2001:db8::5, 10.1.2.3", ("203.0.113.9", 0)),
        ("10.0.0.0/8", "10.0.0.7, 10.1.2.3", ("10.0.0.7", 0)),
        ("*", "6.6.6.6, 203.0.113.9", ("6.6.6.6", 0)),
        ("10.0.0.0/8", "unknown, 10.1.2.3", ("10.1.2.3", 0)),
        ("10.0.0.0/8", "203.0.113.9, unknown, 10.1.2.3", ("10.1.2.3", 0)),
        ("10.0.0.0/8", "203.0.113.9, unknown", None),
        *(
            ("*", malformed, None)
            for malformed in (
                "",
                " , ",
                "unknown",
                "_hidden",
                "1.2.3",
                "1.2.3.4:",
                "1.2.3.4:x",
                "1.2.3.4:70000",
                "[::1",
                "::1]:80",
                "[1.2.3.4]:80x",
                "fe80::1%<script>",
                "localhost",
                "1" * 60_000,
                '"1.2.3.4"',
            )
        ),
    ],
)
def test_client_is_the_last_untrusted_address(
    allowed: str, forwarded: str, client: tuple[str, int] | None
) -> None:
    assert TrustedProxies(allowed.split(",")).client(forwarded) == client


def test_only_the_last_addresses_are_read() -> None:
    forwarded = ", ".join(["203.0.113.9", *(f"10.0.{index}.1" for index in range(200))])
    assert TrustedProxies(["10.0.0.0/8"]).client(forwarded) == ("10.0.168.1", 0)


@pytest.mark.parametrize(
    ("allowed", "peer", "trusted"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("::1", "0:0:0:0:0:0:0:1", True),
        ("127.0.0.1", "::1", False),
        ("127.0.0.1", None, False),
        ("127.0.0.1", "testclient", False),
        ("*", None, True),
        ("", "127.0.0.1", False),
    ],
)
def test_peers_are_trusted_by_address(allowed: str, peer: str | None, trusted: bool) -> None:
    assert TrustedProxies([item for item in allowed.split(",") if item]).trusts(peer) is trusted


# -- the layer


def forwarded(
    path: str = "/docs",
    *headers: tuple[str, str],
    peer: tuple[str, int] | None = ("127.0.0.1", 1),
    root_path: str = "",
    allowed: tuple[str, ...] = LOCAL,
    mounted: str = "",
) -> tuple[dict[str, Any], str]:
    """Return the scope that the application receives, and the path by which it routes."""
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "root_path": mounted}
    scope |= {"scheme": "http", "client": peer, "headers": raw}
    received: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        received.append(scope)

    async def unused(*_: Any) -> Any:
        raise AssertionError

    with suppress(StopIteration):  # it waits for nothing, so it needs no event loop beside the browser's
        ForwardedHeaders(app, root_path, allowed)(scope, unused, unused).send(None)
    return received[0], HttpContext(received[0], unused, unused).path


def test_untrusted_peers_cannot_forge_headers() -> None:
    forged = (
        ("X-Forwarded-For", "6.6.6.6"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Prefix", "/forged"),
    )
    for peer in (("203.0.113.9", 1), None):
        scope, path = forwarded("/docs", *forged, peer=peer)
        assert (scope["client"], scope["scheme"], scope["root_path"]) == (peer, "http", "")
        assert (scope["path"], path) == ("/docs", "/docs")


def test_several_header_lines_are_one_list() -> None:
    lines = (("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "203.0.113.9, 127.0.0.1"))
    scope, _ = forwarded("/docs", *lines)
    assert scope["client"] == ("203.0.113.9", 0)


@pytest.mark.parametrize(
    ("values", "scheme"),
    [
        (("https",), "https"),
        (("HTTPS ",), "https"),
        (("https, http",), "https"),
        (("http", "https"), "https"),
        (("wss",), "http"),
        (("gopher",), "http"),
        (("",), "http"),
    ],
)
def test_scheme_is_forwarded(values: tuple[str, ...], scheme: str) -> None:
    scope, _ = forwarded("/", *(("X-Forwarded-Proto", value) for value in values))
    assert scope["scheme"] == scheme


@pytest.mark.parametrize(
    ("values", "prefix"),
    [
        (("/ml",), "/ml"),
        (("/ml/",), "/ml"),
        (("/outer, /inner",), "/outer/inner"),
        (("/outer", "/inner"), "/outer/inner"),
        (("/",), ""),
        (("//evil.example",), ""),
        (("https://evil.example",), ""),
        (('/"><script>',), ""),
        (("/a/../b",), ""),
        (("/a b",), ""),
        (("ml",), ""),
        (("/ml, //evil.example",), ""),
        (("/" + "a" * 300,), ""),
    ],
)
def test_prefix_is_forwarded(values: tuple[str, ...], prefix: str) -> None:
    scope, path = forwarded("/docs", *(("X-Forwarded-Prefix", value) for value in values))
    assert (scope["root_path"], scope["path"], path) == (prefix, f"{prefix}/docs", "/docs")


@pytest.mark.parametrize(
    ("path", "routed"),
    [
        ("/docs", "/docs"),
        ("/ml/docs", "/docs"),
        ("/ml", "/"),
        ("/ml/", "/"),
        ("/mlx", "/mlx"),
        ("/ml/ml", "/ml"),
        ("*", "*"),
    ],
)
def test_root_path_is_removed_once(path: str, routed: str) -> None:
    scope, found = forwarded(path, root_path="/ml", peer=None)
    assert (scope["root_path"], scope["path"], found) == ("/ml", f"/ml{routed}", routed)


def test_mount_point_and_root_path_are_removed() -> None:
    scope, path = forwarded("/ray/docs", root_path="/ml", mounted="/ray")
    assert (scope["root_path"], path) == ("/ml", "/docs")
    scope, path = forwarded("/ray/docs", mounted="/ray")
    assert (scope["root_path"], path) == ("/ray", "/docs")


# -- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"root_path": "ml"}, "SERVING_ROOT_PATH: write a path such as /models-eu"),
        ({"root_path": "//ml"}, "SERVING_ROOT_PATH: write a path"),
        ({"root_path": "/a/../b"}, "SERVING_ROOT_PATH: write a path"),
        ({"root_path": "https://example.org/ml"}, "SERVING_ROOT_PATH: write a path"),
        ({"forwarded_allow_ips": "10.0.0.1/8"}, "SERVING_FORWARDED_ALLOW_IPS: 10.0.0.1/8 has host bits set"),
        ({"forwarded_allow_ips": "localhost"}, "SERVING_FORWARDED_ALLOW_IPS: 'localhost' does not appear"),
    ],
)
def test_invalid_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(**settings)
    (line,) = format_errors(caught.value)
    assert line.startswith(message)


def test_settings_accept_the_forms_of_uvicorn() -> None:
    settings = Settings(root_path="/ml/", forwarded_allow_ips="10.0.0.0/8, ::1,*")
    assert (settings.root_path, settings.forwarded_allow_ips) == ("/ml", ("10.0.0.0/8", "::1", "*"))
