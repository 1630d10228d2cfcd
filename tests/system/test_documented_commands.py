"""Run the commands of the README and the tutorials; compare the documented promises with the tests."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.registry import NewRegistry
from tests.support.service import FOR_SKLEARN, Service, environment
from training.cli import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    "docs/tutorials/client.md",
    "docs/tutorials/data-scientist.md",
    "docs/tutorials/operator.md",
    "README.md",
]
"""The documents in order: later ones use versions that earlier ones register."""
STARTED_ELSEWHERE = ("scripts/serve", "scripts/ui", "scripts/test")
"""Commands that do not end; `test_scripts.py` runs them."""
REPEATABLE = ("curl", "serving status")
"""Read-only commands whose output changes about a second after a promotion."""
MAX_SECONDS = 30
"""Time limit for a repeatable command to print the expected output."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a document and its expected output; None if the document shows none."""

    text: str
    output: str | None

    def matches(self, output: str) -> bool:
        """Return whether an output is the expected one, in which `…` stands for any text."""
        if self.output is None:
            return True
        parts = [_normalized(part) for part in self.output.split("…")]
        return re.fullmatch(r".*?".join(map(re.escape, parts)), _normalized(output), re.DOTALL) is not None


def _normalized(text: str) -> str:
    """Return a text without the white space that depends on the width of a terminal."""
    return re.sub(r"\s+", "", text)


def commands(document: str) -> Iterator[Command]:
    """Yield the commands of the `console` and `bash` blocks of a document."""
    text = (ROOT / document).read_text()
    for language, block in re.findall(r"^```(console|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language == "bash":
            yield Command(block, None)
            continue
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            length = next(index for index, line in enumerate(lines, 1) if not line.endswith("\\"))
            yield Command("\n".join(lines[:length]), "\n".join(lines[length:]) or None)


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs commands as a user types them in one terminal: exported variables stay."""

    folder: Path
    env: dict[str, str]

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        variables = shlex.quote(str(self.folder / "variables"))
        steps = f"[ ! -e {variables} ] || . {variables}", command, "status=$?"
        script = "\n".join([*steps, f"export -p >{variables}", "exit $status"])
        return subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=100
        )


@pytest.fixture(scope="module")
def service(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a service as `scripts/serve --journal-url sqlite:///journal.db` starts it, for all documents."""
    folder = tmp_path_factory.mktemp("readme")
    uri = new_registry(folder)
    settings = {"preload": FOR_SKLEARN, "journal_url": f"sqlite:///{folder}/journal.db"}
    env = environment(uri, folder, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        assert main(["bootstrap"]) == 0
    for name in (".venv", "training"):
        (folder / name).symlink_to(ROOT / name)
    service = Service(env, folder)
    try:
        service.until_ready()
        yield service
    finally:
        service.stop()


@pytest.mark.timeout(300)  # some commands import MLflow, which takes seconds
@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_run_as_documented(service: Service, document: str, tmp_path: Path) -> None:
    folder = Path(service.env["SERVING_STORE_DIR"]).parent
    # The shell of a user has none of the test settings in its environment.
    env = {name: value for name, value in service.env.items() if not name.startswith("SERVING_")}
    shell = Shell(folder, env | {"SERVING_STORE_DIR": str(tmp_path), "PYTHONWARNINGS": "ignore"})
    (folder / "variables").unlink(missing_ok=True)
    for command in commands(document):
        if command.text.startswith(STARTED_ELSEWHERE):
            continue
        text = command.text.replace("http://127.0.0.1:8000", service.url)
        is_repeatable = command.text.startswith(REPEATABLE)
        deadline = time.monotonic() + MAX_SECONDS
        while (done := shell.run(text)).returncode or not command.matches(done.stdout):
            if not is_repeatable or time.monotonic() > deadline:
                pytest.fail(f"{text}\n{done.stdout}\n{done.stderr}")


# -- the promises of docs/explanation/security.md

ROWS_OF_FAULTS = {*range(1, 61)}
TESTS = {
    name
    for module in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)", module.read_text(), re.MULTILINE)
}


def test_every_promise_names_existing_tests() -> None:
    text = (ROOT / "docs" / "explanation" / "security.md").read_text()
    table = text.partition("<!-- guarantees -->")[2].partition("<!-- /guarantees -->")[0]
    for promise in table.strip().splitlines()[2:]:
        named = re.findall(r"`(test_\w+)`", promise)
        assert named, promise
        assert {*named} <= TESTS, {*named} - TESTS
    rows = {int(row) for row in re.findall(r"`test_row_(\d+)_", table)}
    assert rows == ROWS_OF_FAULTS


def test_every_row_of_faults_has_a_test() -> None:
    named = {int(row[1]) for name in TESTS if (row := re.match(r"test_row_(\d+)_", name))}
    assert named == ROWS_OF_FAULTS
