"""What a version has to answer before it goes live: its own input example, and the last live requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa

from serving.errors import ModelFailed, ProcessDied, RequestError, VerificationFailed
from serving.runtime import answers
from serving.runtime.contract import Contract
from serving.runtime.intake import Intake
from serving.runtime.mlmodel import Example
from serving.runtime.replay import Comparison, Recorded, compare
from serving.runtime.replica import Replica
from serving.runtime.table import Rows, in_text, joined

_TIMED = 10
Found = TypeVar("Found")


class Trial:
    """Asks a process that nobody else asks yet.

    Args:
        contract: what the version promises.
        process: has loaded it.
        seconds: the time that each of its tasks may take.
    """

    def __init__(self, contract: Contract, process: Replica, seconds: float) -> None:
        self._contract, self._process, self._seconds = contract, process, seconds

    async def verify(self, example: Example) -> None:
        """Have the input example answered, and begun to be answered bit by bit if the model can do that.

        Raises:
            VerificationFailed: it is not, or not in time.
        """
        await self._within("its own input example", self._answer(example.rows, example.params))
        if self._contract.streams:
            await self._within("its own input example", self._begin_stream(example))

    async def rehearse(self, recorded: Sequence[Recorded]) -> Comparison | None:
        """Have requests answered that another version has answered, and compare; None if there are none.

        Raises:
            VerificationFailed: one of them is not, or not all in time.
        """
        told = [(each, answer) for each in recorded if (answer := each.told()) is not None]
        kept = [replace(each, answer=answer) for each, answer in told]
        return await self._within("one of the last live requests", self._compared(kept)) if kept else None

    async def _within(self, what: str, answering: Awaitable[Found]) -> Found:
        try:
            async with asyncio.timeout(self._seconds):
                return await answering
        except TimeoutError:
            raise VerificationFailed(f"it did not answer {what} in time") from None
        except (ModelFailed, ProcessDied, RequestError) as error:
            raise VerificationFailed(f"on {what} {error}") from error

    async def _compared(self, recorded: Sequence[Recorded]) -> Comparison:
        times = []
        intake = Intake(self._contract)
        recorded = [replace(each, rows=intake.refitted(each.rows)) for each in recorded]
        found = await self._together(recorded[:-_TIMED])
        for each in recorded[-_TIMED:]:
            began = time.perf_counter()
            found.append(b"".join(await self._answer(each.rows, each.params)))
            times.append(time.perf_counter() - began)
        return compare(recorded, found, times)

    async def _together(self, recorded: Sequence[Recorded]) -> list[bytes]:
        """The answer for each request, asked for as batches would be: one for those that are alike."""
        found = [b""] * len(recorded)
        alike: dict[tuple[str, str], list[int]] = {}
        for index, each in enumerate(recorded):
            schema = str(each.rows.schema) if isinstance(each.rows, pa.RecordBatch) else ""
            alike.setdefault((in_text(each.params), schema), []).append(index)
        for indices in alike.values():
            rows = joined([recorded[index].rows for index in indices])
            predictions = iter(await self._answer(rows, recorded[indices[0]].params))
            for index in indices:
                found[index] = b"".join(next(predictions) for _ in range(len(recorded[index].rows)))
        return found

    async def _answer(self, rows: Rows, params: Mapping[str, Any]) -> list[bytes]:
        """One prediction for each row."""
        told = [b""] * len(rows)
        for _, indices, group in self._contract.layout.groups(rows):
            encoded = self._contract.layout.encode(group, in_text(params))
            predictions = self._contract.predictions(answers.decode(await self._process.answer(encoded)))
            if len(predictions) != len(group):
                raise ModelFailed(f"it answered {len(predictions)} rows for {len(group)}")
            if predictions.bad:
                raise ModelFailed("it answered a number that is not finite")
            for place, index in enumerate(indices):
                told[index] = predictions.row(place)
        return told

    async def _begin_stream(self, example: Example) -> None:
        """Have the first row answered, and hear the first bit of that."""
        first: list[bytes] = []

        def hear(chunk: bytes) -> None:
            if not first:
                self._process.stop()
            first.append(chunk)

        asked = self._contract.layout.encode(example.rows[:1], in_text(example.params))
        await self._process.answer(asked, hear)
        for chunk in first[:1]:
            answers.retold(chunk)
