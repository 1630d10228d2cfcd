"""A front with nothing live begins with what served last, where what is promoted can't or must not serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from casting import actor
from stage import PRODUCTION, Stage, live, predict, settle

from serving.errors import Unavailable
from serving.registry.follower import Follower
from serving.registry.plan import State

pytestmark = pytest.mark.anyio

BREAKING: dict[str, Any] = {"inputs": "x: double, y: double", "example": None}
BROKEN: dict[str, Any] = {"example": None, "on_load": "raise:no_weights"}


async def serve(stage: Stage, *parts: dict[str, Any], **settings: Any) -> Follower:
    """Promote one after the other while a front follows."""
    follower = stage.follow(**settings)
    for part in parts:
        stage.promote(**part)
        await settle(follower)
    return follower


def refused(follower: Follower) -> tuple[str | None, State] | None:
    return follower.candidate and (follower.candidate.version.version, follower.candidate.state)


PLACES = pytest.mark.parametrize("place", ["store", "elsewhere"], ids=["its own copy", "no copy"])


@PLACES
@pytest.mark.parametrize("part", [BREAKING, BROKEN], ids=["breaking", "broken"])
async def test_what_was_refused_elsewhere_is_judged_by_what_served_then(
    stage: Stage, tmp_path: Path, part: dict[str, Any], place: str
) -> None:
    running = await serve(stage, {"factor": 2.0}, part)
    cold = stage.follow(store_dir=tmp_path / place)
    await settle(cold)
    for follower in (running, cold):
        assert live(follower) == "1"
        assert refused(follower) == ("2", State.REJECTED)
    stage.registry.client.set_model_version_tag("actor", "2", "serving.allow_breaking", "true")
    await settle(cold)
    assert live(cold) == ("2" if part is BREAKING else "1")


async def revert(follower: Follower) -> None:
    """Have the processes of what has just gone live die, until the front goes back."""
    bad = live(follower)
    while live(follower) == bad:
        with pytest.raises(Unavailable):
            await predict(follower, act="kill")
        await follower.tick()
    await settle(follower)


@PLACES
async def test_what_was_reverted_is_not_taken_by_fronts_that_start_later(
    stage: Stage, tmp_path: Path, place: str
) -> None:
    running = await serve(stage, {"factor": 2.0}, {"factor": 3.0}, probation_seconds=600)
    await revert(running)
    cold = stage.follow(store_dir=tmp_path / place)
    await settle(cold)
    for follower in (running, cold):
        assert live(follower) == "1"
        assert refused(follower) == ("2", State.REVERTED)
    assert stage.tags("2")["serving.state"] == "reverted"
    stage.registry.client.set_model_version_tag("actor", "2", "data", "mended")
    await settle(cold)
    assert live(cold) == "2"
    assert stage.tags("2")["serving.state"] == "live"


async def test_what_served_last_is_what_served_as_this_reference(stage: Stage, tmp_path: Path) -> None:
    await serve(stage, {"factor": 2.0})
    tried = stage.follow("models:/actor/Staging")
    stage.promote("Staging", factor=3.0)
    await settle(tried)
    await serve(stage, BROKEN)
    cold = stage.follow(store_dir=tmp_path / "elsewhere")
    await settle(cold)
    assert (live(cold), refused(cold)) == ("1", ("3", State.REJECTED))


async def test_where_it_is_gone_from_the_registry_the_copy_on_disk_serves(stage: Stage) -> None:
    await serve(stage, {"factor": 2.0}, BROKEN)
    stage.registry.client.delete_model_version("actor", "1")
    cold = stage.follow()
    await settle(cold)
    assert (live(cold), refused(cold)) == ("1", ("2", State.REJECTED))


async def test_where_nothing_is_left_of_it_what_is_promoted_is_tried(stage: Stage, tmp_path: Path) -> None:
    await serve(stage, {"factor": 2.0}, BREAKING)
    stage.registry.client.delete_model_version("actor", "1")
    cold = stage.follow(store_dir=tmp_path / "elsewhere")
    await settle(cold)
    assert live(cold) == "2"


async def test_what_can_not_be_had_yet_is_waited_for_with_what_served_last(
    stage: Stage, tmp_path: Path
) -> None:
    await serve(stage, {"factor": 2.0})
    saved = actor(tmp_path, factor=3.0)
    saved.rename(tmp_path / "away")
    stage.registry.promote("actor", stage.registry.register("actor", saved))
    cold = stage.follow()
    await settle(cold)
    assert (live(cold), refused(cold)) == ("1", ("2", State.WAITING))
    assert stage.live("1").keys() == {PRODUCTION}


async def test_a_mistake_in_the_front_does_not_keep_what_served_last_from_serving(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await serve(stage, {"factor": 2.0})
    stage.promote(factor=3.0)
    cold = stage.follow()

    async def mistaken(*_: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(cold._gate, "bring_up", mistaken)
    await settle(cold)
    assert (live(cold), refused(cold)) == ("1", ("2", State.REJECTED))
    assert "a mistake of ours" in caplog.text


STABLE, CHAMPION, LATEST = "models:/actor@stable", "models:/actor@champion", "models:/actor/latest"


async def settle_all(front: list[Follower]) -> None:
    for follower in front:
        await settle(follower)


def carriers(stage: Stage, reference: str = PRODUCTION) -> list[str]:
    """Return the versions whose tag names the reference, the one that took it last at the end."""
    found = stage.registry.client.search_model_versions("name='actor'")
    since = {each.version: stage.live(each.version).get(reference) for each in found}
    return [str(number) for number in sorted(since, key=lambda each: since[each] or "") if since[number]]


async def test_a_new_front_serves_what_was_live_last(stage: Stage, tmp_path: Path) -> None:
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
    assert (live(cold), refused(cold)) == ("1", ("3", State.REJECTED))
