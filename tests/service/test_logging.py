"""The log: one line per record regardless of its content, without secrets."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.observers.access_log import AccessLog
from serving.request_context import RequestContext
from serving.telemetry.logging import RedactingProcessor
from serving.telemetry.rate_limit import FixedWindow
from serving.telemetry.redaction import Redaction, escape_control_chars, is_secret, redact
from tests.support.registry import NewRegistry, Registry
from tests.support.service import ROOT, SELDOM, Service, environment, served, until

WEBHOOK_SECRET, PASSWORD = "of-the-webhook", "of-the-registry"
DROPPED = re.compile(r"dropped lines of output: (\d+)")
KEY = f"sk_{'0' * 16}_{'a' * 43}"
# Control sequences that clear a terminal, and characters that readers treat as line ends.
HOSTILE = "\r\n\x1b[2J\x9b2J\u2028\u2029\x85\u202e{forged}"
ESCAPED = r"\r\n\x1b[2J\x9b2J\u2028\u2029\x85\u202e{forged}"


@pytest.fixture(scope="module")
def registry_of_actor(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = Registry(new_registry(tmp_path_factory.mktemp("logs")))
    registry.add("actor", factor=2.0)
    return registry


@pytest.fixture(scope="module")
def service(registry_of_actor: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a service of an actor with a full access log."""
    settings = {"models": "models:/actor/1", "access_log": 1, "webhook_secret": WEBHOOK_SECRET}
    passwords = {"_mlflow_tracking_password": PASSWORD}
    folder = tmp_path_factory.mktemp("service")
    with served(registry_of_actor.uri, folder, **settings, **passwords, poll_seconds=SELDOM) as running:
        running.until_ready()
        yield running


def predict(service: Service, act: str = "", **headers: str) -> httpx.Response:
    """Request a prediction for which the actor performs an act."""
    return service.client.post("/predict", json={"x": 1, "act": act}, headers=headers)


def of(service: Service, request_id: str) -> list[dict[str, Any]]:
    """Return the log lines about a request."""
    return [line for line in service.lines() if line.get("request_id") == request_id]


# -- lines


def test_lines_have_timestamp_level_and_logger(service: Service) -> None:
    for line in service.lines():
        assert {"event", "timestamp", "level", "logger"} <= line.keys()


def test_request_lines_have_id_and_version(service: Service) -> None:
    assert predict(service, "raise:it", **{"X-Request-ID": "a-failure"}).status_code == 500
    service.wait_for_log(request_id="a-failure", logger="serving.access")
    failed, access = of(service, "a-failure")
    for line in (failed, access):
        assert (line["model"], line["version"], line["path"]) == ("actor", "1", "/predict")
    assert failed["event"] == "the model failed: it raised ValueError: it"
    assert failed["cause"].splitlines()[-1] == "ValueError: it"


def test_version_lines_name_the_version(service: Service) -> None:
    live = service.wait_for_log(event="actor version 1 is live")
    assert (live["model"], live["version"], live["reference"]) == ("actor", "1", "models:/actor/1")


def test_model_error_cannot_forge_a_line(service: Service) -> None:
    text = HOSTILE.encode("unicode_escape").decode()
    assert predict(service, f"raise:{text}", **{"X-Request-ID": "a-forger"}).status_code == 500
    failed = service.wait_for_log(request_id="a-forger", level="error")
    assert r"\x1b[2J\x9b2J" in failed["event"]
    assert all(row.isprintable() for row in failed["cause"].split("\n"))
    assert all(line.isprintable() for line in service.log)


@pytest.mark.parametrize("act", ["print", "write"])
def test_model_output_is_logged_and_cannot_forge_a_line(service: Service, act: str) -> None:
    forged = json.dumps(
        {"event": f"the service was hacked by {act}", "level": "critical", "logger": "serving"}
    )
    text = f"{forged}{HOSTILE}\n".encode("unicode_escape").decode().replace(" ", r"\x20")
    assert predict(service, f"{act}:{text}").status_code == 200
    # A newline starts another record with the same model.
    whole = service.wait_for_log(event=forged + r"\r", level="info")
    rest = service.wait_for_log(event=ESCAPED.removeprefix(r"\r\n"))
    for line in (whole, rest):
        assert (line["logger"], line["model"], line["version"]) == ("serving.output", "actor", "1")
    assert all(line.isprintable() for line in service.log)


def test_flood_of_model_output_is_truncated(service: Service) -> None:
    assert predict(service, "flood:200000").status_code == 200
    assert predict(service, "print:after").status_code == 200

    def left_out() -> int:
        events = [line["event"] for line in service.lines() if line["logger"] == "serving.output"]
        numbers = [
            event.rpartition(": ")[2] for event in events if event.startswith("dropped lines of output")
        ]
        return sum(map(int, numbers)) + events.count("flood")

    def next_line() -> bool:  # the next line reports the number of dropped lines
        return predict(service, "print:after").status_code == 200 and left_out() >= 200_000

    until(next_line)
    assert sum(line["event"] == "flood" for line in service.lines()) <= 2000


@pytest.mark.parametrize(
    "secret",
    [
        f"password={PASSWORD}",
        PASSWORD,
        WEBHOOK_SECRET,
        f"postgresql://alice:{PASSWORD}@db/mlflow",
        KEY,
        f"Authorization:\\x20Bearer\\x20{KEY}",
        f"{{'token':\\x20'{PASSWORD}'}}",
    ],
)
def test_no_secret_is_logged(service: Service, secret: str) -> None:
    assert predict(service, f"print:tell\\x20{secret} raise:tell\\x20{secret}").status_code == 500
    until(lambda: [line for line in service.lines() if line["event"].startswith("tell")])
    log = "\n".join(service.log)
    for secret_text in (PASSWORD, WEBHOOK_SECRET, KEY):
        assert secret_text not in log


# -- the access log


def test_access_log_has_a_line_per_request(service: Service) -> None:
    predict(service, **{"X-Request-ID": "good"})
    service.client.post("/predict", json={"x": "1"}, headers={"X-Request-ID": "bad"})
    service.client.get("/models", headers={"X-Request-ID": "a-look"})
    service.client.get("/metrics", headers={"X-Request-ID": "a-scrape"})
    lines = [service.wait_for_log(request_id=name) for name in ("good", "bad", "a-look", "a-scrape")]
    assert [line["event"] for line in lines] == [
        "POST /predict 200",
        "POST /predict 422",
        "GET /models 200",
        "GET /metrics 200",
    ]
    good = lines[0]
    assert {
        "logger": "serving.access",
        "method": "POST",
        "path": "/predict",
        "status": 200,
    }.items() <= good.items()
    assert {"model": "actor", "version": "1", "client": "127.0.0.1"}.items() <= good.items()
    assert good["duration_ms"] > 0


def test_request_path_cannot_forge_a_line(service: Service) -> None:
    path = "/" + "".join(f"%{byte:02x}" for byte in HOSTILE.encode())
    assert service.client.get(path).status_code == 400  # control characters do not reach the application
    path = "/%e2%80%ae%7bforged%7d"
    assert service.client.get(path, headers={"X-Request-ID": "a-path"}).status_code == 404
    line = service.wait_for_log(request_id="a-path")
    assert line["path"] == "/\\u202e{forged}"
    assert all(line.isprintable() for line in service.log)


def logged(
    share: float, path: str, status: int, caplog: pytest.LogCaptureFixture, times: int = 1
) -> list[Any]:
    """Return the lines of an access log with this share."""
    access = AccessLog(share)
    caplog.clear()
    with caplog.at_level(logging.INFO, "serving.access"):
        for _ in range(times):
            access.ended(RequestContext("one", "GET", path, (), None, {}), status)
    return list(caplog.records)


@pytest.mark.parametrize(
    ("share", "path", "status", "lines"),
    [
        (0, "/predict", 200, 0),
        (0, "/predict", 422, 0),
        (0, "/predict", 500, 1),
        (0, "/predict", 503, 1),
        (0, "/ready", 503, 0),
        (0.999999, "/ready", 503, 0),
        (0.999999, "/metrics", 200, 0),
        (1, "/metrics", 200, 1),
        (1, "/ready", 503, 1),
    ],
)
def test_access_log_has_all_failures_but_few_probes(
    caplog: pytest.LogCaptureFixture, share: float, path: str, status: int, lines: int
) -> None:
    assert len(logged(share, path, status, caplog)) == lines


def test_access_log_samples_requests(caplog: pytest.LogCaptureFixture) -> None:
    assert 350 < len(logged(0.5, "/predict", 200, caplog, 1000)) < 650


def test_flood_of_failures_is_truncated(caplog: pytest.LogCaptureFixture) -> None:
    access, now = AccessLog(0), [0.0]
    access._failures = FixedWindow(100, lambda: now[0])
    context = RequestContext("one", "POST", "/predict", (), None, {})
    for _ in range(1000):
        access.ended(context, 503)
    assert len(caplog.records) == 100
    now[0] = 1.0
    access.ended(context, 503)
    assert caplog.records[-1].left_out == 900  # type: ignore[attr-defined]


# -- on a terminal


def test_terminal_lines_are_readable_without_control_sequences(
    registry_of_actor: Registry, tmp_path: Path
) -> None:
    env = environment(registry_of_actor.uri, tmp_path, models="models:/actor/1") | {"NO_COLOR": "1"}
    service = Service(env, tmp_path, on_terminal=True)
    try:
        service.until_ready()
        assert service.logged(
            re.compile(r"^\d\d:\d\d:\d\d \[info +\] actor version 1 is live +\[serving\.follower\]")
        )
        assert predict(service, "", **{"X-Request-ID": "good"}).status_code == 200
        text = f"{HOSTILE}\n12:00:00 [info] forged".encode("unicode_escape").decode().replace(" ", r"\x20")
        assert predict(service, f"raise:{text}", **{"X-Request-ID": "bad"}).status_code == 500
        # Failures are logged even without an access log; continuation lines have a marker.
        service.logged(re.compile(r"POST /predict 500 +\[serving\.access\].* request_id=bad"))
    finally:
        assert service.stop() == 0
    begun = [line for line in service.log if not line.startswith("    | ")]
    assert all(re.match(r"\d\d:\d\d:\d\d \[\w+ *\] ", line) for line in begun)
    assert not [line for line in begun if "forged" in line and "request_id=bad" not in line]
    assert any(line.startswith("    | ValueError: ") for line in service.log)
    assert all(line.isprintable() for line in service.log)
    assert not [line for line in service.log if "request_id=good" in line]


def test_terminal_receives_only_colour_codes() -> None:
    controller, terminal = os.openpty()
    with subprocess.Popen([sys.executable, "-c", ALL_SOURCES, HOSTILE], stderr=terminal, cwd=ROOT) as process:
        os.close(terminal)
        output = b""
        try:
            while chunk := os.read(controller, 65536):
                output += chunk
        except OSError:  # the end of a terminal
            os.close(controller)
    assert process.returncode == 1
    assert b"\x1b[" in output
    plain = re.sub(rb"\x1b\[\d+m", b"", output).decode()
    assert all(line.isprintable() for line in plain.split("\r\n"))


# -- other sources

ALL_SOURCES = """
import logging, sys, threading, warnings
from serving.telemetry import logging as logs

logs.configure("auto", "info")
text = sys.argv[1]
more = {"field": text, text: {"nested": [text]}, "token": text}
logging.getLogger("serving.test").info("%s", text, extra=more)
logging.getLogger("serving.test").info("%d", "no number")
logging.getLogger("mlflow.store").warning("of mlflow: %s", text)
logging.getLogger("uvicorn.error").error("of uvicorn", exc_info=ValueError(text))
warnings.warn("of python: " + text)
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
if "mlflow" in sys.argv:
    import mlflow
    logging.getLogger("mlflow.tracking").warning("of mlflow once it is there")
raise RuntimeError(text)
"""


def test_every_source_logs_lines() -> None:
    command = [sys.executable, "-c", ALL_SOURCES, HOSTILE, "mlflow"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stderr.split("\n")[:-1]]
    assert [(line["logger"], line["level"]) for line in lines] == [
        ("serving.test", "info"),
        ("serving", "error"),
        ("mlflow.store", "warning"),
        ("uvicorn.error", "error"),
        ("py.warnings", "warning"),
        ("serving", "error"),
        ("mlflow.tracking", "warning"),
        ("serving", "critical"),
    ]
    first, malformed, _, _, warned, in_thread, _, last = lines
    assert first["event"] == first["field"] == ESCAPED
    assert first["token"] == "***"
    assert ESCAPED in first
    assert malformed["event"] == "cannot format a log record of serving.test: TypeError"
    assert warned["event"].startswith(f"UserWarning: of python: {ESCAPED} (")
    assert in_thread["exception"].endswith("ZeroDivisionError: division by zero")
    assert last["exception"].startswith("Traceback (most recent call last):\n")
    assert done.stderr.replace("\n", "").isprintable()


def test_format_and_level_are_configurable() -> None:
    program = (
        "import logging; from serving.telemetry import logging as logs; logs.configure('console', 'error');"
        "log = logging.getLogger('serving.test'); log.warning('less'); log.error('more')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"\d\d:\d\d:\d\d \[error +\] more +\[serving\.test\]\n", done.stderr)


# -- redaction


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("(b'authorization', b'Basic abc==')", "(b'authorization', b***)"),
        ("{'x-api-key': 'a b', 'x': 1}", "{'x-api-key': ***, 'x': 1}"),
        ('{"client_secret":"a \\" b","x":1}', '{"client_secret":***,"x":1}'),
        ("AWS_SECRET_ACCESS_KEY=abc/def x", "AWS_SECRET_ACCESS_KEY=*** x"),
        ("sent bearer abcdefgh to it", "sent bearer *** to it"),
        (f"key {KEY}.", "key sk_***."),
        ("https://bucket/x?X-Amz-Signature=abc&y=1", "https://bucket/x?X-Amz-Signature=***&y=1"),
        ("postgresql://mlflow:aB3/xY9+q@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("from mysql+pymysql://u:/a@b/@db/x, 1", "from mysql+pymysql://***@db/x, 1"),
        ("postgresql://u:5/5@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("postgresql://me@server:a/b@server.db/mlflow", "postgresql://***@server.db/mlflow"),
        ("http://me:a/b@here/x and http://you@there/y", "http://***@here/x and http://***@there/y"),
        ("http://127.0.0.1:5000/models/iris@champion", "http://127.0.0.1:5000/models/iris@champion"),
        ("http://[::1]:5000/models/iris@champion", "http://[::1]:5000/models/iris@champion"),
        ("http://you:p@host/iris@champion", "http://***@host/iris@champion"),
        ("http://host/a?x=b@c http://host:80/d@e", "http://host/a?x=b@c http://host:80/d@e"),
        ("https://host/models/iris@champion", "https://host/models/iris@champion"),
        ("models:/iris@champion", "models:/iris@champion"),
        ("max_tokens=5, the tokenizer: fast", "max_tokens=5, the tokenizer: fast"),
        ("a bearer token and basic authentication", "a bearer token and basic authentication"),
    ],
)
def test_secret_patterns_are_redacted(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize("name", ["token", "MLFLOW_TRACKING_PASSWORD", "OPENAI_API_KEY", "Authorization"])
def test_secrets_are_recognized_by_name(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["tokens", "PWD", "TOKENIZERS_PARALLELISM", "path", "request_id"])
def test_ordinary_names_are_not_secrets(name: str) -> None:
    assert not is_secret(name)


@given(before=st.text(), after=st.text())
def test_known_secret_is_redacted_anywhere(before: str, after: str) -> None:
    assert "hunter2 & co" not in Redaction(["hunter2 & co"])(f"{before}hunter2 & co{after}")


@pytest.mark.parametrize("field", ["event", "cause"])
@pytest.mark.parametrize("before", range(15_980, 16_010, 5))
def test_truncation_exposes_no_part_of_a_secret(field: str, before: int) -> None:
    secret = "0123456789abcdefghij"
    around = ["-" * before, secret, "-" * before]
    text = RedactingProcessor(Redaction([secret]))(None, "", {field: "".join(around)})[field]
    assert len(text) == 16_000
    assert not re.search("[0-9a-j]", text)


@given(st.text())
def test_escaped_text_is_printable(text: str) -> None:
    assert escape_control_chars(text).isprintable()
    assert not text.isprintable() or escape_control_chars(text) == text
