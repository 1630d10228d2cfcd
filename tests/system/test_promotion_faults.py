"""Rows 1 to 10 of the table of faults: promotions followed by a service in its own process.

After every test the service is up, a control prediction is right, and no promotion is lost.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from serving.registry.artifact_store import digest
from tests.support.faulty_proxy import FaultyProxy, Mode
from tests.support.process_ids import Watch, descendants
from tests.support.promotions import Callers, Model, Tracking, flip_bit, truncate
from tests.support.registry import NewRegistry, Registry, save_scripted_model
from tests.support.service import Service, served, until

NAMES = [f"actor-{number}" for number in range(1, 16)]
Asked = tuple[str, Any]
"""A route and a body to send to it."""
PROMOTIONS = 20
DISTANT = {
    "models": "models:/distant/Production",
    "on_demand": "models:/distant@champion",
    "idle_seconds": 5,
    "deadline_seconds": 60,  # waking a model on a busy machine takes long
}
PAST = [("3", "live", True), ("2", "rejected", False), ("1", "live", False)]
"""Version, state and whether it is the current state; the newest first."""
_LAST_SUCCESS = "serving_registry_last_success_timestamp_seconds"


@pytest.fixture(scope="module")
def unused_models(
    new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Iterator[Model]]:
    """Serve models with a live first version from one service, as a start takes seconds."""
    folder = tmp_path_factory.mktemp("unused_models")
    registry = Registry(new_registry(folder))
    first = save_scripted_model(registry.folder, factor=1.0)
    for name in NAMES:
        registry.promote(name, registry.register(name, first))
    references = ",".join(f"models:/{name}/Production" for name in NAMES)
    with served(registry.uri, folder, models=references, poll_seconds=0.3) as service:
        service.until_ready()
        yield (Model(name, service, registry) for name in NAMES)


def well(model: Model) -> Iterator[Model]:
    """Yield a model whose version 1 is live."""
    assert model.is_well("1")
    yield model
    model.service.until_ready()
    model.settle()


@pytest.fixture
def model(unused_models: Iterator[Model]) -> Iterator[Model]:
    """Yield a model that no other test uses."""
    yield from well(next(unused_models))


@pytest.fixture(scope="module")
def constant(unused_models: Iterator[Model]) -> Model:
    return next(unused_models)


@pytest.fixture
def steady(constant: Model) -> Iterator[Model]:
    """Yield a model shared by the tests that leave version 1 live."""
    yield from well(constant)


# -- row 1


def promote_under_load(model: Model) -> None:
    with Callers(model) as callers:
        first = int(model.state["version"])
        shown = [(0.0, first)]
        for _ in range(PROMOTIONS):
            version = model.promote()
            model.until_live(version)
            shown.append((time.monotonic(), int(version)))
            callers.until_answered_by(version)
    assert callers.faults == []
    assert callers.versions == [version for _, version in shown]
    assert len(shown) == PROMOTIONS + 1
    for call in callers.calls:
        assert call.version >= max(version for moment, version in shown if moment < call.sent)
    assert model.is_well(str(first + PROMOTIONS))


@pytest.mark.timeout(300)  # twenty promotions, beside other tests
def test_row_1_no_request_fails_under_20_promotions_over_sqlite(model: Model) -> None:
    promote_under_load(model)


# -- rows 2 and 4: versions that cannot serve


def test_row_2_version_that_fails_to_load_is_rejected(model: Model) -> None:
    bad = model.promote(on_load="raise:no_weights")
    assert "loading it raised ValueError: no_weights" in model.until_refused(bad)
    assert model.is_well("1")
    tags = model.until_tagged(bad, "rejected")
    assert "no_weights" in tags["reason"]
    assert tags["since"]
    assert model.until_tagged("1", "live")
    good = model.promote()
    model.until_live(good)
    assert model.is_well(good)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (
            {"example": pd.DataFrame({"x": [1.0], "act": ["raise:unfit"]})},
            "on its own input example it raised ValueError: unfit",
        ),
        (
            {"example": pd.DataFrame({"x": [1.0, 2.0], "act": ["drop", "drop"]})},
            "the output changed from a value (number) to one result for all rows",
        ),
        ({"example": pd.DataFrame({"x": [1.0], "act": ["nan"]})}, "missing or not a finite number"),
        (
            {
                "inputs": "x: double, y: double",
                "example": pd.DataFrame({"x": [1.0], "y": [1.0]}),
            },
            "it would break clients of actor-",
        ),
    ],
    ids=["raises on its example", "drops a row", "predicts NaN", "breaks the contract"],
)
def test_row_4_version_that_fails_verification_is_rejected(
    steady: Model, part: dict[str, Any], reason: str
) -> None:
    bad = steady.promote(**part)
    assert reason in steady.until_refused(bad)
    assert steady.is_well("1")
    assert reason in steady.until_tagged(bad, "rejected")["reason"]


def test_row_4_tag_allows_a_breaking_contract(model: Model) -> None:
    inputs, example = "x: double", pd.DataFrame({"x": [1.0]})
    breaking = model.promote(inputs=inputs, example=example)
    reason = model.until_refused(breaking)
    assert "input 'act' was removed" in reason
    assert "Set its tag serving.allow_breaking to true" in reason
    model.registry.client.set_model_version_tag(model.name, breaking, "serving.allow_breaking", "true")
    model.until_live(breaking)
    assert model.is_well(breaking)
    assert model.until_tagged(breaking, "live")


def typed(x: float, act: str) -> Asked:
    return "predict", {"x": x, "act": act}


def scored(x: float, act: str) -> Asked:
    return "invocations", {"dataframe_records": [{"x": x, "act": act}]}


def inferred(x: float, act: str) -> Asked:
    inputs = [
        {"name": "x", "shape": [1], "datatype": "FP64", "data": [x]},
        {"name": "act", "shape": [1], "datatype": "BYTES", "data": [act]},
    ]
    return "infer", {"inputs": inputs}


def test_process_that_dies_once_in_the_replay_is_replaced(model: Model, tmp_path: Path) -> None:
    note = tmp_path / "died"
    note.touch()
    asked = {"x": 4.0, "act": f"fatal:{note}"}
    assert model.service.client.post(f"/models/{model.name}/predict", json=asked).status_code == 200
    note.unlink()
    version = model.promote()
    assert model.until_live(version)["comparison"]["requests"] >= 1
    assert note.exists()


@pytest.mark.parametrize("ask", [typed, scored, inferred])
def test_row_4_version_that_fails_on_replay_is_rejected(
    model: Model, tmp_path: Path, ask: Callable[[float, str], Asked]
) -> None:
    # The act succeeds once: version 1 performs it live, and it fails in the replay on version 2.
    route, body = ask(4.0, f"once:{tmp_path / 'once'}")
    paths = {"invocations": f"/invocations?model={model.name}", "infer": f"/v2/models/{model.name}/infer"}
    path = paths.get(route, f"/models/{model.name}/predict")
    assert model.service.client.post(path, json=body).status_code == 200
    bad = model.promote()
    assert "on one of the last live requests it raised FileExistsError" in model.until_refused(bad)
    assert model.is_well("1")
    (tmp_path / "once").unlink()
    model.registry.client.set_model_version_tag(model.name, bad, "note", "the file is gone")
    state = model.until_live(bad)
    assert state["comparison"]["requests"] == 3
    assert model.is_well(bad)


# -- row 5


def noted(file: Path) -> int:
    """Wait until an actor has noted its process, and return the id."""
    return int(until(lambda: file.read_text() if file.exists() else None))


def test_row_5_last_of_several_promotions_within_one_poll_wins(model: Model) -> None:
    second, third = model.add(), model.add()
    for version in (second, "1", third):
        model.promote(version)
    model.until_live(third)
    for version in ("1", second, third, second):
        model.promote(version)
    model.until_live(second)
    assert model.is_well(second)
    assert model.until_tagged(second, "live")
    assert model.until_tagged("1", "superseded")


def test_row_5_rollback_during_loading_drops_the_version(steady: Model, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    slow = steady.promote(on_load=f"note:{tmp_path / 'pid'} wait:{tmp_path / 'gate'}")
    with Watch([noted(tmp_path / "pid")]) as watch:
        assert steady.until(lambda state: state["candidate"])["candidate"]["state"] == "loading"
        steady.promote("1")
        steady.until(lambda state: state["candidate"] is None)
        assert watch.left() == set()
    assert steady.is_well("1")
    assert "state" not in steady.tags(slow)


# -- row 6


def registered(model: Model, **part: Any) -> str:
    """Register a version with the digest of its artifacts, as `training` does."""
    version = model.add(**part)
    value = digest(artifacts(model, version))
    model.registry.client.set_model_version_tag(model.name, version, "serving.digest", value)
    return version


def artifacts(model: Model, version: str) -> Path:
    return Path(str(model.registry.client.get_model_version(model.name, version).source))


@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink], ids=["one bit", "cut off", "one gone"])
@pytest.mark.parametrize("file", ["MLmodel", "scripted_model.py"])
def test_row_6_modified_artifacts_are_not_loaded(
    steady: Model, tmp_path: Path, damage: Callable[[Path], None], file: str
) -> None:
    bad = registered(steady, on_load=f"note:{tmp_path / 'loaded'}")
    damage(artifacts(steady, bad) / file)
    steady.promote(bad)
    assert "its artifacts are not those that were registered: sha256:" in steady.until_refused(bad)
    assert steady.is_well("1")
    assert not (tmp_path / "loaded").exists()
    assert "not those that were registered" in steady.until_tagged(bad, "rejected")["reason"]


def test_row_6_repaired_artifacts_go_live(model: Model) -> None:
    broken = registered(model)
    file = artifacts(model, broken) / "scripted_model.py"
    whole = file.read_bytes()
    flip_bit(file)
    model.promote(broken)
    assert model.until_refused(broken)
    file.write_bytes(whole)
    state = model.until_live(broken)
    assert state["digest"] == digest(artifacts(model, broken))
    assert model.is_well(broken)
    assert model.until_tagged(broken, "live")


# -- after a version has gone live


def test_version_whose_process_keeps_dying_is_reverted(model: Model) -> None:
    bad = model.promote(on_large="kill")
    model.until_live(bad)
    model.until_tagged("1", "superseded")
    for _ in range(2):  # a request is retried once, so two processes die
        assert model.predict(101.0).status_code == 503
    reason = model.until_refused(bad, "reverted")
    assert re.fullmatch(rf"{model.name} version {bad} was reverted: its process died [34] times", reason)
    assert model.is_well("1")
    assert "its process died" in model.until_tagged(bad, "reverted")["reason"]
    assert f"version {bad} was reverted" in model.until_tagged("1", "live")["reason"]
    good = model.promote()
    model.until_live(good)
    assert model.is_well(good)


def test_version_with_many_failed_requests_is_reverted(model: Model) -> None:
    bad = model.promote(on_large="raise:unfit")
    model.until_live(bad)
    while (response := model.predict(101.0)).headers.get("x-model-version", bad) == bad:
        assert response.status_code == 500
    assert "requests failed on it" in model.until_refused(bad, "reverted")
    assert model.is_well("1")
    assert "requests failed on it" in model.until_tagged(bad, "reverted")["reason"]
    periods = model.service.client.get(f"/models/{model.name}/history").json()
    assert [(period["version"], period["state"]) for period in periods] == [
        (bad, "reverted"),
        ("1", "live"),
        (bad, "live"),
        ("1", "live"),
    ]


def test_rollback_to_a_warm_version_loads_nothing(model: Model) -> None:
    before = model.state["loaded_at"]
    second = model.promote()
    model.until_live(second)
    for version in ("1", second):
        pinned = model.service.client.post(
            f"/models/{model.name}/versions/{version}/predict", json={"x": 2.0}
        )
        assert pinned.json()["prediction"] == 2.0 * int(version)
    model.promote("1")
    assert model.until_live("1")["loaded_at"] == before
    assert model.is_well("1")
    assert model.until_tagged(second, "superseded")
    assert model.until_tagged("1", "live")


def test_rollback_resets_failure_counts(
    model: Model,
) -> None:
    for _ in range(2):
        assert model.predict(act="kill").status_code == 503
    for _ in range(6):
        assert model.predict(act="raise:unfit").status_code == 500
    second = model.promote()
    model.until_live(second)
    model.promote("1")
    model.until_live("1")
    third = model.promote()
    assert model.until(lambda state: state["version"] != "1")["version"] == third
    assert model.is_well(third)
    assert model.tags(second)["state"] == "superseded"
    assert model.until_tagged("1", "superseded")


# -- two versions in one stage


def test_ineffective_rollback_is_reported_until_repaired(model: Model) -> None:
    second = model.promote()
    model.until_live(second)
    model.promote("1", archive=False)
    (warning,) = model.until(lambda state: state["warnings"])["warnings"]
    assert f"versions 1 and {second} are all in Production" in warning
    assert f"open version {second} in the MLflow UI and transition it to Archived" in warning
    assert model.is_well(second)
    until(lambda: "it is in Production too" in model.tags("1").get("reason", ""))
    model.registry.promote(model.name, second, "Archived")
    assert model.until_live("1")["warnings"] == []
    assert model.is_well("1")
    assert model.until_tagged("1", "live")


def test_broken_version_in_same_stage_raises_no_warning(steady: Model) -> None:
    bad = steady.promote(archive=False, on_load="raise:no_weights")
    assert "no_weights" in steady.until_refused(bad)
    assert steady.until_tagged(bad, "rejected")
    assert steady.state["warnings"] == []
    assert steady.tags("1")["state"] == "live"
    assert steady.is_well("1")
    assert steady.service.ready()["status"] == "ready"


# -- row 7


@pytest.fixture(scope="module")
def proxy(tracking: Tracking) -> Iterator[FaultyProxy]:
    with FaultyProxy(tracking.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the store of a service that serves version 3 by stage and by alias."""
    return tmp_path_factory.mktemp("kept") / "store"


@pytest.fixture(scope="module")
def model_over_http(
    tracking: Tracking, proxy: FaultyProxy, kept: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    """Yield a model whose registry is behind a proxy that can cut the connection."""
    folder = tmp_path_factory.mktemp("distant")
    with served(proxy.url, folder, **DISTANT, poll_seconds=0.3) as service:
        model = Model("distant", service, tracking.registry)
        model.until_live(model.promote())
        model.until_refused(model.promote(on_load="raise:no_weights"))
        model.until_live(model.promote())
        model.registry.alias("distant", "champion", "3")
        assert wakes(service)
        assert history(service) == PAST
        until(lambda: len([*folder.glob("store/*/live/*.json")]) == 2)
        shutil.copytree(folder / "store", kept)
        yield model


def wakes(service: Service) -> bool:
    """Return whether the model on demand predicts."""
    response = service.client.post("/models/distant@champion/predict", json={"x": 2.0})
    return bool(response.json() == {"prediction": 6.0, "model": {"name": "distant", "version": "3"}})


def history(service: Service) -> list[tuple[str, str, bool]]:
    """Return version, state and whether it is the current state, from the history."""
    periods = service.client.get("/models/distant/history").json()
    assert "no_weights" in periods[1]["reason"]
    return [(period["version"], period["state"], period["until"] is None) for period in periods]


@pytest.mark.timeout(300)  # MLflow's server shares the cores
def test_row_1_no_request_fails_under_20_promotions_over_http(model_over_http: Model) -> None:
    promote_under_load(model_over_http)


# A black hole slows polling down for a while, so it is the last mode.
CUTS = sorted([*Mode][1:], key=lambda mode: mode is Mode.BLACK_HOLED)


@pytest.mark.parametrize("mode", CUTS, ids=lambda mode: mode.value)
def test_row_7_no_request_fails_while_registry_is_away(
    mode: Mode, model_over_http: Model, proxy: FaultyProxy
) -> None:
    service, before, earlier = (
        model_over_http.service,
        model_over_http.state["version"],
        model_over_http.service.metrics(),
    )
    promoted = model_over_http.add()
    assert earlier["serving_registry_reachable"] == 1
    with Callers(model_over_http, count=2) as callers:
        with proxy.cut(mode):
            until(lambda: service.ready()["registry"]["reachable"] is False)
            stale = service.ready()["registry"]
            model_over_http.promote(promoted)
            callers.until_more()
            assert service.ready()["registry"] == stale
            assert (away := service.metrics())["serving_registry_reachable"] == 0
            assert away["serving_registry_failures_total"] > earlier["serving_registry_failures_total"]
            assert away[_LAST_SUCCESS] == datetime.fromisoformat(stale["checked_at"]).timestamp()
            assert service.client.get("/ready").status_code == 200
            assert model_over_http.is_well(before)
        model_over_http.until_live(promoted)
        callers.until_answered_by(promoted)
        until(lambda: service.ready()["registry"]["reachable"])
    assert callers.faults == []
    assert service.ready()["registry"]["checked_at"] > stale["checked_at"]
    assert service.metrics()[_LAST_SUCCESS] > away[_LAST_SUCCESS]
    assert model_over_http.is_well(promoted)
    assert model_over_http.until_tagged(promoted, "live")


# -- rows 8, 9 and 10: cold starts


def until_away(model: Model) -> None:
    """Wait until a service with nothing live reports that the registry is away."""
    state = model.until(lambda state: "the registry is away" in (state["reason"] or ""))
    assert state["state"] == "not live"
    assert model.service.client.get("/health").status_code == 200
    assert model.service.client.get("/ready").status_code == 503
    response = model.predict()
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.headers["content-type"] == "application/problem+json"


def test_row_8_cold_start_without_registry_serves_last_live_version(
    model_over_http: Model, kept: Path, proxy: FaultyProxy, tmp_path: Path
) -> None:
    shutil.copytree(kept, tmp_path / "store")
    second = model_over_http.add()
    with proxy.cut(Mode.REFUSED), served(proxy.url, tmp_path, **DISTANT) as service:
        model = Model(model_over_http.name, service, model_over_http.registry)
        assert model.until_live("3")["warnings"] == [
            "it was loaded from the copy on disk because the registry was unavailable"
        ]
        assert service.client.get("/ready").status_code == 200
        registry = service.ready()["registry"]
        assert (registry["reachable"], registry["checked_at"]) == (False, None)
        assert model.is_well("3")
        assert wakes(service)
        model.promote(second)
        proxy.switch(Mode.OPEN)
        assert model.until_live(second)["warnings"] == []
        assert model.is_well(second)
        assert model.until_tagged(second, "live")


@pytest.fixture(scope="module")
def recovered(
    model_over_http: Model, kept: Path, proxy: FaultyProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Model]]:
    """Start models while the registry is away, without a copy and with a corrupted one."""
    folder, registry = tmp_path_factory.mktemp("recovered"), model_over_http.registry
    model_over_http.promote("3")
    registry.promote("unseen", registry.add("unseen"))
    shutil.copytree(kept, folder / "store")
    copies = [*folder.glob("store/*/*/artifacts/scripted_model.py")]
    for copy in copies:
        truncate(copy)
    models = "models:/unseen/Production,models:/distant/Production"
    with proxy.cut(Mode.REFUSED), served(proxy.url, folder, models=models) as service:
        starting = {name: Model(name, service, registry) for name in ("unseen", "distant")}
        until(lambda: not all(copy.exists() for copy in copies))
        for model in starting.values():
            until_away(model)
        proxy.switch(Mode.OPEN)
        yield starting


def test_row_9_cold_start_without_registry_or_copy_recovers(recovered: dict[str, Model]) -> None:
    model = recovered["unseen"]
    assert model.until_live("1")["warnings"] == []
    assert model.is_well("1")


def test_row_10_corrupted_copy_is_not_served(recovered: dict[str, Model]) -> None:
    model = recovered["distant"]
    assert model.until_live("3")["warnings"] == []
    assert model.is_well("3")
    recovered["unseen"].until_live("1")
    assert model.service.client.get("/ready").status_code == 200


# -- restarts, and rows 3 and 10: little time to load, a full disk


@pytest.fixture(scope="module")
def restarted(
    model_over_http: Model, kept: Path, proxy: FaultyProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Restart a service with its store, and two models without a version."""
    model_over_http.promote("3")
    folder = tmp_path_factory.mktemp("restarted")
    shutil.copytree(kept, folder / "store")
    models = ",".join(f"models:/{name}/Production" for name in ("distant", "hung", "full"))
    with served(proxy.url, folder, models=models, load_seconds=6) as service:
        yield service


def test_version_history_survives_a_restart(restarted: Service, model_over_http: Model) -> None:
    Model("distant", restarted, model_over_http.registry).until_live("3")
    assert history(restarted) == PAST


def test_row_3_version_that_hangs_on_loading_is_stopped(
    restarted: Service, model_over_http: Model, tmp_path: Path
) -> None:
    model = Model("hung", restarted, model_over_http.registry)
    first = model.promote()
    model.until_live(first)
    bad = model.promote(on_load=f"note:{tmp_path / 'pid'} hang")
    with Watch([noted(tmp_path / "pid")]) as watch:
        assert "it had not loaded after 6 s, and was stopped" in model.until_refused(bad)
        assert watch.left() == set()
    assert model.is_well(first)
    assert "it had not loaded" in model.until_tagged(bad, "rejected")["reason"]
    model.settle()


def fill_disk(service: Service, full: bool) -> None:
    """Make all writes of a service fail, as on a full disk, or allow them again."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (0 if full else most, most))


def test_row_10_full_disk_delays_only_new_versions(restarted: Service, model_over_http: Model) -> None:
    service, model = restarted, Model("full", restarted, model_over_http.registry)
    fill_disk(service, full=True)
    first = model.promote()
    assert "File too large" in model.until_refused(first, "waiting")
    assert model.state["state"] == "not live"
    assert service.client.get("/health").status_code == 200
    fill_disk(service, full=False)
    model.until_live(first)
    processes = descendants(service.process.pid)
    fill_disk(service, full=True)
    second = model.promote()
    assert "File too large" in model.until_refused(second, "waiting")
    assert model.is_well(first)
    assert descendants(service.process.pid) == processes
    fill_disk(service, full=False)
    model.until_live(second)
    assert model.is_well(second)
    assert model.until_tagged(second, "live")
