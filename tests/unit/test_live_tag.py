"""Fronts that write `serving.live` at the same time, in any order, converge on one live version."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import hypothesis
import pytest
from hypothesis import strategies as st

from serving.errors import RegistryUnavailable
from serving.reference import Reference
from serving.registry.client import RegistryClient, TagChange
from serving.registry.live_tag import MAX_LENGTH, TAG, contested, encode, held_since, latest, references
from serving.registry.tag_writer import TagWriter
from serving.version import Outcome, Version

PRODUCTION, STABLE = "models:/iris/Production", "models:/iris@stable"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def version(number: str, **minutes: int) -> Version:
    """Return a version that went live as `production` or `stable` so many minutes ago."""
    uris = {"production": PRODUCTION, "stable": STABLE}
    since = {uris[name]: NOW - timedelta(minutes=ago) for name, ago in minutes.items()}
    return Version("iris", number, f"/{number}", f"/{number}", tags={TAG: encode(since) or ""})


def test_live_tag_round_trip() -> None:
    since = {PRODUCTION: NOW, STABLE: NOW + timedelta(milliseconds=1)}
    text = encode(since)
    assert text == json.dumps({PRODUCTION: "2026-01-01T00:00:00.000Z", STABLE: "2026-01-01T00:00:00.001Z"})
    assert references({TAG: text}) == since
    assert encode({}) is None
    assert references({TAG: json.dumps({PRODUCTION: "2026-01-01T00:00:00Z"})}) == {PRODUCTION: NOW}


def test_too_long_tag_drops_its_oldest_references() -> None:
    since = {f"models:/iris@{number}": NOW + timedelta(seconds=number) for number in range(1000)}
    for max_length in (1000, MAX_LENGTH):
        text = encode(since, max_length) or ""
        assert max_length / 2 < len(text) <= max_length
        assert max(since, key=lambda each: since[each]) in references({TAG: text})


def test_latest_carrier_of_a_reference_counts() -> None:
    versions = [version("1", production=2), version("2", production=1, stable=1), version("10", production=1)]
    result = latest(versions, PRODUCTION)
    assert result
    assert result.version == "10"
    assert contested(each.tags for each in versions) == {PRODUCTION}
    assert latest(versions, "models:/iris@other") is None


LATER, EARLIER = NOW, NOW - timedelta(hours=1)
BETWEEN = NOW - timedelta(minutes=1)


@pytest.mark.parametrize(
    ("swapped_at", "own", "other", "named", "reverted", "held"),
    [
        (LATER, {}, {}, "1", False, LATER),
        (LATER, {}, {"production": 1}, "1", False, LATER),
        (LATER, {}, {"production": 1}, None, False, LATER),
        (LATER, {}, {"production": 1}, "3", False, LATER),
        (LATER, {"production": 0}, {"production": 1}, "3", False, LATER),
        # another front has swapped later
        (EARLIER, {}, {"production": 1}, "3", False, None),
        (EARLIER, {"production": 2}, {"production": 1}, "3", False, None),
        (EARLIER, {}, {"production": 1}, None, False, None),
        # but the registry names this version, or a reverted one
        (EARLIER, {}, {"production": 1}, "1", False, BETWEEN + timedelta(milliseconds=1)),
        (EARLIER, {"production": 2}, {"production": 1}, "1", False, BETWEEN + timedelta(milliseconds=1)),
        (EARLIER, {}, {"production": 1}, "2", True, BETWEEN + timedelta(milliseconds=1)),
        # the registry names the version that is live elsewhere
        (LATER, {}, {"production": 1}, "2", False, None),
        # it replaces another version
        (None, {}, {"production": 1}, "3", False, None),
        (None, {"production": 1}, {"production": 2}, "3", False, BETWEEN),
    ],
)
def test_holder_of_a_reference(
    swapped_at: datetime | None,
    own: dict[str, int],
    other: dict[str, int],
    named: str | None,
    reverted: bool,
    held: datetime | None,
) -> None:
    versions = [version("1", **own), version("2", **other), version("3")]
    result = held_since(
        PRODUCTION, versions[0], swapped_at, versions, named=named, named_is_reverted=reverted
    )
    assert result == held


class Shelf:
    """A registry in memory: every call may take some turns of the loop, and one in ten fails."""

    def __init__(self, seed: int) -> None:
        self.tags: dict[str, dict[str, str]] = {number: {} for number in "123"}
        self.named = {PRODUCTION: "1", STABLE: "1"}
        self.contested: dict[str, frozenset[str]] = {}
        self.max_tag_length = MAX_LENGTH
        self.fails = True
        self.has_tags, self.reachable = True, True
        self._chance = random.Random(seed)
        self.written = 0
        self.lost: set[str] = set()
        """References that had a carrier before, and had none at some moment."""
        self._carried: set[str] = set()

    async def _wait(self) -> None:
        for _ in range(self._chance.randrange(5)):
            await asyncio.sleep(0)
        if self.fails and self._chance.random() < 0.1:
            raise RegistryUnavailable("it is away")

    def find(self, number: str) -> Version:
        stage = "Production" if self.named[PRODUCTION] == number else None
        return replace(version(number), tags=dict(self.tags[number]), stage=stage)

    def last(self, uri: str, but: str) -> Version | None:
        return latest([self.find(number) for number in self.tags if number != but], uri)

    def carriers(self, uri: str) -> list[str]:
        return [number for number, tags in self.tags.items() if uri in references(tags)]

    async def resolve(self, reference: Reference) -> tuple[Version, tuple[Version, ...]]:
        await self._wait()
        return self.find(self.named[reference.uri]), ()

    async def versions(self, name: str, *numbers: str | None) -> tuple[Version, ...]:
        await self._wait()
        return self.search(name)

    def search(self, name: str) -> tuple[Version, ...]:
        result = tuple(map(self.find, self.tags))
        self.contested[name] = contested(each.tags for each in result)
        return result

    async def write_tags(self, of: Version, news: TagChange) -> None:
        await self._wait()
        tags = self.tags[str(of.version)]
        for tag, value in news(dict(tags)).items():
            await self._wait()
            self.written += 1
            tags.pop(tag, None)
            if value is not None:
                tags[tag] = value
            carried = {uri for each in self.tags.values() for uri in references(each)}
            self._carried |= carried
            self.lost |= self._carried - carried


class Front:
    """A front that makes live what its references name, except for the version that it cannot load."""

    def __init__(self, shelf: Shelf, refuses: str = "") -> None:
        self.herald = TagWriter(cast("RegistryClient", shelf))
        self._shelf, self._refuses = shelf, refuses
        self._live: dict[str, str] = {}
        self._warm: dict[str, str] = {}
        self._reverted: dict[str, str] = {}

    async def look(self) -> None:
        self._shelf.search("iris")  # as polls of a stage do
        for uri, number in list(self._shelf.named.items()):
            result = self._shelf.find(number)
            if self._reverted.get(uri) != number:
                self._reverted.pop(uri, None)
                self._look(uri, result)
        await self.herald.flush()

    def _look(self, uri: str, found: Version) -> None:
        number, live = str(found.version), self._live.get(uri)
        was_reverted = live is None and found.tags.get("serving.state") == Outcome.REVERTED
        if live == number:
            self.herald.reassert(uri, found)
        elif number != self._refuses and not was_reverted:
            self._swap(uri, number)
        else:
            if number == self._refuses:
                self.herald.publish(found, Outcome.REJECTED, "it can't be loaded")
            if live is None and (last := self._shelf.last(uri, number)):
                self._live[uri] = str(last.version)
                self.herald.live(uri, last, "it served last", stands_in=True)

    def _swap(self, uri: str, number: str) -> None:
        old = self._live.get(uri)
        self._live[uri] = number
        self.herald.live(uri, self._shelf.find(number), "")
        if old:
            self._warm[uri] = old
            self.herald.publish(self._shelf.find(old), Outcome.SUPERSEDED, f"{number} went live")

    def revert(self, uri: str) -> None:
        """Revert the named version if it is live."""
        bad = self._shelf.named[uri]
        if self._live.get(uri) == bad and uri in self._warm:
            self._swap(uri, self._warm.pop(uri))
            self._reverted[uri] = bad
            self.herald.publish(self._shelf.find(bad), Outcome.REVERTED, "it failed")


FRONTS = 3
URIS, PLACES = st.sampled_from([PRODUCTION, STABLE]), st.integers(0, FRONTS - 1)
STEP = st.one_of(
    st.tuples(st.just("promote"), URIS, st.sampled_from("123")),
    st.tuples(st.just("look"), st.lists(PLACES, min_size=1, unique=True), st.none()),
    st.tuples(st.just("revert"), PLACES, URIS),
    st.tuples(st.just("restart"), PLACES, st.none()),
)


async def live_through(shelf: Shelf, steps: list[Any], *, together: bool, refused: str) -> None:
    """Take the steps, and then poll until nothing changes: the tags must be right then."""

    def start(place: int) -> Front:
        return Front(shelf, refused if place == FRONTS - 1 else "")

    async def look(places: Iterable[int]) -> None:
        if together:
            await asyncio.gather(*(fronts[place].look() for place in places))
        else:
            for place in places:
                await fronts[place].look()

    fronts = [start(place) for place in range(FRONTS)]
    for act, what, of in steps:
        if act == "promote":
            shelf.named[what] = of
        elif act == "look":
            await look(what)
        elif act == "revert":
            fronts[what].revert(of)
        else:
            fronts[what] = start(what)
    shelf.fails = False
    for _ in range(4):
        before = shelf.written
        for front in fronts:
            front.herald._checks = dict.fromkeys(front.herald._checks, 0.0)
        await look(range(FRONTS))
    assert shelf.written == before
    check(shelf)


def check(shelf: Shelf) -> None:
    live = set()
    for uri, number in shelf.named.items():
        carriers = shelf.carriers(uri)
        assert len(carriers) == 1
        assert carriers == [number] or shelf.tags[number]["serving.state"] == "reverted"
        live |= {*carriers}
    for number, tags in shelf.tags.items():
        assert (TAG in tags) is (number in live)
        assert tags.get("serving.state") in (
            ("live", "reverted") if number in live else (None, "superseded", "rejected", "reverted")
        )


SEEDS, REFUSED, STEPS = st.integers(0, 999), st.sampled_from(["", "2"]), st.lists(STEP, max_size=25)


@hypothesis.given(STEPS, SEEDS, REFUSED)
def test_concurrent_fronts_converge(steps: list[Any], seed: int, refused: str) -> None:
    asyncio.run(live_through(Shelf(seed), steps, together=True, refused=refused))


@hypothesis.given(STEPS, SEEDS, REFUSED)
def test_reference_has_a_carrier_despite_failed_writes(steps: list[Any], seed: int, refused: str) -> None:
    shelf = Shelf(seed)
    asyncio.run(live_through(shelf, steps, together=False, refused=refused))
    assert shelf.lost == set()
