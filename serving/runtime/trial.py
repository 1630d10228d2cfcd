"""What a version has to answer before it goes live: its own input example, and the last live requests."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from serving.errors import ModelFailed, ProcessDied, VerificationFailed
from serving.runtime.mlmodel import Example
from serving.runtime.replay import Comparison, Recorded, compare
from serving.runtime.table import Rows, objects

_TIMED = 10

Answer = Callable[[Rows, Mapping[str, Any]], Awaitable[list[bytes]]]
"""Asks the version: rows and parameters to one JSON text for each row."""


async def verify(answer: Answer, example: Example, seconds: float) -> None:
    """Have the input example answered.

    Raises:
        VerificationFailed: it is not, or not within `seconds`.
    """
    try:
        async with asyncio.timeout(seconds):
            await answer(example.rows, example.params)
    except TimeoutError:
        raise VerificationFailed("it did not answer its own input example in time") from None
    except (ModelFailed, ProcessDied) as error:
        raise VerificationFailed(f"on its own input example {error}") from error


async def rehearse(answer: Answer, recorded: Sequence[Recorded], seconds: float) -> Comparison:
    """Have requests answered that another version has answered, and compare.

    Raises:
        VerificationFailed: one of them is not, or not all within `seconds`.
    """
    times = []
    try:
        async with asyncio.timeout(seconds):
            answers = await _together(answer, recorded[:-_TIMED])
            for each in recorded[-_TIMED:]:
                began = time.perf_counter()
                answers.append(b"".join(await answer(objects(each.rows), each.params)))
                times.append(time.perf_counter() - began)
    except TimeoutError:
        raise VerificationFailed("it did not answer the last live requests in time") from None
    except (ModelFailed, ProcessDied) as error:
        raise VerificationFailed(f"on one of the last live requests {error}") from error
    return compare(recorded, answers, times)


async def _together(answer: Answer, recorded: Sequence[Recorded]) -> list[bytes]:
    """The answer for each request, asked for as batches would be: one for the same parameters."""
    answers = [b""] * len(recorded)
    alike: dict[str, list[int]] = {}
    for index, each in enumerate(recorded):
        alike.setdefault(json.dumps(each.params, sort_keys=True, default=str), []).append(index)
    for indices in alike.values():
        rows = [row for index in indices for row in objects(recorded[index].rows)]
        predictions = iter(await answer(rows, recorded[indices[0]].params))
        for index in indices:
            answers[index] = b"".join(next(predictions) for _ in range(len(recorded[index].rows)))
    return answers
