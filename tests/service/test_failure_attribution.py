"""Only a version's own failures count against it: no client can cause a rollback."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.promotions import Model
from tests.support.registry import NewRegistry, Registry
from tests.support.service import Service, served, until

NAMES = ("hurried", "poisoned", "killed", "returned")


@pytest.fixture(scope="module")
def models(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Model]]:
    folder = tmp_path_factory.mktemp("own")
    registry = Registry(new_registry(folder))
    for name in NAMES:
        registry.promote(name, registry.add(name, factor=1.0))
    settings = {"deadline_seconds": 30, "probation_seconds": 1000, "poll_seconds": 0.2}
    uris = ",".join(f"models:/{name}/Production" for name in NAMES)
    with served(registry.uri, folder, models=uris, **settings) as service:
        service.until_ready()
        yield {name: Model(name, service, registry) for name in NAMES}


def promoted(model: Model) -> str:
    """Return a version that has just gone live and fails on large numbers."""
    version = model.promote(on_large="raise:unfit")
    model.until_live(version)
    return version


def until_reverted(model: Model, version: str) -> tuple[int, int]:
    """Make the version fail until it is rolled back; return the number of requests that counted."""

    def is_reverted() -> bool:
        model.predict(101.0)
        candidate = model.state["candidate"]
        return bool(candidate and candidate["state"] == "reverted")

    until(is_reverted)
    candidate = model.state["candidate"]
    assert candidate["version"] == version
    counted = re.search(r"(\d+) of (\d+) requests failed on it", candidate["reason"])
    assert counted, candidate
    return int(counted[1]), int(counted[2])


def value(service: Service, metric: str, name: str, version: str) -> float:
    """Return the sum of a metric of a version."""
    labels = (f'model="{name}"', f'version="{version}"')
    values = service.metrics().items()
    return sum(
        number for key, number in values if key.startswith(metric) and all(label in key for label in labels)
    )


def test_row_47_deadlines_set_by_callers_do_not_count(
    models: dict[str, Model],
) -> None:
    model = models["hurried"]
    version = promoted(model)
    for path in ("predict", "predict/batch"):
        row = {"x": 1.0, "act": "toil:0.3"}
        body = row if path == "predict" else {"rows": [row]}
        for seconds in ("0.1", "0.02", "0.1"):
            headers = {"X-Request-Timeout": seconds}
            response = model.service.client.post(f"/models/{model.name}/{path}", json=body, headers=headers)
            assert response.status_code == 504
    assert model.predict(1.0).headers["x-model-version"] == version
    failed, requests = until_reverted(model, version)
    assert failed == requests - 1  # requests with a short deadline are not counted


def test_row_47_rows_that_fail_on_any_version_do_not_count(
    models: dict[str, Model],
) -> None:
    model = models["poisoned"]
    version = promoted(model)
    before = value(model.service, "serving_batch_rows_count", model.name, "1")
    for _ in range(12):
        assert model.predict(1.0, "raise:poison").status_code == 500
    # A sample of them was repeated on the previous version.
    until(lambda: value(model.service, "serving_batch_rows_count", model.name, "1") >= before + 8)
    for _ in range(12):
        assert model.predict(1.0, "nan").status_code == 500
    assert model.predict(2.0).headers["x-model-version"] == version
    until_reverted(model, version)
    assert model.is_well("1")


def test_row_47_rows_that_kill_any_version_do_not_count(models: dict[str, Model]) -> None:
    model = models["killed"]
    version = promoted(model)
    for _ in range(2):  # a request is retried once, so four processes die
        assert model.predict(1.0, "exit:1").status_code == 503
    until(lambda: value(model.service, "serving_process_deaths_total", model.name, "1") > 0)
    assert model.is_well(version)
    until_reverted(model, version)
    assert model.is_well("1")


def test_version_that_goes_live_again_is_counted_from_zero(models: dict[str, Model]) -> None:
    model = models["returned"]
    version = promoted(model)
    assert model.is_well(version)
    model.promote("1")
    model.until_live("1")
    model.promote(version)
    model.until_live(version)
    assert model.predict(101.0).status_code == 500
    warning = f"every request to {model.name} version {version} since it went live has failed"
    assert any(warning in text for text in model.state["warnings"]), model.state
