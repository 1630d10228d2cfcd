"""Pure parts of the comparison with peers: catalog, environments, ratios and report."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import peers
from benchmarks.peers import environments, runner
from benchmarks.peers.catalog import PEERS, Peer
from benchmarks.peers.results import BUSY, CONSTANT, OURS, Entry, Results, faults, ratios
from benchmarks.peers.runner import Run
from benchmarks.wrk import LoadResult

APPS = Path(runner.__file__).with_name("apps")


def run(rate: float, failed: int = 0) -> Run:
    return Run({1: LoadResult(rate / 10, 1.0, 2.0, 0), BUSY: LoadResult(rate, 3.0, 40.0, failed)})


BROKEN = Run({}, "NotStarted: no\nport")
RESULTS = Results(
    date="2026-01-02",
    machine="2 cores, 24 GB of memory, Linux x86_64",
    python="3.11.7",
    rounds=3,
    seconds=5,
    model=("mlflow==3.17.2", "numpy==2.4.6"),
    entries=(
        Entry("Slow", "1.0", "plain", (run(100), run(200), BROKEN)),
        Entry(OURS, "0.1.0", "as users get it", (run(1000), run(1000), run(3000))),
        Entry("Absent", "2.0", "batched", not_installed="no such version"),
        Entry(CONSTANT, "0.165", "no model", (run(500), run(500, failed=2), run(1000))),
    ),
)
OUR, SLOW, ABSENT = RESULTS.entries[1], RESULTS.entries[0], RESULTS.entries[2]


def apps(peer: Peer) -> set[str]:
    return set(re.findall(r"\w+_app\b", " ".join(peer.command))) - {"create_app"}


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_peer_is_pinned_and_its_app_exists(peer: Peer) -> None:
    assert all(re.fullmatch(r"[a-z\-]+(\[\w+\])?==[\d.]+", pin) for pin in peer.requirements)
    assert peer.command[0] == "{python}"
    assert all((APPS / f"{app}.py").is_file() for app in apps(peer))
    assert peer.path.startswith("/")
    assert peer.ready.startswith("/")
    assert peer.setting
    assert "5.1" in json.dumps(peer.body)
    for word in peer.command:
        word.format(python="", port="", model="", apps="", folder="")


def test_apps_and_names_are_used_once() -> None:
    assert {app.stem for app in APPS.glob("*.py")} == set().union(*map(apps, PEERS))
    assert len({peer.name for peer in PEERS} | {OURS, CONSTANT}) == len(PEERS) + 2


def test_peer_pins_override_model_pins() -> None:
    merged = environments.merge_requirements(
        ["numpy==2.4.6", "mlflow==3.17.2"], ["ray[serve]==2.6", "NumPy==1.26.4"]
    )
    assert merged == ["ray[serve]==2.6", "NumPy==1.26.4", "mlflow==3.17.2"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "  × No solution found\n  ╰─▶ Because there is no x==9, it fails.\n",
            "Because there is no x==9, it fails.",
        ),
        ("ERROR: No x==9 (from versions: 1, 2)\nERROR: nothing", "No x==9"),
        ("error: Failed to fetch https://example.org/x/ at /some/where", "Failed to fetch … at …"),
        ("", "no reason given"),
    ],
)
def test_failure_reason_is_one_short_line(output: str, expected: str) -> None:
    assert environments.failure_reason(output) == expected


def test_ratios_skip_failed_rounds() -> None:
    assert ratios(OUR, SLOW) == [10, 5]
    assert ratios(OUR, OUR) == [1, 1, 1]
    assert ratios(OUR, ABSENT) == []


def test_probabilities_may_differ_by_a_millionth() -> None:
    assert runner.is_close([0.1, 0.9], [0.1 + 9e-7, 0.9])
    assert not runner.is_close([0.1, 0.9], [0.1 + 2e-6, 0.9])
    assert not runner.is_close([0.1], [0.1, 0.9])
    assert not runner.is_close([float("nan")], [0.1])


def test_faults_name_their_round_and_count() -> None:
    assert faults(RESULTS.entries) == [
        "Slow, round 3: NotStarted: no\nport",
        f"{CONSTANT}, round 2: 2 requests failed",
    ]
    assert peers.failures(RESULTS) == 3


def test_table_lists_the_fastest_first() -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    peers.show(RESULTS, console)
    text = console.export_text()
    assert text.index(OURS) < text.index(CONSTANT) < text.index("Slow") < text.index("Absent")
    assert "1,000 (1,000–3,000)" in text
    assert "not installed: no such version" in text
    assert "Slow, round 3: NotStarted: no port" in text


def test_section_contains_all_numbers_and_the_setup() -> None:
    text = peers.markdown(RESULTS)
    assert "| Slow | 1.0 | 100 / 150 / 200 |" in text
    assert "| 5.00 / 7.50 / 10.00 |" in text
    assert "python -m benchmarks peers --rounds 3 --seconds 5" in text
    assert "2026-01-02" in text
    assert "2 cores, 24 GB" in text
    assert "| Absent | 2.0 | not installed: no such version |" in text
    assert "| Slow | 1.0 | plain |" in text
    assert "| Slow, round 3: NotStarted: no port |" in text


def test_results_convert_to_json_and_a_chart(tmp_path: Path) -> None:
    entries = json.loads(json.dumps(peers.raw(RESULTS)))["entries"]
    assert entries[1]["runs"][2]["measured"][str(BUSY)]["rate"] == 3000
    peers.picture(RESULTS, tmp_path / "peers.svg")
    assert "</svg>" in (tmp_path / "peers.svg").read_text()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")
def test_leftover_processes_are_killed() -> None:
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(100)"],
        env={**os.environ, runner.TOKEN: "abc"},
        start_new_session=True,
    )
    runner.kill_leftovers("abc")
    assert left.wait(10) != 0
