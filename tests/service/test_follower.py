"""Follows promotions on a real registry with real model processes, one tick at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from serving.errors import NotLive
from serving.models.loaded_model import LoadedModel
from serving.promotion_errors import PromotionWaits, Rejected
from serving.reference import Reference
from serving.registry.decisions import Action, Candidate, CandidatePhase, decide, next_poll_delay, retry_delay
from serving.registry.promotion_check import Promotion, PromotionCheck
from serving.supervision import Supervisor
from serving.version import Version
from tests.support.followers import FollowerHarness, live, predict, settle
from tests.support.process_ids import Watch
from tests.support.registry import Registry, save_scripted_model
from tests.support.service import until

pytestmark = pytest.mark.anyio


# -- decisions

ONE, TWO = (Version("iris", number, f"/{number}", f"/{number}") for number in "12")
TAGGED = replace(TWO, tags={"note": "fixed"})
TOLD = replace(TWO, tags={"serving.state": "rejected", "serving.reason": "broken"})


def candidate(version: Version, state: CandidatePhase, retry_at: float | None = None) -> Candidate:
    return Candidate(version, state, retry_at=retry_at)


@pytest.mark.parametrize(
    ("found", "live", "before", "step"),
    [
        (ONE, None, None, Action.START),
        (ONE, ONE, None, Action.NOTHING),
        (
            replace(ONE, stage="Production", aliases=("best",), tags={"a": "b"}),
            ONE,
            None,
            Action.NOTHING,
        ),
        (TWO, ONE, None, Action.START),
        (ONE, TWO, None, Action.START),
        # while one loads
        (TWO, ONE, candidate(TWO, CandidatePhase.LOADING), Action.NOTHING),
        (TAGGED, ONE, candidate(TWO, CandidatePhase.LOADING), Action.NOTHING),
        (ONE, ONE, candidate(TWO, CandidatePhase.LOADING), Action.FORGET),
        (TWO, None, candidate(ONE, CandidatePhase.LOADING), Action.START),
        # after one was refused
        (TWO, ONE, candidate(TWO, CandidatePhase.REJECTED), Action.NOTHING),
        (TOLD, ONE, candidate(TWO, CandidatePhase.REJECTED), Action.NOTHING),
        (TAGGED, ONE, candidate(TWO, CandidatePhase.REJECTED), Action.START),
        (TWO, ONE, candidate(TWO, CandidatePhase.REJECTED, 11.0), Action.NOTHING),
        (TWO, ONE, candidate(TWO, CandidatePhase.REJECTED, 9.0), Action.START),
        (ONE, ONE, candidate(TWO, CandidatePhase.REJECTED), Action.FORGET),
        # while one waits
        (TWO, ONE, candidate(TWO, CandidatePhase.WAITING, 11.0), Action.NOTHING),
        (TWO, ONE, candidate(TWO, CandidatePhase.WAITING, 10.0), Action.START),
        # after one was reverted
        (TWO, ONE, candidate(TWO, CandidatePhase.REVERTED), Action.NOTHING),
        (TAGGED, ONE, candidate(TWO, CandidatePhase.REVERTED), Action.START),
    ],
)
async def test_decide(found: Version, live: Version | None, before: Candidate | None, step: Action) -> None:
    assert decide(found, live, before, 10.0) is step


@pytest.mark.parametrize("failures", [0, 1, 5, 10, 10_000])
async def test_retry_delay_grows_up_to_a_limit(failures: int) -> None:
    assert 0.4 <= retry_delay(failures) <= 36
    assert retry_delay(failures) < retry_delay(failures + 3) or failures >= 5


@pytest.mark.parametrize(
    ("waited", "before", "seconds"),
    [
        (0.02, 1.0, 1.0),
        (0.5, 1.0, 2.0),  # a fifth of the time is spent in calls
        (3.0, 1.0, 12.0),
        (0.02, 10.0, 8.0),  # the delay shrinks gradually after a slow response
        (600.0, 1.0, 30.0),
    ],
    ids=["quick", "slow", "too slow", "quick again", "hopeless"],
)
async def test_slow_registry_is_polled_less_often(waited: float, before: float, seconds: float) -> None:
    assert next_poll_delay(1.0, waited, before) == seconds


async def test_long_poll_interval_is_kept() -> None:
    assert next_poll_delay(60.0, 600.0, 0.0) == 60.0


# -- flows


def pids(loaded: LoadedModel | None) -> list[int]:
    assert loaded
    return [replica.pid for replica in loaded._pool.replicas if replica.pid]


async def test_promotion_goes_live(harness: FollowerHarness) -> None:
    follower = harness.follow()
    await settle(follower)
    assert follower.slot.reason == "the registry has no version of a model 'actor'"
    with pytest.raises(NotLive, match="models:/actor/Production is not live: the registry has no version"):
        follower.slot.lease()
    harness.registry.add("actor", factor=2.0)
    await settle(follower)
    assert follower.slot.reason == "no version of 'actor' is in stage Production"
    harness.registry.promote("actor", "1")
    await settle(follower)
    assert live(follower) == "1"
    assert follower.candidate is None
    assert await predict(follower) == 2.0


async def test_shared_follower_polls_only_after_a_change(harness: FollowerHarness) -> None:
    follower = harness.follow(shared=True, poll_seconds=1e-9)
    harness.promote(factor=2.0)
    await settle(follower)
    looks, resolve = [], follower._registry.resolve

    async def counted(reference: Reference) -> Any:
        looks.append(reference)
        return await resolve(reference)

    follower._registry.resolve = counted  # type: ignore[method-assign]
    for _ in range(5):
        await follower.tick()
    assert looks == []
    harness.promote(factor=3.0)
    await settle(follower)
    assert looks
    assert await predict(follower) == 3.0


async def test_next_version_takes_over_and_the_old_one_ends(harness: FollowerHarness) -> None:
    follower = harness.follow()
    harness.promote(factor=2.0)
    await settle(follower)
    with Watch(pids(follower.slot.live)) as old:
        harness.promote(factor=3.0)
        await settle(follower)
        assert live(follower) == "2"
        assert await predict(follower) == 3.0
        assert not await asyncio.to_thread(old.left)


async def test_unexpected_error_does_not_end_the_follower(
    harness: FollowerHarness, caplog: pytest.LogCaptureFixture
) -> None:
    follower = harness.follow(poll_seconds=0.05)
    harness.promote(factor=2.0)
    wait_, failed = follower._wait, asyncio.Event()

    async def fail(seconds: float) -> None:
        """Raise an unexpected error."""
        follower._wait = wait_  # type: ignore[method-assign]
        failed.set()
        raise KeyError("oh")

    follower._wait = fail  # type: ignore[method-assign]
    following = Supervisor().start("follower", follower.run)
    await failed.wait()
    await asyncio.sleep(0)
    assert "follower failed unexpectedly; it restarts in 0.1 s" in caplog.text
    harness.promote(factor=3.0)
    await asyncio.to_thread(until, lambda: live(follower) == "2")
    following.stop()
    assert await predict(follower) == 3.0


async def test_request_ends_on_the_version_it_started_on(harness: FollowerHarness, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    follower = harness.follow()
    harness.promote(factor=2.0)
    await settle(follower)
    asking = asyncio.create_task(predict(follower, 5.0, f"wait:{pipe}"))
    await asyncio.sleep(0)
    harness.promote(factor=3.0)
    await settle(follower)
    assert await predict(follower) == 3.0
    assert not asking.done()
    await asyncio.to_thread(pipe.write_text, "")
    assert await asking == 10.0


def example(act: str) -> pd.DataFrame:
    return pd.DataFrame({"x": [1.0], "act": [act]})


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "raises on loading": (
        {"example": None, "on_load": "raise:no_weights"},
        "loading it raised ValueError: no_weights",
    ),
    "dies on loading": (
        {"example": None, "on_load": "exit:3"},
        "its process ended with status 3 while loading",
    ),
    "hangs on loading": (
        {"example": None, "on_load": "hang"},
        "it had not loaded after 3 s, and was stopped",
    ),
    "no named columns": (
        {"inputs": "x: double", "metadata": {"serving": {"inputs": {"y": {}}}}},
        "has unknown columns: y",
    ),
    "fails on its example": (
        {"example": example("raise:broken")},
        "on its own input example it raised ValueError: broken",
    ),
    "dies on its example": (
        {"example": example("kill")},
        "on its own input example its process died, twice in a row",
    ),
    "answers NaN": ({"example": example("nan")}, "missing or not a finite number"),
    "answers too few rows": (
        {"example": example("drop")},
        "from a value (number) to one result for all rows",
    ),
    "answers something else": (
        {"example": example("text")},
        "the output changed from a value (number) to a value (any)",
    ),
    "breaks clients": ({"inputs": "x: double, y: double", "example": None}, "input 'y' is new and required"),
}


@pytest.mark.parametrize(("part", "reason"), BROKEN.values(), ids=BROKEN)
async def test_version_that_cannot_serve_never_goes_live(
    harness: FollowerHarness, part: dict[str, Any], reason: str
) -> None:
    follower = harness.follow(load_seconds=3)
    harness.promote(factor=2.0)
    await settle(follower)
    harness.promote(**part)
    await settle(follower)
    assert live(follower) == "1"
    assert await predict(follower) == 2.0
    assert follower.candidate
    assert follower.candidate.state is CandidatePhase.REJECTED
    assert follower.candidate.version.version == "2"
    assert reason in follower.candidate.reason
    tags = harness.tags("2")
    assert tags["serving.state"] == "rejected"
    assert reason in tags["serving.reason"]


async def test_process_that_dies_once_on_the_example_is_replaced(
    harness: FollowerHarness, tmp_path: Path
) -> None:
    """Test a death that may be no fault of the version, as when the system has no memory left."""
    note = tmp_path / "died"
    follower = harness.follow()
    harness.promote(factor=2.0, example=example(f"fatal:{note}"))
    await settle(follower)
    assert note.exists()
    assert live(follower) == "1"
    assert await predict(follower, 2.0) == 4.0


class SignedOff(PromotionCheck):
    """Lets versions with a tag go live, and rejects those with another."""

    async def before_load(self, promotion: Promotion) -> None:
        if "sign_off" not in promotion.version.tags:
            raise PromotionWaits("nobody has signed it off")

    async def before_live(self, promotion: Promotion, loaded: LoadedModel) -> None:
        if "bad" in promotion.version.tags:
            raise Rejected("it is bad")


async def test_check_of_a_feature_makes_a_version_wait_and_rejects_it(harness: FollowerHarness) -> None:
    follower = harness.follow()
    harness.promote(factor=2.0)
    await settle(follower)
    follower._gate.checks = [SignedOff()]
    second = harness.promote(factor=3.0)
    await settle(follower)
    assert (live(follower), harness.tags(second)["serving.state"]) == ("1", "waiting")
    assert harness.tags(second)["serving.reason"] == "actor version 2 waits: nobody has signed it off"
    harness.registry.client.set_model_version_tag("actor", second, "sign_off", "yes")
    await settle(follower)
    assert (live(follower), harness.tags(second)["serving.state"]) == ("2", "live")
    third = harness.promote(factor=4.0)
    for tag in ("bad", "sign_off"):
        harness.registry.client.set_model_version_tag("actor", third, tag, "yes")
    await settle(follower)
    assert (live(follower), harness.tags(third)["serving.state"]) == ("2", "rejected")
    assert harness.tags(third)["serving.reason"] == "it is bad"


async def test_reason_is_reported_if_nothing_is_live(harness: FollowerHarness) -> None:
    follower = harness.follow()
    harness.promote(example=None, on_load="raise:no_weights")
    await settle(follower)
    with pytest.raises(
        NotLive, match="actor version 1 is rejected: loading it raised ValueError: no_weights"
    ):
        follower.slot.lease()


async def test_refused_version_is_retried_after_a_change(harness: FollowerHarness, tmp_path: Path) -> None:
    """Load only at the second attempt."""
    follower = harness.follow()
    (tmp_path / "taken").touch()
    harness.promote(on_load=f"once:{tmp_path / 'taken'}")
    await settle(follower)
    (tmp_path / "taken").unlink()
    await settle(follower)
    assert live(follower) is None
    harness.registry.client.set_model_version_tag("actor", "1", "weights", "restored")
    await settle(follower)
    assert live(follower) == "1"


async def test_refused_version_is_replaced_by_the_next(harness: FollowerHarness) -> None:
    follower = harness.follow()
    harness.promote(example=None, on_load="raise:no_weights")
    await settle(follower)
    harness.promote(factor=3.0)
    await settle(follower)
    assert live(follower) == "2"
    assert follower.candidate is None


async def test_last_promotion_wins_while_another_loads(harness: FollowerHarness, tmp_path: Path) -> None:
    pipe, note = tmp_path / "pipe", tmp_path / "pid"
    os.mkfifo(pipe)
    follower = harness.follow()
    harness.promote(example=None, on_load=f"note:{note} wait:{pipe} hang")
    await follower.tick()
    await asyncio.to_thread(pipe.write_text, "")
    assert follower.candidate
    assert follower.candidate.state is CandidatePhase.LOADING
    with Watch([int(note.read_text())]) as dropped:
        harness.promote(factor=3.0)
        await settle(follower)
        assert not await asyncio.to_thread(dropped.left)
    assert live(follower) == "2"


async def test_promotions_within_one_poll_converge_on_the_last(harness: FollowerHarness) -> None:
    follower = harness.follow()
    harness.promote(factor=2.0)
    await settle(follower)
    harness.promote(factor=3.0)
    harness.registry.promote("actor", "1")
    await settle(follower)
    assert live(follower) == "1"
    harness.registry.promote("actor", "2")
    harness.registry.promote("actor", "1")
    harness.registry.promote("actor", "2")
    await settle(follower)
    assert live(follower) == "2"


async def test_version_withdrawn_while_loading_does_not_go_live(
    harness: FollowerHarness, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    follower = harness.follow()
    harness.promote(factor=2.0)
    await settle(follower)
    harness.promote(on_load=f"wait:{pipe}")
    await follower.tick()
    harness.registry.promote("actor", "1")
    await follower.tick()
    assert follower.candidate is None
    await settle(follower)
    assert live(follower) == "1"


async def test_live_version_stays_when_demoted(harness: FollowerHarness) -> None:
    follower = harness.follow()
    harness.promote(factor=2.0)
    await settle(follower)
    harness.registry.promote("actor", "1", "Archived")
    await settle(follower)
    assert live(follower) == "1"
    assert await predict(follower) == 2.0
    (warning,) = follower.slot.warnings
    assert "no version of 'actor' is in stage Production" in warning


async def test_rollback_without_effect_is_warned_of(harness: FollowerHarness) -> None:
    """The person did not tick the box that archives the other versions in Production."""
    follower = harness.follow()
    harness.promote(factor=2.0)
    harness.promote(factor=3.0)
    await settle(follower)
    harness.registry.promote("actor", "1", archive=False)
    await settle(follower)
    assert live(follower) == "2"
    (warning,) = follower.slot.warnings
    assert "versions 1 and 2 are all in Production" in warning
    assert harness.tags("1")["serving.state"] == "superseded"
    harness.registry.promote("actor", "2", "Archived")
    await settle(follower)
    assert live(follower) == "1"
    assert follower.slot.warnings == ()


async def test_moved_alias_is_followed(harness: FollowerHarness) -> None:
    follower = harness.follow("models:/actor@champion")
    for factor in (2.0, 3.0):
        harness.registry.add("actor", factor=factor)
    for version in ("2", "1"):
        harness.registry.alias("actor", "champion", version)
        await settle(follower)
        assert live(follower) == version


async def test_latest_is_followed(harness: FollowerHarness) -> None:
    follower = harness.follow("models:/actor/latest")
    for version in ("1", "2"):
        harness.registry.add("actor")
        await settle(follower)
        assert live(follower) == version


async def test_fixed_version_is_resolved_once(harness: FollowerHarness) -> None:
    follower = harness.follow("models:/actor/1")
    harness.registry.add("actor", factor=2.0)
    await settle(follower)
    assert live(follower) == "1"
    harness.promote(factor=3.0)
    harness.registry.client.delete_model_version("actor", "1")
    await settle(follower)
    assert live(follower) == "1"
    assert follower.slot.warnings == ()
    assert await predict(follower) == 2.0


async def test_outcomes_are_written_to_the_registry(harness: FollowerHarness) -> None:
    follower = harness.follow()
    harness.promote(factor=2.0)
    await settle(follower)
    assert harness.tags("1")["serving.state"] == "live"
    harness.promote(factor=3.0)
    await settle(follower)
    assert harness.tags("1")["serving.state"] == "superseded"
    assert harness.tags("2")["serving.state"] == "live"
    assert [(period.version, period.state.value) for period in follower.history.periods()] == [
        ("2", "live"),
        ("1", "live"),
    ]


async def test_rollback_to_a_warm_version_loads_nothing(harness: FollowerHarness) -> None:
    follower = harness.follow(probation_seconds=3600)
    harness.promote(factor=2.0)
    await settle(follower)
    first = pids(follower.slot.live)
    harness.promote(factor=3.0)
    await settle(follower)
    harness.registry.promote("actor", "1")
    await settle(follower)
    assert live(follower) == "1"
    assert pids(follower.slot.live) == first
    assert await predict(follower) == 2.0


# -- a registry that is away


@contextmanager
def away(registry: Registry) -> Iterator[None]:
    """Corrupt the database during the block."""
    database = Path(registry.uri.removeprefix("sqlite:///"))
    content = database.read_bytes()
    database.write_bytes(b"nonsense" * (len(content) // 8))
    yield
    database.write_bytes(content)


async def test_live_version_stays_while_the_registry_is_away(harness: FollowerHarness) -> None:
    follower = harness.follow()
    harness.promote(factor=2.0)
    await settle(follower)
    with away(harness.registry):
        await settle(follower)
        assert follower.slot.reason.startswith("the registry is away: models:/actor/Production: ")
        assert live(follower) == "1"
        assert await predict(follower) == 2.0
    harness.promote(factor=3.0)
    await settle(follower)
    assert live(follower) == "2"


async def test_cold_start_without_registry_serves_the_last_live_version(harness: FollowerHarness) -> None:
    follower = harness.follow()
    harness.promote(factor=2.0)
    await settle(follower)
    await follower.unload("the test is over")
    cold = harness.follow(tracking_uri="http://127.0.0.1:9")
    await settle(cold)
    assert live(cold) == "1"
    assert await predict(cold) == 2.0
    assert cold.slot.live
    assert "from the copy on disk" in cold.slot.live.warnings[0]


async def test_cold_start_without_registry_or_copy_reports_it(harness: FollowerHarness) -> None:
    follower = harness.follow(tracking_uri="http://127.0.0.1:9")
    await settle(follower)
    assert live(follower) is None
    with pytest.raises(NotLive, match="the registry is away"):
        follower.slot.lease()


async def test_artifacts_that_reappear_go_live(harness: FollowerHarness, tmp_path: Path) -> None:
    follower = harness.follow()
    saved = save_scripted_model(tmp_path, factor=2.0)
    saved.rename(tmp_path / "lost")
    harness.registry.register("actor", saved)
    harness.registry.promote("actor", "1")
    await follower.tick()
    await follower.settled()
    assert follower.candidate
    assert follower.candidate.state is CandidatePhase.WAITING
    assert "No such file" in follower.candidate.reason
    (tmp_path / "lost").rename(saved)
    follower.candidate = replace(follower.candidate, retry_at=0.0)
    await settle(follower)
    assert live(follower) == "1"
