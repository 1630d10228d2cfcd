"""Listening sockets: IPv6, Unix sockets, inherited sockets, probes, and one line for each failed start."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from serving.auth.host_and_origin import HostNames
from serving.grpc import inference_pb2 as protos
from serving.grpc import inference_pb2_grpc as services
from serving.server.sockets import StartupError, describe, open_sockets
from serving.settings.settings import Settings
from tests.support.faulty_proxy import free_port
from tests.support.service import PROGRAM, ROOT, Service, environment, served, until

NO_REGISTRY = "http://127.0.0.1:1"
PROBES = ["/health", "/livez", "/ready", "/readyz", "/ping", "/metrics", "/version", "/v2/health/live", "/"]
# Binds the sockets in its arguments, `NAME=HOST`, and starts the service as systemd does.
ACTIVATION = """
import os, socket, sys
end = sys.argv.index("--")
families = (socket.AF_INET, socket.AF_INET6)
names, hosts = zip(*(argument.split("=") for argument in sys.argv[1:end]))
bound = [socket.create_server((host, 0), family=families[":" in host]) for host in hosts]
spare = [os.dup2(each.fileno(), 50 + index) for index, each in enumerate(bound)]
for index, descriptor in enumerate(spare):
    os.dup2(descriptor, 3 + index)
variables = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(bound)), "LISTEN_FDNAMES": ":".join(names)}
os.execve(sys.argv[end + 1], sys.argv[end + 1:], os.environ | variables)
"""


def command(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a command of the service."""
    return subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, check=False)


def is_healthy(**variables: str) -> bool:
    """Run the image's health check with these variables."""
    check = [sys.executable, "-m", "serving.server.healthcheck"]
    return subprocess.run(check, env=os.environ | variables, check=False).returncode == 0


def over(path: Path) -> httpx.Client:
    """Return a client that connects to a Unix socket."""
    return httpx.Client(
        transport=httpx.HTTPTransport(uds=str(path)), timeout=60, base_url="http://any.example"
    )


# -- IPv6


@pytest.fixture(scope="module")
def on_ipv6(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {"host": "[::1]", "admin_port": free_port(), "grpc_port": 0}
    with served(NO_REGISTRY, tmp_path_factory.mktemp("ipv6"), **settings) as service:
        yield service


def test_every_port_listens_on_ipv6(on_ipv6: Service) -> None:
    assert on_ipv6.url.startswith("http://[::1]:")
    admin = on_ipv6.logged(re.compile(r"admin endpoints.* at (http://\[::1\]:\d+)"))[1]
    assert httpx.get(f"{admin}/metrics").status_code == 200
    assert on_ipv6.client.get("/metrics").status_code == 404
    address = on_ipv6.logged(re.compile(r"serving gRPC at (\[::1\]:\d+)"))[1]
    with grpc.insecure_channel(address) as channel:
        live = services.GRPCInferenceServiceStub(channel).ServerLive(protos.ServerLiveRequest(), timeout=30)
    assert live.live


def test_host_check_accepts_ipv6_loopback_only(on_ipv6: Service) -> None:
    for host, status in (("[::1]", 200), ("[::1]:8000", 200), ("localhost", 200), ("evil.example.com", 400)):
        assert on_ipv6.client.get("/health", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("name", ["[2001:db8::1]", "2001:db8::1"])
def test_allowed_hosts_may_have_brackets(name: str) -> None:
    names = HostNames([name])
    assert names.accepts(b"[2001:db8::1]:8000")
    assert not names.accepts(b"[2001:db8::2]:8000")


def test_commands_reach_ipv6(on_ipv6: Service) -> None:
    port = on_ipv6.url.rpartition(":")[2]
    assert is_healthy(SERVING_HOST="[::1]", SERVING_PORT=port)
    assert is_healthy(SERVING_HOST="::1", SERVING_PORT=port)
    assert not is_healthy(SERVING_HOST="::1", SERVING_PORT=str(free_port()))
    done = command("status", on_ipv6.url)
    assert (done.returncode, "not live" in done.stdout) == (1, True), done.stderr


def test_unspecified_ipv6_address_accepts_both_families() -> None:
    sockets = open_sockets(Settings(host="::", port=0), {})
    (listening,) = sockets.main
    port = listening.getsockname()[1]
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, port), 10).close()
    assert describe(listening, "https") == f"https://[::]:{port}"
    assert not sockets.is_local()
    listening.close()


# -- probes


def head_and_options(client: httpx.Client, path: str) -> None:
    got, head, options = (client.request(method, path) for method in ("GET", "HEAD", "OPTIONS"))
    assert head.status_code == got.status_code
    assert head.content == b""
    varying = {"date", "x-request-id", "content-length"}
    assert {*head.headers.items()} - {*got.headers.items()} <= {
        (name, value) for name, value in head.headers.items() if name in varying
    }
    assert int(head.headers["content-length"]) > 0
    assert options.status_code == 204
    assert {"GET", "HEAD", "OPTIONS"} <= {*options.headers["allow"].split(", ")}


@pytest.fixture(scope="module")
def on_unix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, httpx.Client]]:
    folder = tmp_path_factory.mktemp("unix")
    path = folder / "http.sock"
    with on_socket(folder, path) as client:
        yield path, client
    assert not path.exists()


@contextmanager
def on_socket(folder: Path, path: Path, **settings: Any) -> Iterator[httpx.Client]:
    """Run a service on a Unix socket, and yield a client for it."""
    env = environment(NO_REGISTRY, folder, uds=path, **settings)
    with subprocess.Popen([PROGRAM, "run"], env=env) as process, over(path) as client:
        try:
            until(lambda: connects(path))
            yield client
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("path", PROBES)
def test_probes_serve_head_and_options(on_unix: tuple[Path, httpx.Client], path: str) -> None:
    head_and_options(on_unix[1], path)


def test_options_of_other_paths(on_unix: tuple[Path, httpx.Client]) -> None:
    _, client = on_unix
    assert client.options("/nowhere").status_code == 404
    assert client.head("/nowhere").status_code == 404
    assert client.options("/v2/repository/index").headers["allow"] == "OPTIONS, POST"
    for path in ("/predict", "/invocations", "/v1/models/any:predict"):
        response = client.options(path)
        assert (response.status_code, response.content) == (204, b"")
        assert response.headers["allow"] == "OPTIONS, POST"


# -- Unix sockets


def test_commands_reach_a_unix_socket(on_unix: tuple[Path, httpx.Client]) -> None:
    path, _ = on_unix
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert is_healthy(SERVING_UDS=str(path))
    assert not is_healthy(SERVING_UDS=f"{path}.other")
    done = command("status", f"unix:{path}")
    assert (done.returncode, "not live" in done.stdout) == (1, True), done.stderr


def test_socket_in_use_is_kept(on_unix: tuple[Path, httpx.Client]) -> None:
    path, client = on_unix
    with pytest.raises(StartupError, match=f"^SERVING_UDS: cannot listen on {path}: Address already in use$"):
        open_sockets(Settings(uds=path), {})
    assert client.get("/health").is_success


def test_stale_socket_is_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    sockets = open_sockets(Settings(uds=path, uds_mode="600"), {})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sockets.is_local()
    assert not sockets.is_loopback()
    path.unlink()
    path.write_text("of another process")
    sockets.remove_file()
    assert path.exists()
    sockets.main[0].close()


def test_other_files_are_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("precious")
    with pytest.raises(StartupError, match=f"^SERVING_UDS: {path} exists and is not a socket$"):
        open_sockets(Settings(uds=path), {})
    assert path.read_text() == "precious"


# -- sockets of other processes


def test_service_listens_on_sockets_of_systemd(tmp_path: Path) -> None:
    passed = ("http=127.0.0.1", "http=::1", "admin=127.0.0.1")
    program = (sys.executable, "-c", ACTIVATION, *passed, "--", PROGRAM)
    with served(NO_REGISTRY, tmp_path, program, port=free_port(), admin_port=free_port()) as service:
        second = service.logged(re.compile(r", (http://\[::1\]:\d+) "))[1]
        admin = service.logged(re.compile(r"admin endpoints.* at (http://127\.0\.0\.1:\d+)"))[1]
        assert not admin.endswith(service.env["SERVING_ADMIN_PORT"])
        for url, status in ((service.url, 404), (second, 404), (admin, 200)):
            assert httpx.get(f"{url}/metrics").status_code == status
            assert httpx.get(f"{url}/health").status_code == 200


def test_service_listens_on_an_inherited_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "inherited.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        descriptor = listening.fileno()
        words: list[Any] = [PROGRAM, "run", "--fd", str(descriptor)]
        env = environment(NO_REGISTRY, tmp_path)
        with subprocess.Popen(words, env=env, pass_fds=[descriptor]) as process:
            try:
                until(lambda: connects(path))
                with over(path) as client:
                    assert client.get("/health").is_success
                process.terminate()
                assert process.wait(60) == 0
            finally:
                process.kill()
    assert path.exists()  # it belongs to the process that created it


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def test_variables_for_another_process_are_ignored() -> None:
    sockets = open_sockets(Settings(port=0), {"LISTEN_PID": "1", "LISTEN_FDS": "1"})
    assert [each.getsockname()[0] for each in sockets.main] == ["127.0.0.1"]
    sockets.main[0].close()


def test_units_name_the_socket_for_operators() -> None:
    units = sorted((ROOT / "deploy" / "systemd").iterdir())
    text = "".join(unit.read_text() for unit in units)
    assert [unit.name for unit in units] == ["serving-admin.socket", "serving.service", "serving.socket"]
    assert "FileDescriptorName=admin\n" in text
    assert "KillMode=mixed\n" in text


# -- failed starts


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("name", ["port", "admin_port", "grpc_port"])
def test_taken_port_is_named(taken_port: int, name: str) -> None:
    ports: dict[str, Any] = {"port": 0, name: taken_port}
    line = f"SERVING_{name.upper()}: cannot listen on 127.0.0.1:{taken_port}: Address already in use"
    with pytest.raises(StartupError, match=f"^{re.escape(line)}$"):
        open_sockets(Settings(**ports), {})


@pytest.mark.parametrize("name", ["admin_port", "grpc_port"])
def test_port_that_is_set_twice_is_named(name: str) -> None:
    port = free_port()
    ports: dict[str, Any] = {"port": port, name: port}
    with pytest.raises(StartupError, match=f"^SERVING_{name.upper()}: .*: Address already in use$"):
        open_sockets(Settings(**ports), {})


@pytest.mark.parametrize(
    "host", ["nowhere.invalid", "192.0.2.1", "2001:db8::1", "1.2.3.4:80", "http://x", "x" * 70, "fe80::1"]
)
def test_invalid_host_is_named(host: str) -> None:
    with pytest.raises(StartupError, match=r"^SERVING_HOST: cannot (resolve|listen on) .*[^\n]$") as raised:
        open_sockets(Settings(host=host), {})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"LISTEN_FDS": "many"}, "LISTEN_FDS: 'many' is not a number of sockets"),
        ({"LISTEN_FDS": "1000000"}, "LISTEN_FDS: cannot listen on file descriptor"),
    ],
)
def test_invalid_sockets_of_systemd_are_named(tmp_path: Path, variables: dict[str, str], line: str) -> None:
    script = 'LISTEN_PID=$$ exec "$0" run'
    env = environment(NO_REGISTRY, tmp_path) | variables
    refuses_to_start(["sh", "-c", script, PROGRAM], env, line)


def refuses_to_start(command: list[Any], env: dict[str, str], line: str) -> None:
    """Check that a start fails with exactly one line that contains a text."""
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 2, done.stderr
    (only,) = done.stderr.splitlines()
    assert line in only


def test_failed_start_prints_one_line(tmp_path: Path, taken_port: int) -> None:
    env = environment(NO_REGISTRY, tmp_path, port=taken_port)
    refuses_to_start([PROGRAM, "run"], env, f"SERVING_PORT: cannot listen on 127.0.0.1:{taken_port}")


def test_too_few_open_files_are_named(tmp_path: Path) -> None:
    script = 'ulimit -n 64; exec "$0" run --port 0'
    env = environment(NO_REGISTRY, tmp_path)
    refuses_to_start(["sh", "-c", script, PROGRAM], env, "ulimit -n: 64 open files are too few")


def test_unreadable_certificate_is_named(tmp_path: Path) -> None:
    env = environment(
        NO_REGISTRY, tmp_path, tls_cert=tmp_path / "no.pem", tls_key=tmp_path / "no.key", port=0
    )
    line = f"SERVING_TLS_CERT: cannot read {tmp_path / 'no.pem'}: No such file or directory"
    refuses_to_start([PROGRAM, "run"], env, line)
