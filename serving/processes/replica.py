"""Connects the front to one model process: starts it, sends calls and receives outputs."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from serving.errors import ModelFailed, ProcessDied
from serving.processes import framing
from serving.processes.call_outcome import Outcome, failure, model_facts, outcome_of
from serving.processes.descendants import StopDetector, killed_by
from serving.processes.fork_server_process import Child
from serving.processes.launcher import Launcher
from serving.promotion_errors import LoadFailed
from serving.telemetry.metrics import ExitReason

log = logging.getLogger("serving.replica")
_MAX_REAP_SECONDS = 5
_POLL_SECONDS = 1.0
_FAILURES = (framing.FrameType.FAILED, framing.FrameType.INVALID)


class ReplicaState(Enum):
    """The state of a model process."""

    LOADING = "loading"
    IDLE = "idle"
    BUSY = "busy"
    DEAD = "dead"


class Replica(asyncio.Protocol):
    """One model process: loads the model on start, then processes one call at a time.

    Log lines contain the fields of `log_context`; `max_bytes` limits the output of one call.
    """

    def __init__(
        self, launcher: Launcher, log_context: Mapping[str, Any], max_bytes: int = framing.MAX_BYTES
    ) -> None:
        self._launcher, self._log_context = launcher, log_context
        self._unpacker = framing.Unpacker(max_bytes)
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_done: Callable[[Outcome], None] | None = None
        self._on_chunk: Callable[[bytes], None] | None = None
        self._transport: asyncio.Transport | None = None
        self._retiring = False
        self.state = ReplicaState.LOADING
        self.facts: Mapping[str, Any] = {}
        """Facts that only the loaded model reveals: `input_schema`, the JSON Schema of its type hint."""
        self.ending = ExitReason.CRASH
        """Why the process ended; valid only if its version was not closed."""
        self._child: Child | None = None
        self.dead: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the process has gone, for any reason."""

    def __repr__(self) -> str:
        return f"<Replica pid={self.pid} {self.state.value}>"

    @property
    def pid(self) -> int | None:
        """Return the process id; None until the process has been forked."""
        return self._child.pid if self._child else None

    @classmethod
    async def start(
        cls,
        launcher: Launcher,
        folder: Path,
        seconds: float,
        log_context: Mapping[str, Any] = MappingProxyType({}),
        max_bytes: int = framing.MAX_BYTES,
    ) -> Replica:
        """Start a process and load the model in `folder` within `seconds`.

        Raises:
            LoadFailed: Loading raised, exceeded the time limit, or the process died.
            ProcessDied: The process died with the fork server or for lack of resources, which is not the
                fault of the version.
        """
        replica = cls(launcher, log_context, max_bytes)
        try:
            await replica._connect(folder)  # not limited: the time for warming up the fork server is no fault
            async with asyncio.timeout(seconds):
                await replica._wait_until_loaded()
        except _Stopped:
            raise
        except ProcessDied as error:
            replica.kill()  # it may have only closed its socket
            raise await replica._cause_of_death(error) from None
        except TimeoutError:
            raise LoadFailed(f"it had not loaded after {seconds:g} s, and was stopped") from None
        finally:
            if replica.state is not ReplicaState.IDLE:
                replica.kill()
        return replica

    def submit(
        self,
        payload: bytes,
        on_done: Callable[[Outcome], None],
        on_chunk: Callable[[bytes], None] | None = None,
    ) -> None:
        """Send a table (`InputLayout.encode`) to an idle process, and call `on_done` with the outcome.

        With `on_chunk`, the output is streamed to it, and the outcome of a successful call is empty.
        """
        assert self.state is ReplicaState.IDLE, self
        assert self._transport is not None, self
        self.state, self._on_done, self._on_chunk = ReplicaState.BUSY, on_done, on_chunk
        self._transport.write(
            framing.pack(framing.FrameType.STREAM if on_chunk else framing.FrameType.PREDICT, payload)
        )

    async def infer(self, payload: bytes, on_chunk: Callable[[bytes], None] | None = None) -> bytes:
        """Send an encoded table to an idle process and return the encoded output; see `submit`.

        Raises:
            ModelFailed: The model raised.
            ProcessDied: The process died.
            Unprocessable: The input does not match the model's type hint.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.submit(payload, lambda outcome: None if future.done() else future.set_result(outcome), on_chunk)
        outcome = await future
        if isinstance(outcome, bytes):
            return outcome
        raise outcome

    def stop(self) -> None:
        """Cancel a stream: the process stops after the next chunk."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(framing.pack(framing.FrameType.STOP))
            self._transport.resume_reading()

    def pause(self) -> None:
        """Stop reading the chunks of a stream; the process blocks when the socket is full."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Resume reading after `pause`."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def kill(self) -> None:
        """Kill the process now."""
        if self._child is not None:
            self._launcher.kill(self._child)
        if self._transport is not None:
            self._transport.abort()

    def kill_hung(self) -> None:
        """Kill the process now, because it does not respond in time."""
        self.ending = ExitReason.HANG
        self.kill()

    def retire(self) -> None:
        """Take no more calls, and kill the process when the current call has ended."""
        self._retiring = True
        if self.state is ReplicaState.IDLE:
            self._end()

    def _end(self) -> None:
        self.state = ReplicaState.DEAD  # no call may be submitted before the connection is lost
        self.kill()

    async def _connect(self, folder: Path) -> None:
        try:
            launched = await self._launch(folder)
        except OSError as error:
            raise ProcessDied(f"no model process can be started: {error}") from error
        self._child = await launched

    async def _launch(self, folder: Path) -> asyncio.Future[Child]:
        connection, peer = socket.socketpair()
        try:
            with peer:
                connection.setblocking(False)
                launched = self._launcher.launch(folder, peer, self._log_context)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self, connection)
        except BaseException:
            connection.close()
            raise
        return launched

    async def _wait_until_loaded(self) -> None:
        stop_detector = StopDetector()
        while not self._loaded.done():
            await asyncio.wait([self._loaded], timeout=_POLL_SECONDS)
            if stop_detector.detects(self.pid):
                raise _Stopped("The model process was stopped by a signal while loading.")
        self._loaded.result()

    async def _cause_of_death(self, error: ProcessDied) -> LoadFailed | ProcessDied:
        if self._child is not None:
            await asyncio.wait([self._child.ended], timeout=_MAX_REAP_SECONDS)
        status = self._child.ended.result() if self._child and self._child.ended.done() else error
        if isinstance(status, ProcessDied):
            return status
        if status < 0:
            return LoadFailed(f"its process was {killed_by(-status, ' while loading')}")
        return LoadFailed(f"its process ended with status {status} while loading")

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport of the connection."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport is not a subclass

    def data_received(self, data: bytes) -> None:
        """Handle bytes from the process, which is not trusted: stop it when it violates the protocol."""
        try:
            for kind, payload in self._unpacker.feed(data):
                if self.state is ReplicaState.DEAD:
                    return
                self._on_frame(kind, payload)
        except ValueError as error:
            log.error("model process %s sent %s, and is stopped", self.pid, error, extra=self._log_context)
            self._stop_violator(f"its process sent {error}")

    def _stop_violator(self, reason: str) -> None:
        """Stop a process that violates the protocol, and blame the version."""
        self.state = ReplicaState.DEAD
        self._fail_loading(LoadFailed(reason))
        self.kill()
        self._end_call(ModelFailed(reason))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the current call, and mark the process as dead."""
        self.state = ReplicaState.DEAD
        try:
            self._fail_loading(ProcessDied("The model process died while loading."))
            self._end_call(ProcessDied("The model process died during the request."))
        finally:
            if not self.dead.done():
                self.dead.set_result(None)

    def _on_frame(self, kind: framing.FrameType, payload: bytes) -> None:
        last = framing.FrameType.END if self._on_chunk else framing.FrameType.OUTPUT
        is_loading = not self._loaded.done()
        if is_loading and kind is framing.FrameType.READY:
            self.state = ReplicaState.IDLE
            self.facts = model_facts(payload)
            self._loaded.set_result(None)
        elif is_loading and kind is framing.FrameType.FAILED:
            error, trace = failure(payload)
            log.warning("loading raised %s", error, extra={**self._log_context, "cause": trace})
            self._fail_loading(LoadFailed(f"loading it raised {error}"))
        elif kind is framing.FrameType.CHUNK and self._on_chunk:
            self._on_chunk(payload)
        elif self._on_done and kind in (*_FAILURES, last):
            self.state = ReplicaState.IDLE
            if self._retiring:
                self._end()
            self._end_call(outcome_of(kind, payload))
        else:
            raise ValueError(f"an unexpected {kind.name} frame")

    def _end_call(self, outcome: Outcome) -> None:
        on_done, self._on_done, self._on_chunk = self._on_done, None, None
        if on_done:
            on_done(outcome)

    def _fail_loading(self, error: LoadFailed | ProcessDied) -> None:
        if not self._loaded.done():
            self._loaded.set_exception(error)
            self._loaded.exception()  # mark it as retrieved: `start` may have been cancelled


class _Stopped(ProcessDied):  # callers handle it as `ProcessDied`
    """A signal has stopped the process while it was loading, which is not the fault of the version."""
