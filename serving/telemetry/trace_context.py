"""W3C Trace Context of requests, and its propagation to the model process.

https://www.w3.org/TR/trace-context/ defines `traceparent` and `tracestate`. A batch may contain rows of
several requests, but model code can continue only one trace: that of the first recorded request. The span of
its model call links to the other requests, and their spans link to it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

_PARENT, _STATE = b"traceparent", b"tracestate"


@dataclass(slots=True, eq=False)
class TraceContext:
    """The trace of one request, with the model calls that contained its rows."""

    trace_id: str
    span_id: str
    """The id of the request's span."""
    flags: int
    """Trace flags; bit 0 is set if the trace is recorded."""
    state: str = ""
    queued: float = 0.0
    """Time when its first rows were queued, by the performance counter."""
    calls: list[ModelCall] = field(default_factory=list)
    """Model calls that contained its rows."""

    @property
    def is_recorded(self) -> bool:
        """Check whether the spans of the trace are recorded."""
        return bool(self.flags & 1)


@dataclass(slots=True, eq=False)
class ModelCall:
    """A model call, with times by the performance counter.

    `traces` contains the recorded traces of its requests, or one that is not recorded if there are none.
    """

    traces: Sequence[TraceContext]
    requests: int
    rows: int
    started: float
    finished: float = 0.0
    failed: bool = False
    span_id: str = field(default_factory=lambda: os.urandom(8).hex())

    def end(self, *, failed: bool) -> None:
        """Record the end of the call."""
        self.finished, self.failed = time.perf_counter(), failed

    @property
    def home(self) -> TraceContext:
        """Return the trace that model code continues."""
        return self.traces[0]

    @property
    def metadata(self) -> dict[bytes, str]:
        """Return the metadata that propagates the trace to the model process."""
        home = self.home
        parent = f"00-{home.trace_id}-{self.span_id}-{home.flags:02x}"
        return {_PARENT: parent, _STATE: home.state} if home.state else {_PARENT: parent}


current: ContextVar[TraceContext | None] = ContextVar("current", default=None)
"""The trace of the current request; None unless requests are traced."""


def extract(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return the trace headers in metadata from `ModelCall.metadata`."""
    return {name.decode(): metadata[name].decode() for name in (_PARENT, _STATE) if name in metadata}


@contextmanager
def attach(headers: Mapping[str, str]) -> Iterator[None]:
    """Make OpenTelemetry continue the trace of these headers, for the block.

    Does nothing if OpenTelemetry is not installed, as in environments of older MLflow versions.
    """
    try:
        from opentelemetry import context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        yield
        return
    token = context.attach(TraceContextTextMapPropagator().extract(headers))
    try:
        yield
    finally:
        context.detach(token)
