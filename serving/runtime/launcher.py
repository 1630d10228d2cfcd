"""The front's handle of the fork server: launches and kills model processes."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import ProcessDied
from serving.groups import Runtime, Trust
from serving.runtime import descendants
from serving.runtime.confinement import model_environment
from serving.runtime.output import Output

_MAX_SECONDS_TO_END = 10.0


@dataclass(frozen=True, slots=True)
class Child:
    """A model process: its id, and its exit code (or the negative signal) when it ends.

    Instead the death of the fork server, where that took it along.
    """

    pid: int
    ended: asyncio.Future[int | ProcessDied]


@dataclass(slots=True)
class _Server:
    """One fork server, from its start to its end, and what it has been asked for."""

    control: socket.socket
    process: subprocess.Popen[bytes]
    mark: str
    scratch: tempfile.TemporaryDirectory[str]
    """The temporary folder of its model processes."""
    output: Output
    launching: deque[asyncio.Future[Child]] = field(default_factory=deque)
    children: dict[int, Child] = field(default_factory=dict)
    outputs: set[Output] = field(default_factory=set)

    def wait(self) -> int:
        """Wait until it and all that its model processes started have ended; return its status."""
        try:
            status = self.process.wait(_MAX_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        descendants.kill_marked(self.mark)
        self.scratch.cleanup()
        return status


class Launcher:
    """Starts the fork server, starts it again if it dies, and speaks with it.

    `preload` are the modules that it imports ahead of models; None for those that they commonly need.
    """

    def __init__(
        self,
        *,
        preload: Sequence[str] | None = None,
        enforce: bool = False,
        strict: bool = False,
        model_env: Sequence[str] = (),
        sandbox: bool = False,
        sandbox_allow: Sequence[str] = (),
        interpreter: Path | None = None,
    ) -> None:
        self._preload, self._enforce, self._strict, self._interpreter = preload, enforce, strict, interpreter
        self._model_env, self._sandbox, self._sandbox_allow = model_env, sandbox, sandbox_allow
        self._server: _Server | None = None
        self._listeners: set[asyncio.Task[None]] = set()

    @classmethod
    def of(cls, runtime: Runtime, trust: Trust) -> Launcher:
        """Return one for the operator's settings."""
        return cls(
            preload=runtime.preload,
            enforce=runtime.enforce,
            strict=trust.strict,
            model_env=runtime.model_env,
            sandbox=runtime.sandbox,
            sandbox_allow=runtime.sandbox_allow,
        )

    @property
    def is_own(self) -> bool:
        """Whether it is for one version alone, whose interpreter it has."""
        return self._interpreter is not None

    def start(self) -> None:
        """Start the fork server, if it doesn't run.

        Raises:
            ProcessDied: it can't be started.
        """
        if self._server is not None:
            return
        command = ["-" if self._preload is None else ",".join(self._preload)]
        command += ["enforce"] * self._enforce + ["strict"] * self._strict
        mark, python = secrets.token_hex(8), str(self._interpreter or sys.executable)
        env = {**model_environment(os.environ, self._model_env), descendants.MARK: mark}
        scratch = tempfile.TemporaryDirectory(prefix="serving-models-", ignore_cleanup_errors=True)
        env["TMPDIR"] = scratch.name
        if self._sandbox:
            command.append(f"sandbox:{','.join(self._sandbox_allow)}")
        if self._interpreter:
            env["PYTHONPATH"] = str(self._interpreter.parents[1] / "front")
            env.pop("PYTHONHOME", None)
        control, theirs = socket.socketpair()
        control.setblocking(False)
        output = Output({"child": "fork server"}, lambda _: None)
        try:
            with theirs:
                process = subprocess.Popen(
                    [python, "-m", "serving.runtime.forkserver", str(theirs.fileno()), *command],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=output.theirs,
                    stderr=output.theirs,
                    env=env,
                    start_new_session=True,  # a signal to the front's group must not keep it from cleaning up
                )
        except OSError as error:
            control.close()
            output.close()
            scratch.cleanup()
            raise ProcessDied(f"{self._subject} can't be started: {error}") from error
        finally:
            os.close(output.theirs)
        self._server = _Server(control, process, mark, scratch, output)
        listener = asyncio.get_running_loop().create_task(self._listen(self._server))
        self._listeners.add(listener)
        listener.add_done_callback(self._listeners.discard)

    def launch(
        self, folder: Path, connection: socket.socket, told: Mapping[str, Any]
    ) -> asyncio.Future[Child]:
        """Have a model process serve the model in `folder` on `connection`.

        What the process prints becomes lines of the log, which tell what is `told` of it. What this returns
        raises `ProcessDied` where the fork server dies before that.
        """
        self.start()
        server = self._server
        assert server is not None
        launched: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        server.launching.append(launched)
        line = json.dumps({"fork": str(folder)}).encode() + b"\n"
        with (
            _output(told, server.outputs) as output,
            suppress(OSError),
        ):  # the listener sees that it has gone, and says so
            socket.send_fds(server.control, [line], [connection.fileno(), output])
        return launched

    def kill(self, child: Child) -> None:
        """Kill a model process; nothing happens if it has ended."""
        if self._server is not None and not child.ended.done():
            with suppress(OSError):
                self._server.control.send(json.dumps({"kill": child.pid}).encode() + b"\n")

    def by(self, interpreter: Path) -> Launcher:
        """Another one like this, whose model processes are run by an interpreter of an environment."""
        return Launcher(
            preload=self._preload,
            enforce=self._enforce,
            strict=self._strict,
            model_env=self._model_env,
            sandbox=self._sandbox,
            sandbox_allow=self._sandbox_allow,
            interpreter=interpreter,
        )

    def close(self) -> None:
        """Have the fork server end, and with it every model process."""
        if self._server is not None:
            with suppress(OSError):
                self._server.control.shutdown(socket.SHUT_RDWR)

    async def aclose(self) -> None:
        """As `close`, and wait for it."""
        self.close()
        await asyncio.gather(*self._listeners)

    @property
    def _subject(self) -> str:
        own = " in this version's own environment" if self.is_own else ""
        return f"the process that starts model processes{own}"

    async def _listen(self, server: _Server) -> None:
        loop = asyncio.get_running_loop()
        text = b""
        with server.control, suppress(OSError):
            while data := await loop.sock_recv(server.control, 65536):
                *lines, text = (text + data).split(b"\n")
                for line in lines:
                    self._hear(server, json.loads(line))
        self._server = None
        status = await asyncio.to_thread(server.wait)
        for output in [server.output, *server.outputs]:
            output.close()
        died = ProcessDied(self._reason(status, server.output.last))
        for launched in server.launching:
            if not launched.done():
                launched.set_exception(died)
        for child in server.children.values():
            child.ended.set_result(died)

    def _reason(self, status: int, last: str) -> str:
        if status < 0:
            hint = ", perhaps for want of memory" if status == -signal.SIGKILL else ""
            return f"{self._subject} was killed by {signal.Signals(-status).name}{hint}"
        return f"{self._subject} ended with status {status}{f': {last}' * bool(last)}"

    def _hear(self, server: _Server, fact: dict[str, Any]) -> None:
        if "ended" in fact:
            if child := server.children.pop(fact["ended"], None):
                child.ended.set_result(fact["status"])
            return
        child = Child(fact["forked"], asyncio.get_running_loop().create_future())
        server.children[child.pid] = child
        launched = server.launching.popleft()
        if launched.done():  # nobody waits for it any more
            self.kill(child)
        else:
            launched.set_result(child)


@contextmanager
def _output(told: Mapping[str, Any], outputs: set[Output]) -> Iterator[int]:
    """The end of a pipe to give to a process, for the block in which that is done."""
    output = Output(told, outputs.discard)
    outputs.add(output)
    try:
        yield output.theirs
    finally:
        os.close(output.theirs)
