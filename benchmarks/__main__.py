"""`python -m benchmarks COMMAND`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import promotion as _promotion
from benchmarks import throughput as _throughput
from benchmarks.load import NoWrk
from benchmarks.service import NotStarted

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
out, err = Console(highlight=False, width=110), Console(stderr=True, highlight=False)


@app.callback()
def benchmarks() -> None:
    """Measure the service beside what runs in the same minutes: only ratios count on a noisy machine."""


@app.command()
def throughput(
    seconds: Annotated[float, typer.Option(help="Seconds a measurement.")] = 5,
    rounds: Annotated[int, typer.Option(help="Rounds; the systems take turns in each.")] = 3,
    connections: Annotated[str, typer.Option(help="Numbers of connections, comma separated.")] = "1,64",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all measurements here.")] = None,
) -> None:
    """Requests a second and latencies, beside a FastAPI endpoint that returns a constant."""
    counts = [int(count) for count in connections.split(",")]
    with tempfile.TemporaryDirectory() as folder, err.status("measuring …"), _told_mistakes():
        found = _throughput.measure(Path(folder), counts, rounds, seconds)
    _throughput.show(found, out)
    if json_file:
        json_file.write_text(json.dumps(_throughput.raw(found), indent=1))
    _fail_if(_throughput.failures(found))


@app.command()
def promotion(
    promotions: Annotated[int, typer.Option(help="Promotions each way.")] = 20,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all measurements here.")] = None,
) -> None:
    """From the registry's answer to a promotion to the first answer by the new version."""
    found = []
    for way in (_promotion.by_polling, _promotion.by_webhook):
        with tempfile.TemporaryDirectory() as folder, err.status("measuring …"), _told_mistakes():
            found.append(way(Path(folder), promotions))
    _promotion.show(found, out)
    if json_file:
        json_file.write_text(json.dumps([asdict(each) for each in found], indent=1))
    _fail_if(sum(each.quiet.failed + each.swapping.failed for each in found))


@contextmanager
def _told_mistakes() -> Iterator[None]:
    try:
        yield
    except (NoWrk, NotStarted) as error:
        err.print(f"[red]✗[/] {error}", soft_wrap=True)
        raise typer.Exit(2) from None


def _fail_if(failures: int) -> None:
    if failures:
        err.print(f"[red]✗[/] {failures} requests failed")
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
