"""Signals: reload, state in the log, and a graceful stop; none of them ends a process by accident."""

from __future__ import annotations

import os
import pty
import re
import signal
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import httpx
import pytest

from serving.auth import api_keys
from serving.auth.api_keys import Scope
from tests.support.certificates import write_certificate
from tests.support.registry import NewRegistry, Registry
from tests.support.service import PROGRAM, SELDOM, Service, environment, served, until

ROW = {"x": 21}
HARMLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PEM_BYTES = 4096


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a key file, and the key of an operator in it."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    key, record = api_keys.create_key("ops", Scope.ADMIN)
    api_keys.write(file, [record])
    return file, key


def padded_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate and its key to files of a constant size; text outside of PEM is ignored."""
    files = write_certificate(folder)
    for file in files:
        file.write_bytes(file.read_bytes().ljust(PEM_BYTES, b"\n"))
    return files


def overwrite(file: Path, content: bytes) -> None:
    """Replace the content of a file, but neither its inode nor its time: the file seems unchanged."""
    status = file.stat()
    assert len(content) == status.st_size
    with file.open("r+b") as opened:
        opened.write(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(scope="module")
def service(
    new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, str]
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("signals")
    registry = Registry(new_registry(folder))
    registry.add("actor", factor=2.0)
    cert, private = padded_certificate(folder)
    settings = {
        "models": "models:/actor/1",
        "keys_file": keys[0],
        "tls_cert": cert,
        "tls_key": private,
        "journal_url": f"sqlite:///{folder}/journal.db",
        "poll_seconds": SELDOM,
    }
    with served(registry.uri, folder, **settings, _key=keys[1], _ca=cert) as running:
        running.until_ready()
        yield running


def processes(service: Service) -> set[int]:
    """Return the service and all processes that it has started."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(status.parent.name)] = int(fields[1])
    found = {service.process.pid}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def test_signals_to_all_processes_end_none(service: Service) -> None:
    before = processes(service)
    assert len(before) >= 5  # front, guardian, fork server, model process, journal writer
    for number in HARMLESS:
        for pid in before:
            os.kill(pid, number)
    service.wait_for_log(event="reloaded the key file: 1 keys")
    assert service.client.post("/predict", json=ROW).json()["prediction"] == 42.0
    assert processes(service) == before


def test_hangup_reloads_keys_that_seem_unchanged(service: Service, keys: tuple[Path, str]) -> None:
    file, _ = keys
    content = file.read_bytes()
    assert service.client.get("/models").status_code == 200
    overwrite(file, content.replace(b'"admin"', b'"owner"'))
    service.process.send_signal(signal.SIGHUP)
    service.logged(re.compile("cannot read the key file; its last keys stay valid"))
    assert service.client.get("/models").status_code == 200
    file.write_bytes(content)
    service.process.send_signal(signal.SIGHUP)
    until(lambda: service.ready()["keys"] == "readable")


def test_hangup_reloads_a_certificate_that_seems_unchanged(service: Service, tmp_path: Path) -> None:
    used, renewed = Path(service.env["CA"]).parent, padded_certificate(tmp_path)
    old = {file.name: (used / file.name).read_bytes() for file in renewed}
    new = {file.name: file.read_bytes() for file in renewed}
    for before, after in [(old, new), (new, old)]:  # the old one last, for the client of other tests
        for name, content in after.items():
            overwrite(used / name, content)
        assert presents(service, before["cert.pem"])
        service.process.send_signal(signal.SIGHUP)
        until(partial(presents, service, after["cert.pem"]))


def presents(service: Service, certificate: bytes) -> bool:
    """Return whether a new connection receives this certificate, in PEM."""
    return ssl.get_server_certificate(service.address).strip() == certificate.decode().strip()


def test_state_is_logged_on_request(service: Service) -> None:
    service.process.send_signal(signal.SIGUSR1)
    match = service.logged(re.compile(r"received SIGUSR1: (.*?); open connections: (\d+)"))
    assert match[1] == "models:/actor/1 is live, version 1"
    assert int(match[2]) >= 1


def catches(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has a handler for a signal."""
    (mask,) = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


@contextmanager
def started(folder: Path, stderr: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start a service in a session of its own, as on a terminal."""
    env = environment("http://127.0.0.1:1", folder, port=0)
    with subprocess.Popen([PROGRAM, "run"], env=env, stderr=stderr, start_new_session=True) as process:
        os.close(stderr)
        try:
            yield process
        finally:
            process.kill()


def until_alive(log: IO[str]) -> None:
    """Wait for the address in the log, and until the service responds there."""
    while not (match := re.search(r"serving models:.* at (http://[\d.]+:\d+)", log.readline())):
        pass
    assert httpx.get(f"{match[1]}/health", timeout=60).is_success


def test_signals_during_the_start_do_not_end_it(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    with os.fdopen(ours) as log, started(tmp_path, theirs) as process:
        until(lambda: catches(process.pid, signal.SIGHUP))
        for number in HARMLESS:
            process.send_signal(number)
        until_alive(log)
        os.killpg(process.pid, signal.SIGQUIT)  # Ctrl-\\ in a terminal
        assert process.wait(60) == 0


def test_hangup_of_the_terminal_stops_the_service(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours) as log, started(tmp_path, theirs) as process:
        until_alive(log)
        process.send_signal(signal.SIGHUP)
        while "received SIGHUP" not in log.readline():  # the terminal is open: this is a request to reload
            pass
        log.close()
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0
