"""Overload: admitted requests succeed, and the rest is rejected at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.support.registry import Registry
from tests.support.service import SELDOM, Service, served

ROW = {"x": 2.0, "act": "toil:0.02"}
WAIT_SECONDS = 0.4
CALLERS = 100


@pytest.mark.anyio
async def test_excess_requests_are_rejected_at_once(registry: str, tmp_path: Path) -> None:
    Registry(registry).add("actor")
    limits = {"max_queue_seconds": WAIT_SECONDS, "deadline_seconds": 60, "poll_seconds": SELDOM}
    with served(registry, tmp_path, models="models:/actor/1", **limits) as service:
        service.until_ready()
        for size in (1, 3, 5, 7):  # the service learns the cost of a row
            service.client.post("/predict/batch", json={"rows": [ROW] * size}).raise_for_status()
        await _ask_too_much(service)
        metrics = service.client.get("/metrics").text
        assert service.client.post("/predict", json=ROW).json()["prediction"] == 2.0
    assert 'code="503"' in metrics


async def _ask_too_much(service: Service) -> None:
    limits = httpx.Limits(max_connections=CALLERS)
    async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits) as client:
        responses = await asyncio.gather(*(client.post("/predict", json=ROW) for _ in range(CALLERS)))
    statuses = Counter(response.status_code for response in responses)
    assert statuses.keys() == {200, 503}, statuses
    # Twenty rows take 0.4 s; requests beyond that do not fit the queue.
    assert statuses[503] > CALLERS / 2, statuses
    for response in responses:
        if response.status_code == 200:
            assert response.json()["prediction"] == 2.0
        else:
            assert response.headers["retry-after"] == "1"
            assert "in time" in response.json()["detail"]
