"""A model whose part is written in its config and in the rows it is given: it answers, or it fails as asked.

It is logged from this file ("models from code"). Its config may have `on_load`, acts to perform while it
loads, `on_large`, acts to perform on predicting where an `x` is over a hundred, `factor`, by which `x` is
multiplied, and `streams`. The column `act` names acts to perform on predicting.
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
"""What is never let go."""


def perform(acts: str) -> None:
    """Do what acts say, separated by blanks; whatever needs a word more has it after a colon."""
    for act in acts.split():
        _perform(*act.partition(":")[::2])


def start_daemon(note: Path) -> None:
    """Start a process in a session of its own whose parent ends, and write down its id."""
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
    """Return what this process can get hold of: variables, files, the front's memory, sockets."""

    def succeeds(attempt: Callable[[], Any]) -> bool:
        try:
            attempt()
        except OSError:
            return False
        return True

    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    front = parent(parent(os.getppid()))  # beyond the fork server and its guardian
    tracing = ctypes.CDLL(None, use_errno=True)
    kinds = {"tcp": (2, 1), "udp": (2, 2), "unix": (1, 1)}
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "variables": sorted(os.environ),
        "readable": [path for path in paths if succeeds(lambda path=path: Path(path).open("rb").close())],
        "writable": [path for path in paths if succeeds(lambda path=path: Path(path, "w").touch())],
        "scratch": succeeds(lambda: tempfile.TemporaryFile().close()),
        "environ": succeeds(lambda: Path(f"/proc/{front}/environ").read_bytes()),
        "memory": succeeds(lambda: Path(f"/proc/{front}/mem").open("rb").close()),
        "traced": tracing.ptrace(0x4206, front, 0, 0) == 0,
        "signals": succeeds(lambda: os.kill(front, 0)),
        "sockets": [name for name, kind in kinds.items() if succeeds(lambda kind=kind: socket.socket(*kind))],
        "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
        "no_new_privs": int(status["NoNewPrivs"]),
        "dumpable": tracing.prctl(3, 0, 0, 0, 0),
        "umask": status["Umask"].strip(),
    }


def outlast(kind: str, note: Path) -> None:
    """Start a process that tries to outlive the front, and write down its id."""
    libc = ctypes.PyDLL(None)  # which keeps the interpreter's lock in a cloned child
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
    """Send frames on the socket to the front, with random bytes as long as it takes them."""
    connections = [each for each in range(3, 256) if _is_socket(each)]
    piece = os.urandom(2**16)
    with suppress(OSError):
        for _ in range(count):
            for each in connections:
                os.write(each, bytes([kind]) + size.to_bytes(4, "little"))
            for _ in range(0, size, len(piece)):
                for each in connections:
                    os.write(each, piece[:size])


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
        # Opening a named pipe waits until the test has opened its end, reading until it has closed it.
        Path(more).read_bytes()


class Actor(PythonModel):  # type: ignore[misc]
    """Multiplies `x` by a factor, unless its part is another."""

    def load_context(self, context: Any) -> None:
        """Play the part on loading."""
        self.config = context.model_config or {}
        perform(self.config.get("on_load", ""))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Play the part on predicting; `params` may have a `factor` of its own."""
        acts = model_input.get("act", pd.Series("", model_input.index)).fillna("")
        for act in acts:
            perform(act)
        if (model_input["x"] > 100).any():
            perform(self.config.get("on_large", ""))
        answer = model_input["x"].to_numpy(float) * (params or self.config).get("factor", 1.0)
        answer[acts == "nan"] = np.nan
        if "text" in set(acts):
            return answer.astype(str)
        return answer[1:] if "drop" in set(acts) else answer


class Speaker(Actor):
    """An actor that streams: a row's acts one by one, each told as `x` once it is done."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Play no part."""
        return model_input["x"].to_numpy(float) * (params or self.config).get("factor", 1.0)

    def predict_stream(
        self, context: Any, model_input: dict[str, Any], params: dict[str, Any] | None = None
    ) -> Iterator[Any]:
        """Perform, and tell of it; `say` tells a word, `for` goes on and on, `end` notes how it ended."""
        factor = (params or self.config).get("factor", 1.0)
        asked = model_input.get("act")
        acts = asked.split() if isinstance(asked, str) else []
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


def cast() -> Actor:
    """Who plays the part."""
    try:
        return Speaker() if ModelConfig().to_dict().get("streams") else Actor()
    except FileNotFoundError:  # it has no config
        return Actor()


mlflow.models.set_model(cast())
