"""How the log is written: a line of JSON for each record, or something readable on a terminal.

Modules ask for their loggers as ever (`logging.getLogger`); structlog renders what they, uvicorn, MLflow and
Python's warnings say. Whatever a line contains, it is one line, has no secret and does nothing to a terminal.
A line on a request has its `request_id`, and `trace_id` where it is traced; one on a version `model` and
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

log = logging.getLogger("serving")
_MAX_TEXT_LENGTH = 16_000
# Most values are told again and again: paths, models, versions, clients.
_SHORT, _KEPT = 100, 1000
_LONG = ("exception", "stack", "cause")
"""Fields of several lines, of which the end tells most."""
_OURS = frozenset({"level", "logger", "timestamp"})
_GUTTER = "    | "
Line = MutableMapping[str, Any]


def configure(form: str, level: str, secrets: Iterable[str] = ()) -> None:
    """Have everything that is logged in this process written to standard error.

    Args:
        form: `json`, `console`, or `auto`: readable on a terminal, and JSON elsewhere.
        level: the least that this package's loggers tell; others tell warnings.
        secrets: what must not be told, beside the secrets in the environment and what looks like one.
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
    # MLflow, which is imported later, would write its lines itself.
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("serving").setLevel(level.upper())
    _install_hooks()


class RedactingProcessor:
    """A processor that takes out of all values what must not be told, and makes each a text of one line."""

    def __init__(self, redaction: Redaction) -> None:
        self._redacted = redaction
        self._short = lru_cache(_KEPT)(self._in_line)

    def __call__(self, logger: Any, method: str, line: Line) -> Line:
        """The line, clean."""
        return {
            escape_control_chars(name): value if name in _OURS else self._clean(name, value)
            for name, value in line.items()
            if name != "color_message"  # uvicorn's, the event once more
        }

    def _clean(self, name: str, value: Any) -> Any:
        if value is None or type(value) in (bool, float) or (type(value) is int and value.bit_length() < 64):
            return value
        if is_secret(name):
            return "***"
        text = value if type(value) is str else str(value)
        if name in _LONG:
            # Twice as much as is told: a secret through which this cuts is not told.
            kept = self._redacted(text[-2 * _MAX_TEXT_LENGTH :])[-_MAX_TEXT_LENGTH:]
            return "\n".join(map(escape_control_chars, kept.rstrip().split("\n")))
        return self._short(text) if len(text) < _SHORT else self._in_line(text)

    def _in_line(self, text: str) -> str:
        return escape_control_chars(self._redacted(text[: 2 * _MAX_TEXT_LENGTH])[:_MAX_TEXT_LENGTH])


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
    """Fields of several lines stand below, behind a mark that no line of the log begins with."""
    below = [text for name in _LONG if (text := line.pop(name, None))]
    if below:
        line["exception"] = "\n".join(_GUTTER + each for text in below for each in text.split("\n"))
    return line


class _Handler(logging.StreamHandler[Any]):
    """Writes lines to a stream; one that can't be told is a line too."""

    def handleError(self, record: logging.LogRecord) -> None:
        told = f"a line of {record.name} could not be told: {type(sys.exception()).__name__}"
        with suppress(Exception):  # it may be the stream that has gone
            self.stream.write(self.format(logging.LogRecord("serving", logging.ERROR, "", 0, told, (), None)))
            self.stream.write(self.terminator)


def _install_hooks() -> None:
    """Have warnings, and exceptions that nobody catches, be lines of the log as well."""
    logging.captureWarnings(True)
    warnings.formatwarning = _warning
    sys.excepthook = lambda *error: log.critical("nobody caught an exception", exc_info=error)
    threading.excepthook = lambda args: log.error(
        "nobody caught an exception in a thread", exc_info=args.exc_value
    )
    sys.unraisablehook = lambda args: log.error("an exception is passed over", exc_info=args.exc_value)


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{category.__name__}: {message} ({filename}:{lineno})"
