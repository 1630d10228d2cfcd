"""The front's handle of the fork server: launches and kills model processes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import ProcessDied
from serving.runtime.output import Output

log = logging.getLogger("serving.launcher")


@dataclass(frozen=True, slots=True)
class Child:
    """A model process: its id, and its exit code (or the negative signal) when it ends.

    None instead, where the fork server died and took it along.
    """

    pid: int
    ended: asyncio.Future[int | None]


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
        interpreter: Path | None = None,
    ) -> None:
        self._preload, self._enforce, self._strict, self._interpreter = preload, enforce, strict, interpreter
        self._control: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._launching: deque[asyncio.Future[Child]] = deque()
        self._children: dict[int, Child] = {}
        self._outputs: set[Output] = set()

    @property
    def is_own(self) -> bool:
        """Whether it is for one version alone, whose interpreter it has."""
        return self._interpreter is not None

    def start(self) -> None:
        """Start the fork server, if it doesn't run."""
        if self._control is not None:
            return
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        with theirs:
            python, env = self._interpreter or sys.executable, None
            if self._interpreter:
                env = {**os.environ, "PYTHONPATH": str(self._interpreter.parents[1] / "front")}
            command = [python, "-m", "serving.runtime.forkserver", str(theirs.fileno())]
            command += ["-" if self._preload is None else ",".join(self._preload)]
            command += ["enforce"] * self._enforce + ["strict"] * self._strict
            with self._output({"child": "fork server"}) as output:
                self._server = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=env,
                )
        listening = self._listen(self._control, self._server)
        self._listener = asyncio.get_running_loop().create_task(listening)

    def launch(
        self, folder: Path, connection: socket.socket, told: Mapping[str, Any]
    ) -> asyncio.Future[Child]:
        """Have a model process serve the model in `folder` on `connection`.

        What the process prints becomes lines of the log, which tell what is `told` of it. What this returns
        raises `ProcessDied` where the fork server dies before that.
        """
        self.start()
        assert self._control is not None
        launched: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._launching.append(launched)
        line = json.dumps({"fork": str(folder)}).encode() + b"\n"
        with (
            self._output(told) as output,
            suppress(OSError),
        ):  # the listener sees that it has gone, and says so
            socket.send_fds(self._control, [line], [connection.fileno(), output])
        return launched

    def kill(self, child: Child) -> None:
        """Kill a model process; nothing happens if it has ended."""
        if self._control is not None and not child.ended.done():
            with suppress(OSError):
                self._control.send(json.dumps({"kill": child.pid}).encode() + b"\n")

    def by(self, interpreter: Path) -> Launcher:
        """Another one like this, whose model processes are run by an interpreter of an environment."""
        return Launcher(
            preload=self._preload, enforce=self._enforce, strict=self._strict, interpreter=interpreter
        )

    def close(self) -> None:
        """Have the fork server end, and with it every model process."""
        if self._control is not None:
            with suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)

    async def aclose(self) -> None:
        """As `close`, and wait for it."""
        self.close()
        if self._listener is not None:
            await self._listener

    async def _listen(self, control: socket.socket, server: subprocess.Popen[bytes]) -> None:
        loop = asyncio.get_running_loop()
        text = b""
        with control, suppress(OSError):
            while data := await loop.sock_recv(control, 65536):
                *lines, text = (text + data).split(b"\n")
                for line in lines:
                    self._hear(json.loads(line))
        self._control = None
        while self._launching:
            if not (launched := self._launching.popleft()).done():
                launched.set_exception(ProcessDied("The fork server died."))
        for pid in list(self._children):
            self._hear({"ended": pid, "status": None})
        await asyncio.to_thread(server.wait)
        for output in list(self._outputs):
            output.close()

    @contextmanager
    def _output(self, told: Mapping[str, Any]) -> Iterator[int]:
        """The end of a pipe to give to a process, for the block in which that is done."""
        output = Output(told, self._outputs.discard)
        self._outputs.add(output)
        try:
            yield output.theirs
        finally:
            os.close(output.theirs)

    def _hear(self, fact: dict[str, Any]) -> None:
        if "ended" in fact:
            self._children.pop(fact["ended"]).ended.set_result(fact["status"])
            return
        child = Child(fact["forked"], asyncio.get_running_loop().create_future())
        self._children[child.pid] = child
        launched = self._launching.popleft()
        if launched.done():  # nobody waits for it any more
            self.kill(child)
        else:
            launched.set_result(child)
