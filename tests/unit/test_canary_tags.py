"""The tags by which fronts share the progress of a canary."""

from __future__ import annotations

import pytest

from serving.outcome_queries import LossSum, OutcomeSums
from serving.rollout.canary_state import (
    STATE_TAG,
    TAG,
    end,
    is_over,
    is_promoted,
    is_stopped,
    promote,
    read,
    show_outcomes,
    start_step,
    stop,
)
from serving.rollout.outcome_test import compare
from serving.settings.rollout import RolloutSettings

URI = "models:/iris@challenger"
STEPS = [0.05, 0.25, 0.5]


def tags(*updates: dict[str, str | None]) -> dict[str, str]:
    """Return the tags after these updates."""
    return {name: value for update in updates for name, value in update.items() if value is not None}


FIRST, SECOND = (tags(start_step(URI, STEPS[index:], {})) for index in (0, 1))
STOPPED = tags(stop(URI, 0.25, "stopped at 25 % of the requests: too slow"))


def test_first_step_is_written() -> None:
    assert FIRST[TAG] == "up to 5 % of the requests, as models:/iris@challenger"
    assert not is_stopped(FIRST)


def test_front_behind_another_keeps_the_later_step() -> None:
    assert start_step(URI, STEPS, SECOND) == {}
    assert tags(start_step(URI, STEPS[1:], FIRST)) == SECOND


def test_other_reference_starts_anew() -> None:
    other = "models:/iris@other"
    assert tags(start_step(other, STEPS, SECOND))[TAG] == f"up to 5 % of the requests, as {other}"


def test_stopped_canary_is_continued_by_no_front() -> None:
    assert is_stopped(STOPPED)
    assert start_step(URI, STEPS, STOPPED) == {}
    assert end(URI, STEPS, STOPPED) == {}


def test_deleted_status_resets_the_canary() -> None:
    del (reset := dict(STOPPED))[TAG]
    assert not is_stopped(reset)
    assert tags(start_step(URI, STEPS, reset)) == FIRST


def test_ended_canary_starts_anew() -> None:
    ended = SECOND | tags(end(URI, STEPS, SECOND))
    assert ended[TAG] == "received up to 25 % of the requests, as models:/iris@challenger"
    assert tags(start_step(URI, STEPS, ended)) == FIRST


@pytest.mark.parametrize("text", ["", "stopped", "[]", '{"phase": "gone", "reference": "", "share": 0}'])
def test_invalid_state_is_replaced(text: str) -> None:
    present = {TAG: "stopped", STATE_TAG: text}
    assert not is_stopped(present)
    assert tags(start_step(URI, STEPS, present)) == FIRST


EVIDENCE = compare(OutcomeSums(LossSum(100, 5), LossSum(200, 8)), RolloutSettings(), 0.05)


def test_outcomes_are_shown_only_at_their_step() -> None:
    shown = FIRST | tags(show_outcomes(URI, 0.05, EVIDENCE, FIRST))
    assert shown[TAG].startswith(f"{FIRST[TAG]}; 100 outcomes against 200: its loss differs by ")
    progress = read(shown)
    assert progress
    assert progress.outcomes
    assert progress.outcomes["verdict"] == "waiting"
    assert start_step(URI, STEPS, shown) == {}
    assert tags(start_step(URI, STEPS[1:], shown)) == SECOND
    for elsewhere in (SECOND, STOPPED, {}):
        assert show_outcomes(URI, 0.05, EVIDENCE, elsewhere) == {}


def test_promoted_version_starts_no_canary() -> None:
    promoted = tags(promote(URI, 0.5, "promoted to models:/iris@champion", EVIDENCE))
    assert is_promoted(promoted)
    assert is_over(promoted)
    assert not is_stopped(promoted)
    assert start_step(URI, STEPS, promoted) == {}
    assert end(URI, STEPS, promoted) == {}
    del promoted[TAG]
    assert tags(start_step(URI, STEPS, promoted)) == FIRST
