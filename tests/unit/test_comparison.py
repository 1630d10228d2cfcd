"""Comparison of the predictions of two versions, and the tags that report it."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from unittest.mock import ANY

import pytest

from serving.rollout.comparison import STATS_TAG, TAG, ComparisonStats, difference
from serving.rollout.shadow import run_cooperatively


@pytest.mark.anyio
async def test_long_comparison_yields_to_the_event_loop() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    await run_cooperatively(iter([64] * 100))
    counting.cancel()
    assert turns >= 49


STATS = {"live": "iris version 3", "rows": 200, "failed": 0}


@pytest.mark.parametrize(
    ("live", "rows", "failed", "stays"),
    [
        ("iris version 3", 300, 0, True),
        ("iris version 3", 150, 150, True),
        ("iris version 3", 200, 0, False),
        ("iris version 2", 300, 0, False),
    ],
)
def test_front_with_more_rows_keeps_its_tags(live: str, rows: int, failed: int, stays: bool) -> None:
    present = {
        name: value
        for name, value in ComparisonStats(rows=rows, failed=failed).tags(live, {}).items()
        if value is not None
    }
    own = ComparisonStats(rows=200)
    written = own.tags("iris version 3", present)
    assert written == ({} if stays else {TAG: own.summary("iris version 3"), STATS_TAG: ANY})
    assert stays or json.loads(str(written[STATS_TAG])) == STATS


ENDLESS = f'{{"live": "iris version 3", "rows": {"9" * 5000}, "failed": 0}}'


@pytest.mark.parametrize(
    "present", ["", "great!", "[]", '{"live": "iris version 3", "rows": "many", "failed": 0}', ENDLESS]
)
def test_invalid_stats_are_replaced(present: str) -> None:
    own = ComparisonStats(rows=200)
    written = own.tags("iris version 3", {TAG: "great!", STATS_TAG: present})
    assert written[TAG] == own.summary("iris version 3")
    assert json.loads(str(written[STATS_TAG])) == STATS


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"prediction": 1.0}, {"prediction": 1.0}, 0.0),
        ({"prediction": 1.0}, {"prediction": 2.0}, 0.5),
        ({"prediction": 1.0}, {"prediction": -1.0}, 2.0),
        ({"prediction": 0}, {"prediction": 0}, 0.0),
        ({"prediction": "a"}, {"prediction": "b"}, 1.0),
        ({"prediction": True}, {"prediction": False}, 1.0),
        ({"prediction": {"a": 1}}, {"prediction": {"a": 1}}, 0.0),
        (
            {"prediction": 0, "probabilities": {"a": 0.75, "b": 0.25}},
            {"prediction": 1, "probabilities": {"a": 0.25, "b": 0.75}},
            0.5,
        ),
    ],
)
def test_difference_is_measured(old: Any, new: Any, expected: float) -> None:
    assert difference(old, new) == pytest.approx(expected)


def test_rows_are_counted() -> None:
    tally = ComparisonStats()
    for new in (b'{"prediction":1.0}', b'{"prediction":1.001}', b'{"prediction":2.0}'):
        tally.compare(b'{"prediction":1.0}', new)
    assert (tally.rows, tally.agreeing) == (3, 2)
    assert tally.agreement == pytest.approx(2 / 3)
    assert [index for index, count in enumerate(tally.buckets) if count] == [0, 1, 6]
    assert tally.quantile(1.0) == 0.5
    tally.seconds.extend([(0.001, 0.002), (0.002, 0.006)])
    assert tally.latency == pytest.approx(4 / 1.5)
