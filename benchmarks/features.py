"""Cost of the observing features: without any, with each one alone, and with all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
from rich.console import Console

from benchmarks import report, servers
from benchmarks.postgres import Postgres
from benchmarks.report import ReportTable, range_of
from benchmarks.throughput import ROW, make_registry
from benchmarks.wrk import LoadResult, drive

_OFF = {"SERVING_DRIFT_PSI": "0"}
"""Environment with metrics only."""
_SHARE = "0.01"
_RECORDS = re.compile(r'^serving_journal_records_total\{outcome="(\w+)"\} (\S+)$', re.MULTILINE)

Rounds = dict[str, list[tuple[LoadResult, LoadResult]]]
"""Pairs of measurements without and with the feature, one pair per round; by feature."""
Counts = dict[str, dict[str, int]]
"""Number of predictions that were written and dropped, for services with a journal; by feature."""


def variants(folder: Path, postgres: str, collector: str) -> dict[str, dict[str, str]]:
    """Return the environment of each service, by feature."""
    shadow = {"SERVING_SHADOW": "models:/iris/Staging"}
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_TRACES_SAMPLER": "traceidratio"}
    share = {"SERVING_ACCESS_LOG": _SHARE, "OTEL_TRACES_SAMPLER_ARG": _SHARE}
    everything = {"SERVING_ACCESS_LOG": "1", "OTEL_TRACES_SAMPLER_ARG": "1"}

    def journal(name: str) -> dict[str, str]:
        return {"SERVING_JOURNAL_URL": f"sqlite:///{folder / name}.db"}

    return {
        "drift, default": {},
        "journal on SQLite": _OFF | journal("alone"),
        "journal on PostgreSQL": _OFF | {"SERVING_JOURNAL_URL": postgres},
        "shadow": _OFF | shadow,
        "access log and traces, 1 in 100": _OFF | traced | share,
        "access log and traces, every request": _OFF | traced | everything,
        "all, 1 in 100 logged and traced": shadow | journal("all") | traced | share,
        "all, every request logged and traced": shadow | journal("each") | traced | everything,
    }


def measure(folder: Path, connections: int, rounds: int, seconds: float) -> tuple[Rounds, Counts]:
    """Measure each service in turn with one without features, and count the journalled predictions.

    Only two services run at a time: further idle services would use CPU time.
    """
    registry = make_registry(folder)
    _shadow(registry)
    results: Rounds = {}
    counts: Counts = {}
    with Postgres() as postgres, _collector() as collector:
        for name, env in variants(folder, postgres.create("journal"), collector).items():
            off = servers.serving(registry, folder, env=_OFF)
            with off as without, servers.serving(registry, folder, env=env) as watched:
                for url in (without, watched):
                    drive(f"{url}/predict", ROW, folder, connections=connections, seconds=1)
                for _ in range(rounds):
                    pair = [
                        drive(f"{url}/predict", ROW, folder, connections=connections, seconds=seconds)
                        for url in (without, watched)
                    ]
                    results.setdefault(name, []).append((pair[0], pair[1]))
                    _drain(watched)
                if "SERVING_JOURNAL_URL" in env:
                    counts[name] = _counts(watched)
    return results, counts


def _shadow(registry: str) -> None:
    """Train a second version and promote it to Staging."""
    env = {**os.environ, "MLFLOW_TRACKING_URI": registry, "MLFLOW_DISABLE_TELEMETRY": "true"}
    for command in (["train", "--seed", "1"], ["promote", "--version", "2", "--stage", "Staging"]):
        subprocess.run([sys.executable, "-m", "training", *command], env=env, check=True, capture_output=True)


@contextmanager
def _collector() -> Iterator[str]:
    """Run a collector that discards spans; yield its URL."""

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
    """Wait until the journal is empty, so that no write falls into the next measurement."""
    while re.search(r"^serving_journal_pending_records [^0]", httpx.get(f"{url}/metrics").text, re.MULTILINE):
        pass


def _counts(url: str) -> dict[str, int]:
    return {
        outcome: int(float(value)) for outcome, value in _RECORDS.findall(httpx.get(f"{url}/metrics").text)
    }


def ratios(results: Rounds, name: str) -> list[float]:
    """Return the ratios of requests per second with the feature to those without, round by round."""
    return [watched.rate / off.rate for off, watched in results[name]]


def tables(results: Rounds, counts: Counts) -> list[ReportTable]:
    """Return the tables: minimum, median and maximum of the rounds."""
    rows = [
        (
            name,
            *(
                range_of([getattr(pair[on], value) for pair in pairs])
                for value in ("rate", "p99")
                for on in (0, 1)
            ),
            range_of(ratios(results, name)),
            *(f"{counts[name][outcome]:,}" if name in counts else "–" for outcome in ("written", "dropped")),
        )
        for name, pairs in results.items()
    ]
    columns = (
        "features",
        "requests/s without",
        "with",
        "p99 ms without",
        "with",
        "ratio",
        "written",
        "dropped",
    )
    return [ReportTable("`/predict`, one row, 64 connections: min / median / max", columns, tuple(rows))]


def show(results: Rounds, counts: Counts, out: Console) -> None:
    """Print the results."""
    report.show(tables(results, counts), out)


def markdown(results: Rounds, counts: Counts) -> str:
    """Return the section of `RESULTS.md`."""
    return report.markdown("Observability: `python -m benchmarks features`", tables(results, counts))


def raw(results: Rounds, counts: Counts) -> dict[str, Any]:
    """Return all measurements for JSON."""
    pairs = {
        name: [[asdict(result) for result in pair] for pair in rounds] for name, rounds in results.items()
    }
    return pairs | {"records": counts}


def failures(results: Rounds) -> int:
    """Return the total number of failed requests."""
    return sum(result.failed for rounds in results.values() for pair in rounds for result in pair)
