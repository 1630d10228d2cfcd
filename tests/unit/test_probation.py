"""Conditions for the rollback of a version that has just gone live."""

from __future__ import annotations

import pytest

from serving.models.probation import MAX_DEATHS, MIN_FAILURES, RequestCounts, rollback_reason

WELL = RequestCounts(succeeded=1000)


@pytest.mark.parametrize(
    "new",
    [
        RequestCounts(),
        RequestCounts(succeeded=10),
        RequestCounts(deaths=MAX_DEATHS - 1),
        RequestCounts(failed=MIN_FAILURES - 1),
        RequestCounts(succeeded=90, failed=10),
    ],
    ids=repr,
)
def test_version_stays_while_few_requests_fail(new: RequestCounts) -> None:
    assert rollback_reason(new, WELL) is None


def test_repeated_deaths_cause_rollback() -> None:
    assert rollback_reason(RequestCounts(deaths=MAX_DEATHS), WELL) == "its process died 3 times"


def test_failure_of_a_tenth_causes_rollback() -> None:
    assert rollback_reason(RequestCounts(succeeded=89, failed=11), WELL) == "11 of 100 requests failed on it"


def test_version_stays_if_old_one_failed_as_often() -> None:
    counts = RequestCounts(succeeded=80, failed=20)
    assert rollback_reason(counts, counts) is None


def test_twice_the_old_failure_rate_causes_rollback() -> None:
    assert rollback_reason(RequestCounts(succeeded=50, failed=50), RequestCounts(succeeded=80, failed=20))
