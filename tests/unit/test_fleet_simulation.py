"""The simulation of fleets agrees with calculations by hand, and shows the effect of restraint."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fleet_simulation import Plan, quantile, simulate
from benchmarks.registry_server import count_calls

COSTS = dict.fromkeys(("look", "marker", "aliases", "location", "tags", "artifacts"), 0.01)
LOG = """2026/11/25 15:05:31 INFO:     Uvicorn running on http://127.0.0.1:43403 (Press CTRL+C to quit)
INFO: 127.0.0.1:1 - "GET /api/2.0/mlflow/model-versions/search?filter=name%3D%27a%27 HTTP/1.1" 200 OK
INFO: 127.0.0.1:1 - "GET /api/2.0/mlflow/model-versions/search?max_results=5&order_by=x HTTP/1.1" 200 OK
INFO: 127.0.0.1:1 - "GET /api/2.0/mlflow/model-versions/get?name=a&version=1 HTTP/1.1" 200 OK
INFO: 127.0.0.1:1 - "POST /api/2.0/mlflow/model-versions/set-tag HTTP/1.1" 200 OK
INFO: 127.0.0.1:1 - "GET /api/2.0/mlflow-artifacts/artifacts/1/MLmodel HTTP/1.1" 200 OK
INFO: 127.0.0.1:1 - "GET /health HTTP/1.1" 200 OK
"""


def test_equal_plans_have_equal_outcomes() -> None:
    plan = Plan(COSTS, 1, 20, promoted_at=30)
    assert simulate(plan) == simulate(plan)


@pytest.mark.parametrize(
    ("models", "calls"),
    [(1, 1 + 1 / 5), (3, 3 * (1 + 1 / 5))],
    ids=["a model", "three models"],
)
def test_few_models_are_polled_separately(models: int, calls: float) -> None:
    assert simulate(Plan(COSTS, 100, 10, models)).rate / 10 == pytest.approx(calls, rel=0.05)


def test_many_models_share_a_poll() -> None:
    results = simulate(Plan(COSTS, 100, 10, 20, seconds=90))
    markers, own = results.calls["marker"], results.calls["look"] + results.calls["aliases"]
    assert markers / results.measured_seconds / 10 == pytest.approx(1, rel=0.1)
    # Every ten seconds, every model also polls its versions and its aliases.
    assert own / results.measured_seconds / 10 == pytest.approx(20 * 2 / 10, rel=0.15)


def test_promotion_takes_a_poll_and_a_load() -> None:
    results = simulate(Plan(COSTS, 100, 50, promoted_at=30))
    assert len(results.seconds_to_live) == 50
    most = 1.0 + 0.01 * (1 + 2 + 9) * 1.3 + 0.4 * 1.2
    assert max(results.seconds_to_live) < most + 0.1
    assert min(results.seconds_to_live) > 0.3


def test_restraint_keeps_an_overloaded_registry_working() -> None:
    without, with_it = (
        simulate(Plan(COSTS, 1, 500, seconds=180, restrained=restrained)) for restrained in (False, True)
    )
    assert without.failed > 0.5
    assert with_it.failed < 0.2
    assert with_it.rate * (1 - with_it.failed) > 2 * without.rate * (1 - without.failed)


def test_restraint_costs_nothing_with_a_fast_registry() -> None:
    without, with_it = (simulate(Plan(COSTS, 4, 100, restrained=restrained)) for restrained in (False, True))
    assert with_it.rate == pytest.approx(without.rate, rel=0.02)


def test_all_fronts_recover_after_an_outage() -> None:
    results = simulate(Plan(COSTS, 4, 100, seconds=90, outage=(40, 60)))
    assert len([moment for moment in results.recovered_at if moment >= 60]) == 100
    assert max(results.recovered_at) < 60 + 12 + 1
    assert not simulate(Plan(COSTS, 4, 100)).recovered_at


def test_quantile_is_one_of_the_values() -> None:
    assert [quantile([3.0, 1.0, 2.0], share) for share in (0, 0.5, 1)] == [1, 2, 3]


def test_calls_are_counted_from_the_server_log(tmp_path: Path) -> None:
    log = tmp_path / "mlflow.log"
    log.write_text(LOG)
    assert count_calls(log) == {"look": 1, "marker": 1, "tags": 1, "tag": 1, "artifacts": 1, "health": 1}
    assert not count_calls(log, len(LOG))
