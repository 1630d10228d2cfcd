"""The simulation of fleets: it agrees with what can be reckoned, and shows what it is there to show."""

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


def test_the_same_plan_has_the_same_outcome() -> None:
    plan = Plan(COSTS, 1, 20, promoted_at=30)
    assert simulate(plan) == simulate(plan)


@pytest.mark.parametrize(
    ("models", "calls"),
    [(1, 1 + 1 / 5), (3, 3 * (1 + 1 / 5))],
    ids=["a model", "three models"],
)
def test_few_models_are_looked_at_each_time(models: int, calls: float) -> None:
    assert simulate(Plan(COSTS, 100, 10, models)).rate / 10 == pytest.approx(calls, rel=0.05)


def test_many_models_share_a_look_and_ask_less() -> None:
    results = simulate(Plan(COSTS, 100, 10, 20, seconds=90))
    markers, own = results.calls["marker"], results.calls["look"] + results.calls["aliases"]
    assert markers / results.measured_seconds / 10 == pytest.approx(1, rel=0.1)
    # Besides, each is looked at every ten seconds, and its aliases.
    assert own / results.measured_seconds / 10 == pytest.approx(20 * 2 / 10, rel=0.15)


def test_a_promotion_is_seen_within_a_look_and_what_it_takes_to_load() -> None:
    results = simulate(Plan(COSTS, 100, 50, promoted_at=30))
    assert len(results.seconds_to_live) == 50
    most = 1.0 + 0.01 * (1 + 2 + 9) * 1.3 + 0.4 * 1.2
    assert max(results.seconds_to_live) < most + 0.1
    assert min(results.seconds_to_live) > 0.3


def test_a_registry_that_is_asked_too_much_collapses_without_restraint_and_bears_it_with() -> None:
    without, with_it = (
        simulate(Plan(COSTS, 1, 500, seconds=180, restrained=restrained)) for restrained in (False, True)
    )
    assert without.failed > 0.5
    assert with_it.failed < 0.2
    assert with_it.rate * (1 - with_it.failed) > 2 * without.rate * (1 - without.failed)


def test_restraint_costs_nothing_where_the_registry_is_quick() -> None:
    without, with_it = (simulate(Plan(COSTS, 4, 100, restrained=restrained)) for restrained in (False, True))
    assert with_it.rate == pytest.approx(without.rate, rel=0.02)


def test_a_registry_that_was_away_is_asked_again_by_all() -> None:
    results = simulate(Plan(COSTS, 4, 100, seconds=90, outage=(40, 60)))
    assert len([moment for moment in results.recovered_at if moment >= 60]) == 100
    assert max(results.recovered_at) < 60 + 12 + 1
    assert not simulate(Plan(COSTS, 4, 100)).recovered_at


def test_a_quantile_is_one_of_the_values() -> None:
    assert [quantile([3.0, 1.0, 2.0], share) for share in (0, 0.5, 1)] == [1, 2, 3]


def test_the_servers_log_tells_what_was_asked(tmp_path: Path) -> None:
    log = tmp_path / "mlflow.log"
    log.write_text(LOG)
    assert count_calls(log) == {"look": 1, "marker": 1, "tags": 1, "tag": 1, "artifacts": 1, "health": 1}
    assert not count_calls(log, len(LOG))
