"""One model version that is loaded: its contract, its processes, and who holds it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Self
from urllib.parse import quote

from serving.errors import ModelFailed, ProcessDied, VerificationFailed
from serving.runtime import mlmodel, table
from serving.runtime.batcher import Batcher, Rows, Ticket
from serving.runtime.launcher import Launcher
from serving.runtime.pool import Pool
from serving.runtime.probation import Tally
from serving.runtime.replay import Comparison, Recorded, Recorder, compare
from serving.runtime.values import NOT_FINITE
from serving.runtime.version import Artifacts, Version
from serving.settings import Limits, Runtime

log = logging.getLogger("serving.model")
_TIMED = 10

Part = tuple[Sequence[int], Ticket]
"""Which rows of a request a ticket answers: all of them, unless some leave out what others have."""


class State(Enum):
    """Where a loaded version stands."""

    STARTING = "starting"
    LIVE = "live"
    DRAINING = "draining"
    CLOSED = "closed"


class Loaded:
    """A model version with processes of its own; held with `with` while a request is under way.

    Raises:
        Untypable: no contract can be made of it.
        VerificationFailed: its input example does not fit its own signature.
    """

    def __init__(
        self,
        version: Version,
        artifacts: Artifacts,
        launcher: Launcher,
        limits: Limits,
        runtime: Runtime,
        recorder: Recorder,
    ) -> None:
        self.version, self.artifacts = version, artifacts
        described = mlmodel.read(artifacts.folder)
        self.contract = mlmodel.contract(described, version.name, limits.max_rows)
        self.example = mlmodel.example(artifacts.folder, described, self.contract)
        if self.example:
            self.contract = self.contract.with_example(self.example.shown)
        self.told = {"name": version.name, "version": version.version}
        """The version as answers tell it."""
        self.headers = _headers(version)
        """The version as answers' headers tell it."""
        self.from_disk = False
        """Whether it was brought up from the copy on disk, as the registry was away."""
        self.tally = Tally()
        self.recorder = recorder
        self.comparison: Comparison | None = None
        """How it answered live requests before it went live itself."""
        self._warnings: tuple[str, ...] = ()
        self.loaded_at = datetime.now(UTC)
        self.state = State.STARTING
        self._runtime = runtime
        self._leases = 0
        self._unheld = asyncio.Event()
        self._schema = table.schema(self.contract.columns)
        self._batcher = Batcher(
            lambda rows, key: table.encode(self._schema, rows, key[0]),
            self._read,
            most_rows=runtime.max_batch_rows,
            most_waiting=limits.max_waiting,
            deadline=limits.deadline_seconds,
        )
        self._pool = Pool(
            launcher,
            artifacts.folder,
            count=runtime.replicas,
            load_seconds=runtime.load_seconds,
            on_ready=self._batcher.add,
            on_death=self._count_death,
        )

    def __repr__(self) -> str:
        return f"<Loaded {self.version} {self.state.value} leases={self._leases}>"

    @property
    def warnings(self) -> list[str]:
        """What a person should look at, though it is live."""
        disk = "it was brought up from the copy on disk, as the registry was away"
        return [*self._warnings, *([disk] if self.from_disk else [])]

    def refresh(self, version: Version) -> None:
        """Take over what has changed about the version in the registry, which is there."""
        self.version = replace(version, location=self.version.location)
        self.from_disk = False

    # -- start, verify

    async def start(self) -> None:
        """Start the model processes and have the first one answer the input example.

        Raises:
            LoadFailed: a process raised, hung or died while loading.
            VerificationFailed: it does not answer the example as its contract says.
        """
        try:
            await self._pool.start()
            await self._verify()
        except BaseException:
            self.close()
            raise

    async def rehearse(self, recorded: Sequence[Recorded]) -> None:
        """Answer requests that another version has answered, and compare.

        Raises:
            VerificationFailed: it fails on one of them.
        """
        if not recorded:
            return
        seconds = []
        try:
            async with asyncio.timeout(self._runtime.load_seconds):
                answers = await self._answer_together(recorded[:-_TIMED])
                for each in recorded[-_TIMED:]:
                    began = time.perf_counter()
                    answers.append(await self._answer(each.rows, each.params))
                    seconds.append(time.perf_counter() - began)
        except TimeoutError:
            raise VerificationFailed("it did not answer the last live requests in time") from None
        except (ModelFailed, ProcessDied) as error:
            raise VerificationFailed(f"on one of the last live requests {error}") from error
        self.comparison = compare(recorded, answers, seconds)

    async def _answer_together(self, recorded: Sequence[Recorded]) -> list[list[Any]]:
        """The predictions for each request, asked for as batches would be: one for the same parameters."""
        answers: list[list[Any]] = [[] for _ in recorded]
        alike: dict[str, list[int]] = {}
        for index, each in enumerate(recorded):
            alike.setdefault(_json(each.params), []).append(index)
        for indices in alike.values():
            rows = [row for index in indices for row in recorded[index].rows]
            predictions = iter(await self._answer(rows, recorded[indices[0]].params))
            for index in indices:
                answers[index] = [next(predictions) for _ in recorded[index].rows]
        return answers

    def keep(self) -> None:
        """Take requests, and have processes that die replaced."""
        self.state, self.loaded_at = State.LIVE, datetime.now(UTC)
        self._pool.keep()

    async def _verify(self) -> None:
        if self.example is None:
            self._warnings = (
                f"{self.version} has no input example in rows, so it went live unproven: "
                f"{mlmodel.HOW_TO_LOG}",
            )
            return
        try:
            async with asyncio.timeout(self._runtime.load_seconds):
                await self._answer(self.example.rows, self.example.params)
        except TimeoutError:
            raise VerificationFailed("it did not answer its own input example in time") from None
        except (ModelFailed, ProcessDied) as error:
            raise VerificationFailed(f"on its own input example {error}") from error

    async def _answer(self, rows: Rows, params: Mapping[str, Any]) -> list[Any]:
        """One prediction for each row, of the first process, which is not in use yet."""
        answers: list[Any] = [None] * len(rows)
        for key, indices, group in self._groups(rows, params):
            encoded = table.encode(self._schema, group, key[0])
            predictions = self._read(await self._pool.replicas[0].answer(encoded))
            if len(predictions) != len(group):
                raise ModelFailed(f"it answered {len(predictions)} rows for {len(group)}")
            if NOT_FINITE in predictions:
                raise ModelFailed("it answered a number that is not finite")
            for index, prediction in zip(indices, predictions, strict=True):
                answers[index] = prediction
        return answers

    def _count_death(self) -> None:
        self.tally.deaths += 1

    def _read(self, answer: bytes) -> list[Any]:
        return self.contract.predictions(table.decode_answer(answer))

    # -- use

    def __enter__(self) -> Self:
        self._leases += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._leases -= 1
        if not self._leases:
            self._unheld.set()

    def submit(self, rows: Rows, params: Mapping[str, Any], deadline: float) -> list[Part]:
        """Queue rows that fit the contract, to be answered within `deadline` seconds.

        Raises:
            Overloaded: the queue is full.
        """
        parts: list[Part] = []
        try:
            for key, indices, group in self._groups(rows, params):
                parts.append((indices, self._batcher.submit(group, key, deadline)))
        except BaseException:
            self.withdraw(parts)
            raise
        return parts

    def withdraw(self, parts: list[Part]) -> None:
        """Forget a request whose caller has gone."""
        for _, ticket in parts:
            if not ticket.future.done():
                self._batcher.withdraw(ticket)

    def _groups(
        self, rows: Rows, params: Mapping[str, Any]
    ) -> list[tuple[tuple[str, tuple[bool, ...]], Sequence[int], Rows]]:
        """The rows in groups that can each be one table, with the key that such groups share."""
        text = _json(params)
        holey = self.contract.columns_left_out_whole
        if not holey:
            return [((text, ()), range(len(rows)), rows)]
        return [
            ((text, absence), indices, [rows[index] for index in indices])
            for absence, indices in table.by_absence(holey, rows).items()
        ]

    # -- drain, close

    async def drain(self) -> None:
        """Wait until no request holds it, at most for the drain time, then end its processes."""
        self.state = State.DRAINING
        try:
            async with asyncio.timeout(self._runtime.drain_seconds):
                while self._leases:
                    self._unheld.clear()
                    await self._unheld.wait()
        except TimeoutError:
            log.warning("%r is still held after %g s", self, self._runtime.drain_seconds)
        finally:
            self.close()

    def close(self) -> None:
        """End its processes now."""
        self.state = State.CLOSED
        self._pool.kill()


def _json(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True, default=str) if params else ""


def _headers(version: Version) -> tuple[tuple[bytes, bytes], ...]:
    shown = version.version or version.model_id or ""
    return (
        (b"x-model-name", quote(version.name).encode()),
        (b"x-model-version", quote(shown).encode()),
    )
