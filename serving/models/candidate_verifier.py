"""Run a version before it goes live: on its own input example and on the last live requests."""

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
from serving.codecs.model_input import Rows, canonical_json, concat, is_indivisible
from serving.codecs.observed_output import is_whole, outputs_of
from serving.codecs.prediction_schema import GenericOutput
from serving.codecs.predictions import Predictions
from serving.contract.column_validator import ColumnValidator
from serving.contract.contract import Contract
from serving.errors import ModelFailed, ProcessDied, RequestError
from serving.models.input_example import Example
from serving.models.replay import Comparison, RecordedRequest, compare
from serving.models.sample_rows import sample_rows
from serving.processes.replica import Replica
from serving.promotion_errors import VerificationFailed
from serving.protocols.mlflow_scoring_output import predictions_json

_MAX_TIMED_REQUESTS = 10
Result = TypeVar("Result")


class CandidateVerifier:
    """Calls a model process that receives no requests yet.

    Args:
        contract: contract of the version; `verify` and `sample` adapt it to the output of the model.
        process: model process that has loaded the version.
        seconds: time limit of each step.
    """

    def __init__(self, contract: Contract, process: Replica, seconds: float) -> None:
        self.contract = contract
        self._process, self._seconds = process, seconds

    async def verify(self, example: Example) -> None:
        """Predict the input example, and start a stream for it if the model can stream.

        Raises:
            VerificationFailed: a call fails or exceeds the time limit.
            ProcessDied: the process died.
        """
        await self._within("its own input example", self._observe(example.rows, example.params))
        if len(example.rows) > 1 and not self.contract.is_whole:
            # The number of results can equal the number of rows by chance.
            alone = self._observe(example.rows[:1], example.params, of_all=False)
            await self._within("the first row of its own input example", alone)
        if self.contract.streams:
            await self._within("its own input example", self._begin_stream(example))

    async def sample(self) -> str:
        """Predict one generated row, for a model without an example; return the failure, or an empty string.

        A generated row proves less than an example, so the contract becomes flexible: an output that does not
        fit the signature is returned as it is.
        """
        rows = sample_rows(self.contract, 1)
        reason = "no row can be generated from its types and bounds"
        if rows:
            try:
                await self._within("a row generated from its types and bounds", self._observe(rows, {}))
                reason = ""
            except (VerificationFailed, ProcessDied) as error:
                reason = str(error)
        if isinstance(self.contract.outputs, GenericOutput):
            self.contract = replace(self.contract, outputs=replace(self.contract.outputs, flexible=True))
        return reason

    async def _observe(self, rows: Rows, params: Mapping[str, Any], *, of_all: bool = True) -> None:
        """Adapt the contract to the output of the model, unless the metadata declares a task.

        Without `of_all`, the rows are only a part of the example. They show whether the model returns one
        result per row, and nothing else.
        """
        calls = [(len(group), await self._call(group, params)) for group in self._tables(rows)]
        wholes = [call for call in calls if is_whole(call[1], call[0])]
        if isinstance(self.contract.outputs, GenericOutput) and (of_all or wholes):
            count, output = (wholes or calls)[0]
            outputs, warnings = outputs_of(self.contract.output_columns, output, count)
            warnings = (*self.contract.warnings, *warnings)
            self.contract = replace(self.contract, outputs=outputs, warnings=warnings)
        elif wholes and not isinstance(self.contract.outputs, GenericOutput):
            raise ModelFailed("it does not return one result per row, which its serving.task requires")
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
        """Return whether callers may share a call of the model. The calls may kill the process."""
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
        contract, validator = self.contract, ColumnValidator(self.contract)
        rows: list[Rows] = [example.rows] if example else []
        rows += [
            request.rows for request in recorded if canonical_json(request.params) == canonical_json(params)
        ]
        if example or contract.profile or any(column.constraints for column in contract.columns):
            rows.append(sample_rows(contract, sharing_proof.MAX_ROWS, example.shown if example else None))
        for group in rows:
            # Rows recorded under the previous contract may not fit this one.
            with suppress(pa.ArrowException, RequestError, TypeError, ValueError):
                yield from (
                    table
                    for table in self._tables(validator.revalidate(group))
                    if len(table) and not is_indivisible(table)
                )

    def _tables(self, rows: Rows) -> Iterator[pa.RecordBatch]:
        for _, _, group in self.contract.layout.groups(rows):
            yield group if isinstance(group, pa.RecordBatch) else self.contract.layout.to_table(group)

    async def _call(self, table: Rows, params: Mapping[str, Any]) -> pa.RecordBatch:
        encoded = self.contract.layout.encode(table, canonical_json(params))
        return model_output.decode(await self._process.infer(encoded))

    # -- replay

    async def replay(self, recorded: Sequence[RecordedRequest], *, shared: bool) -> Comparison | None:
        """Repeat requests of another version and compare the predictions; return None if there are none.

        Raises:
            VerificationFailed: a request fails, or all of them together exceed the time limit.
            ProcessDied: the process died.
        """
        rendered = [
            replace(request, output=predictions)
            for request in recorded
            if (predictions := request.predictions()) is not None
        ]
        if not rendered:
            return None
        return await self._within("one of the last live requests", self._compare(rendered, shared=shared))

    async def _within(self, subject: str, step: Awaitable[Result]) -> Result:
        try:
            async with asyncio.timeout(self._seconds):
                return await step
        except TimeoutError:
            raise VerificationFailed(f"it did not finish {subject} in time") from None
        except ProcessDied as error:
            raise ProcessDied(f"on {subject} its process died") from error
        except (ModelFailed, RequestError) as error:
            raise VerificationFailed(f"on {subject} {error}") from error

    async def _compare(self, recorded: Sequence[RecordedRequest], *, shared: bool) -> Comparison:
        seconds = []
        validator = ColumnValidator(self.contract)
        recorded = [replace(request, rows=validator.revalidate(request.rows)) for request in recorded]
        alone = recorded[-_MAX_TIMED_REQUESTS:] if shared else recorded
        outputs = await self._predict_together(recorded[: len(recorded) - len(alone)])
        for request in alone:
            started = time.perf_counter()
            outputs.append(await self._predict(request.rows, request.params))
            seconds.append(time.perf_counter() - started)
        return compare(recorded, outputs, seconds[-_MAX_TIMED_REQUESTS:])

    async def _predict_together(self, recorded: Sequence[RecordedRequest]) -> list[list[bytes]]:
        """Return the predictions for each request. Requests with equal parameters and schema share a call."""
        outputs: list[list[bytes]] = [[] for _ in recorded]
        batches: dict[tuple[str, str], list[int]] = {}
        for index, request in enumerate(recorded):
            schema = str(request.rows.schema) if isinstance(request.rows, pa.RecordBatch) else ""
            batches.setdefault((canonical_json(request.params), schema), []).append(index)
        for indices in batches.values():
            rows = concat([recorded[index].rows for index in indices])
            predictions = iter(await self._predict(rows, recorded[indices[0]].params))
            for index in indices:
                outputs[index] = [next(predictions) for _ in range(len(recorded[index].rows))]
        return outputs

    async def _predict(self, rows: Rows, params: Mapping[str, Any]) -> list[bytes]:
        """Return one JSON text per row, or a single one if the contract returns the output whole."""
        contract = self.contract
        if contract.is_whole:
            (table,) = self._tables(rows)
            output = await self._call(table, params)
            return [b"".join(predictions_json(contract.output_columns, output))]
        texts = [b""] * len(rows)
        for _, indices, group in contract.layout.groups(rows):
            predictions = self._predictions(await self._call(group, params), len(group))
            for index, text in zip(indices, predictions.rows_json(), strict=True):
                texts[index] = text
        return texts

    async def _begin_stream(self, example: Example) -> None:
        """Stream the prediction for the first row, and stop after the first chunk."""
        first: list[bytes] = []

        def on_chunk(chunk: bytes) -> None:
            if not first:
                self._process.stop()
            first.append(chunk)

        request = self.contract.layout.encode(example.rows[:1], canonical_json(example.params))
        await self._process.infer(request, on_chunk)
        for chunk in first[:1]:
            model_output.to_json_value(chunk)
