"""Define a model whose config and input rows control whether it predicts or fails.

It is logged from this file ("models from code"). Its config may have `on_load`, acts to perform while it
loads, `on_large`, acts to perform in a prediction in which an `x` exceeds 100, `factor`, by which `x` is
multiplied, and `streams`. The column `act` names acts to perform in a prediction.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import multiprocessing
import os
import resource
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelConfig
from mlflow.pyfunc import PythonModel
from opentelemetry import trace

grown: list[bytearray] = []
"""Memory that is never released."""


def perform(acts: str) -> None:
    """Perform acts separated by blanks; an argument follows its act after a colon."""
    for act in acts.split():
        _perform(*act.partition(":")[::2])


def start_daemon(note: Path) -> None:
    """Start a process in its own session whose parent exits, and write its id to a file."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    os.setsid()
    if daemon := os.fork():
        note.write_text(str(daemon))
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        signal.pause()


def spied(paths: list[str]) -> dict[str, Any]:
    """Return the resources that this process can access: variables, files, the front's memory, sockets."""

    def succeeds(attempt: Callable[[], Any]) -> bool:
        try:
            attempt()
        except OSError:
            return False
        return True

    def opened(path: str) -> None:
        Path(path).open("rb").close()

    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    front = parent(parent(os.getppid()))  # beyond the fork server and its guardian
    tracing = ctypes.CDLL(None, use_errno=True)
    kinds = {"tcp": (2, 1), "udp": (2, 2), "unix": (1, 1)}
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "variables": sorted(os.environ),
        "readable": [path for path in paths if succeeds(partial(opened, path))],
        "writable": [path for path in paths if succeeds(Path(path, "w").touch)],
        "scratch": succeeds(lambda: tempfile.TemporaryFile().close()),
        "environ": succeeds(lambda: Path(f"/proc/{front}/environ").read_bytes()),
        "memory": succeeds(lambda: Path(f"/proc/{front}/mem").open("rb").close()),
        "traced": tracing.ptrace(0x4206, front, 0, 0) == 0,
        "signals": succeeds(lambda: os.kill(front, 0)),
        "sockets": [name for name, kind in kinds.items() if succeeds(partial(socket.socket, *kind))],
        "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
        "no_new_privs": int(status["NoNewPrivs"]),
        "dumpable": tracing.prctl(3, 0, 0, 0, 0),
        "umask": status["Umask"].strip(),
    }


def outlast(kind: str, note: Path) -> None:
    """Start a process that tries to outlive the front, and write its id to a file."""
    libc = ctypes.PyDLL(None)  # keeps the interpreter's lock in a cloned child
    if kind == "immortal":  # the model process itself
        libc.prctl(1, 0)
        note.write_text(str(os.getpid()))
        _perform("hang", "")
    if kind in ("sibling", "brief"):
        number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
        child = libc.syscall(number, 0x8000 | signal.SIGCHLD.value, 0, 0, 0, 0)  # CLONE_PARENT
    else:
        child = os.fork()
    if child:
        if kind not in ("sibling", "brief"):
            os.waitpid(child, 0)
        return
    if kind != "sibling":
        os.setsid()
    if kind == "brief":
        note.write_text(str(os.getpid()))
        os._exit(0)
    if kind != "sibling" and os.fork():
        os._exit(0)
    libc.prctl(1, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.closerange(0, 1024)
    note.write_text(str(os.getpid()))
    if kind == "exec":
        os.execve("/bin/sleep", ["sleep", "1000"], {})
    while True:
        signal.pause()


def send_frames(kind: int, size: int, count: int) -> None:
    """Send frames with random bytes to the front until it closes the socket."""
    connections = [descriptor for descriptor in range(3, 256) if _is_socket(descriptor)]
    piece = os.urandom(2**16)
    with suppress(OSError):
        for _ in range(count):
            for connection in connections:
                os.write(connection, bytes([kind]) + size.to_bytes(4, "little"))
            for _ in range(0, size, len(piece)):
                for connection in connections:
                    os.write(connection, piece[:size])


def _is_socket(descriptor: int) -> bool:
    with suppress(OSError):
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    return False


def _perform(name: str, more: str) -> None:
    if name == "spy":
        print("spied", json.dumps(spied(more.split(","))))
    if name == "raise":
        raise ValueError(more.encode().decode("unicode_escape"))
    if name == "hang":
        while True:
            signal.pause()
    if name == "exit":
        os._exit(int(more))
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "quit":
        sys.exit(more)
    if name == "deafen":
        os.closerange(3, 1024)
        _perform("hang", "")
    if name == "note":
        Path(more).write_text(str(os.getpid()))
    if name == "toil":
        time.sleep(float(more))
    if name == "grow":
        grown.append(bytearray(os.urandom(1024) * (int(more) * 1024)))
    if name == "release":
        package, _, note = more.partition(":")
        Path(note).write_text(version(package))
    if name == "print":
        print(more.encode().decode("unicode_escape"))
    if name == "write":
        os.write(2, more.encode().decode("unicode_escape").encode())
    if name == "flood":
        print("\n".join(["flood"] * int(more)))
    if name == "trace":
        span = trace.get_current_span().get_span_context()
        with Path(more).open("a") as file:
            print(f"{span.trace_id:032x} {span.span_id:016x} {span.trace_state.to_header()}", file=file)
    if name == "needs" and more not in os.environ:
        raise LookupError(f"{more} is not there")
    if name == "pool":
        with multiprocessing.get_context(more).Pool(2) as pool:
            pool.map(abs, [-1, 1])
    if name == "daemon":
        start_daemon(Path(more))
    if name == "outlast":
        kind, _, note = more.partition(":")
        outlast(kind, Path(note))
    if name == "frames":
        send_frames(*map(int, more.split(":")))
    if name == "stop_once" and not Path(more).exists():
        Path(more).write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    if name == "limit":
        size = int(more) << 20
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    if name == "signal":
        signal.raise_signal(signal.Signals[more])
    if name == "once":
        Path(more).touch(exist_ok=False)
    if name == "fatal" and not Path(more).exists():
        Path(more).touch()
        os._exit(1)
    if name == "wait":
        # Block until the test has opened and closed the other end of the named pipe.
        Path(more).read_bytes()


class ScriptedModel(PythonModel):
    """Multiplies `x` by a factor, unless its acts change that."""

    def load_context(self, context: Any) -> None:
        """Perform the acts that are configured for loading."""
        self.config = context.model_config or {}
        perform(self.config.get("on_load", ""))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Perform the acts of the rows and return predictions; `params` may override `factor`."""
        acts = model_input.get("act", pd.Series("", model_input.index)).fillna("")
        for act in acts:
            perform(act)
        if (model_input["x"] > 100).any():
            perform(self.config.get("on_large", ""))
        predictions = model_input["x"].to_numpy(float) * (params or self.config).get("factor", 1.0)
        predictions[acts == "nan"] = np.nan
        if "text" in set(acts):
            return predictions.astype(str)
        return predictions[1:] if "drop" in set(acts) else predictions


class StreamingModel(ScriptedModel):
    """An actor that streams: it performs the acts of a row in order and yields an `x` after each."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Return predictions without performing acts."""
        return model_input["x"].to_numpy(float) * (params or self.config).get("factor", 1.0)

    def predict_stream(
        self, context: Any, model_input: dict[str, Any], params: dict[str, Any] | None = None
    ) -> Iterator[Any]:
        """Perform acts and yield items: `say` yields a word, `for` never ends, `end` writes a file last."""
        factor = (params or self.config).get("factor", 1.0)
        column = model_input.get("act")
        acts = column.split() if isinstance(column, str) else []
        try:
            for act in acts:
                name, _, more = act.partition(":")
                if name == "for":
                    yield from itertools.repeat({"on": more * 1000})
                elif name == "nan":
                    yield {"x": np.float64("nan")}
                elif name == "say":
                    yield more
                elif name != "end":
                    perform(act)
                    yield {"x": np.float64(model_input["x"] * factor), "act": name}
        finally:
            for act in acts:
                if act.startswith("end:"):
                    Path(act[4:]).write_text("ended")


def create_model() -> ScriptedModel:
    """Return the model that the config selects."""
    try:
        return StreamingModel() if ModelConfig().to_dict().get("streams") else ScriptedModel()
    except FileNotFoundError:  # it has no config
        return ScriptedModel()


mlflow.models.set_model(create_model())
