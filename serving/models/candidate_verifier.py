"""What a version has to answer before it goes live: its own input example, and the last live requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa

from serving.batching import sharing_proof
from serving.batching.sharing_proof import Basis, Sharing
from serving.codecs import model_output
from serving.codecs.model_input import Rows, canonical_json, concat, is_own
from serving.codecs.observed_output import is_whole, outputs_of
from serving.codecs.prediction_schema import GenericOutput
from serving.codecs.predictions import Predictions
from serving.contract.column_validator import ColumnValidator
from serving.contract.contract import Contract
from serving.errors import ModelFailed, ProcessDied, RequestError, VerificationFailed
from serving.models.input_example import Example
from serving.models.replay import Comparison, RecordedRequest, compare
from serving.models.sample_rows import sample_rows
from serving.processes.replica import Replica
from serving.protocols.mlflow_scoring_output import predictions_json

_TIMED = 10
Found = TypeVar("Found")


class CandidateVerifier:
    """Calls a process that takes no requests yet.

    Args:
        contract: what the version promises; `verify` and `sample` correct it by what the model returns.
        process: has loaded it.
        seconds: the time that each of its tasks may take.
    """

    def __init__(self, contract: Contract, process: Replica, seconds: float) -> None:
        self.contract = contract
        self._process, self._seconds = process, seconds

    async def verify(self, example: Example) -> None:
        """Have the input example answered, and begun to be answered bit by bit if the model can do that.

        Raises:
            VerificationFailed: it is not, or not in time.
        """
        await self._within("its own input example", self._observe(example.rows, example.params))
        if len(example.rows) > 1 and not self.contract.is_whole:
            # As many results as rows may be chance.
            alone = self._observe(example.rows[:1], example.params, of_all=False)
            await self._within("the first row of its own input example", alone)
        if self.contract.streams:
            await self._within("its own input example", self._begin_stream(example))

    async def sample(self) -> str:
        """Have one generated row answered, where there is no example; returns why it is not, or nothing.

        That shows less than an example would, so that an output of another form is returned whole.
        """
        rows = sample_rows(self.contract, 1)
        reason = "no row can be generated from its types and bounds"
        if rows:
            try:
                await self._within("a row generated from its types and bounds", self._observe(rows, {}))
                reason = ""
            except VerificationFailed as error:
                reason = str(error)
        if isinstance(self.contract.outputs, GenericOutput):
            self.contract = replace(self.contract, outputs=replace(self.contract.outputs, flexible=True))
        return reason

    async def _observe(self, rows: Rows, params: Mapping[str, Any], *, of_all: bool = True) -> None:
        """Correct the contract by what the model returns; a task in the metadata stands.

        Of some rows only, it corrects whether there is one result per row.
        """
        calls = [(len(group), await self._call(group, params)) for group in self._tables(rows)]
        wholes = [call for call in calls if is_whole(call[1], call[0])]
        if isinstance(self.contract.outputs, GenericOutput) and (of_all or wholes):
            count, output = (wholes or calls)[0]
            outputs, warnings = outputs_of(self.contract.output_columns, output, count)
            warnings = (*self.contract.warnings, *warnings)
            self.contract = replace(self.contract, outputs=outputs, warnings=warnings)
        elif wholes and not isinstance(self.contract.outputs, GenericOutput):
            raise ModelFailed("it does not return one result per row, which its serving.task asks for")
        if not wholes:
            for count, output in calls:
                self._predictions(output, count)

    def _predictions(self, output: pa.RecordBatch, rows: int) -> Predictions:
        if is_whole(output, rows):
            raise ModelFailed(f"it returned {len(output)} results for {rows} rows")
        predictions = self.contract.predictions(output)
        if predictions.invalid_rows:
            row = min(predictions.invalid_rows) + 1
            raise ModelFailed(f"its prediction for row {row} is missing or not a finite number")
        return predictions

    # -- sharing

    async def prove(self, example: Example | None, recorded: Sequence[RecordedRequest]) -> Sharing:
        """Find out whether callers may share a call of the model; this may take the process along."""
        contract = self.contract
        if contract.is_whole:
            return Sharing(False, Basis.FORM, "it does not return one result per row")
        params = example.params if example else {}
        tables = [*self._trial_rows(example, params, recorded)]
        if not tables:
            return Sharing(
                False, Basis.PROOF, f"there are no rows to try it with: {sharing_proof.HOW_TO_PROVE}"
            )
        try:
            async with asyncio.timeout(self._seconds):
                return await sharing_proof.prove(tables, lambda table: self._call(table, params))
        except TimeoutError:
            return Sharing(False, Basis.PROOF, "it did not return in time for several rows at once")
        except ProcessDied:
            return Sharing(False, Basis.PROOF, "its process died on several rows at once")

    def _trial_rows(
        self, example: Example | None, params: Mapping[str, Any], recorded: Sequence[RecordedRequest]
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the example, of recorded requests with its parameters, and generated ones."""
        contract, intake = self.contract, ColumnValidator(self.contract)
        rows: list[Rows] = [example.rows] if example else []
        rows += [each.rows for each in recorded if canonical_json(each.params) == canonical_json(params)]
        if example or contract.profile or any(column.constraints for column in contract.columns):
            rows.append(sample_rows(contract, sharing_proof.MAX_ROWS, example.shown if example else None))
        for group in rows:
            with suppress(pa.ArrowException, RequestError, TypeError, ValueError):  # of an older contract
                yield from (
                    table
                    for table in self._tables(intake.revalidate(group))
                    if len(table) and not is_own(table)
                )

    def _tables(self, rows: Rows) -> Iterator[pa.RecordBatch]:
        for _, _, group in self.contract.layout.groups(rows):
            yield group if isinstance(group, pa.RecordBatch) else self.contract.layout.to_table(group)

    async def _call(self, table: Rows, params: Mapping[str, Any]) -> pa.RecordBatch:
        encoded = self.contract.layout.encode(table, canonical_json(params))
        return model_output.decode(await self._process.infer(encoded))

    # -- replay

    async def rehearse(self, recorded: Sequence[RecordedRequest], *, shared: bool) -> Comparison | None:
        """Have requests answered that another version has answered, and compare; None if there are none.

        Raises:
            VerificationFailed: one of them is not, or not all in time.
        """
        told = [(each, answer) for each in recorded if (answer := each.told()) is not None]
        kept = [replace(each, answer=answer) for each, answer in told]
        if not kept:
            return None
        return await self._within("one of the last live requests", self._compared(kept, shared=shared))

    async def _within(self, what: str, answering: Awaitable[Found]) -> Found:
        try:
            async with asyncio.timeout(self._seconds):
                return await answering
        except TimeoutError:
            raise VerificationFailed(f"it did not answer {what} in time") from None
        except (ModelFailed, ProcessDied, RequestError) as error:
            raise VerificationFailed(f"on {what} {error}") from error

    async def _compared(self, recorded: Sequence[RecordedRequest], *, shared: bool) -> Comparison:
        times = []
        intake = ColumnValidator(self.contract)
        recorded = [replace(each, rows=intake.revalidate(each.rows)) for each in recorded]
        alone = recorded[-_TIMED:] if shared else recorded
        found = await self._together(recorded[: len(recorded) - len(alone)])
        for each in alone:
            began = time.perf_counter()
            found.append(b"".join(await self._answer(each.rows, each.params)))
            times.append(time.perf_counter() - began)
        return compare(recorded, found, times[-_TIMED:])

    async def _together(self, recorded: Sequence[RecordedRequest]) -> list[bytes]:
        """The answer for each request, asked for as batches would be: one for those that are alike."""
        found = [b""] * len(recorded)
        alike: dict[tuple[str, str], list[int]] = {}
        for index, each in enumerate(recorded):
            schema = str(each.rows.schema) if isinstance(each.rows, pa.RecordBatch) else ""
            alike.setdefault((canonical_json(each.params), schema), []).append(index)
        for indices in alike.values():
            rows = concat([recorded[index].rows for index in indices])
            predictions = iter(await self._answer(rows, recorded[indices[0]].params))
            for index in indices:
                found[index] = b"".join(next(predictions) for _ in range(len(recorded[index].rows)))
        return found

    async def _answer(self, rows: Rows, params: Mapping[str, Any]) -> list[bytes]:
        """Return one prediction for each row; of a version that returns its output whole, that."""
        contract = self.contract
        if contract.is_whole:
            (table,) = self._tables(rows)
            output = await self._call(table, params)
            return [b"".join(predictions_json(contract.output_columns, output)) + b","]
        told = [b""] * len(rows)
        for _, indices, group in contract.layout.groups(rows):
            predictions = self._predictions(await self._call(group, params), len(group))
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

        asked = self.contract.layout.encode(example.rows[:1], canonical_json(example.params))
        await self._process.infer(asked, hear)
        for chunk in first[:1]:
            model_output.to_json_value(chunk)
