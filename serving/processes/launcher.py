"""The front's handle of the fork server: launches and kills model processes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from serving.errors import ProcessDied
from serving.processes import descendants
from serving.processes.confinement import model_environment
from serving.processes.fork_server_process import Child, ForkServerProcess
from serving.processes.guardian import SCRATCH
from serving.processes.output_capture import OutputCapture, inherited
from serving.settings.groups import ArtifactPolicySettings, RuntimeSettings
from serving.supervision import Component, Supervisor

log = logging.getLogger("serving.launcher")
_SECONDS_BETWEEN_PINGS = 1.0
_MAX_MISSED_PINGS = 5
"""A fork server that has been warm and then misses so many pings in a row is replaced."""
_MAX_LINE_BYTES = 65536


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
        supervisor: Supervisor | None = None,
    ) -> None:
        self._preload, self._enforce, self._strict, self._interpreter = preload, enforce, strict, interpreter
        self._model_env, self._sandbox, self._sandbox_allow = model_env, sandbox, sandbox_allow
        self.supervisor = supervisor or Supervisor()
        """Supervises its tasks, and those of the pools that it launches processes for."""
        self._server: ForkServerProcess | None = None
        self._listeners: set[Component] = set()

    @classmethod
    def of(
        cls, runtime: RuntimeSettings, trust: ArtifactPolicySettings, supervisor: Supervisor | None = None
    ) -> Launcher:
        """Return one for the operator's settings."""
        return cls(
            preload=runtime.preload,
            enforce=runtime.enforce,
            strict=trust.strict_artifacts,
            model_env=runtime.model_env,
            sandbox=runtime.sandbox,
            sandbox_allow=runtime.sandbox_allow,
            supervisor=supervisor,
        )

    @property
    def is_dedicated(self) -> bool:
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
        if self._sandbox:
            command.append(f"sandbox:{','.join(self._sandbox_allow)}")
        if self._interpreter:
            env["PYTHONPATH"] = str(self._interpreter.parents[1] / "front")
            env.pop("PYTHONHOME", None)
        try:
            self._server = self._spawn(python, command, env, mark)
        except OSError as error:
            raise ProcessDied(f"{self._subject} can't be started: {error}") from error
        self._supervise(self._server)

    def _spawn(
        self, python: str, command: Sequence[str], env: Mapping[str, str], mark: str
    ) -> ForkServerProcess:
        with ExitStack() as failing:
            scratch = None
            with suppress(OSError):  # a container may have no folder for temporary files, or a full one
                scratch = tempfile.TemporaryDirectory(prefix=SCRATCH, ignore_cleanup_errors=True)
                failing.callback(scratch.cleanup)
            control, theirs = socket.socketpair()
            failing.callback(control.close)
            with theirs:
                control.setblocking(False)
                output = OutputCapture({"child": "fork server"}, lambda _: None)
                failing.callback(output.close)
                try:
                    process = subprocess.Popen(
                        [python, "-m", "serving.processes.fork_server", str(theirs.fileno()), *command],
                        pass_fds=[theirs.fileno()],
                        stdin=subprocess.DEVNULL,
                        stdout=output.theirs,
                        stderr=output.theirs,
                        env={**env, **({"TMPDIR": scratch.name} if scratch else {})},
                        start_new_session=True,  # a signal to the front's group must not end it uncleanly
                    )
                finally:
                    os.close(output.theirs)
            failing.pop_all()
            return ForkServerProcess(control, process, mark, scratch, output)

    def _supervise(self, server: ForkServerProcess) -> None:
        detail = "of a version's own environment" if self.is_dedicated else ""
        watchdog = self.supervisor.start("watchdog", lambda: self._watch(server), detail, finite=True)
        listener = self.supervisor.start(
            "launcher", lambda: self._listen(server, watchdog), detail, finite=True
        )
        self._listeners = {each for each in self._listeners if not each.is_over} | {listener}

    def launch(
        self, folder: Path, connection: socket.socket, told: Mapping[str, Any]
    ) -> asyncio.Future[Child]:
        """Have a model process serve the model in `folder` on `connection`.

        What the process prints becomes lines of the log, which tell what is `told` of it. What this returns
        raises `ProcessDied` where the fork server dies before that, or the system has no room for a process.

        Raises:
            ProcessDied: the fork server can't be started.
            OSError: the system has no descriptors left, or the fork server does not read.
        """
        self.start()
        server = self._server
        assert server is not None
        number = server.next_number()
        with (
            inherited(told, server.outputs) as output,
            suppress(BrokenPipeError, ConnectionResetError),  # the listener knows why
        ):
            server.send({"fork": str(folder), "number": number}, [connection.fileno(), output])
        launched = server.launching[number] = asyncio.get_running_loop().create_future()
        return launched

    def kill(self, child: Child) -> None:
        """Kill a model process; nothing happens if it has ended."""
        if self._server is not None and not child.ended.done():
            with suppress(OSError):
                self._server.send({"kill": child.pid})

    def with_interpreter(self, interpreter: Path) -> Launcher:
        """Another one like this, whose model processes are run by an interpreter of an environment."""
        return Launcher(
            preload=self._preload,
            enforce=self._enforce,
            strict=self._strict,
            model_env=self._model_env,
            sandbox=self._sandbox,
            sandbox_allow=self._sandbox_allow,
            interpreter=interpreter,
            supervisor=self.supervisor,
        )

    def close(self) -> None:
        """Have the fork server end, and with it every model process."""
        if self._server is not None:
            with suppress(OSError):
                self._server.control.shutdown(socket.SHUT_RDWR)

    async def aclose(self) -> None:
        """As `close`, and wait for it."""
        self.close()
        await asyncio.gather(*(listener.wait() for listener in self._listeners))

    @property
    def _subject(self) -> str:
        own = " in this version's own environment" if self.is_dedicated else ""
        return f"the process that starts model processes{own}"

    async def _listen(self, server: ForkServerProcess, watchdog: Component) -> None:
        """Receive what a fork server reports until it ends; can be called again if it failed."""
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
                *lines, server.text = (server.text + data).split(b"\n")
                if len(server.text) > _MAX_LINE_BYTES:
                    server.text = b""
                for line in lines:
                    self._on_message(server, line)

    async def _watch(self, server: ForkServerProcess) -> None:
        """Ping a fork server, and end it once it does not answer any more, or stays stopped."""
        missed, stopped = 0, descendants.StopDetector()
        while not server.is_over:
            await asyncio.sleep(_SECONDS_BETWEEN_PINGS)
            missed = 0 if server.has_answered else missed + server.is_warm
            if missed >= _MAX_MISSED_PINGS or stopped.detects(server.process.pid, server.pid):
                log.error("%s does not respond, and is replaced", self._subject)
                with suppress(OSError):
                    server.control.shutdown(socket.SHUT_RDWR)  # its guardian ends it
                return
            if server.has_answered:
                with suppress(OSError):
                    server.has_answered = False
                    server.send({"ping": server.next_number()})

    def _reason(self, status: int, last: str) -> str:
        if status < 0:
            hint = ", perhaps for want of memory" if status == -signal.SIGKILL else ""
            return f"{self._subject} was killed by {descendants.signal_name(-status)}{hint}"
        return f"{self._subject} ended with status {status}{f': {last}' * bool(last)}"

    def _on_message(self, server: ForkServerProcess, line: bytes) -> None:
        """Handle a message; modules that the fork server imports may write anything to its socket."""
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
                server.has_answered, server.is_warm, server.pid = True, True, pid
                self._fail_unanswered(server, number)
            case _:
                log.warning("%s sent a message that is ignored: %.100r", self._subject, line)

    def _launched(self, server: ForkServerProcess, number: int, pid: int) -> None:
        launched = server.launching.pop(number, None)
        if launched is None:
            return
        child = server.children[pid] = Child(pid, asyncio.get_running_loop().create_future())
        if launched.done():  # its caller was cancelled
            self.kill(child)
        else:
            launched.set_result(child)

    def _fail_unanswered(self, server: ForkServerProcess, number: int) -> None:
        """Fail the earlier requests: answers come in order, so those that are missing are lost."""
        for earlier in [each for each in server.launching if each < number]:
            _fail(server.launching.pop(earlier), ProcessDied(f"{self._subject} did not answer"))


def _fail(launched: asyncio.Future[Child], error: ProcessDied) -> None:
    if not launched.done():
        launched.set_exception(error)
