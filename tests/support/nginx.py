"""Run a real nginx in front of a service."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.service import until

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
_MAIN = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  {temporary}
  {servers}
}}
"""


def create_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1 and its private key, and return their files."""
    cert, key = folder / "proxy.pem", folder / "proxy.key"
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    command = ("openssl", "req", "-x509", *kind, *names, "-keyout", key, "-out", cert)
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@contextmanager
def nginx(folder: Path, servers: str, port: int) -> Iterator[None]:
    """Run nginx with these `server` blocks, one of which listens on this port."""
    assert NGINX
    temporary = "\n  ".join(f"{name}_temp_path {folder}/{name};" for name in _TEMPORARY)
    config = folder / "nginx.conf"
    config.write_text(_MAIN.format(folder=folder, temporary=temporary, servers=servers))
    process = subprocess.Popen([NGINX, "-c", config, "-p", folder, "-e", folder / "error.log"])

    def listens() -> bool:
        assert process.poll() is None, (folder / "error.log").read_text()
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    try:
        until(listens)
        yield
    finally:
        process.terminate()
        process.wait()
