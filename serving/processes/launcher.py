"""Starts the fork server, and launches and kills model processes through it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

from serving.errors import ProcessDied
from serving.processes import descendants
from serving.processes.environment_variables import model_environment
from serving.processes.fork_server_process import Child, ForkServerProcess
from serving.processes.guardian import SCRATCH
from serving.processes.output_capture import OutputCapture, captured
from serving.settings.groups import ArtifactPolicySettings, RuntimeSettings
from serving.supervision import Component, Supervisor

log = logging.getLogger("serving.launcher")
_PING_SECONDS = 1.0
_MAX_MISSED_PINGS = 5
"""A fork server that has responded before and then misses this many pings in a row is replaced."""
_MAX_LINE_BYTES = 65536


@dataclass(frozen=True, slots=True)
class LauncherOptions:
    """Options of a fork server and its model processes."""

    preload: Sequence[str] | None = None
    """Modules to import before forking; None for the modules that models commonly need."""
    enforce: bool = False
    """Call models through pyfunc, which enforces the signature again."""
    strict: bool = False
    """Refuse pickles."""
    model_env: Sequence[str] = ()
    """Patterns of additional environment variables for model processes."""
    sandbox: bool = False
    sandbox_allow: Sequence[str] = ()
    """Paths that a sandboxed model process may read, and TCP ports that it may connect to."""
    interpreter: Path | None = None
    """The Python of a version's own environment; None for the Python of the front."""

    @property
    def arguments(self) -> list[str]:
        """Return the arguments of the fork server."""
        arguments = ["-" if self.preload is None else ",".join(self.preload)]
        arguments += ["enforce"] * self.enforce + ["strict"] * self.strict
        return [*arguments, f"sandbox:{','.join(self.sandbox_allow)}"] if self.sandbox else arguments

    def environment(self) -> dict[str, str]:
        """Return the environment variables of the fork server."""
        env = model_environment(os.environ, self.model_env)
        # pyarrow's jemalloc would run a thread in the fork server, and threads make forks unsafe.
        env.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
        if self.interpreter:
            env["PYTHONPATH"] = str(self.interpreter.parents[1] / "front")
            env.pop("PYTHONHOME", None)
        return env


class Launcher:
    """Starts the fork server, replaces it if it dies, and sends it requests."""

    def __init__(self, options: LauncherOptions | None = None, supervisor: Supervisor | None = None) -> None:
        self._options = options or LauncherOptions()
        self.supervisor = supervisor or Supervisor()
        """Supervises the tasks of the launcher and of the pools that use it."""
        self._server: ForkServerProcess | None = None
        self._listeners: set[Component] = set()
        self._dedicated: WeakSet[Launcher] = WeakSet()

    @classmethod
    def from_settings(
        cls, runtime: RuntimeSettings, policy: ArtifactPolicySettings, supervisor: Supervisor | None = None
    ) -> Launcher:
        """Return a launcher with the operator's settings."""
        options = LauncherOptions(
            preload=runtime.preload,
            enforce=runtime.enforce,
            strict=policy.strict_artifacts,
            model_env=runtime.model_env,
            sandbox=runtime.sandbox,
            sandbox_allow=runtime.sandbox_allow,
        )
        return cls(options, supervisor)

    @property
    def is_dedicated(self) -> bool:
        """Return whether this launcher serves one version, with the interpreter of its environment."""
        return self._options.interpreter is not None

    def start(self) -> None:
        """Start the fork server if it is not running.

        Raises:
            ProcessDied: It cannot be started.
        """
        if self._server is not None:
            return
        try:
            self._server = self._spawn(secrets.token_hex(8))
        except OSError as error:
            raise ProcessDied(f"{self._subject} can't be started: {error}") from error
        self._supervise(self._server)

    def _spawn(self, mark: str) -> ForkServerProcess:
        python = str(self._options.interpreter or sys.executable)
        env = self._options.environment() | {descendants.MARK: mark}
        with ExitStack() as on_failure:
            scratch = None
            with suppress(OSError):  # a container may have no folder for temporary files, or a full disk
                scratch = tempfile.TemporaryDirectory(prefix=SCRATCH, ignore_cleanup_errors=True)
                on_failure.callback(scratch.cleanup)
                env["TMPDIR"] = scratch.name
            control, peer = socket.socketpair()
            on_failure.callback(control.close)
            with peer:
                control.setblocking(False)
                output = OutputCapture({"child": "fork server"}, lambda _: None)
                on_failure.callback(output.close)
                command = [python, "-m", "serving.processes.fork_server", str(peer.fileno())]
                try:
                    process = subprocess.Popen(
                        [*command, *self._options.arguments],
                        pass_fds=[peer.fileno()],
                        stdin=subprocess.DEVNULL,
                        stdout=output.write_end,
                        stderr=output.write_end,
                        env=env,
                        start_new_session=True,  # a signal to the front's group must not end it uncleanly
                    )
                finally:
                    os.close(output.write_end)
            on_failure.pop_all()
            return ForkServerProcess(control, process, mark, scratch, output)

    def _supervise(self, server: ForkServerProcess) -> None:
        detail = "of a version's own environment" if self.is_dedicated else ""
        watchdog = self.supervisor.start("watchdog", lambda: self._watch(server), detail, finite=True)
        listener = self.supervisor.start(
            "launcher", lambda: self._listen(server, watchdog), detail, finite=True
        )
        running = {listener for listener in self._listeners if not listener.is_over}
        self._listeners = running | {listener}

    def launch(
        self, folder: Path, connection: socket.socket, log_context: Mapping[str, Any]
    ) -> asyncio.Future[Child]:
        """Launch a process that serves the model in `folder` on `connection`.

        The output of the process is logged with the fields in `log_context`. The returned future raises
        `ProcessDied` if the fork server dies first, or if the system has no resources for a process.

        Raises:
            ProcessDied: The fork server cannot be started.
            OSError: The system has no descriptors left, or the fork server does not read its socket.
        """
        self.start()
        server = self._server
        assert server is not None
        number = server.next_number()
        with (
            captured(log_context, server.outputs) as output,
            suppress(BrokenPipeError, ConnectionResetError),  # the listener fails the future with the reason
        ):
            server.send({"fork": str(folder), "number": number}, [connection.fileno(), output])
        launched = server.launching[number] = asyncio.get_running_loop().create_future()
        return launched

    def kill(self, child: Child) -> None:
        """Kill a model process; do nothing if it has ended."""
        if self._server is not None and not child.ended.done():
            with suppress(OSError):
                self._server.send({"kill": child.pid})

    def with_interpreter(self, interpreter: Path) -> Launcher:
        """Return a launcher with the same options for the interpreter of a version's own environment."""
        launcher = Launcher(replace(self._options, interpreter=interpreter), self.supervisor)
        self._dedicated.add(launcher)
        return launcher

    def close(self) -> None:
        """Make the fork server and all its model processes end."""
        if self._server is not None:
            with suppress(OSError):
                self._server.control.shutdown(socket.SHUT_RDWR)

    async def aclose(self) -> None:
        """Close the launcher and those made `with_interpreter`; wait until their fork servers have ended."""
        self.close()
        await asyncio.gather(
            *(listener.wait() for listener in self._listeners),
            *(launcher.aclose() for launcher in list(self._dedicated)),
        )

    @property
    def _subject(self) -> str:
        suffix = " in this version's own environment" if self.is_dedicated else ""
        return f"the process that starts model processes{suffix}"

    async def _listen(self, server: ForkServerProcess, watchdog: Component) -> None:
        """Handle the messages of a fork server until it ends, then fail its pending requests.

        The supervisor may call this again after an exception.
        """
        await self._receive(server)
        server.is_over = True
        watchdog.stop()
        if self._server is server:
            self._server = None
        server.control.close()
        status = await asyncio.to_thread(server.wait)
        for output in [server.output, *server.outputs]:
            output.close()
        died = ProcessDied(self._reason(status, server.output.last))
        for number in list(server.launching):
            _fail(server.launching.pop(number), died)
        while server.children:
            _, child = server.children.popitem()
            child.ended.set_result(died)

    async def _receive(self, server: ForkServerProcess) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while not server.is_over and (data := await loop.sock_recv(server.control, 65536)):
                *lines, server.buffer = (server.buffer + data).split(b"\n")
                if len(server.buffer) > _MAX_LINE_BYTES:
                    server.buffer = b""
                for line in lines:
                    self._on_message(server, line)

    async def _watch(self, server: ForkServerProcess) -> None:
        """Ping a fork server, and end it if it stops responding or is stopped by a signal."""
        missed, stop_detector = 0, descendants.StopDetector()
        while not server.is_over:
            await asyncio.sleep(_PING_SECONDS)
            missed = 0 if server.has_responded else missed + server.is_warm
            if missed >= _MAX_MISSED_PINGS or stop_detector.detects(server.process.pid, server.pid):
                log.error("%s does not respond, and is replaced", self._subject)
                with suppress(OSError):
                    server.control.shutdown(socket.SHUT_RDWR)  # the guardian then kills it
                return
            if server.has_responded:
                with suppress(OSError):
                    server.has_responded = False
                    server.send({"ping": server.next_number()})

    def _reason(self, status: int, last_line: str) -> str:
        if status < 0:
            return f"{self._subject} was {descendants.killed_by(-status)}"
        return f"{self._subject} ended with status {status}{f': {last_line}' * bool(last_line)}"

    def _on_message(self, server: ForkServerProcess, line: bytes) -> None:
        """Handle a message, which is not trusted: preloaded modules may write anything to the socket."""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        match message:
            case {"started": int(pid)}:
                server.pid = pid
            case {"ended": int(pid), "status": int(status)}:
                if child := server.children.pop(pid, None):
                    child.ended.set_result(status)
            case {"forked": int(pid), "number": int(number)}:
                self._launched(server, number, pid)
            case {"failed": str(reason), "number": int(number)} if number in server.launching:
                _fail(server.launching.pop(number), ProcessDied(f"no model process can be started: {reason}"))
            case {"pong": int(number), "pid": int(pid)} if number <= server.number:
                server.has_responded, server.is_warm, server.pid = True, True, pid
                self._fail_lost(server, number)
            case _:
                log.warning("ignored an unknown message from %s: %.100r", self._subject, line)

    def _launched(self, server: ForkServerProcess, number: int, pid: int) -> None:
        launched = server.launching.pop(number, None)
        if launched is None:
            return
        child = server.children[pid] = Child(pid, asyncio.get_running_loop().create_future())
        if launched.done():  # its caller was cancelled
            self.kill(child)
        else:
            launched.set_result(child)

    def _fail_lost(self, server: ForkServerProcess, number: int) -> None:
        """Fail the requests before `number`: replies come in order, so their replies are lost."""
        for earlier in [pending for pending in server.launching if pending < number]:
            _fail(server.launching.pop(earlier), ProcessDied(f"{self._subject} did not respond"))


def _fail(launched: asyncio.Future[Child], error: ProcessDied) -> None:
    if not launched.done():
        launched.set_exception(error)
