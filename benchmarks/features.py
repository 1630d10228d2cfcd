"""What it costs to see and record what is asked: with none of that, with each part alone, and with all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
from rich.console import Console

from benchmarks import service, sheet
from benchmarks.load import Measured, drive
from benchmarks.postgres import Postgres
from benchmarks.sheet import Sheet, range_of
from benchmarks.throughput import ROW, make_registry

OFF = "nothing but metrics"
_SHARE = "0.01"
_RECORDS = re.compile(r'^serving_journal_records_total\{outcome="(\w+)"\} (\S+)$', re.MULTILINE)

Rounds = dict[str, list[Measured]]
"""By what is on: a measurement a round."""
Counts = dict[str, dict[str, int]]
"""By what is on, where a journal is: how many predictions were written and dropped."""


def variants(folder: Path, postgres: str, collector: str) -> dict[str, dict[str, str]]:
    """The environment of each service, by what is on."""
    off = {"SERVING_DRIFT_PSI": "0"}
    shadow = {"SERVING_SHADOW": "models:/iris/Staging"}
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_TRACES_SAMPLER": "traceidratio"}
    share = {"SERVING_ACCESS_LOG": _SHARE, "OTEL_TRACES_SAMPLER_ARG": _SHARE}
    each = {"SERVING_ACCESS_LOG": "1", "OTEL_TRACES_SAMPLER_ARG": "1"}

    def journal(name: str) -> dict[str, str]:
        return {"SERVING_JOURNAL_URL": f"sqlite:///{folder / name}.db"}

    return {
        OFF: off,
        "drift, as it comes": {},
        "journal on SQLite": off | journal("alone"),
        "journal on PostgreSQL": off | {"SERVING_JOURNAL_URL": postgres},
        "a shadow": off | shadow,
        "access log and traces, 1 in 100": off | traced | share,
        "access log and traces, each request": off | traced | each,
        "all, 1 in 100 logged and traced": shadow | journal("all") | traced | share,
        "all, each request logged and traced": shadow | journal("each") | traced | each,
    }


def measure(folder: Path, connections: int, rounds: int, seconds: float) -> tuple[Rounds, Counts]:
    """Drive the services in turn, round by round, and count what became of the predictions."""
    registry = make_registry(folder)
    _shadow(registry)
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres())
        settings = variants(folder, postgres.create("journal"), stack.enter_context(_collector()))
        systems = {
            name: stack.enter_context(service.serving(registry, folder, env=env))
            for name, env in settings.items()
        }
        for url in systems.values():
            drive(f"{url}/predict", ROW, folder, connections=connections, seconds=1)
        found: Rounds = {name: [] for name in systems}
        for _ in range(rounds):
            for name, url in systems.items():
                measured = drive(f"{url}/predict", ROW, folder, connections=connections, seconds=seconds)
                found[name].append(measured)
                _drain(url)
        counts = {name: _counts(systems[name]) for name in systems if "SERVING_JOURNAL_URL" in settings[name]}
        return found, counts


def _shadow(registry: str) -> None:
    """Train another version, for Staging."""
    env = {**os.environ, "MLFLOW_TRACKING_URI": registry, "MLFLOW_DISABLE_TELEMETRY": "true"}
    for command in (["train", "--seed", "1"], ["promote", "--version", "2", "--stage", "Staging"]):
        subprocess.run([sys.executable, "-m", "training", *command], env=env, check=True, capture_output=True)


@contextmanager
def _collector() -> Iterator[str]:
    """What takes spans and forgets them; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _drain(url: str) -> None:
    """Wait until no prediction waits for its database, which would be written while another is measured."""
    while re.search(r"^serving_journal_pending_records [^0]", httpx.get(f"{url}/metrics").text, re.MULTILINE):
        pass


def _counts(url: str) -> dict[str, int]:
    return {
        outcome: int(float(value)) for outcome, value in _RECORDS.findall(httpx.get(f"{url}/metrics").text)
    }


def ratios(found: Rounds, name: str) -> list[float]:
    """Requests a second with what is on to those without, each of the same round."""
    return [ours.rate / off.rate for ours, off in zip(found[name], found[OFF], strict=True)]


def sheets(found: Rounds, counts: Counts) -> list[Sheet]:
    """What was found: the median, and the least and the most of the rounds."""
    rows = [
        (
            name,
            *(range_of([getattr(each, value) for each in rounds]) for value in ("rate", "p50", "p99")),
            range_of(ratios(found, name)),
            *(f"{counts[name][outcome]:,}" if name in counts else "–" for outcome in ("written", "dropped")),
        )
        for name, rounds in found.items()
    ]
    columns = ("on", "requests/s", "p50 ms", "p99 ms", "ratio to the first", "written", "dropped")
    return [Sheet("`/predict`, one row, 64 connections: least / median / most", columns, tuple(rows))]


def show(found: Rounds, counts: Counts, out: Console) -> None:
    """Print what was found."""
    sheet.show(sheets(found, counts), out)


def markdown(found: Rounds, counts: Counts) -> str:
    """The section of `RESULTS.md`."""
    return sheet.markdown("See it and record it: `python -m benchmarks features`", sheets(found, counts))


def raw(found: Rounds, counts: Counts) -> dict[str, Any]:
    """All measurements, for JSON."""
    return {name: [asdict(each) for each in rounds] for name, rounds in found.items()} | {"records": counts}


def failures(found: Rounds) -> int:
    """How many requests failed in all."""
    return sum(each.failed for rounds in found.values() for each in rounds)
