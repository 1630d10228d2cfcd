"""A front with nothing live falls back to the last live version if the promoted one cannot serve."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from serving.errors import ProcessDied, Unavailable
from serving.registry.decisions import CandidatePhase
from serving.registry.follower import Follower
from serving.version import Version
from tests.support.followers import PRODUCTION, FollowerHarness, live, predict, settle
from tests.support.registry import save_scripted_model

pytestmark = pytest.mark.anyio

BREAKING: dict[str, Any] = {"inputs": "x: double, y: double", "example": None}
BROKEN: dict[str, Any] = {"example": None, "on_load": "raise:no_weights"}


async def serve(harness: FollowerHarness, *parts: dict[str, Any], **settings: Any) -> Follower:
    """Promote versions one after the other while a front follows."""
    follower = harness.follow(**settings)
    for part in parts:
        harness.promote(**part)
        await settle(follower)
    return follower


def refused(follower: Follower) -> tuple[str | None, CandidatePhase] | None:
    candidate = follower.candidate
    return (candidate.version.version, candidate.state) if candidate else None


PLACES = pytest.mark.parametrize("place", ["store", "elsewhere"], ids=["its own copy", "no copy"])


@PLACES
@pytest.mark.parametrize("part", [BREAKING, BROKEN], ids=["breaking", "broken"])
async def test_version_refused_elsewhere_is_verified_against_its_predecessor(
    harness: FollowerHarness, tmp_path: Path, part: dict[str, Any], place: str
) -> None:
    running = await serve(harness, {"factor": 2.0}, part)
    cold = harness.follow(store_dir=tmp_path / place)
    await settle(cold)
    for follower in (running, cold):
        assert live(follower) == "1"
        assert refused(follower) == ("2", CandidatePhase.REJECTED)
    harness.registry.client.set_model_version_tag("actor", "2", "serving.allow_breaking", "true")
    await settle(cold)
    assert live(cold) == ("2" if part is BREAKING else "1")


async def revert(follower: Follower) -> None:
    """Kill the processes of the new version until the front reverts it."""
    bad = live(follower)
    while live(follower) == bad:
        with pytest.raises(Unavailable):
            await predict(follower, act="kill")
        await follower.tick()
    await settle(follower)


@PLACES
async def test_later_front_does_not_load_a_reverted_version(
    harness: FollowerHarness, tmp_path: Path, place: str
) -> None:
    running = await serve(harness, {"factor": 2.0}, {"factor": 3.0}, probation_seconds=600)
    await revert(running)
    cold = harness.follow(store_dir=tmp_path / place)
    await settle(cold)
    for follower in (running, cold):
        assert live(follower) == "1"
        assert refused(follower) == ("2", CandidatePhase.REVERTED)
    assert harness.tags("2")["serving.state"] == "reverted"
    harness.registry.client.set_model_version_tag("actor", "2", "data", "mended")
    await settle(cold)
    assert live(cold) == "2"
    assert harness.tags("2")["serving.state"] == "live"


async def test_fallback_served_the_same_reference(harness: FollowerHarness, tmp_path: Path) -> None:
    await serve(harness, {"factor": 2.0})
    tried = harness.follow("models:/actor/Staging")
    harness.promote("Staging", factor=3.0)
    await settle(tried)
    await serve(harness, BROKEN)
    cold = harness.follow(store_dir=tmp_path / "elsewhere")
    await settle(cold)
    assert (live(cold), refused(cold)) == ("1", ("3", CandidatePhase.REJECTED))


async def test_copy_on_disk_serves_a_deleted_version(harness: FollowerHarness) -> None:
    await serve(harness, {"factor": 2.0}, BROKEN)
    harness.registry.client.delete_model_version("actor", "1")
    cold = harness.follow()
    await settle(cold)
    assert (live(cold), refused(cold)) == ("1", ("2", CandidatePhase.REJECTED))


async def test_promoted_version_is_tried_without_a_fallback(harness: FollowerHarness, tmp_path: Path) -> None:
    await serve(harness, {"factor": 2.0}, BREAKING)
    harness.registry.client.delete_model_version("actor", "1")
    cold = harness.follow(store_dir=tmp_path / "elsewhere")
    await settle(cold)
    assert live(cold) == "2"


async def test_fallback_serves_while_the_download_fails(harness: FollowerHarness, tmp_path: Path) -> None:
    await serve(harness, {"factor": 2.0})
    saved = save_scripted_model(tmp_path, factor=3.0)
    saved.rename(tmp_path / "away")
    harness.registry.promote("actor", harness.registry.register("actor", saved))
    cold = harness.follow()
    await settle(cold)
    assert (live(cold), refused(cold)) == ("1", ("2", CandidatePhase.WAITING))
    assert harness.live("1").keys() == {PRODUCTION}


async def test_fallback_serves_despite_an_unexpected_error(
    harness: FollowerHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await serve(harness, {"factor": 2.0})
    harness.promote(factor=3.0)
    cold = harness.follow()

    async def mistaken(*_: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(cold._gate, "load_and_verify", mistaken)
    await settle(cold)
    assert (live(cold), refused(cold)) == ("1", ("2", CandidatePhase.REJECTED))
    assert "a mistake of ours" in caplog.text


STABLE, CHAMPION, LATEST = "models:/actor@stable", "models:/actor@champion", "models:/actor/latest"


async def settle_all(front: list[Follower]) -> None:
    for follower in front:
        await settle(follower)


def carriers(harness: FollowerHarness, reference: str = PRODUCTION) -> list[str]:
    """Return the versions whose tag contains the reference, the latest last."""
    versions = harness.registry.client.search_model_versions("name='actor'")
    since = {each.version: harness.live(each.version).get(reference) for each in versions}
    return [str(number) for number in sorted(since, key=lambda each: since[each] or "") if since[number]]


async def test_new_front_serves_the_last_live_version(harness: FollowerHarness, tmp_path: Path) -> None:
    front = harness.front(PRODUCTION, STABLE, CHAMPION)
    harness.promote(factor=2.0)
    for alias in ("stable", "champion"):
        harness.registry.alias("actor", alias, "1")
    await settle_all(front)
    assert harness.live("1").keys() == {PRODUCTION, STABLE, CHAMPION}
    harness.promote(factor=3.0)
    harness.registry.alias("actor", "champion", "2")
    await settle_all(front)
    assert harness.live("1").keys() == {STABLE}
    assert harness.live("2").keys() == {PRODUCTION, CHAMPION}
    assert harness.tags("1")["serving.state"] == "live"
    harness.registry.promote("actor", "1")
    await settle_all(front)
    harness.promote(**BROKEN)
    await settle_all(front)
    assert harness.live("1").keys() == {PRODUCTION, STABLE}
    assert harness.live("2").keys() == {CHAMPION}
    assert harness.tags("2")["serving.state"] == "live"
    assert harness.tags("3")["serving.state"] == "rejected"
    assert harness.live("1")[PRODUCTION] > harness.live("2")[CHAMPION]
    assert harness.live("3") == {}
    cold = harness.follow(store_dir=tmp_path / "elsewhere")
    await settle(cold)
    assert (live(cold), refused(cold)) == ("1", ("3", CandidatePhase.REJECTED))


async def both(harness: FollowerHarness, tmp_path: Path) -> tuple[Follower, Follower]:
    """Start two fronts, each with a store of its own, and promote a first version."""
    first, second = harness.follow(), harness.follow(store_dir=tmp_path / "second")
    harness.promote(factor=2.0)
    await settle_all([first, second])
    return first, second


async def begun(harness: FollowerHarness, tmp_path: Path, reference: str = PRODUCTION) -> str | None:
    """Return the version that a front with an empty store starts with."""
    cold = harness.follow(reference, store_dir=tmp_path / "cold")
    await settle(cold)
    return live(cold)


async def test_late_front_does_not_take_the_reference_back(harness: FollowerHarness, tmp_path: Path) -> None:
    first, late = await both(harness, tmp_path)
    harness.promote(factor=3.0)
    await settle_all([first, late])
    harness.registry.promote("actor", "1")
    await settle(first)
    harness.promote(**BROKEN)
    await settle_all([first, late, first, late])
    assert (live(first), live(late)) == ("1", "2")
    assert carriers(harness) == ["1"]
    assert await begun(harness, tmp_path) == "1"


async def test_front_that_missed_a_promotion_repairs_the_tags(
    harness: FollowerHarness, tmp_path: Path
) -> None:
    """The other front ends before it sees that the reference was taken back."""
    missed, seen = await both(harness, tmp_path)
    harness.promote(factor=3.0)
    await settle(seen)
    assert carriers(harness) == ["2"]
    harness.registry.promote("actor", "1")
    await settle_all([missed, missed])
    assert carriers(harness) == ["1"]
    assert harness.tags("1")["serving.state"] == "live"
    assert harness.tags("2")["serving.state"] == "superseded"
    harness.promote(**BROKEN)
    await settle(missed)
    assert await begun(harness, tmp_path) == "1"


async def test_front_that_cannot_load_takes_no_reference(
    harness: FollowerHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    able, unable = await both(harness, tmp_path)
    load_and_verify = unable._gate.load_and_verify

    async def refuse(found: Version, *more: Any) -> Any:
        if found.version == "2":
            raise ProcessDied("it needs weights")
        return await load_and_verify(found, *more)

    monkeypatch.setattr(unable._gate, "load_and_verify", refuse)
    harness.promote(factor=3.0)
    await settle_all([able, unable])
    assert (live(able), live(unable)) == ("2", "1")
    await unable.unload("it starts again")
    unable.slot.last_live = None
    await settle_all([unable, able, unable])
    assert live(unable) == "1"
    assert carriers(harness) == ["2"]
    assert harness.tags("1")["serving.state"] == "superseded"


async def test_another_front_completes_interrupted_writes(harness: FollowerHarness, tmp_path: Path) -> None:
    first, second = await both(harness, tmp_path)
    harness.promote(factor=3.0)
    await settle_all([first, second])
    since = json.dumps({PRODUCTION: "2026-01-01T00:00:00Z"})
    harness.registry.client.set_model_version_tag("actor", "1", "serving.live", since)
    assert carriers(harness) == ["1", "2"]
    await settle(second)
    assert carriers(harness) == ["2"]


async def test_revert_takes_the_reference_back(harness: FollowerHarness, tmp_path: Path) -> None:
    front = harness.front(PRODUCTION, STABLE, probation_seconds=600)
    harness.promote(factor=2.0)
    harness.registry.alias("actor", "stable", "1")
    await settle_all(front)
    before = harness.live("1")
    harness.promote(factor=3.0)
    await settle_all(front)
    assert harness.live("1").keys() == {STABLE}
    await revert(front[0])
    assert harness.live("1")[STABLE] == before[STABLE]
    assert harness.live("1")[PRODUCTION] > before[PRODUCTION]
    assert harness.tags("1")["serving.state"] == "live"
    assert (harness.tags("2")["serving.state"], harness.live("2")) == ("reverted", {})
    assert await begun(harness, tmp_path) == "1"


async def test_version_reverted_elsewhere_is_live_when_promoted_again(
    harness: FollowerHarness, tmp_path: Path
) -> None:
    first, second = [
        harness.follow(store_dir=tmp_path / name, probation_seconds=600) for name in ("first", "second")
    ]
    for factor in (2.0, 3.0):
        harness.promote(factor=factor)
        await settle_all([first, second])
    await revert(first)
    assert (live(first), live(second)) == ("1", "2")
    assert carriers(harness) == ["1"]
    harness.registry.promote("actor", "1")
    await settle(second)
    harness.registry.promote("actor", "2")
    await settle(second)
    assert carriers(harness) == ["2"]
    assert harness.tags("2")["serving.state"] == "live"


async def test_alias_can_move_back_and_forth(harness: FollowerHarness, tmp_path: Path) -> None:
    front = harness.front(CHAMPION, STABLE)
    for factor in (2.0, 3.0):
        harness.registry.add("actor", factor=factor)
    harness.registry.alias("actor", "stable", "1")
    for number in "1212":
        harness.registry.alias("actor", "champion", number)
        await settle_all(front)
        assert carriers(harness, CHAMPION) == [number]
        assert carriers(harness, STABLE) == ["1"]
    harness.registry.alias("actor", "champion", "1")
    await settle_all(front)
    harness.registry.add("actor", **BROKEN)
    harness.registry.alias("actor", "champion", "3")
    await settle_all(front)
    assert await begun(harness, tmp_path, CHAMPION) == "1"


async def test_new_front_starts_with_the_latest_servable_version(
    harness: FollowerHarness, tmp_path: Path
) -> None:
    follower = harness.follow(LATEST)
    for part in ({"factor": 2.0}, {"factor": 3.0}, BROKEN):
        harness.registry.add("actor", **part)
        await settle(follower)
    assert carriers(harness, LATEST) == ["2"]
    assert await begun(harness, tmp_path, LATEST) == "2"


async def test_rejected_version_takes_the_reference_once_repaired(
    harness: FollowerHarness, tmp_path: Path
) -> None:
    follower = await serve(harness, {"factor": 2.0})
    (tmp_path / "taken").touch()
    harness.promote(on_load=f"once:{tmp_path / 'taken'}")
    await settle(follower)
    assert carriers(harness) == ["1"]
    (tmp_path / "taken").unlink()
    harness.registry.client.set_model_version_tag("actor", "2", "weights", "restored")
    await settle(follower)
    assert carriers(harness) == ["2"]
    assert harness.tags("2")["serving.state"] == "live"


async def test_live_version_keeps_the_reference_when_demoted(
    harness: FollowerHarness, tmp_path: Path
) -> None:
    front = harness.front(PRODUCTION, STABLE)
    harness.promote(factor=2.0)
    harness.registry.alias("actor", "stable", "1")
    await settle_all(front)
    before = harness.tags("1")
    harness.registry.promote("actor", "1", "Archived")
    harness.registry.client.delete_registered_model_alias("actor", "stable")
    await settle_all([*front, *front])
    assert {**harness.tags("1"), "serving.batching": before.get("serving.batching")} == {
        "serving.batching": None,  # written after some seconds
        **before,
    }
    harness.promote(**BROKEN)
    assert await begun(harness, tmp_path) == "1"


async def test_restart_changes_no_tags(harness: FollowerHarness) -> None:
    follower = await serve(harness, {"factor": 2.0}, {"factor": 3.0})
    before = harness.tags("1"), harness.tags("2")
    await follower.unload("it ends")
    await serve(harness)
    again = harness.follow()
    await settle(again)
    assert live(again) == "2"
    assert (harness.tags("1"), harness.tags("2")) == before


async def test_restart_during_a_load_starts_that_version(harness: FollowerHarness, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    follower = await serve(harness, {"factor": 2.0})
    harness.promote(example=None, on_load=f"wait:{pipe}")
    await follower.tick()
    await follower.unload("it ends")
    assert carriers(harness) == ["1"]
    again = harness.follow()
    await again.tick()
    await asyncio.to_thread(pipe.write_text, "")
    await settle(again)
    assert carriers(harness) == ["2"]
    assert harness.tags("1")["serving.state"] == "superseded"
