"""The front's handle of one model process."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from serving.errors import FieldError, LoadFailed, ModelFailed, ProcessDied, Unprocessable
from serving.processes import framing
from serving.processes.descendants import StopDetector, signal_name
from serving.processes.fork_server_process import Child
from serving.processes.launcher import Launcher
from serving.telemetry.metrics import ExitReason

log = logging.getLogger("serving.replica")
_SECONDS_TO_REAP = 5
_SECONDS_BETWEEN_LOOKS = 1.0
_MAX_FAULTS = 20
_UNREADABLE = (ValueError, TypeError, LookupError, RecursionError)
_ENDS = (framing.FrameType.FAILED, framing.FrameType.INVALID)

Outcome = bytes | ModelFailed | ProcessDied | Unprocessable
"""How a call ended: the answer's bytes, the model's exception, the death of the process, an unfit input."""


class ReplicaState(Enum):
    """Where a model process stands."""

    LOADING = "loading"
    IDLE = "idle"
    BUSY = "busy"
    DEAD = "dead"


class Replica(asyncio.Protocol):
    """One model process: loads on start, then answers one table at a time.

    `dead` is done when the process has gone, whoever ended it.
    """

    def __init__(
        self, launcher: Launcher, told: Mapping[str, Any], max_bytes: int = framing.MAX_BYTES
    ) -> None:
        self._launcher, self._told = launcher, told
        self._unpacker = framing.Unpacker(max_bytes)
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._done: Callable[[Outcome], None] | None = None
        self._hear: Callable[[bytes], None] | None = None
        self._transport: asyncio.Transport | None = None
        self._retiring = False
        self.state = ReplicaState.LOADING
        self.shown: Mapping[str, Any] = {}
        """What only the loaded model shows: `input_schema`, the JSON Schema of its type hint."""
        self.ending = ExitReason.CRASH
        """Why it ended, once it has, unless its version was closed."""
        self._child: Child | None = None
        self.dead: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<Replica pid={self.pid} {self.state.value}>"

    @property
    def pid(self) -> int | None:
        """The id of the process, once it is known."""
        return self._child.pid if self._child else None

    @classmethod
    async def start(
        cls,
        launcher: Launcher,
        folder: Path,
        seconds: float,
        told: Mapping[str, Any] = MappingProxyType({}),
        max_bytes: int = framing.MAX_BYTES,
    ) -> Replica:
        """Start a process and load the model in `folder`, within `seconds`; `told` is of it in the log.

        Raises:
            LoadFailed: it raised, died or was not done in time.
            ProcessDied: it died through no fault of its own, with the fork server or for want of resources.
        """
        replica = cls(launcher, told, max_bytes)
        try:
            await replica._connect(folder)  # a fork server that warms up is no fault of the version
            async with asyncio.timeout(seconds):
                await replica._until_loaded()
        except _Stopped:
            raise
        except ProcessDied as error:
            replica.kill()  # it may have done no more than hang up
            raise await replica._cause_of_death(error) from None
        except TimeoutError:
            raise LoadFailed(f"it had not loaded after {seconds:g} s, and was stopped") from None
        finally:
            if replica.state is not ReplicaState.IDLE:
                replica.kill()
        return replica

    def ask(
        self, payload: bytes, done: Callable[[Outcome], None], hear: Callable[[bytes], None] | None = None
    ) -> None:
        """Have an idle process answer an encoded table; `done` is called with how that ended.

        With `hear` it answers bit by bit, and nothing at the end.
        """
        assert self.state is ReplicaState.IDLE, self
        assert self._transport is not None, self
        self.state, self._done, self._hear = ReplicaState.BUSY, done, hear
        self._transport.write(
            framing.pack(framing.FrameType.STREAM if hear else framing.FrameType.PREDICT, payload)
        )

    async def infer(self, payload: bytes, hear: Callable[[bytes], None] | None = None) -> bytes:
        """As `ask`, waited for.

        Raises:
            ModelFailed: the model raised.
            ProcessDied: the process died.
            Unprocessable: the input does not fit the model's type hint.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.ask(payload, lambda outcome: None if future.done() else future.set_result(outcome), hear)
        outcome = await future
        if isinstance(outcome, bytes):
            return outcome
        raise outcome

    def stop(self) -> None:
        """Have a process that answers bit by bit be done after the next one."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(framing.pack(framing.FrameType.STOP))
            self._transport.resume_reading()

    def pause(self) -> None:
        """Listen no more to a process that answers bit by bit; before long that holds it up."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Listen again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def kill(self) -> None:
        """End the process now, whatever it does."""
        if self._child is not None:
            self._launcher.kill(self._child)
        if self._transport is not None:
            self._transport.abort()

    def kill_hung(self) -> None:
        """End the process now, as it does not answer in time."""
        self.ending = ExitReason.HANG
        self.kill()

    def retire(self) -> None:
        """Be asked no more, and end once what is under way is answered."""
        self._retiring = True
        if self.state is ReplicaState.IDLE:
            self._end()

    def _end(self) -> None:
        self.state = ReplicaState.DEAD  # nobody may ask it in this very turn
        self.kill()

    async def _connect(self, folder: Path) -> None:
        try:
            launched = await self._launch(folder)
        except OSError as error:
            raise ProcessDied(f"no model process can be started: {error}") from error
        self._child = await launched

    async def _launch(self, folder: Path) -> asyncio.Future[Child]:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                ours.setblocking(False)
                launched = self._launcher.launch(folder, theirs, self._told)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self, ours)
        except BaseException:
            ours.close()
            raise
        return launched

    async def _until_loaded(self) -> None:
        """Wait until the model is loaded; that a signal stops the process meanwhile is no fault of it."""
        stopped = StopDetector()
        while not self._loaded.done():
            await asyncio.wait([self._loaded], timeout=_SECONDS_BETWEEN_LOOKS)
            if stopped.detects(self.pid):
                raise _Stopped("The model process was stopped by a signal while loading.")
        self._loaded.result()

    async def _cause_of_death(self, error: ProcessDied) -> LoadFailed | ProcessDied:
        if self._child is not None:
            await asyncio.wait([self._child.ended], timeout=_SECONDS_TO_REAP)
        status = self._child.ended.result() if self._child and self._child.ended.done() else error
        if isinstance(status, ProcessDied):
            return status
        if status < 0:
            hint = ", perhaps for want of memory" if status == -signal.SIGKILL else ""
            return LoadFailed(f"its process was killed by {signal_name(-status)} while loading{hint}")
        return LoadFailed(f"its process ended with status {status} while loading")

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ours."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Handle bytes from the process, which is not trusted: it is stopped when it breaks the protocol."""
        try:
            for kind, payload in self._unpacker.feed(data):
                if self.state is ReplicaState.DEAD:
                    return
                self._on_frame(kind, payload)
        except ValueError as error:
            log.error("model process %s sent %s, and is stopped", self.pid, error, extra=self._told)
            self._refuse(f"its process sent {error}")

    def _refuse(self, reason: str) -> None:
        """Stop a process that breaks the protocol, which is the fault of the version."""
        was, self.state = self.state, ReplicaState.DEAD
        if was is ReplicaState.LOADING and not self._loaded.done():
            self._fail(LoadFailed(reason))
        self.kill()
        self._end_call(ModelFailed(reason))

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has gone."""
        was, self.state = self.state, ReplicaState.DEAD
        try:
            if was is ReplicaState.LOADING and not self._loaded.done():
                self._fail(ProcessDied("The model process died while loading."))
            self._end_call(ProcessDied("The model process died under the request."))
        finally:
            if not self.dead.done():
                self.dead.set_result(None)

    def _on_frame(self, kind: framing.FrameType, payload: bytes) -> None:
        streams = self._hear is not None
        if self.state is ReplicaState.LOADING and not self._loaded.done() and kind is framing.FrameType.READY:
            self.state = ReplicaState.IDLE
            self.shown = _shown(payload)
            self._loaded.set_result(None)
        elif (
            self.state is ReplicaState.LOADING
            and not self._loaded.done()
            and kind is framing.FrameType.FAILED
        ):
            error, trace = _failure(payload)
            log.warning("loading raised %s", error, extra={**self._told, "cause": trace})
            self._fail(LoadFailed(f"loading it raised {error}"))
        elif kind is framing.FrameType.CHUNK and self._hear:
            self._hear(payload)
        elif self._done and kind in (*_ENDS, framing.FrameType.END if streams else framing.FrameType.ANSWER):
            self.state = ReplicaState.IDLE
            if self._retiring:
                self._end()
            self._end_call(_outcome(kind, payload))
        else:
            raise ValueError(f"an unexpected {kind.name} frame")

    def _end_call(self, outcome: Outcome) -> None:
        done, self._done, self._hear = self._done, None, None
        if done:
            done(outcome)

    def _fail(self, error: LoadFailed | ProcessDied) -> None:
        self._loaded.set_exception(error)
        self._loaded.exception()  # seen: `start` may have been cancelled


class _Stopped(ProcessDied):  # leaves this module as `ProcessDied`
    """A signal has stopped the process while it was loading."""


def _outcome(kind: framing.FrameType, payload: bytes) -> Outcome:
    """Return the outcome of a call that its last frame reports."""
    if kind is framing.FrameType.INVALID:
        return _unfit(payload)
    if kind is framing.FrameType.FAILED:
        error, trace = _failure(payload)
        return ModelFailed(f"it raised {error}", trace, error.partition(":")[0])
    return payload


def _shown(payload: bytes) -> Mapping[str, Any]:
    try:
        shown = json.loads(payload or b"{}")
    except (ValueError, RecursionError):
        return {}
    return shown if isinstance(shown, dict) else {}


def _unfit(payload: bytes) -> Unprocessable:
    try:
        faults = [
            FieldError(tuple(fault["loc"]), str(fault["msg"])[:200])
            for fault in json.loads(payload)[:_MAX_FAULTS]
        ]
    except _UNREADABLE:
        faults = []
    return Unprocessable("The input does not fit the type hint of the model.", tuple(faults))


def _failure(payload: bytes) -> tuple[str, str]:
    """The exception in a line, and its traceback; the process is not trusted to have sent either."""
    try:
        told = json.loads(payload)
        return " ".join(str(told["error"]).split())[:1000], str(told["traceback"])
    except _UNREADABLE:
        return "an exception that could not be read", repr(payload[:1000])
