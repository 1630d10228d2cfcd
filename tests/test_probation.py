"""When a version that has just gone live has to give way to the one before."""

from __future__ import annotations

import pytest

from serving.models.probation import MAX_DEATHS, MIN_FAILURES, RequestCounts, rollback_reason

WELL = RequestCounts(answered=1000)


@pytest.mark.parametrize(
    "new",
    [
        RequestCounts(),
        RequestCounts(answered=10),
        RequestCounts(deaths=MAX_DEATHS - 1),
        RequestCounts(failed=MIN_FAILURES - 1),
        RequestCounts(answered=90, failed=10),
    ],
    ids=repr,
)
def test_it_stays_while_little_fails(new: RequestCounts) -> None:
    assert rollback_reason(new, WELL) is None


def test_it_goes_when_its_process_dies_repeatedly() -> None:
    assert rollback_reason(RequestCounts(deaths=MAX_DEATHS), WELL) == "its process died 3 times"


def test_it_goes_when_more_than_a_tenth_fails() -> None:
    assert rollback_reason(RequestCounts(answered=89, failed=11), WELL) == "11 of 100 requests failed on it"


def test_it_stays_where_as_much_failed_before() -> None:
    assert (
        rollback_reason(RequestCounts(answered=80, failed=20), RequestCounts(answered=80, failed=20)) is None
    )


def test_it_goes_where_twice_as_much_fails_as_before() -> None:
    assert rollback_reason(RequestCounts(answered=50, failed=50), RequestCounts(answered=80, failed=20))
