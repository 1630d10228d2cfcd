"""Runs the statistics of an evaluation in a process of the lowest priority, so that no request waits.

With the argument `judge`, the process reads facts as one line of JSON and the columns of a sample as an Arrow
stream, and writes the decisions as JSON. With `plot` it reads the counts of a confusion matrix as JSON, and
writes a PNG image.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from serving.codecs.model_input import stream
from serving.errors import ProcessDied
from serving.evaluation.samples import Sample, encode
from serving.evaluation.verdict import Decision, RuleResult
from serving.processes.environment_variables import model_environment
from serving.text import shorten

LOWEST_PRIORITY = 19
_MAX_SECONDS = 300.0
_MAX_REASON_LENGTH = 500
# The priority is lowered before the imports, which take as long as the statistics of a few thousand rows.
_PROGRAM = f"import os; os.nice({LOWEST_PRIORITY}); from {__name__} import main; main()"


@dataclass(frozen=True, slots=True)
class Statistics:
    """The decisions about all rules, and values for the MLflow run.

    Args:
        results: one decision per rule.
        metrics: the metrics of the candidate on all rows.
        champion_metrics: those of the champion; empty if there is none.
        classes: the names of the rows and columns of `confusion`.
        confusion: counts by actual and predicted class; empty if the model is no classifier.
    """

    results: Sequence[RuleResult]
    metrics: dict[str, float]
    champion_metrics: dict[str, float]
    classes: Sequence[str] = ()
    confusion: Sequence[Sequence[int]] = ()


async def judge(rules: str, sample: Sample, level: float) -> Statistics:
    """Return the decisions about the rules in a tag.

    Raises:
        ProcessDied: the process failed.
    """
    facts, table = encode(sample)
    head = json.dumps({"rules": rules, "level": level, "sample": facts}).encode()
    output = json.loads(await _run("judge", head + b"\n" + stream(table)))
    results = [
        RuleResult(**result | {"decision": Decision(result["decision"])}) for result in output.pop("results")
    ]
    return Statistics(results, **output)


async def plot(statistics: Statistics, title: str) -> bytes | None:
    """Return the confusion matrix as a PNG image; None if there is none, or it cannot be drawn."""
    if not statistics.confusion:
        return None
    content = {"classes": statistics.classes, "confusion": statistics.confusion, "title": title}
    with suppress(ProcessDied):
        return await _run("plot", json.dumps(content).encode())
    return None


async def _run(command: str, content: bytes) -> bytes:
    """Return the output of the process.

    Raises:
        ProcessDied: it failed, or did not end in time.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROGRAM, command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=model_environment(os.environ, ()) | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    try:
        async with asyncio.timeout(_MAX_SECONDS):
            output, errors = await process.communicate(content)
    except TimeoutError:
        raise ProcessDied(f"the statistics of the evaluation took longer than {_MAX_SECONDS:g} s") from None
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    if process.returncode:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise ProcessDied(
            f"the process of the evaluation's statistics failed: {shorten(last, _MAX_REASON_LENGTH)}"
        )
    return output


# -- in the process


def _judge(content: bytes) -> bytes:
    import pyarrow as pa

    from serving.evaluation import rules, samples, verdict

    head, _, table = content.partition(b"\n")
    facts = json.loads(head)
    sample = samples.decode(facts["sample"], pa.ipc.open_stream(table).read_next_batch())
    parsed = rules.resolve(rules.parse_rules(facts["rules"]), sample.columns, _classes(sample))
    results = verdict.judge(parsed, sample, facts["level"])
    classes, counts = verdict.confusion(sample) or ((), ())
    output: dict[str, Any] = {
        "results": [asdict(result) for result in results],
        "metrics": dict(verdict.summarize(sample, sample.candidate)),
        "champion_metrics": dict(verdict.summarize(sample, sample.champion)) if sample.champion else {},
        "classes": classes,
        "confusion": counts,
    }
    return json.dumps(output).encode()


def _classes(sample: Sample) -> set[str]:
    """Return the names of the classes of both versions, and the labels if they are text."""
    versions = [version for version in (sample.candidate, sample.champion) if version]
    names = {name for version in versions for name in version.classes}
    return names | {label for label in sample.labels.unique().to_pylist() if isinstance(label, str)}


def _plot(content: bytes) -> bytes:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    facts = json.loads(content)
    counts, classes = np.array(facts["confusion"]), facts["classes"]
    size = max(4.0, 0.6 * len(classes) + 2)
    figure = Figure(figsize=(size, size), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=facts["title"], xlabel="predicted", ylabel="actual")
    axes.imshow(counts, cmap="Blues")
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if count > counts.max() / 2 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    return image.getvalue()


def main() -> None:
    """Read from standard input, and write to standard output."""
    content = sys.stdin.buffer.read()
    sys.stdout.buffer.write({"judge": _judge, "plot": _plot}[sys.argv[1]](content))
