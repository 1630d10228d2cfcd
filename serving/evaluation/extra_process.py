"""Predicts labelled rows in an extra process of a version, beside the processes that serve requests."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
from pyarrow import types

from serving.codecs import model_output
from serving.codecs.observed_output import is_whole
from serving.codecs.output_columns import columns
from serving.codecs.prediction_schema import ClassLabels, Probabilities, Regression, probability_matrix
from serving.errors import ModelFailed, RequestError
from serving.evaluation.samples import OutputKind, VersionSample
from serving.evaluation.sources import LabelledRows
from serving.evaluation.statistics_process import LOWEST_PRIORITY
from serving.models.loaded_model import LoadedModel
from serving.processes.replica import Replica
from serving.types.nested import JSON

_CHUNK_ROWS = 4096
MIN_TIMED_CALLS, MAX_TIMED_CALLS = 20, 400
WARM_UP_CALLS = 5


class EvaluationFailed(Exception):
    """A version cannot predict the labelled rows; the message states why, as a clause with "it"."""


class ExtraProcess:
    """An extra process of a version; use it with `async with`.

    Args:
        loaded: the version.
        seconds: maximum time of one call.

    Raises:
        LoadFailed: the process does not load the model.
        ProcessDied: it died.
    """

    def __init__(self, loaded: LoadedModel, seconds: float) -> None:
        self._loaded, self._seconds = loaded, seconds
        self._replica: Replica | None = None

    async def __aenter__(self) -> Self:
        self._replica = await self._loaded.start_extra_process()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._replica:
            self._replica.kill()

    def lower_priority(self) -> None:
        """Let all other processes run first.

        It is not SCHED_IDLE: on a machine whose cores are all busy, such a process would never end.
        """
        with suppress(OSError):  # another operating system, or the process has just ended
            for thread in os.listdir(f"/proc/{self._pid}/task"):
                os.setpriority(os.PRIO_PROCESS, int(thread), LOWEST_PRIORITY)

    @property
    def _pid(self) -> int | None:
        return self._replica.pid if self._replica else None

    async def predict(self, rows: LabelledRows) -> VersionSample:
        """Return the predictions for all rows.

        Raises:
            EvaluationFailed: the rows do not fit the contract, or the model fails.
            ProcessDied: the process died.
        """
        parts: list[Sequence[pa.Array]] = []
        for start in range(0, len(rows), self._chunk_rows):
            chunk = rows.table.slice(start, self._chunk_rows)
            payload = await asyncio.to_thread(self._encode, chunk, start)
            output = await self._call(payload)
            parts.append(await asyncio.to_thread(self._decode, output, len(chunk)))
        arrays = [pa.concat_arrays(_unified(column)) for column in zip(*parts, strict=True)]
        kind, classes = kind_of(self._loaded)
        return VersionSample(kind, arrays, classes)

    @property
    def _chunk_rows(self) -> int:
        return min(_CHUNK_ROWS, self._loaded.contract.max_rows)

    async def time_call(self, rows: LabelledRows, index: int) -> float:
        """Return the time of a call of one row in milliseconds.

        Raises:
            EvaluationFailed, ProcessDied: as in `predict`.
        """
        payload = self._encode(rows.table.slice(index, 1), index)
        started = time.perf_counter()
        await self._call(payload)
        return (time.perf_counter() - started) * 1000

    async def _call(self, payload: bytes) -> bytes:
        assert self._replica is not None
        try:
            async with asyncio.timeout(self._seconds):
                return await self._replica.infer(payload)
        except TimeoutError:
            raise EvaluationFailed(f"a call took longer than {self._seconds:g} s") from None
        except (ModelFailed, RequestError) as error:
            raise EvaluationFailed(str(error)) from error

    def _encode(self, chunk: pa.Table, start: int) -> bytes:
        contract = self._loaded.contract
        known = {column.name for column in contract.columns}
        given = {name: chunk.column(name).combine_chunks() for name in chunk.column_names if name in known}
        arrays = {name: pa.concat_arrays(_chunks(array)) for name, array in given.items()}
        try:
            batch = self._loaded.column_validator.validate(arrays)
            return contract.layout.encode(batch, "")
        except RequestError as error:
            faults = "; ".join(
                f"{', '.join(map(str, fault.loc))}: {fault.msg}" for fault in getattr(error, "faults", ())[:3]
            )
            raise EvaluationFailed(
                f"rows {start + 1} to {start + len(chunk)} do not fit its signature: {faults or error}"
            ) from error

    def _decode(self, output: bytes, rows: int) -> Sequence[pa.Array]:
        """Return the predictions of a call as columns."""
        try:
            table = model_output.decode(output)
            if is_whole(table, rows) or model_output.is_reordered(table):
                raise EvaluationFailed("it does not return one result per row")
            return _columns(self._loaded, table)
        except ModelFailed as error:
            raise EvaluationFailed(str(error)) from error


def kind_of(loaded: LoadedModel) -> tuple[OutputKind, Sequence[str]]:
    """Return the meaning of a version's output, and its classes."""
    match loaded.contract.outputs:
        case Probabilities(classes=classes):
            return OutputKind.PROBABILITIES, classes
        case ClassLabels(classes=classes):
            return OutputKind.CLASSES, classes
        case Regression():
            return OutputKind.NUMBER, ()
    return OutputKind.VALUE, ()


def _columns(loaded: LoadedModel, table: pa.RecordBatch) -> Sequence[pa.Array]:
    outputs = loaded.contract.outputs
    if isinstance(outputs, Probabilities):
        matrix = probability_matrix(table, outputs.classes)
        if not np.isfinite(matrix).all():
            raise EvaluationFailed("it returned a probability that is missing or not finite")
        return [pa.array(np.ascontiguousarray(column)) for column in matrix.T]
    names = [outputs.name] if isinstance(outputs, (ClassLabels, Regression)) else [None]
    if len(names) == 1 and table.num_columns > 1 and names == [None]:
        raise EvaluationFailed("it returns several values per row, which no rule can be about")
    (array,) = columns(table, names)
    if types.is_fixed_size_list(array.type) and array.type.list_size == 1:
        array = array.flatten()
    if array.type == JSON or types.is_nested(array.type):
        raise EvaluationFailed(
            "it returns objects or lists: state the task and the classes in its metadata (serving.task, "
            "serving.classes)"
        )
    return [array]


def _chunks(array: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return array.chunks if isinstance(array, pa.ChunkedArray) else [array]


def _unified(arrays: Sequence[pa.Array]) -> Sequence[pa.Array]:
    """Return arrays of one type: a call may return integers, and another floats."""
    if len({array.type for array in arrays}) == 1:
        return arrays
    try:
        return [array.cast(pa.float64()) for array in arrays]
    except pa.ArrowException:
        raise EvaluationFailed("its calls return values of several types") from None
