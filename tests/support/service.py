"""Run `serving run` on a free port, as a user would."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Condition, Thread
from typing import IO, Any, TypeVar

import httpx

from serving.processes.fork_server import PRELOAD

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("serving")
_LISTENING = re.compile(r"serving models:.* at (https?://(?:[\d.]+|\[[\da-f:]+\]):\d+)")
_PATIENCE_SECONDS = 60

FOR_SKLEARN = ",".join(PRELOAD)
"""Modules that a service preloads by default, for models of sklearn."""

SELDOM = 5
"""Seconds between polls of the registry in tests that promote nothing."""


def environment(uri: str, folder: Path, **settings: Any) -> dict[str, str]:
    """Return the environment of a service of the registry at `uri` that writes below `folder`."""
    own = {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "SERVING_STORE_DIR": str(folder / "store"),
        "SERVING_POLL_SECONDS": "0.25",
        # The default preload takes two seconds, and few tests have sklearn models.
        "SERVING_PRELOAD": "",
        "COLUMNS": "200",
    }
    own |= {f"SERVING_{name.upper()}": str(value) for name, value in settings.items() if name[0] != "_"}
    # Variables for the test's own client: an API key, a CA certificate.
    own |= {name[1:].upper(): str(value) for name, value in settings.items() if name[0] == "_"}
    # Users have Python write bytecode, which must never reach the files of a model.
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | own


def until(
    condition: Callable[[], T | None], pause: float = 0.02, max_seconds: float = _PATIENCE_SECONDS
) -> T:
    """Poll `condition` until it returns a true value, and return that value."""
    ends = time.monotonic() + max_seconds
    while not (result := condition()):
        assert time.monotonic() < ends, f"{condition} has not come true"
        time.sleep(pause)
    return result


class Service:
    """A running service: its address, a client for it, and what it logs."""

    def __init__(
        self,
        env: dict[str, str],
        folder: Path,
        program: Sequence[Any] = (PROGRAM,),
        *,
        on_terminal: bool = False,
    ) -> None:
        self.env = env
        self.log: list[str] = []
        self._logged = Condition()
        ours, theirs = pty.openpty() if on_terminal else os.pipe()
        self.process = subprocess.Popen([*program, "run", "--port", "0"], cwd=folder, env=env, stderr=theirs)
        os.close(theirs)
        self._reader = Thread(target=self._read, args=(os.fdopen(ours),))
        self._reader.start()
        self.url = self.logged(_LISTENING)[1]
        verify: Any = ssl.create_default_context(cafile=env["CA"]) if "CA" in env else True
        headers = {"Authorization": f"Bearer {env['KEY']}"} if "KEY" in env else {}
        self.client = httpx.Client(
            base_url=self.url, timeout=_PATIENCE_SECONDS, verify=verify, headers=headers
        )
        until(self._answers)

    def _read(self, stream: IO[str]) -> None:
        with stream, suppress(OSError):  # the end of a terminal
            for line in stream:
                with self._logged:
                    self.log.append(line.rstrip("\n"))
                    self._logged.notify_all()

    def _answers(self) -> bool:
        try:
            return self.client.get("/health").is_success
        except httpx.ConnectError:
            return False

    def logged(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Wait for a log line that matches, and return the first match."""

        def first_match() -> re.Match[str] | None:
            return next((match for line in self.log if (match := pattern.search(line))), None)

        with self._logged:
            assert self._logged.wait_for(first_match, _PATIENCE_SECONDS), "\n".join(self.log)
            match = first_match()
        assert match
        return match

    def lines(self) -> list[dict[str, Any]]:
        """Return the log so far, parsed from lines of JSON."""
        return [json.loads(line) for line in list(self.log)]

    def wait_for_log(self, **facts: Any) -> dict[str, Any]:
        """Wait for a log line with these fields, and return the first one."""

        def first_line() -> dict[str, Any] | None:
            return next((line for line in self.lines() if facts.items() <= line.items()), None)

        return until(first_line)

    @property
    def address(self) -> tuple[str, int]:
        """Return host and port of the service."""
        return "127.0.0.1", int(self.url.rpartition(":")[2])

    def ready(self) -> dict[str, Any]:
        """Return the body of `/ready`."""
        body: dict[str, Any] = self.client.get("/ready").json()
        return body

    def metrics(self) -> dict[str, float]:
        """Return the values of `/metrics` by name and labels."""
        text = self.client.get("/metrics").raise_for_status().text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    def until_ready(self) -> None:
        """Wait until every model is live."""
        until(lambda: self.client.get("/ready").is_success)

    def until_live(self, name: str, version: str) -> None:
        """Wait until a version is live."""
        until(lambda: self.client.get(f"/models/{name}").json()["version"] == version)

    def stop(self) -> int:
        """Terminate the service unless it has ended, and return its exit status."""
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(_PATIENCE_SECONDS)
        self._reader.join()
        return status


@contextmanager
def served(
    uri: str, folder: Path, program: Sequence[Any] = (PROGRAM,), /, **settings: Any
) -> Iterator[Service]:
    """Run a service of the registry at `uri`, and verify that it logged no exception."""
    service = Service(environment(uri, folder, **settings), folder, program)
    try:
        yield service
        assert service.stop() == 0
        assert not [line for line in service.lines() if "exception" in line], "\n".join(service.log)
    finally:
        service.process.kill()
        service.process.wait()
        service._reader.join()
        service.client.close()
