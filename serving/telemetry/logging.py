"""Log format: one line of JSON per record, or a readable format on a terminal.

Modules use `logging.getLogger`. structlog renders their records and those of uvicorn, MLflow and Python's
warnings. No record can forge a line, contain a known secret, or send control characters to a terminal. Lines
about a request have a `request_id`, and a `trace_id` if it is traced. Lines about a version have `model` and
`version`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterable, MutableMapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import orjson
import structlog

from serving.telemetry.redaction import Redaction, escape_control_chars, is_secret, secrets_in_environment
from serving.text import shorten

log = logging.getLogger("serving")
_MAX_TEXT_LENGTH = 16_000
# Most values recur: paths, models, versions, clients.
_MAX_CACHED_LENGTH, _CACHE_SIZE = 100, 1000
_MULTILINE = ("exception", "stack", "cause")
"""Fields of several lines. Long ones keep their end, which names the error."""
_TRUSTED = frozenset({"level", "logger", "timestamp"})
_GUTTER = "    | "
Line = MutableMapping[str, Any]


def configure(form: str, level: str, secrets: Iterable[str] = ()) -> None:
    """Configure logging of this process to standard error.

    Args:
        form: `json`, `console`, or `auto`: console on a terminal, otherwise JSON.
        level: the minimum level of this package's loggers; for others it is `warning`.
        secrets: texts to redact, in addition to the secrets in the environment and texts that look like one.
    """
    on_terminal = sys.stderr.isatty()
    readable = form == "console" or (form == "auto" and on_terminal)
    handler = _Handler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper("%H:%M:%S" if readable else "iso", utc=not readable),
                structlog.processors.format_exc_info,
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                RedactingProcessor(Redaction([*secrets, *secrets_in_environment()])),
                *(
                    _console_renderer(colours=on_terminal and "NO_COLOR" not in os.environ)
                    if readable
                    else _JSON_RENDERER
                ),
            ],
        )
    )
    # Otherwise MLflow, which is imported later, installs its own handlers.
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("serving").setLevel(level.upper())
    _install_hooks()


class RedactingProcessor:
    """A structlog processor that redacts secrets and control characters in all values."""

    def __init__(self, redaction: Redaction) -> None:
        self._redacted = redaction
        self._cached = lru_cache(_CACHE_SIZE)(self._in_line)

    def __call__(self, logger: Any, method: str, line: Line) -> Line:
        """Return the redacted line."""
        return {
            escape_control_chars(name): value if name in _TRUSTED else self._clean(name, value)
            for name, value in line.items()
            if name != "color_message"  # a copy of the event, from uvicorn
        }

    def _clean(self, name: str, value: Any) -> Any:
        if value is None or type(value) in (bool, float) or (type(value) is int and value.bit_length() < 64):
            return value
        if is_secret(name):
            return "***"
        text = value if type(value) is str else str(value)
        if name in _MULTILINE:
            # Redact twice the length that is logged, so that no part of a secret at the cut is logged.
            end = self._redacted(text[-2 * _MAX_TEXT_LENGTH :])[-_MAX_TEXT_LENGTH:]
            return "\n".join(map(escape_control_chars, end.rstrip().split("\n")))
        return self._cached(text) if len(text) < _MAX_CACHED_LENGTH else self._in_line(text)

    def _in_line(self, text: str) -> str:
        text = self._redacted(shorten(text, 2 * _MAX_TEXT_LENGTH))
        return escape_control_chars(shorten(text, _MAX_TEXT_LENGTH))


def _in_json(line: Line, **_: Any) -> str:
    return orjson.dumps(line).decode()


_JSON_RENDERER = [structlog.processors.JSONRenderer(serializer=_in_json)]


def _console_renderer(*, colours: bool) -> list[Any]:
    plain = structlog.dev.plain_traceback
    return [
        _indent_multiline,
        structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=0, exception_formatter=plain),
    ]


def _indent_multiline(logger: Any, method: str, line: Line) -> Line:
    """Print fields of several lines below the event, indented by a mark that no other line begins with."""
    below = [text for name in _MULTILINE if (text := line.pop(name, None))]
    if below:
        line["exception"] = "\n".join(_GUTTER + row for text in below for row in text.split("\n"))
    return line


class _Handler(logging.StreamHandler[Any]):
    """Writes lines to a stream, and reports records that cannot be formatted."""

    def handleError(self, record: logging.LogRecord) -> None:
        event = f"cannot format a log record of {record.name}: {type(sys.exception()).__name__}"
        with suppress(Exception):  # the stream itself may be closed
            self.stream.write(
                self.format(logging.LogRecord("serving", logging.ERROR, "", 0, event, (), None))
            )
            self.stream.write(self.terminator)


def _install_hooks() -> None:
    """Log warnings and uncaught exceptions."""
    logging.captureWarnings(True)
    warnings.formatwarning = _warning
    sys.excepthook = lambda *error: log.critical("uncaught exception", exc_info=error)
    threading.excepthook = lambda args: log.error("uncaught exception in a thread", exc_info=args.exc_value)
    sys.unraisablehook = lambda args: log.error(
        "ignored an exception that cannot be raised", exc_info=args.exc_value
    )


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{category.__name__}: {message} ({filename}:{lineno})"
