"""When a version that has just gone live has to give way to the one before."""

from __future__ import annotations

import pytest

from serving.models.probation import FEWEST_FAILURES, MOST_DEATHS, Tally, verdict

WELL = Tally(answered=1000)


@pytest.mark.parametrize(
    "new",
    [
        Tally(),
        Tally(answered=10),
        Tally(deaths=MOST_DEATHS - 1),
        Tally(failed=FEWEST_FAILURES - 1),
        Tally(answered=90, failed=10),
    ],
    ids=repr,
)
def test_it_stays_while_little_fails(new: Tally) -> None:
    assert verdict(new, WELL) is None


def test_it_goes_when_its_process_dies_repeatedly() -> None:
    assert verdict(Tally(deaths=MOST_DEATHS), WELL) == "its process died 3 times"


def test_it_goes_when_more_than_a_tenth_fails() -> None:
    assert verdict(Tally(answered=89, failed=11), WELL) == "11 of 100 requests failed on it"


def test_it_stays_where_as_much_failed_before() -> None:
    assert verdict(Tally(answered=80, failed=20), Tally(answered=80, failed=20)) is None


def test_it_goes_where_twice_as_much_fails_as_before() -> None:
    assert verdict(Tally(answered=50, failed=50), Tally(answered=80, failed=20))
