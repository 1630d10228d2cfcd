"""Command line of the benchmarks: `python -m benchmarks COMMAND`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import bulk as _bulk
from benchmarks import evaluation as _evaluation
from benchmarks import features as _features
from benchmarks import fleet as _fleet
from benchmarks import heavy as _heavy
from benchmarks import overload as _overload
from benchmarks import peers as _peers
from benchmarks import promotion as _promotion
from benchmarks import ray_serve as _ray_serve
from benchmarks import scale as _scale
from benchmarks import soak as _soak
from benchmarks import throughput as _throughput
from benchmarks.bulk import WrongPrediction
from benchmarks.client import UnexpectedStatus
from benchmarks.servers import NotStarted
from benchmarks.wrk import WrkNotInstalled

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
out, err = Console(highlight=False, width=110), Console(stderr=True, highlight=False)

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write all measurements to this file.")]
MarkdownFile = Annotated[
    Path | None, typer.Option("--markdown", help="Write the section of RESULTS.md to this file.")
]


@app.callback()
def benchmarks() -> None:
    """Compare systems in the same minutes: on a noisy machine only ratios are reliable."""


@app.command()
def throughput(
    seconds: Annotated[float, typer.Option(help="Seconds per measurement.")] = 5,
    rounds: Annotated[int, typer.Option(help="Rounds; each measures all systems.")] = 3,
    connections: Annotated[str, typer.Option(help="Numbers of connections, comma-separated.")] = "1,64",
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Measure throughput and latency, compared with a FastAPI endpoint that returns a constant."""
    counts = [int(count) for count in connections.split(",")]
    with tempfile.TemporaryDirectory() as folder, err.status("measuring …"), _reported_errors():
        results = _throughput.measure(Path(folder), counts, rounds, seconds)
    _throughput.show(results, out)
    _write(json_file, _throughput.raw(results), markdown_file, _throughput.markdown(results))
    _fail_if(_throughput.failures(results))


@app.command()
def promotion(
    promotions: Annotated[int, typer.Option(help="Promotions by polling, and as many by webhook.")] = 20,
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Measure the time from a promotion in the registry to the first prediction of the new version."""
    results = []
    for way in (_promotion.by_polling, _promotion.by_webhook):
        with tempfile.TemporaryDirectory() as folder, err.status("measuring …"), _reported_errors():
            results.append(way(Path(folder), promotions))
    _promotion.show(results, out)
    _write(json_file, [asdict(result) for result in results], markdown_file, _promotion.markdown(results))
    _fail_if(sum(result.quiet.failed + result.swapping.failed for result in results))


@app.command()
def evaluation(
    rows: Annotated[int, typer.Option(help="Labelled rows.")] = 100_000,
    rounds: Annotated[int, typer.Option(help="Promotions without rules, and as many with them.")] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds of load beside each promotion.")] = 12,
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Measure the evaluation of versions on labelled rows beside 64 busy connections."""
    with tempfile.TemporaryDirectory() as folder, err.status("measuring …"), _reported_errors():
        results = _evaluation.measure(Path(folder), rows, rounds, seconds)
    _evaluation.show(results, out)
    _write(json_file, asdict(results), markdown_file, _evaluation.markdown(results))
    _fail_if(results.failed)


@app.command()
def bulk(
    seconds: Annotated[float, typer.Option(help="Seconds per measurement; at least three requests.")] = 3,
    rounds: Annotated[int, typer.Option(help="Rounds; each measures all systems.")] = 3,
    sizes: Annotated[str, typer.Option(help="Numbers of rows, comma-separated.")] = "1,100,10000,100000",
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Measure requests with many rows, compared with MLflow's server and the bare model."""
    counts = [int(count) for count in sizes.split(",")]
    with tempfile.TemporaryDirectory() as folder, err.status("measuring …"), _reported_errors():
        results = _bulk.measure(Path(folder), counts, rounds, seconds)
    _bulk.show(results, out)
    _write(json_file, _bulk.raw(results), markdown_file, _bulk.markdown(results))
    _fail_if(_bulk.failures(results))


@app.command()
def heavy(
    seconds: Annotated[float, typer.Option(help="Seconds per measurement.")] = 8,
    rounds: Annotated[
        int, typer.Option(help="Rounds; each measures all models and numbers of processes.")
    ] = 3,
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Measure CPU-bound models with one and two model processes, and the latency of /health meanwhile."""
    with tempfile.TemporaryDirectory() as folder, err.status("measuring …"), _reported_errors():
        results = _heavy.measure(Path(folder), rounds, seconds)
    _heavy.show(results, out)
    _write(json_file, _heavy.raw(results), markdown_file, _heavy.markdown(results))
    _fail_if(_heavy.failures(results))


@app.command()
def overload(
    seconds: Annotated[float, typer.Option(help="Seconds per measurement.")] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds; each measures all settings.")] = 3,
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Measure load above the capacity of a model: accepted and rejected requests, and their latencies."""
    with tempfile.TemporaryDirectory() as folder, err.status("measuring …"), _reported_errors():
        results = _overload.measure(Path(folder), rounds, seconds)
    _overload.show(results, out)
    _write(json_file, _overload.raw(results), markdown_file, _overload.markdown(results))
    _fail_if(_overload.failures(results))


@app.command()
def features(
    seconds: Annotated[float, typer.Option(help="Seconds per measurement.")] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds; each measures both services.")] = 5,
    connections: Annotated[int, typer.Option(help="Number of connections.")] = 64,
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Measure the cost of drift, journal, shadow, access log and traces, alone and together."""
    with tempfile.TemporaryDirectory() as folder, err.status("measuring …"), _reported_errors():
        results, counts = _features.measure(Path(folder), connections, rounds, seconds)
    _features.show(results, counts, out)
    _write(json_file, _features.raw(results, counts), markdown_file, _features.markdown(results, counts))
    _fail_if(_features.failures(results))


@app.command()
def scale(
    seconds: Annotated[float, typer.Option(help="Seconds per measurement.")] = 5,
    rounds: Annotated[int, typer.Option(help="Rounds; each measures all numbers of models.")] = 3,
    models: Annotated[str, typer.Option(help="Numbers of models, comma-separated.")] = "1,10,50",
    idle: Annotated[int, typer.Option(help="Idle connections next to the busy ones.")] = _scale.IDLE,
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Measure many models in one front and many idle connections: memory, start, promotion and latency."""
    counts = [int(count) for count in models.split(",")]
    with tempfile.TemporaryDirectory() as folder, err.status("measuring …"), _reported_errors():
        results = _scale.measure(Path(folder), counts, rounds, seconds, idle)
    _scale.show(results, out)
    _write(json_file, _scale.raw(results), markdown_file, _scale.markdown(results))
    _fail_if(_scale.failures(results))


@app.command()
def fleet(
    seconds: Annotated[float, typer.Option(help="Base of the seconds per measurement.")] = 3,
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Measure many fronts on one registry: cost of a call, calls per front, and simulated fleets."""
    with tempfile.TemporaryDirectory() as folder, err.status("measuring …") as status, _reported_errors():
        results = _fleet.measure(Path(folder), seconds, lambda step: status.update(f"{step} …"))
    _fleet.show(results, out)
    _write(json_file, _fleet.raw(results), markdown_file, _fleet.markdown(results))


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(help="Length; some faults appear only after hours.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the order of events.")] = 0,
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Run promotions, crashes, overload and attacks in random order, and check every prediction."""
    with tempfile.TemporaryDirectory() as folder, err.status("soaking …") as status, _reported_errors():
        results = _soak.measure(Path(folder), minutes * 60, seed, lambda step: status.update(f"{step} …"))
    _soak.show(results, out)
    _write(json_file, _soak.raw(results), markdown_file, _soak.markdown(results))
    _fail_if(_soak.failures(results))


@app.command()
def ray(
    seconds: Annotated[float, typer.Option(help="Seconds per measurement.")] = 5,
    rounds: Annotated[
        int, typer.Option(help="Rounds; each measures all systems and numbers of instances.")
    ] = 3,
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Measure heavy models on Ray, compared with plain fronts; then a promotion and crashes."""
    with tempfile.TemporaryDirectory() as folder, err.status("measuring …") as status, _reported_errors():
        results = _ray_serve.measure(Path(folder), rounds, seconds, lambda step: status.update(f"{step} …"))
    _ray_serve.show(results, out)
    _write(json_file, _ray_serve.raw(results), markdown_file, _ray_serve.markdown(results))
    _fail_if(_ray_serve.failures(results))


@app.command()
def peers(
    seconds: Annotated[float, typer.Option(help="Seconds per measurement.")] = 5,
    rounds: Annotated[int, typer.Option(help="Rounds; each measures all systems.")] = 3,
    envs: Annotated[
        Path, typer.Option(help="Folder of the environments.", show_default="the user's cache folder")
    ] = _peers.ENVIRONMENTS,
    picture_file: Annotated[
        Path | None, typer.Option("--picture", help="Draw a bar chart to this file, SVG or PNG.")
    ] = None,
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Compare with other model servers; each gets its own environment, which is created on the first run."""
    with tempfile.TemporaryDirectory() as folder, err.status("measuring …") as status, _reported_errors():
        results = _peers.measure(Path(folder), envs, rounds, seconds, lambda step: status.update(f"{step} …"))
    _peers.show(results, out)
    _write(json_file, _peers.raw(results), markdown_file, _peers.markdown(results))
    if picture_file:
        _peers.picture(results, picture_file)
    _fail_if(_peers.failures(results))


def _write(json_file: Path | None, raw: Any, markdown_file: Path | None, markdown: str) -> None:
    if json_file:
        json_file.write_text(json.dumps(raw, indent=1))
    if markdown_file:
        markdown_file.write_text(markdown)


@contextmanager
def _reported_errors() -> Iterator[None]:
    try:
        yield
    except (WrkNotInstalled, NotStarted, UnexpectedStatus, WrongPrediction) as error:
        err.print(f"[red]✗[/] {error}", soft_wrap=True)
        raise typer.Exit(2) from None


def _fail_if(failures: int) -> None:
    if failures:
        err.print(f"[red]✗[/] {failures} requests failed")
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
