"""Output and exit statuses of the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pandas as pd
import pytest

from serving.settings.settings import OPTIONS, env_name
from tests.support.registry import Registry
from tests.support.service import PROGRAM, environment

WORDS = {"x": {"minimum": 0, "maximum": 10, "description": "What is multiplied"}}


def serving(env: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    """Run a command; return its exit status, standard output and standard error."""
    command = [sys.executable, "-m", "serving", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment("http://127.0.0.1:9", tmp_path)


# -- help


def test_help_lists_the_commands(env: dict[str, str]) -> None:
    status, printed, _ = serving(env, "--help")
    assert status == 0
    for command in ("run", "check", "status"):
        assert re.search(rf"^\W*{command}\s", printed, re.MULTILINE)


@pytest.mark.parametrize("command", ["run", "check"])
def test_help_lists_every_setting_with_its_variable(env: dict[str, str], command: str) -> None:
    status, printed, _ = serving(env | {"COLUMNS": "80"}, command, "--help")
    assert status == 0
    words = set(re.findall(r"[\w-]+", printed))
    for name in OPTIONS:
        assert f"--{name.replace('_', '-')}" in words
        assert env_name(name) in words


def test_help_groups_the_settings_with_their_types(env: dict[str, str]) -> None:
    _, printed, _ = serving(env, "run", "--help")
    for title in ("Models", "Model processes", "Limits for requests and connections"):
        assert re.search(rf"^╭─ {title} ─", printed, re.MULTILINE)
    assert re.search(r"--port +INTEGER .*≥ 0, ≤ 65535.*SERVING_PORT; default: 8000", printed)
    assert re.search(r"--poll-seconds +NUMBER .*> 0", printed)
    assert re.search(r"--tls-cert +PATH ", printed)
    assert re.search(r"--log-format +auto\|json\|console ", printed)
    assert re.search(r"--enforce +--no-enforce ", printed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["start"], "No such command 'start'"),
        (["run", "--prot", "1"], "No such option: --prot (Possible options: --host, --port"),
        (["run", "--port"], "Option '--port' requires an argument"),
        (["check"], "Missing argument 'reference'"),
        (["run", "more"], "Got unexpected extra argument"),
        (["run", "--models", ""], "SERVING_MODELS: must name at least 1 model"),
        (["journal", "export", "rows.parquet"], "Missing option '--journal-url'"),
        (["journal", "export", "rows.parquet", "--since", "noon"], "Invalid value for --since: noon is not"),
        (["keys", "list", "--file", "missing.json"], "missing.json: No such file"),
        (["run", "--keys-file", "missing.json"], "SERVING_KEYS_FILE: missing.json: No such file"),
        (["run", "--tls-cert", "a", "--tls-key", "b"], "SERVING_TLS_CERT: cannot read a: No such file"),
    ],
)
def test_mistake_is_reported_in_one_line(
    env: dict[str, str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    if "--since" in arguments:
        env |= {"SERVING_JOURNAL_URL": f"sqlite:///{tmp_path}/journal.db"}
    status, _, errors = serving(env, *arguments)
    assert status == 2
    (line,) = errors.splitlines()
    assert line.startswith(f"✗ {message}")


def test_missing_journal_is_reported_and_not_created(env: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "journal.db"
    status, _, errors = serving(env, "journal", "export", "x.parquet", "--journal-url", f"sqlite:///{file}")
    assert status == 2
    assert errors == f"✗ SERVING_JOURNAL_URL: there is no journal {file} (option --journal-url)\n"
    assert not file.exists()


def test_upgrade_reports_a_new_journal(env: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "journal.db"
    reports = [f"created a new journal in {file}", "upgraded the tables of the journal to this release"]
    for report in reports:
        _, _, errors = serving(env, "journal", "upgrade", "--journal-url", f"sqlite:///{file}")
        assert errors == f"✓ {report}\n"


def test_arguments_are_completed(env: dict[str, str]) -> None:
    def completed(words: str) -> list[str]:
        variables = {"_SERVING_COMPLETE": "complete_bash", "COMP_WORDS": words}
        variables["COMP_CWORD"] = str(words.count(" "))
        done = subprocess.run([PROGRAM], env=env | variables, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert {"run", "check", "status"} <= {*completed("serving ")}
    assert completed("serving run --log-l") == ["--log-level"]
    assert completed("serving run --log-format ") == ["auto", "json", "console"]


def test_closed_pipe_changes_no_exit_status(env: dict[str, str], tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    for arguments in (["run", "--help"], ["keys", "create", "bob", "--file", "keys.json"]):
        command = [sys.executable, "-m", "serving", *arguments]
        done = subprocess.run(command, env=env, stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        assert (done.returncode, "Error" in done.stderr) == (0, False)
    command = [sys.executable, "-m", "serving", "keys", "list", "--file", "missing.json"]
    assert subprocess.run(command, env=env, stderr=write, cwd=tmp_path, check=False).returncode == 2
    os.close(write)


@pytest.mark.parametrize(
    "arguments", [["check", "models:/iris/1"], ["webhook", "https://a", "--webhook-secret", "b"], ["status"]]
)
def test_interrupt_ends_quietly(env: dict[str, str], arguments: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        arguments += [url] * (arguments == ["status"])
        command = [sys.executable, "-m", "serving", *arguments]
        running = subprocess.Popen(
            command,
            env=env | {"MLFLOW_TRACKING_URI": url},
            stdout=PIPE,
            stderr=PIPE,
            text=True,
            # A test run in the background of a shell ignores this signal, and its children inherit that.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        connection, _ = silent.accept()
        running.send_signal(signal.SIGINT)
        output = running.communicate(timeout=60)
        connection.close()
    assert (running.returncode, *output) == (130, "", "")


# -- settings


@pytest.mark.parametrize("option", ["--enforce", "--no-enforce"])
def test_switch_overrides_its_variable(env: dict[str, str], option: str) -> None:
    env |= {"SERVING_ENFORCE": "perhaps"}
    for arguments, lines in ([], 1), ([option], 0):
        _, _, errors = serving(env, "run", "--port", "http", *arguments)
        assert errors.count("✗ SERVING_ENFORCE: must be a valid boolean, not 'perhaps'") == lines


def test_unknown_variables_are_warned_of(env: dict[str, str]) -> None:
    address = "tcp://10.0.0.1:80"
    env |= {"SERVING_PROT": "1", "SERVING_ADMIN_PORT": address, "SERVING_SERVICE_HOST": "10.0.0.1"}
    link = f"SERVING_ADMIN_PORT: ignored {address}, which Kubernetes sets for a Service named serving-admin"
    misspelt = "SERVING_PROT: there is no such setting; did you mean SERVING_PORT?"
    for arguments in (["check", "iris"], ["status", "nowhere"], ["keys", "list"]):
        _, _, errors = serving(env, *arguments)
        assert [line[:2] for line in errors.splitlines()] == ["! ", "! ", "✗ "], arguments
        assert link in errors
        assert misspelt in errors
    env |= {"SERVING_TLS_CERT": "missing.pem", "SERVING_TLS_KEY": "missing.pem"}
    status, _, errors = serving(env, "run", "--log-format", "json")
    first, second, _ = errors.splitlines()
    assert status == 2
    assert json.loads(first)["event"].startswith(link)
    assert json.loads(second)["event"] == misspelt


def test_every_invalid_setting_is_reported_in_one_line(env: dict[str, str]) -> None:
    env |= {"SERVING_PORT": "http", "SERVING_MODELS": "iris"}
    status, printed, errors = serving(env, "run", "--replicas", "0", "--poll-seconds", "nan")
    assert (status, printed) == (2, "")
    lines = sorted(errors.splitlines())
    assert all(re.fullmatch(r"✗ SERVING_([A-Z_]+): .* \(option --([a-z-]+)\)", line) for line in lines)
    assert [line.partition(":")[0] for line in lines] == [
        "✗ SERVING_MODELS",
        "✗ SERVING_POLL_SECONDS",
        "✗ SERVING_PORT",
        "✗ SERVING_REPLICAS",
    ]


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_port_in_use_is_reported_in_one_line(env: dict[str, str], option: str) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as taken:
        status, _, errors = serving(env, "run", option, str(taken.server_port))
    assert status != 0
    (line,) = errors.splitlines()
    assert "address already in use" in line.lower()


# -- check


@pytest.fixture(scope="module")
def checked(new_registry: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Return results of `serving check` for a good, a broken and a missing version, and a bad reference."""
    folder = tmp_path_factory.mktemp("check")
    catalog = Registry(new_registry(folder))
    catalog.promote(
        "good", catalog.add("good", inputs="x: double, n: long?", metadata={"serving": {"inputs": WORDS}})
    )
    example = pd.DataFrame({"x": [1.0], "act": ["raise:[b]weights[/]"]})
    catalog.add("broken", example=example)
    env = environment(catalog.uri, folder)
    references = {
        "good": "models:/good/Production",
        "broken": "models:/broken/1",
        "missing": "models:/missing@champion",
        "unread": "good",
    }
    results: dict[str, tuple[int, str, str]] = {}

    def check(name: str, reference: str) -> None:
        results[name] = serving(env, "check", reference)

    checking = [threading.Thread(target=check, args=item) for item in references.items()]
    for thread in checking:
        thread.start()
    for thread in checking:
        thread.join()
    return results


def test_check_prints_the_contract_of_a_good_version(checked: Any) -> None:
    status, printed, _ = checked["good"]
    assert status == 0
    assert "✓ models:/good/Production would go live: good version 1" in printed
    assert re.search(r"x +double +yes +description What is multiplied, maximum 10, minimum 0", printed)
    assert re.search(r"n +long +no", printed)


def test_check_prints_the_reason_of_a_rejection(checked: Any) -> None:
    status, printed, errors = checked["broken"]
    assert status == 1
    assert (
        "✗ models:/broken/1 would not go live: on its own input example it raised ValueError: [b]weights[/]"
        in printed
    )
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "✗ cannot check models:/missing@champion: models:/missing@champion names nothing"),
        ("unread", "✗ 'good' is not a model reference: write models:/iris/Production (stage)"),
    ],
)
def test_check_reports_an_unresolvable_reference(checked: Any, name: str, message: str) -> None:
    status, printed, errors = checked[name]
    assert (status, printed) == (2, "")
    (line,) = errors.splitlines()
    assert line.startswith(message)


# -- status


@contextmanager
def responding(body: bytes) -> Iterator[str]:
    """Run a server that responds to every request with `body`; yield its URL."""

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
def test_status_reports_another_service(env: dict[str, str], body: bytes) -> None:
    with responding(body) as url:
        status, _, errors = serving(env, "status", url)
    assert status == 2
    (line,) = errors.splitlines()
    assert line.startswith(f"✗ {url} does not respond like this service")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense", "http://[", "ftp://127.0.0.1"])
def test_status_reports_an_unreachable_url(env: dict[str, str], url: str) -> None:
    status, _, errors = serving(env, "status", url)
    assert status == 2
    (line,) = errors.splitlines()
    assert line.startswith(f"✗ {url} does not respond like this service")


def test_status_shows_the_id_of_an_unregistered_model(env: dict[str, str]) -> None:
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
    with responding(json.dumps({"status": "ready", "models": [model], "registry": registry}).encode()) as url:
        status, printed, _ = serving(env | {"COLUMNS": "200"}, "status", url)
    assert status == 0
    assert re.search(r"models:/m-1 +m-1 +live +2026-01-31 12:30:00 +\[red\]it is unproven\[/\]", printed)
    assert "registry sqlite:///mlflow.db: not contacted yet" in printed


@pytest.mark.parametrize(("state", "expected"), [("ready", 0), ("not ready", 1)])
def test_status_prints_the_response_as_json(env: dict[str, str], state: str, expected: int) -> None:
    body = {"status": state, "models": [], "registry": {"uri": "[red]x", "reachable": True}}
    with responding(json.dumps(body).encode()) as url:
        status, printed, _ = serving(env, "status", url, "--json")
    assert (status, json.loads(printed)) == (expected, body)
