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
from tests.support.followers import PRODUCTION, Stage, live, predict, settle
from tests.support.registry import actor

pytestmark = pytest.mark.anyio

BREAKING: dict[str, Any] = {"inputs": "x: double, y: double", "example": None}
BROKEN: dict[str, Any] = {"example": None, "on_load": "raise:no_weights"}


async def serve(stage: Stage, *parts: dict[str, Any], **settings: Any) -> Follower:
    """Promote versions one after the other while a front follows."""
    follower = stage.follow(**settings)
    for part in parts:
        stage.promote(**part)
        await settle(follower)
    return follower


def refused(follower: Follower) -> tuple[str | None, CandidatePhase] | None:
    return follower.candidate and (follower.candidate.version.version, follower.candidate.state)


PLACES = pytest.mark.parametrize("place", ["store", "elsewhere"], ids=["its own copy", "no copy"])


@PLACES
@pytest.mark.parametrize("part", [BREAKING, BROKEN], ids=["breaking", "broken"])
async def test_version_refused_elsewhere_is_verified_against_its_predecessor(
    stage: Stage, tmp_path: Path, part: dict[str, Any], place: str
) -> None:
    running = await serve(stage, {"factor": 2.0}, part)
    cold = stage.follow(store_dir=tmp_path / place)
    await settle(cold)
    for follower in (running, cold):
        assert live(follower) == "1"
        assert refused(follower) == ("2", CandidatePhase.REJECTED)
    stage.registry.client.set_model_version_tag("actor", "2", "serving.allow_breaking", "true")
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
async def test_later_front_does_not_load_a_reverted_version(stage: Stage, tmp_path: Path, place: str) -> None:
    running = await serve(stage, {"factor": 2.0}, {"factor": 3.0}, probation_seconds=600)
    await revert(running)
    cold = stage.follow(store_dir=tmp_path / place)
    await settle(cold)
    for follower in (running, cold):
        assert live(follower) == "1"
        assert refused(follower) == ("2", CandidatePhase.REVERTED)
    assert stage.tags("2")["serving.state"] == "reverted"
    stage.registry.client.set_model_version_tag("actor", "2", "data", "mended")
    await settle(cold)
    assert live(cold) == "2"
    assert stage.tags("2")["serving.state"] == "live"


async def test_fallback_served_the_same_reference(stage: Stage, tmp_path: Path) -> None:
    await serve(stage, {"factor": 2.0})
    tried = stage.follow("models:/actor/Staging")
    stage.promote("Staging", factor=3.0)
    await settle(tried)
    await serve(stage, BROKEN)
    cold = stage.follow(store_dir=tmp_path / "elsewhere")
    await settle(cold)
    assert (live(cold), refused(cold)) == ("1", ("3", CandidatePhase.REJECTED))


async def test_copy_on_disk_serves_a_deleted_version(stage: Stage) -> None:
    await serve(stage, {"factor": 2.0}, BROKEN)
    stage.registry.client.delete_model_version("actor", "1")
    cold = stage.follow()
    await settle(cold)
    assert (live(cold), refused(cold)) == ("1", ("2", CandidatePhase.REJECTED))


async def test_promoted_version_is_tried_without_a_fallback(stage: Stage, tmp_path: Path) -> None:
    await serve(stage, {"factor": 2.0}, BREAKING)
    stage.registry.client.delete_model_version("actor", "1")
    cold = stage.follow(store_dir=tmp_path / "elsewhere")
    await settle(cold)
    assert live(cold) == "2"


async def test_fallback_serves_while_the_download_fails(stage: Stage, tmp_path: Path) -> None:
    await serve(stage, {"factor": 2.0})
    saved = actor(tmp_path, factor=3.0)
    saved.rename(tmp_path / "away")
    stage.registry.promote("actor", stage.registry.register("actor", saved))
    cold = stage.follow()
    await settle(cold)
    assert (live(cold), refused(cold)) == ("1", ("2", CandidatePhase.WAITING))
    assert stage.live("1").keys() == {PRODUCTION}


async def test_fallback_serves_despite_an_unexpected_error(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await serve(stage, {"factor": 2.0})
    stage.promote(factor=3.0)
    cold = stage.follow()

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


def carriers(stage: Stage, reference: str = PRODUCTION) -> list[str]:
    """Return the versions whose tag contains the reference, the latest last."""
    versions = stage.registry.client.search_model_versions("name='actor'")
    since = {each.version: stage.live(each.version).get(reference) for each in versions}
    return [str(number) for number in sorted(since, key=lambda each: since[each] or "") if since[number]]


async def test_new_front_serves_the_last_live_version(stage: Stage, tmp_path: Path) -> None:
    front = stage.front(PRODUCTION, STABLE, CHAMPION)
    stage.promote(factor=2.0)
    for alias in ("stable", "champion"):
        stage.registry.alias("actor", alias, "1")
    await settle_all(front)
    assert stage.live("1").keys() == {PRODUCTION, STABLE, CHAMPION}
    stage.promote(factor=3.0)
    stage.registry.alias("actor", "champion", "2")
    await settle_all(front)
    assert stage.live("1").keys() == {STABLE}
    assert stage.live("2").keys() == {PRODUCTION, CHAMPION}
    assert stage.tags("1")["serving.state"] == "live"
    stage.registry.promote("actor", "1")
    await settle_all(front)
    stage.promote(**BROKEN)
    await settle_all(front)
    assert stage.live("1").keys() == {PRODUCTION, STABLE}
    assert stage.live("2").keys() == {CHAMPION}
    assert stage.tags("2")["serving.state"] == "live"
    assert stage.tags("3")["serving.state"] == "rejected"
    assert stage.live("1")[PRODUCTION] > stage.live("2")[CHAMPION]
    assert stage.live("3") == {}
    cold = stage.follow(store_dir=tmp_path / "elsewhere")
    await settle(cold)
    assert (live(cold), refused(cold)) == ("1", ("3", CandidatePhase.REJECTED))


async def both(stage: Stage, tmp_path: Path) -> tuple[Follower, Follower]:
    """Start two fronts, each with a store of its own, and promote a first version."""
    first, second = stage.follow(), stage.follow(store_dir=tmp_path / "second")
    stage.promote(factor=2.0)
    await settle_all([first, second])
    return first, second


async def begun(stage: Stage, tmp_path: Path, reference: str = PRODUCTION) -> str | None:
    """Return the version that a front with an empty store starts with."""
    cold = stage.follow(reference, store_dir=tmp_path / "cold")
    await settle(cold)
    return live(cold)


async def test_late_front_does_not_take_the_reference_back(stage: Stage, tmp_path: Path) -> None:
    first, late = await both(stage, tmp_path)
    stage.promote(factor=3.0)
    await settle_all([first, late])
    stage.registry.promote("actor", "1")
    await settle(first)
    stage.promote(**BROKEN)
    await settle_all([first, late, first, late])
    assert (live(first), live(late)) == ("1", "2")
    assert carriers(stage) == ["1"]
    assert await begun(stage, tmp_path) == "1"


async def test_front_that_missed_a_promotion_repairs_the_tags(stage: Stage, tmp_path: Path) -> None:
    """The other front ends before it sees that the reference was taken back."""
    missed, seen = await both(stage, tmp_path)
    stage.promote(factor=3.0)
    await settle(seen)
    assert carriers(stage) == ["2"]
    stage.registry.promote("actor", "1")
    await settle_all([missed, missed])
    assert carriers(stage) == ["1"]
    assert stage.tags("1")["serving.state"] == "live"
    assert stage.tags("2")["serving.state"] == "superseded"
    stage.promote(**BROKEN)
    await settle(missed)
    assert await begun(stage, tmp_path) == "1"


async def test_front_that_cannot_load_takes_no_reference(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    able, unable = await both(stage, tmp_path)
    load_and_verify = unable._gate.load_and_verify

    async def refuse(found: Version, *more: Any) -> Any:
        if found.version == "2":
            raise ProcessDied("it needs weights")
        return await load_and_verify(found, *more)

    monkeypatch.setattr(unable._gate, "load_and_verify", refuse)
    stage.promote(factor=3.0)
    await settle_all([able, unable])
    assert (live(able), live(unable)) == ("2", "1")
    await unable.unload("it starts again")
    unable.slot.last_live = None
    await settle_all([unable, able, unable])
    assert live(unable) == "1"
    assert carriers(stage) == ["2"]
    assert stage.tags("1")["serving.state"] == "superseded"


async def test_another_front_completes_interrupted_writes(stage: Stage, tmp_path: Path) -> None:
    first, second = await both(stage, tmp_path)
    stage.promote(factor=3.0)
    await settle_all([first, second])
    since = json.dumps({PRODUCTION: "2026-01-01T00:00:00Z"})
    stage.registry.client.set_model_version_tag("actor", "1", "serving.live", since)
    assert carriers(stage) == ["1", "2"]
    await settle(second)
    assert carriers(stage) == ["2"]


async def test_revert_takes_the_reference_back(stage: Stage, tmp_path: Path) -> None:
    front = stage.front(PRODUCTION, STABLE, probation_seconds=600)
    stage.promote(factor=2.0)
    stage.registry.alias("actor", "stable", "1")
    await settle_all(front)
    before = stage.live("1")
    stage.promote(factor=3.0)
    await settle_all(front)
    assert stage.live("1").keys() == {STABLE}
    await revert(front[0])
    assert stage.live("1")[STABLE] == before[STABLE]
    assert stage.live("1")[PRODUCTION] > before[PRODUCTION]
    assert stage.tags("1")["serving.state"] == "live"
    assert (stage.tags("2")["serving.state"], stage.live("2")) == ("reverted", {})
    assert await begun(stage, tmp_path) == "1"


async def test_version_reverted_elsewhere_is_live_when_promoted_again(stage: Stage, tmp_path: Path) -> None:
    first, second = [
        stage.follow(store_dir=tmp_path / name, probation_seconds=600) for name in ("first", "second")
    ]
    for factor in (2.0, 3.0):
        stage.promote(factor=factor)
        await settle_all([first, second])
    await revert(first)
    assert (live(first), live(second)) == ("1", "2")
    assert carriers(stage) == ["1"]
    stage.registry.promote("actor", "1")
    await settle(second)
    stage.registry.promote("actor", "2")
    await settle(second)
    assert carriers(stage) == ["2"]
    assert stage.tags("2")["serving.state"] == "live"


async def test_alias_can_move_back_and_forth(stage: Stage, tmp_path: Path) -> None:
    front = stage.front(CHAMPION, STABLE)
    for factor in (2.0, 3.0):
        stage.registry.add("actor", factor=factor)
    stage.registry.alias("actor", "stable", "1")
    for number in "1212":
        stage.registry.alias("actor", "champion", number)
        await settle_all(front)
        assert carriers(stage, CHAMPION) == [number]
        assert carriers(stage, STABLE) == ["1"]
    stage.registry.alias("actor", "champion", "1")
    await settle_all(front)
    stage.registry.add("actor", **BROKEN)
    stage.registry.alias("actor", "champion", "3")
    await settle_all(front)
    assert await begun(stage, tmp_path, CHAMPION) == "1"


async def test_new_front_starts_with_the_latest_servable_version(stage: Stage, tmp_path: Path) -> None:
    follower = stage.follow(LATEST)
    for part in ({"factor": 2.0}, {"factor": 3.0}, BROKEN):
        stage.registry.add("actor", **part)
        await settle(follower)
    assert carriers(stage, LATEST) == ["2"]
    assert await begun(stage, tmp_path, LATEST) == "2"


async def test_rejected_version_takes_the_reference_once_repaired(stage: Stage, tmp_path: Path) -> None:
    follower = await serve(stage, {"factor": 2.0})
    (tmp_path / "taken").touch()
    stage.promote(on_load=f"once:{tmp_path / 'taken'}")
    await settle(follower)
    assert carriers(stage) == ["1"]
    (tmp_path / "taken").unlink()
    stage.registry.client.set_model_version_tag("actor", "2", "weights", "restored")
    await settle(follower)
    assert carriers(stage) == ["2"]
    assert stage.tags("2")["serving.state"] == "live"


async def test_live_version_keeps_the_reference_when_demoted(stage: Stage, tmp_path: Path) -> None:
    front = stage.front(PRODUCTION, STABLE)
    stage.promote(factor=2.0)
    stage.registry.alias("actor", "stable", "1")
    await settle_all(front)
    before = stage.tags("1")
    stage.registry.promote("actor", "1", "Archived")
    stage.registry.client.delete_registered_model_alias("actor", "stable")
    await settle_all([*front, *front])
    assert {**stage.tags("1"), "serving.batching": before.get("serving.batching")} == {
        "serving.batching": None,  # written after some seconds
        **before,
    }
    stage.promote(**BROKEN)
    assert await begun(stage, tmp_path) == "1"


async def test_restart_changes_no_tags(stage: Stage) -> None:
    follower = await serve(stage, {"factor": 2.0}, {"factor": 3.0})
    before = stage.tags("1"), stage.tags("2")
    await follower.unload("it ends")
    await serve(stage)
    again = stage.follow()
    await settle(again)
    assert live(again) == "2"
    assert (stage.tags("1"), stage.tags("2")) == before


async def test_restart_during_a_load_starts_that_version(stage: Stage, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    follower = await serve(stage, {"factor": 2.0})
    stage.promote(example=None, on_load=f"wait:{pipe}")
    await follower.tick()
    await follower.unload("it ends")
    assert carriers(stage) == ["1"]
    again = stage.follow()
    await again.tick()
    await asyncio.to_thread(pipe.write_text, "")
    await settle(again)
    assert carriers(stage) == ["2"]
    assert stage.tags("1")["serving.state"] == "superseded"
