"""Drift reports of a running service for a model that training has logged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import mlflow
import pandas as pd
import pytest

from serving.app import create_app
from serving.drift.monitor import Drift
from serving.grpc import inference_pb2 as protos
from serving.grpc import inference_pb2_grpc as services
from serving.hooks import InferenceEvent
from serving.request_context import RequestContext
from serving.settings.settings import Settings
from tests.support.customer_data import customers, payer, rows
from tests.support.followers import FollowerHarness
from tests.support.registry import NewRegistry, Registry, quiet
from tests.support.service import FOR_SKLEARN, Service, served, until
from training import log_model

NAMES = ("same", "moved", "coloured", "gone", "outgrown", "protocols", "promoted")
COLUMNS = {"size", "weight", "visits", "colour", "regular"}
PROFILE = {"rows": 1000, "inputs": {"x": {"edges": [0.0], "shares": [0.5, 0.5]}}}


@pytest.fixture(scope="module")
def models(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Return a registry of the shop model under several names, a second version of it, and actors."""
    home = tmp_path_factory.mktemp("drift")
    registry = Registry(new_registry(home))
    with pytest.MonkeyPatch.context() as patch, quiet():
        patch.setenv("MLFLOW_TRACKING_URI", registry.uri)
        folders = [logged(customers(2000, 0)), logged(changed(customers(2000, 1)))]
    for name in (*NAMES, "asleep"):
        registry.register(name, folders[0])
    registry.register("promoted", folders[1])
    registry.promote("promoted", "1")
    registry.add("bare")
    registry.add("speaker", streams=True, metadata={"serving": {"profile": PROFILE}})
    registry.add("broken", metadata={"serving": {"profile": {"rows": 0}}})
    return registry


def logged(table: pd.DataFrame) -> Path:
    """Fit and log the shop model; return its folder."""
    with mlflow.start_run():
        model = log_model(payer(table), table, pip_requirements=[], skops_trusted_types=["numpy.dtype"])
    return Path(mlflow.artifacts.download_artifacts(model.uri))


def changed(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(weight=table["weight"] + 20)


@pytest.fixture(scope="module")
def service(models: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    numbered = [f"models:/{name}/1" for name in (*NAMES[:-1], "bare", "speaker", "broken")]
    with served(
        models.uri,
        tmp_path_factory.mktemp("service"),
        models=",".join([*numbered, "models:/promoted/Production"]),
        on_demand="models:/asleep/1",
        idle_seconds=3,
        preload=FOR_SKLEARN,
        cached_models="coloured",
        grpc_port=0,
        poll_seconds=1,
    ) as service:
        service.until_ready()
        yield service
        assert service.client.get("/ready").status_code == 200


def send(service: Service, name: str, table: pd.DataFrame) -> None:
    service.client.post(f"/models/{name}/predict/batch", json={"rows": rows(table)}).raise_for_status()


def state(service: Service, name: str) -> dict[str, Any]:
    """Return the entry of a model in `/ready`."""
    return next(model for model in service.ready()["models"] if model["name"] == name)


def drift(service: Service, name: str, least: int) -> dict[str, Any]:
    """Wait for a number of rows; return the drift by column."""

    def found() -> list[dict[str, Any]] | None:
        columns = state(service, name)["drift"]
        return columns if columns and all(column["rows"] >= least for column in columns) else None

    return {column["column"]: column for column in until(found)}


def drifted(service: Service, name: str, least: int) -> dict[str, str]:
    """Wait for a number of rows; return the drift warnings by column."""
    drift(service, name, least)
    warnings = state(service, name)["warnings"]
    return {re.split("^the (?:input|output) ", warning)[1].split()[0]: warning for warning in warnings}


def looked_at(service: Service, name: str, version: str = "1") -> int:
    """Return the number of sampled rows from the metrics."""
    labels = re.escape(f'serving_drift_rows_total{{model="{name}",version="{version}"}} ')
    found = re.search(f"^{labels}(.*)$", service.client.get("/metrics").text, re.MULTILINE)
    return int(float(found[1])) if found else 0


# -- reports


def test_rows_like_training_data_have_no_drift(service: Service) -> None:
    send(service, "same", customers(1000, 7))
    assert drifted(service, "same", 1000) == {}
    found = drift(service, "same", 1000)
    assert found.keys() == COLUMNS | {"prediction"}
    assert all(column["psi"] < 0.1 for column in found.values())
    assert {column["side"] for name, column in found.items() if name != "prediction"} == {"input"}
    assert found["prediction"]["side"] == "output"


def test_only_the_drifted_column_is_reported(service: Service) -> None:
    send(service, "moved", changed(customers(1000, 7)))
    found = drifted(service, "moved", 1000)
    assert found.keys() == {"weight"}
    sentence = (
        r"the input weight has drifted from the training data \(PSI (\d\.\d\d) over the last "
        r"1,000 rows\): \d\d% of its values are 8\d\.\d+ or more, as against 10% in training"
    )
    match = re.fullmatch(sentence, found["weight"])
    assert match, found["weight"]
    columns = state(service, "moved")["drift"]
    assert columns[0]["column"] == "weight"
    assert columns[0]["psi"] == pytest.approx(float(match[1]), abs=0.005)
    assert [column["psi"] for column in columns] == sorted(
        (column["psi"] for column in columns), reverse=True
    )
    labels = 'column="weight",model="moved",side="input",version="1"'
    gauge = re.search(f"serving_drift_psi{{{labels}}} (.*)", service.client.get("/metrics").text)
    assert gauge
    assert float(gauge[1]) == pytest.approx(columns[0]["psi"], abs=0.0001)


def test_new_category_is_drift(service: Service) -> None:
    table = customers(1000, 7)
    send(service, "coloured", table.assign(colour=table["colour"].where(table["weight"] < 75, "yellow")))
    found = drifted(service, "coloured", 1000)
    assert found.keys() == {"colour"}
    assert re.search(r"3\d% of its values are none of the frequent ones, as against 0% in", found["colour"])


def test_missing_values_are_drift(service: Service) -> None:
    table = customers(1000, 7)
    send(service, "gone", table.assign(size=table["size"].where(table["weight"] < 70)))
    found = drifted(service, "gone", 1000)
    assert re.search(r"5\d% of its values are missing, as against \d% in training", found["size"])


def test_drifted_predictions_are_reported_as_output(service: Service) -> None:
    table = customers(1000, 7)
    send(service, "outgrown", table.assign(size=table["size"] * 3))
    found = drifted(service, "outgrown", 1000)
    assert found.keys() == {"size", "prediction"}
    assert found["prediction"].startswith("the output prediction has drifted from the training")


def test_too_few_rows_give_no_drift(service: Service) -> None:
    send(service, "promoted", changed(customers(60, 7)))
    until(lambda: looked_at(service, "promoted") == 60)
    assert state(service, "promoted")["drift"] is None
    assert state(service, "promoted")["warnings"] == []


def test_promotion_resets_drift_to_the_new_profile(service: Service, models: Registry) -> None:
    send(service, "promoted", changed(customers(900, 7)))
    assert drifted(service, "promoted", 900).keys() == {"weight"}
    models.promote("promoted", "2")
    service.until_live("promoted", "2")
    assert state(service, "promoted")["drift"] is None
    assert looked_at(service, "promoted", "2") == 0
    send(service, "promoted", changed(customers(1000, 8)))
    assert drifted(service, "promoted", 1000) == {}


# -- sampled rows


def test_rows_of_every_protocol_are_sampled(service: Service) -> None:
    send(service, "protocols", customers(600, 7))
    drift(service, "protocols", 600)
    table = customers(30, 8)
    frame, url = table.astype({"size": object}).where(table.notna(), None), "/models/protocols"
    split = {"dataframe_split": {"columns": [*frame], "data": frame.to_numpy().tolist()}}
    posts: list[Any] = [
        (f"{url}/predict", {"json": rows(table)[0]}, 1),
        (f"{url}/predict/batch", {"json": {"rows": rows(table)}}, 30),
        ("/invocations?model=protocols", {"json": split}, 30),
        (
            "/invocations?model=protocols",
            {"content": table.to_csv(index=False), "headers": {"content-type": "text/csv"}},
            30,
        ),
        (f"/v2{url}/infer", {"json": {"inputs": tensors(table)}}, 30),
    ]
    count = 600
    for path, body, more in posts:
        service.client.post(path, **body).raise_for_status()
        count += more
        assert {column["rows"] for column in drift(service, "protocols", count).values()} == {count}
    over_grpc(service, table)
    assert {column["rows"] for column in drift(service, "protocols", count + 30).values()} == {count + 30}
    assert looked_at(service, "protocols") == count + 30


DATATYPES = {"size": "FP64", "weight": "FP64", "visits": "INT64", "colour": "BYTES", "regular": "BOOL"}


def tensors(table: pd.DataFrame) -> list[dict[str, Any]]:
    shape = [len(table)]
    return [
        {
            "name": name,
            "shape": shape,
            "datatype": DATATYPES[str(name)],
            "data": table[name].fillna(1).tolist(),
        }
        for name in table
    ]


CONTENTS = {"FP64": "fp64", "INT64": "int64", "BYTES": "bytes", "BOOL": "bool"}


def over_grpc(service: Service, table: pd.DataFrame) -> None:
    inputs = []
    for tensor in tensors(table):
        data = [value.encode() if isinstance(value, str) else value for value in tensor.pop("data")]
        inputs.append(tensor | {"contents": {f"{CONTENTS[tensor['datatype']]}_contents": data}})
    with grpc.insecure_channel(service.logged(re.compile(r"serving gRPC at ([\d.:]+)"))[1]) as channel:
        stub = services.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(protos.ModelInferRequest(model_name="protocols", inputs=inputs))


def test_cached_predictions_are_sampled(service: Service) -> None:
    row, before = rows(customers(1, 9))[0], looked_at(service, "coloured")
    responses = [service.client.post("/models/coloured/predict", json=row) for _ in range(3)]
    assert [response.headers["x-cache"] for response in responses] == ["miss", "hit", "hit"]
    until(lambda: looked_at(service, "coloured") == before + 3)


def test_streamed_predictions_are_sampled(service: Service) -> None:
    path = "/models/speaker/predict/stream"
    for _ in range(3):
        assert "event: end" in service.client.post(path, json={"x": 1.0, "act": "say:hello"}).text
    until(lambda: looked_at(service, "speaker") == 3)


def test_large_request_is_sampled_evenly(service: Service) -> None:
    before = looked_at(service, "same")
    send(service, "same", customers(20_000, 8).sort_values("weight"))
    until(lambda: looked_at(service, "same") > before)
    assert drifted(service, "same", 300) == {}
    assert looked_at(service, "same") - before <= 1300


def test_model_without_profile_has_no_drift(service: Service) -> None:
    service.client.post("/models/bare/predict", json={"x": 1.0}).raise_for_status()
    before = looked_at(service, "same")
    send(service, "same", customers(10, 9))
    until(lambda: looked_at(service, "same") == before + 10)
    assert state(service, "bare")["drift"] is None
    assert 'model="bare"' not in "".join(re.findall("serving_drift.*", service.client.get("/metrics").text))


def test_unreadable_profile_is_a_warning(service: Service) -> None:
    found = state(service, "broken")
    assert (found["state"], found["drift"]) == ("live", None)
    (warning,) = found["warnings"]
    assert warning.startswith("drift is not measured, because metadata serving.profile can't be read: rows:")


def test_drift_continues_after_an_idle_model_reloads(service: Service) -> None:
    send(service, "asleep", changed(customers(150, 7)))
    until(lambda: state(service, "asleep")["state"] == "asleep")
    assert state(service, "asleep")["drift"] is None
    send(service, "asleep", changed(customers(150, 8)))
    assert drifted(service, "asleep", 300).keys() == {"weight"}


# -- cost


@pytest.mark.anyio
async def test_sampled_rows_and_bytes_are_bounded(harness: FollowerHarness) -> None:
    follower = harness.follow()
    harness.promote(metadata={"serving": {"profile": PROFILE}})
    await follower.tick()
    await follower.settled()
    live, drift = follower.slot.lease(), Drift(0.25)
    with live:
        parts = live.calls.submit([{"x": 1.0}] * 10, {}, 5.0)
        await parts[0][1].future
    context = RequestContext("one", "POST", "/predict/batch", (), None, {})
    small = InferenceEvent(live, context, b"{}", (), parts, 0.0, 0.0)
    large = small._replace(body=bytes(2**20))

    def kept(event: InferenceEvent) -> int:
        (watch,) = drift._monitored.values()
        before = watch.rows_seen
        for _ in range(500):
            drift.on_response(event)
        drift.tick()
        return watch.rows_seen - before

    drift.on_response(small)
    assert [kept(small), kept(small), kept(small)] == [1000, 100, 100]
    assert drift.findings(live)[0].psi > 0.25
    for _ in range(10):
        drift.tick()
    assert kept(large) == 40  # 4 MB
    await follower.unload("the test is over")
    drift.tick()
    assert not drift._monitored


def test_drift_can_be_disabled(tmp_path: Path) -> None:
    watching = [create_app(Settings(store_dir=tmp_path, drift_psi=psi)).dataplane.hooks for psi in (0, 0.25)]
    assert [any(isinstance(observer, Drift) for observer in observers) for observers in watching] == [
        False,
        True,
    ]
