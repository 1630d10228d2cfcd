"""The results on the screen, in Markdown and as a chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from benchmarks import report
from benchmarks.peers.results import BUSY, CONNECTIONS, OURS, Entry, Results, faults, ratios
from benchmarks.report import ReportTable

_NONE = "–"
_MAX_FAULT_LENGTH = 200
_WIDTH, _BAR = 11.0, 0.42  # inches: width of the chart, height of a bar
_OURS_COLOUR, _THEIR_COLOUR = "#c2410c", "#64748b"


def show(results: Results, out: Console) -> None:
    """Print the table: median with minimum and maximum of the rounds, latencies as p50 / p99."""
    rows = [_summary_row(results, entry) for entry in _ranked(results)]
    latencies = [f"p50/p99 ms at {count}" for count in CONNECTIONS]
    columns = ("system, version", f"requests/s at {BUSY}", *latencies, "ours ÷ it")
    report.show([ReportTable(_title(results), columns, tuple(rows), tuple(_fault_lines(results)))], out)


def markdown(results: Results) -> str:
    """Return the section of RESULTS.md: every number as min / median / max of the rounds."""
    ranked = _ranked(results)
    latencies = [f"{value} ms at {count}" for count in CONNECTIONS for value in ("p50", "p99")]
    columns = ("system", "version", f"requests/s at {BUSY}", *latencies, "ours ÷ it")
    notes = (
        f"Measured on {results.date} with `python -m benchmarks peers --rounds {results.rounds} "
        f"--seconds {results.seconds:g}` on {results.machine}, Python {results.python}, with wrk.",
        f"Cells are min / median / max of {_rounds(results)}. The last column is this service's "
        f"requests/s at {BUSY} connections as a ratio to the other's, of the same round.",
        f"One iris pipeline through pyfunc, logged with {', '.join(results.model)}; all returned "
        "the bare model's prediction for a row, to 1e-6, before and after each run, unless listed below.",
    )
    figures = ReportTable("Speed", columns, tuple(_full_row(results, entry) for entry in ranked), notes)
    served = ReportTable(
        "Configuration",
        ("system", "version", "setting"),
        tuple((entry.name, entry.version, entry.setting) for entry in ranked),
        ("One process runs the model, without an access log. Each system runs only while it is measured.",),
    )
    wrong = ReportTable("Faults", ("fault",), tuple((fault,) for fault in _fault_lines(results)))
    return report.markdown(
        "Comparison with other servers", [figures, served, *([wrong] if wrong.rows else [])]
    )


def picture(results: Results, file: Path) -> None:
    """Draw requests per second and p99 at 64 connections as a bar chart; the file name selects SVG or PNG."""
    from matplotlib.figure import Figure

    entries = [entry for entry in reversed(_ranked(results)) if entry.values("rate", BUSY)]
    size = (_WIDTH, 1.6 + _BAR * len(entries))
    figure = Figure(figsize=size, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _bars(left, entries, "rate", f"requests/s at {BUSY} connections (higher is better)")
    _bars(right, entries, "p99", f"p99 in ms at {BUSY} connections (lower is better)")
    figure.suptitle(f"One iris model through pyfunc, {results.machine}: median of {_rounds(results)}")
    figure.savefig(file)


def _bars(axes: Any, entries: Sequence[Entry], value: str, label: str) -> None:
    values = [entry.values(value, BUSY) for entry in entries]
    middles = [median(rounds) for rounds in values]
    least = [middle - min(rounds) for middle, rounds in zip(middles, values, strict=True)]
    most = [max(rounds) - middle for middle, rounds in zip(middles, values, strict=True)]
    colours = [_OURS_COLOUR if entry.name == OURS else _THEIR_COLOUR for entry in entries]
    names = [f"{entry.name} {entry.version}" for entry in entries]
    axes.barh(names, middles, xerr=(least, most), color=colours, capsize=3, ecolor="#0f172a")
    axes.set_xscale("log")
    axes.set_xlim(min(map(min, values)) / 2, max(map(max, values)) * 4)
    axes.set_xlabel(f"{label}, log scale")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    for place, measured in enumerate(values):
        axes.annotate(
            _figure(middles[place]), (max(measured), place), (6, 0), textcoords="offset points", va="center"
        )


def _ranked(results: Results) -> list[Entry]:
    """Return the entries, the fastest first and those without numbers last."""
    return sorted(results.entries, key=lambda entry: -median(entry.values("rate", BUSY) or [0.0]))


def _summary_row(results: Results, entry: Entry) -> tuple[str, ...]:
    def both(connections: int) -> str:
        values = [entry.values(value, connections) for value in ("p50", "p99")]
        return " / ".join(_figure(median(rounds)) for rounds in values) if all(values) else _NONE

    latencies = [both(count) for count in CONNECTIONS]
    ratio = _format_values(report.spread, ratios(results.ours, entry))
    return f"{entry.name} {entry.version}", _rate(report.spread, entry), *latencies, ratio


def _full_row(results: Results, entry: Entry) -> tuple[str, ...]:
    latencies = [
        _format_values(report.range_of, entry.values(value, count))
        for count in CONNECTIONS
        for value in ("p50", "p99")
    ]
    ratio = _format_values(report.range_of, ratios(results.ours, entry))
    return entry.name, entry.version, _rate(report.range_of, entry), *latencies, ratio


def _rate(form: Callable[[Sequence[float]], str], entry: Entry) -> str:
    if entry.not_installed is not None:
        return f"not installed: {entry.not_installed}"
    return _format_values(form, entry.values("rate", BUSY))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _format_values(form: Callable[[Sequence[float]], str], values: Sequence[float]) -> str:
    return form(values) if values else _NONE


def _title(results: Results) -> str:
    return f"{_rounds(results)} of {results.seconds:g} s each, {results.machine}"


def _rounds(results: Results) -> str:
    return f"{results.rounds} round{'s' if results.rounds > 1 else ''}"


def _fault_lines(results: Results) -> list[str]:
    """Return one line per fault. A server log in a fault is cut: the JSON contains all of it."""
    lines = (" ".join(fault.split()).replace("|", "/") for fault in faults(results.entries))
    return [line if len(line) <= _MAX_FAULT_LENGTH else f"{line[:_MAX_FAULT_LENGTH]} …" for line in lines]
