"""The command line, as a person at a terminal meets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from casting import Registry
from live import environment

from serving.settings.settings import OPTIONS, env_name

WORDS = {"x": {"minimum": 0, "maximum": 10, "description": "What is multiplied"}}


def serving(env: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    """Run a command; gives its exit status, what it prints, and what it complains of."""
    command = [sys.executable, "-m", "serving", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment("http://127.0.0.1:9", tmp_path)


# -- help


def test_the_help_names_the_commands(env: dict[str, str]) -> None:
    status, printed, _ = serving(env, "--help")
    assert status == 0
    for command in ("run", "check", "status"):
        assert re.search(rf"^\W*{command}\s", printed, re.MULTILINE)


@pytest.mark.parametrize("command", ["run", "check"])
def test_the_help_lists_every_setting_with_its_variable(env: dict[str, str], command: str) -> None:
    status, printed, _ = serving(env, command, "--help")
    assert status == 0
    words = set(re.findall(r"[\w-]+", printed))
    for name in OPTIONS:
        assert f"--{name.replace('_', '-')}" in words
        assert env_name(name) in words


@pytest.mark.parametrize("arguments", [["serve"], ["run", "--prot", "1"], ["check"], ["run", "more"]])
def test_a_mistyped_command_is_told(env: dict[str, str], arguments: list[str]) -> None:
    status, _, complaint = serving(env, *arguments)
    assert status == 2
    assert complaint
    assert "Traceback" not in complaint


# -- settings


def test_each_wrong_setting_is_told_in_a_line(env: dict[str, str]) -> None:
    env |= {"SERVING_PORT": "http", "SERVING_MODELS": "iris"}
    status, printed, complaint = serving(env, "run", "--replicas", "0", "--poll-seconds", "nan")
    assert (status, printed) == (2, "")
    lines = sorted(complaint.splitlines())
    assert [line.partition(":")[0] for line in lines] == [
        "✗ SERVING_MODELS",
        "✗ SERVING_POLL_SECONDS",
        "✗ SERVING_PORT",
        "✗ SERVING_REPLICAS",
    ]


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_a_port_that_is_taken_is_told_in_a_line(env: dict[str, str], option: str) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as taken:
        status, _, complaint = serving(env, "run", option, str(taken.server_port))
    assert status != 0
    (line,) = complaint.splitlines()
    assert "address already in use" in line.lower()


# -- check


@pytest.fixture(scope="module")
def checked(new_registry: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """What `serving check` says of a good version, of a broken one, and of one that is not there."""
    folder = tmp_path_factory.mktemp("check")
    stage = Registry(new_registry(folder))
    stage.promote(
        "good", stage.add("good", inputs="x: double, n: long?", metadata={"serving": {"inputs": WORDS}})
    )
    example = pd.DataFrame({"x": [1.0], "act": ["raise:[b]weights[/]"]})
    stage.add("broken", example=example)
    env = environment(stage.uri, folder)
    references = {
        "good": "models:/good/Production",
        "broken": "models:/broken/1",
        "missing": "models:/missing@champion",
        "unread": "good",
    }
    found: dict[str, tuple[int, str, str]] = {}

    def check(name: str, reference: str) -> None:
        found[name] = serving(env, "check", reference)

    checking = [threading.Thread(target=check, args=item) for item in references.items()]
    for each in checking:
        each.start()
    for each in checking:
        each.join()
    return found


def test_a_version_that_would_go_live_is_told_with_its_contract(checked: Any) -> None:
    status, printed, _ = checked["good"]
    assert status == 0
    assert "✓ models:/good/Production would go live: good version 1" in printed
    assert re.search(r"x +double +yes +description What is multiplied, maximum 10, minimum 0", printed)
    assert re.search(r"n +long +no", printed)


def test_a_version_that_would_not_go_live_is_told_with_the_reason(checked: Any) -> None:
    status, printed, complaint = checked["broken"]
    assert status == 1
    assert (
        "✗ models:/broken/1 would not go live: on its own input example it raised ValueError: [b]weights[/]"
        in printed
    )
    assert "Traceback" not in complaint


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "✗ models:/missing@champion can't be checked: models:/missing@champion names nothing"),
        ("unread", "✗ 'good' is not a model reference: write models:/iris/Production (stage)"),
    ],
)
def test_what_could_not_be_found_out_is_told(checked: Any, name: str, said: str) -> None:
    status, printed, complaint = checked[name]
    assert (status, printed) == (2, "")
    (line,) = complaint.splitlines()
    assert line.startswith(said)


# -- status


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """A server that answers everything with `body`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "body",
    [b"", b"hello", b"[]", b'{"models": 5, "registry": {}}', b'{"models": ["a"], "registry": {}}', b"\xff"],
)
def test_something_else_than_the_service_is_told(env: dict[str, str], body: bytes) -> None:
    with answering(body) as url:
        status, _, complaint = serving(env, "status", url)
    assert status == 2
    (line,) = complaint.splitlines()
    assert line.startswith(f"✗ {url} does not answer as a serving front does")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense", "http://[", "ftp://127.0.0.1"])
def test_nothing_that_answers_is_told(env: dict[str, str], url: str) -> None:
    status, _, complaint = serving(env, "status", url)
    assert status == 2
    (line,) = complaint.splitlines()
    assert line.startswith(f"✗ {url} does not answer as a serving front does")


def test_a_model_without_a_version_is_told_by_its_id(env: dict[str, str]) -> None:
    model = {
        "uri": "models:/m-1",
        "version": None,
        "model_id": "m-1",
        "state": "live",
        "loaded_at": "2026-01-31T12:30:00Z",
        "candidate": None,
        "warnings": ["[red]it is unproven[/]"],
        "reason": None,
    }
    registry = {"uri": "sqlite:///mlflow.db", "reachable": None}
    with answering(json.dumps({"status": "ready", "models": [model], "registry": registry}).encode()) as url:
        status, printed, _ = serving(env | {"COLUMNS": "200"}, "status", url)
    assert status == 0
    assert re.search(r"models:/m-1 +m-1 +live +2026-01-31 12:30:00 +\[red\]it is unproven\[/\]", printed)
    assert "registry sqlite:///mlflow.db: not asked yet" in printed
