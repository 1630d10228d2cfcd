"""A local Ray cluster whose nodes start and die like machines, and the service on it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from benchmarks.processes import children
from benchmarks.servers import NotStarted, free_port

CONFIG = Path(__file__).parents[1] / "deploy" / "ray" / "serve.yaml"
_BIN = Path(sys.executable).parent
_OBJECT_STORE_BYTES = 2**27
_TIMEOUT_SECONDS = 240.0
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # By default Ray lowers the priority of its workers. Here the clients run on the same machine.
    "RAY_worker_niceness": "0",
    # By default a proxy prefers replicas on its own node. Here one proxy serves both nodes.
    "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
}
"""Settings of Ray that differ from its defaults."""


class Node:
    """A node, run by `ray start --block`."""

    def __init__(self, env: Mapping[str, str], log: Path, *options: str) -> None:
        command = [str(_BIN / "ray"), "start", "--block", "--num-cpus", "1", "--include-log-monitor", "false"]
        command += ["--object-store-memory", str(_OBJECT_STORE_BYTES)]
        for name in ("dashboard-agent-listen-port", "metrics-export-port", "runtime-env-agent-port"):
            command += [f"--{name}", str(free_port())]
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, *options], env=env, stdout=output, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for pid in (self._process.pid, *_descendants(self._process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def is_up(self) -> bool:
        """Return whether the node runs.

        Raises:
            NotStarted: Its process has ended.
        """
        if self._process.poll() is not None:
            raise NotStarted(f"a Ray node has ended; its log ends with: {self._log.read_text()[-2000:]}")
        return "Ray runtime started" in self._log.read_text()

    @property
    def raylet(self) -> int:
        """Return the process id of the node's raylet."""
        (results,) = (pid for pid in children(self._process.pid) if _program(pid).endswith("/raylet"))
        return results

    @property
    def replicas(self) -> list[int]:
        """Return the process ids of the replicas on the node."""
        return [pid for pid in children(self.raylet) if _program(pid).startswith("ray::ServeReplica")]

    def kill(self) -> None:
        """Kill the raylet, which ends all processes of the node."""
        os.kill(self.raylet, signal.SIGKILL)
        self._process.wait(_TIMEOUT_SECONDS)


class Cluster:
    """Two nodes with the service from the project's config file, but other ports, models and replicas."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._folder, self._env = folder, {**os.environ, **SETTINGS, **env}
        self._at, self._port = f"127.0.0.1:{free_port()}", free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        # Socket paths have a length limit, which the test's own folder may exceed.
        self._temp = tempfile.mkdtemp(prefix="ray-")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.callback(shutil.rmtree, self._temp, ignore_errors=True)
            ports = ("--port", self._at.rpartition(":")[2], "--ray-client-server-port", str(free_port()))
            head = ("--head", *ports, "--temp-dir", self._temp, "--include-dashboard", "false")
            self.head = self._node("head", *head)
            wait_until(self.head.is_up)
            self.worker = self._node("worker", "--address", self._at)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stack.close()

    def deploy(self, replicas: int) -> None:
        """Deploy this many instances of the service, each on its own node.

        Raises:
            NotStarted: They do not start.
        """
        file = self._folder / "serve.yaml"
        file.write_text(yaml.safe_dump(self._config(replicas)))
        command = [str(_BIN / "serve"), "run", "--address", self._at, "--non-blocking", str(file)]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True)
        if done.returncode:
            raise NotStarted(done.stderr[-2000:])
        wait_until(self.worker.is_up)
        wait_until(lambda: len(self.ready().get("replicas", ())) == replicas)

    def ready(self) -> dict[str, Any]:
        """Return the body of `/ready`; an empty dict before the service runs."""
        with suppress(httpx.TransportError, ValueError):
            results: dict[str, Any] = httpx.get(f"{self.url}/ready", timeout=30).json()
            return results
        return {}

    @property
    def log(self) -> list[str]:
        """Return what the replicas and Ray's processes wrote to standard error."""
        files = Path(self._temp).glob("session_2*/logs/worker-*.err")
        return [line for file in files for line in file.read_text().splitlines()]

    def _node(self, name: str, *options: str) -> Node:
        return self._stack.enter_context(Node(self._env, self._folder / f"{name}.log", *options))

    def _config(self, replicas: int) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
        config["proxy_location"] = "HeadOnly"
        config["http_options"] |= {"host": "127.0.0.1", "port": self._port}
        (application,) = config["applications"]
        application["args"] = {"models": self._env["SERVING_MODELS"]}
        (front,) = application["deployments"]
        del front["autoscaling_config"]
        front |= {"num_replicas": replicas, "max_replicas_per_node": 1}
        return config


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until the condition is true.

    Raises:
        NotStarted: It stays false for minutes.
    """
    ends = time.monotonic() + _TIMEOUT_SECONDS
    while not condition():
        if time.monotonic() > ends:
            raise NotStarted(f"the condition stayed false for {_TIMEOUT_SECONDS:g} s")
        time.sleep(0.05)


def _descendants(parent: int) -> list[int]:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        return [pid for child in children(parent) for pid in (child, *_descendants(child))]
    return []


def _program(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    return ""
