"""HTTP behaviour of a running service: operations, predictions, problems, promotions and stop."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from mlflow.types import ParamSpec
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import LogisticRegression, Ridge

from tests.service.test_cli import serving
from tests.support.process_ids import Watch, descendants
from tests.support.registry import NewRegistry, Registry, quiet
from tests.support.service import FOR_SKLEARN, Service, served, until

SECRET = "hunter2"
CLASSES = ["setosa", "versicolor", "virginica"]
IRIS = pd.DataFrame(load_iris().data, columns=["sepal_length", "sepal_width", "petal_length", "petal_width"])
ROW = IRIS.iloc[0].to_dict()
DIABETES = load_diabetes(as_frame=True).data
WORDS = {
    name: {"exclusiveMinimum": 0, "maximum": 10, "description": f"{name} in cm", "unit": "cm"}
    for name in IRIS
}


def log_iris(registry: Registry) -> None:
    model = LogisticRegression().fit(IRIS, load_iris().target)
    mlflow.sklearn.log_model(
        model,
        name="iris",
        signature=infer_signature(IRIS, model.predict_proba(IRIS)),
        input_example=IRIS.head(3),
        metadata={"serving": {"task": "classification", "classes": CLASSES, "inputs": WORDS}},
        pyfunc_predict_fn="predict_proba",
        registered_model_name="iris",
        pip_requirements=[],
    )
    registry.promote("iris", "1")
    registry.alias("iris", "champion", "1")


def log_diabetes(registry: Registry) -> None:
    model = Ridge().fit(DIABETES, load_diabetes().target)
    mlflow.sklearn.log_model(
        model,
        name="diabetes",
        signature=infer_signature(DIABETES, model.predict(DIABETES)),
        input_example=DIABETES.head(3),
        metadata={"serving": {"task": "regression"}},
        registered_model_name="diabetes",
        pip_requirements=[],
    )
    registry.alias("diabetes", "best", "1")


ACTOR = "x: double, act: string?, at: datetime?, many: long?, ok: boolean?"
ODD = [
    ParamSpec(name, "double", default)
    for name, default in [
        ("top-k", 1.0),
        ("class", 1.0),
        ("body", 1.0),
        ("version", 1.0),
        ("factor", 2.0),
        ("not a number", float("nan")),
        ("none", None),
    ]
]


COUNTED = ("counted", "cached", "other", "bounded")
"""Models for one test each, about counted requests and cached responses."""


@pytest.fixture(scope="module")
def registry_of_all(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Return a registry with one model of each kind."""
    folder = tmp_path_factory.mktemp("live")
    registry = Registry(new_registry(folder))
    with pytest.MonkeyPatch.context() as patch, quiet():
        patch.setenv("MLFLOW_TRACKING_URI", registry.uri)
        log_iris(registry)
        log_diabetes(registry)
    registry.add("actor", inputs=ACTOR, params=[ParamSpec("factor", "double", 2.0)])
    registry.add("odd one", params=ODD, inputs="class: double?, x: double, a:b: double?")
    registry.add("odd-one", inputs="x: double, y: double?")
    for name in ("moving", *COUNTED):
        registry.promote(name, registry.add(name, factor=2.0))
    return registry


@pytest.fixture(scope="module")
def service(registry_of_all: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    models = (
        "models:/iris/Production,models:/diabetes@best,models:/actor/1,models:/odd one/latest,"
        "models:/odd-one/1,models:/moving/Production,"
    ) + ",".join(f"models:/{name}/Production" for name in COUNTED)
    folder = tmp_path_factory.mktemp("service")
    limits = {"max_body_bytes": 100_000, "max_rows": 1000, "deadline_seconds": 30, "probation_seconds": 0}
    kept = {"cached_models": "cached,bounded", "cache_entries": 2, "poll_seconds": 0.3}
    with served(registry_of_all.uri, folder, models=models, preload=FOR_SKLEARN, **limits, **kept) as running:
        running.until_ready()
        yield running


@pytest.fixture
def client(service: Service) -> httpx.Client:
    return service.client


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """Return the problem details of a response, after checks that apply to all problems."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.content) <= 8192
    assert SECRET not in response.text
    assert "Traceback" not in response.text
    body: dict[str, Any] = response.json()
    assert body.keys() == {"type", "title", "status", "detail", "request_id", "errors"}
    assert body["status"] == status
    assert body["title"] == httpx.codes.get_reason_phrase(status) or status in (413, 422)
    assert body["detail"]
    assert body["request_id"] == response.headers["x-request-id"]
    return body


# -- operations


def test_feedback_without_a_journal_names_the_setting(client: httpx.Client) -> None:
    feedback = {"prediction_id": "01a2134c-3a0c-71e4-a2d0-d3282d66e74e", "outcome": 1}
    assert "SERVING_JOURNAL_URL" in problem(client.post("/feedback", json=feedback), 404)["detail"]
    assert "x-prediction-id" not in client.post("/predict", json=ROW).headers
    assert "serving_journal" not in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/health", "/livez"])
def test_liveness_endpoints_return_ok(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/ready", "/readyz"])
def test_readiness_describes_live_versions(
    client: httpx.Client, registry_of_all: Registry, path: str
) -> None:
    response = client.get(path)
    assert response.status_code == 200
    body = response.json()
    first, *others = body.pop("models")
    registered = registry_of_all.client.get_model_version("iris", "1")
    assert re.fullmatch("sha256:[0-9a-f]{64}", first.pop("digest"))
    assert pd.Timestamp(first.pop("loaded_at")).tz is not None
    batching = first.pop("batching")
    assert (batching["shared"], batching["basis"]) == (True, "proof")
    assert re.fullmatch(r"the predictions for \d+ rows are the same alone and together", batching["reason"])
    assert pd.Timestamp(body["registry"].pop("checked_at")).tz is not None
    assert body == {
        "status": "ready",
        "model_uri": "models:/iris/Production",
        "model_version": "1",
        "registry": {"uri": registry_of_all.uri, "reachable": True, "state": "reachable"},
    }
    assert first == {
        "name": "iris",
        "uri": "models:/iris/Production",
        "version": "1",
        "stage": "Production",
        "aliases": ["champion"],
        "run_id": registered.run_id,
        "model_id": str(registered.source).removeprefix("models:/"),
        "source": registered.source,
        "required": True,
        "state": "live",
        "reason": None,
        "candidate": None,
        "comparison": None,
        "evaluation": None,
        "canary": None,
        "shadow": None,
        "drift": None,
        "quality": None,
        "warnings": [],
    }
    assert [(model["name"], model["version"], model["state"]) for model in others[:3]] == [
        ("diabetes", "1", "live"),
        ("actor", "1", "live"),
        ("odd one", "1", "live"),
    ]


def test_model_endpoint_returns_the_contract(client: httpx.Client) -> None:
    models = client.get("/models").json()["models"]
    assert [model["name"] for model in models] == [
        "iris",
        "diabetes",
        "actor",
        "odd one",
        "odd-one",
        "moving",
        *COUNTED,
    ]
    for model in models[:5]:
        assert client.get(f"/models/{model['name']}").json() == model
    contract = models[0]["contract"]
    assert contract["params"] is None
    assert contract["row"]["required"] == [*IRIS]
    assert contract["row"]["properties"]["petal_width"]["unit"] == "cm"
    assert [*contract["prediction"]["properties"]] == ["prediction", "label", "confidence", "probabilities"]
    assert models[2]["contract"]["params"]["properties"]["factor"]["type"] == "number"


@pytest.mark.parametrize(
    "path", ["/models/rose", "/models/rose/history", "/nowhere", "/models/iris/predictions"]
)
def test_unknown_resources_are_not_found(client: httpx.Client, path: str) -> None:
    problem(client.get(path), 404)


# -- predictions


def test_single_row_is_predicted(client: httpx.Client) -> None:
    response = client.post("/predict", json=ROW)
    assert response.status_code == 200
    body = response.json()
    assert body.keys() == {"prediction", "label", "confidence", "probabilities", "model"}
    assert (body["prediction"], body["label"]) == (0, "setosa")
    assert body["probabilities"].keys() == set(CLASSES)
    assert body["confidence"] == body["probabilities"]["setosa"] == max(body["probabilities"].values())
    assert body["model"] == {"name": "iris", "version": "1"}
    assert response.headers["x-model-name"] == "iris"
    assert response.headers["x-model-version"] == "1"
    timing = response.headers["server-timing"]
    assert re.fullmatch(r"validate;dur=[\d.]+, queue;dur=[\d.]+, model;dur=[\d.]+", timing)


def test_request_id_is_kept_or_generated(client: httpx.Client) -> None:
    given = {"X-Request-ID": "abc-123"}
    for response in (client.post("/predict", json=ROW, headers=given), client.get("/health", headers=given)):
        assert response.headers.get_list("x-request-id") == ["abc-123"]
    assert problem(client.post("/predict", json={}, headers=given), 422)["request_id"] == "abc-123"
    generated = {client.post("/predict", json=ROW).headers["x-request-id"] for _ in range(3)}
    assert len(generated) == 3


@pytest.mark.parametrize("value", ["", "a b", "x" * 129, "\xff"])
def test_unsafe_request_ids_are_replaced(client: httpx.Client, value: str) -> None:
    response = client.get("/health", headers={b"X-Request-ID": value.encode("latin-1")})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


@pytest.mark.parametrize("prefix", ["", "/models/iris", "/models/iris/versions/1"])
def test_classifier_predictions_match_the_model(
    client: httpx.Client, registry_of_all: Registry, prefix: str
) -> None:
    source = registry_of_all.client.get_model_version_download_uri("iris", "1")
    expected = mlflow.pyfunc.load_model(source).predict(IRIS)
    rows = IRIS.to_dict("records")
    body = client.post(f"{prefix}/predict/batch", json={"rows": rows}).json()
    assert body["model"] == {"name": "iris", "version": "1"}
    probabilities = [[*prediction["probabilities"].values()] for prediction in body["predictions"]]
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12)
    one = client.post(f"{prefix}/predict", json=rows[100]).json()
    del one["model"]
    np.testing.assert_allclose([*one["probabilities"].values()], expected[100], rtol=1e-12)
    assert one["label"] == body["predictions"][100]["label"]


def test_regressor_returns_a_number(client: httpx.Client, registry_of_all: Registry) -> None:
    source = registry_of_all.client.get_model_version_download_uri("diabetes", "1")
    expected = mlflow.pyfunc.load_model(source).predict(DIABETES.head(20))
    rows = DIABETES.head(20).to_dict("records")
    body = client.post("/models/diabetes/predict/batch", json={"rows": rows}).json()
    np.testing.assert_allclose([prediction["prediction"] for prediction in body["predictions"]], expected)
    (row, *_) = rows
    assert client.post("/models/diabetes/predict", json=row).json() == {
        "prediction": pytest.approx(expected[0]),
        "model": {"name": "diabetes", "version": "1"},
    }


def test_parameters_come_from_query_or_batch(client: httpx.Client) -> None:
    path = "/models/actor/predict"
    assert client.post(path, json={"x": 2}).json()["prediction"] == 4.0
    assert client.post(path, json={"x": 2}, params={"factor": 5}).json()["prediction"] == 10.0
    batch = {"rows": [{"x": 1}, {"x": 2}], "params": {"factor": 3}}
    predictions = client.post(f"{path}/batch", json=batch).json()["predictions"]
    assert predictions == [{"prediction": 3.0}, {"prediction": 6.0}]


def test_optional_columns_may_be_absent_or_null(client: httpx.Client) -> None:
    rows: list[dict[str, Any]] = [
        {"x": 1, "many": 5},
        {"x": 2},
        {"x": 3, "at": "2026-01-31", "ok": None},
        {"x": 4, "many": 6, "at": "2026-01-31T12:00:00+02:00", "ok": True, "act": "nothing"},
        {"x": 5, "at": None},
    ]
    for row in rows:
        assert client.post("/models/actor/predict", json=row).json()["prediction"] == row["x"] * 2
    predictions = client.post("/models/actor/predict/batch", json={"rows": rows}).json()["predictions"]
    assert [prediction["prediction"] for prediction in predictions] == [row["x"] * 2 for row in rows]
    refused = client.post("/models/actor/predict", json={"x": 1, "many": None})
    assert refused.status_code == 422
    assert refused.json()["errors"] == [
        {"loc": ["many"], "msg": "MLflow accepts no null in a column of this type: omit the field"}
    ]


def test_unusual_column_and_parameter_names_are_served(client: httpx.Client) -> None:
    path = "/models/odd one/predict"
    row = {"class": 1, "x": 2, "a:b": 3}
    for name in ("top-k", "class", "body", "version", "not a number", "none"):
        assert client.post(path, json=row, params={name: 1}).json()["prediction"] == 4.0
    assert client.post(path, json=row, params={"factor": 3}).headers["x-model-name"] == "odd%20one"


async def predict_all(service: Service, rows: list[dict[str, Any]]) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits) as client:
        asked = [client.post("/models/actor/predict", json=row) for row in rows]
        return await asyncio.gather(*asked)


@pytest.mark.anyio
async def test_concurrent_requests_get_their_own_predictions(service: Service) -> None:
    rows = [{"x": number} | ({"many": 1} if number % 3 else {}) for number in range(256)]
    responses_of_all = await predict_all(service, rows)
    assert [response.json()["prediction"] for response in responses_of_all] == [row["x"] * 2 for row in rows]


# -- problems


@pytest.mark.parametrize("prefix", ["", "/models/iris", "/models/iris/versions/1"])
@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"petal_width": None}, ["petal_width"]),
        ({"petal_width": SECRET}, ["petal_width"]),
        ({"petal_width": "1.5"}, ["petal_width"]),
        ({"petal_width": True}, ["petal_width"]),
        ({"petal_width": float("nan")}, ["petal_width"]),
        ({"petal_width": float("inf")}, ["petal_width"]),
        ({"petal_width": 0}, ["petal_width"]),
        ({"petal_width": 10.5}, ["petal_width"]),
        ({"petal_width": [1]}, ["petal_width"]),
        ({"color": SECRET}, ["color"]),
    ],
    ids=str,
)
def test_invalid_values_are_refused_with_their_location(
    client: httpx.Client, prefix: str, change: dict[str, Any], loc: list[str]
) -> None:
    content = {"Content-Type": "application/json"}
    row = json.dumps(ROW | change)
    refused = problem(client.post(f"{prefix}/predict", content=row, headers=content), 422)
    assert [fault["loc"] for fault in refused["errors"]] == [loc]
    batch = f'{{"rows": [{json.dumps(ROW)}, {row}]}}'
    refused = problem(client.post(f"{prefix}/predict/batch", content=batch, headers=content), 422)
    assert [fault["loc"] for fault in refused["errors"]] == [["rows", 1, *loc]]


def test_missing_field_is_named(client: httpx.Client) -> None:
    missing = {name: value for name, value in ROW.items() if name != "petal_width"}
    (fault,) = problem(client.post("/predict", json=missing), 422)["errors"]
    assert fault == {"loc": ["petal_width"], "msg": "Field required"}


def test_invalid_parameter_is_named(client: httpx.Client) -> None:
    for params in ({"factor": SECRET}, {"unknown": SECRET}, {"factor": "nan"}):
        refused = problem(client.post("/models/actor/predict", json={"x": 1}, params=params), 422)
        assert [fault["loc"] for fault in refused["errors"]] == [[*params]]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        SECRET.encode(),
        b'{"sepal_length": 1',
        b'{"a": 1, "a": 2}' * 2,
        b"\xff\xfe{\x00}\x00",
        b"[" * 90_000,
    ],
    ids=["nothing", "text", "cut off", "two", "UTF-16", "nested"],
)
@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_malformed_json_is_refused(client: httpx.Client, path: str, body: bytes) -> None:
    problem(client.post(path, content=body, headers={"Content-Type": "application/json"}), 400)


def test_duplicate_field_is_refused(client: httpx.Client) -> None:
    twice = json.dumps(ROW)[:-1] + ', "petal_width": 1}'
    refused = client.post("/predict", content=twice, headers={"Content-Type": "application/json"})
    assert problem(refused, 400)["detail"] == "A field is named twice."


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/jsonp"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json", "Content-Encoding": "deflate"},
        {"Content-Type": "application/json", "Content-Encoding": "br"},
    ],
    ids=str,
)
def test_unsupported_media_type_is_refused(client: httpx.Client, headers: dict[str, str]) -> None:
    problem(client.post("/predict", content=json.dumps(ROW), headers=headers), 415)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
    ],
)
def test_json_media_type_variants_are_accepted(client: httpx.Client, media_type: str) -> None:
    response = client.post("/predict", content=json.dumps(ROW), headers={"Content-Type": media_type})
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_oversized_body_is_refused(client: httpx.Client, path: str) -> None:
    headers, large = {"Content-Type": "application/json"}, b"[" + b" " * 100_000
    problem(client.post(path, content=large, headers=headers), 413)
    problem(client.post(path, content=(large[:50_000] for _ in range(3)), headers=headers), 413)


def test_endless_body_is_refused_early(service: Service) -> None:
    with socket.create_connection(service.address, timeout=60) as connection:
        head = "Host: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked"
        connection.sendall(f"POST /predict HTTP/1.1\r\n{head}\r\n\r\n".encode())
        for _ in range(12):
            connection.sendall(b"2710\r\n" + b" " * 10_000 + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_batch_with_too_many_rows_is_refused(client: httpx.Client) -> None:
    rows = [{"x": 1}] * 1001
    problem(client.post("/models/actor/predict/batch", json={"rows": rows}), 413)
    assert client.post("/models/actor/predict/batch", json={"rows": rows[1:]}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/models/rose/predict",
        "/models/rose/predict/batch",
        "/models/rose/versions/1/predict",
        "/models/iris/versions/2/predict",
        "/models/iris/versions/2/predict/batch",
        "/models/iris/versions/x/predict",
        "/models/iris/versions/1/predict/more",
        "/models/iris/Production/predict",
        "/predict/",
    ],
)
def test_unknown_model_or_version_is_not_found(client: httpx.Client, path: str) -> None:
    problem(client.post(path, json=ROW), 404)


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        ("diabetes", "diabetes"),
        ("diabetes@best", "diabetes"),
        ("models:/diabetes@best", "diabetes"),
        ("diabetes/1", "diabetes"),
        ("iris/Production", "iris"),
        ("iris@champion", "iris"),
        ("models:/iris/1", "iris"),
        ("odd one", "odd%20one"),
        ("", "iris"),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_header_selects_the_model(client: httpx.Client, path: str, chosen: str, name: str) -> None:
    rows = {"iris": ROW, "diabetes": DIABETES.iloc[0].to_dict(), "odd%20one": {"x": 1.0}}
    body = {"rows": [rows[name]]} if path.endswith("batch") else rows[name]
    response = client.post(path, json=body, headers={"X-Model": chosen})
    assert response.status_code == 200, response.text
    assert response.headers["x-model-name"] == name


@pytest.mark.parametrize(
    "chosen", ["rose", "iris@best", "iris/2", "iris/Staging", "iris/None", "models:/", "@"]
)
def test_unknown_model_in_the_header_is_not_found(client: httpx.Client, chosen: str) -> None:
    problem(client.post("/predict", json=ROW, headers={"X-Model": chosen}), 404)


def test_alias_in_the_path_selects_its_version(client: httpx.Client) -> None:
    assert client.post("/models/iris@champion/predict", json=ROW).headers["x-model-name"] == "iris"
    batch = client.post("/models/iris@champion/predict/batch", json={"rows": [ROW]})
    assert batch.headers["x-model-name"] == "iris"
    problem(client.post("/models/iris@best/predict", json=ROW), 404)


@pytest.mark.parametrize("path", ["/models/iris/predict", "/models/iris/versions/1/predict"])
@pytest.mark.parametrize(
    ("chosen", "status"),
    [
        ("iris", 200),
        ("iris/1", 200),
        ("iris@champion", 200),
        ("diabetes", 400),
        ("iris/2", 400),
        ("rose", 400),
    ],
)
def test_header_must_not_contradict_the_path(
    client: httpx.Client, path: str, chosen: str, status: int
) -> None:
    response = client.post(path, json=ROW, headers={"X-Model": chosen})
    if status == 200:
        assert response.json()["model"] == {"name": "iris", "version": "1"}
    else:
        assert "X-Model" in problem(response, 400)["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/predict"),
        ("PUT", "/predict/batch"),
        ("DELETE", "/models/iris/predict"),
        ("POST", "/ready"),
        ("POST", "/models"),
    ],
)
def test_wrong_method_is_refused_with_allow_header(client: httpx.Client, method: str, path: str) -> None:
    response = client.request(method, path)
    problem(response, 405)
    assert response.headers["allow"] in ("POST", "GET")


def test_problem_size_is_limited(client: httpx.Client) -> None:
    wide = {"я" * 200 + str(number): number for number in range(100)}
    refused = problem(client.post("/predict", json=wide), 422)
    assert refused["errors"]


def test_disconnect_during_the_body_is_harmless(service: Service) -> None:
    head = (
        "POST /predict HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    with socket.create_connection(service.address, timeout=60) as connection:
        connection.sendall(head.encode())
        connection.shutdown(socket.SHUT_WR)
        connection.recv(65536)
    # The fixture checks the log when the service has stopped.
    assert service.client.get("/health").status_code == 200


def test_disconnect_during_the_prediction_is_harmless(service: Service, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    row = json.dumps({"x": 1, "act": f"wait:{pipe}"})
    head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(row)}"
    connection = socket.create_connection(service.address, timeout=60)
    connection.sendall(f"POST /models/actor/predict HTTP/1.1\r\n{head}\r\n\r\n{row}".encode())
    with ThreadPoolExecutor() as pool:
        with pipe.open("w"):
            connection.close()
            # Other requests wait meanwhile, and complete.
            waiting = pool.submit(service.client.post, "/models/actor/predict", json={"x": 5})
            assert service.client.get("/health").status_code == 200
        assert waiting.result().json()["prediction"] == 10.0


# -- documentation


def test_openapi_has_names_ranges_units_and_examples(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    for path in ("/predict", "/models/iris/predict", "/models/iris/versions/{version}/predict"):
        operation = document["paths"][path]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        row = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        assert [*row["properties"]] == [*IRIS]
        assert row["properties"]["petal_width"] == {
            "title": "Petal Width",
            "type": "number",
            "format": "double",
            **WORDS["petal_width"],
        }
        assert row["required"] == [*IRIS]
        assert row["examples"] == [ROW]
        assert {"200", "400", "404", "413", "415", "422", "500", "503", "504"} <= operation[
            "responses"
        ].keys()
    assert client.get("/docs").status_code == 200


def test_openapi_documents_every_parameter(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/models/odd%20one/predict"]["post"]
    documented = {
        parameter["name"]: parameter for parameter in operation["parameters"] if parameter["in"] == "query"
    }
    assert documented.keys() == {param.name for param in ODD}
    assert documented["factor"]["schema"]["default"] == 2.0


def test_models_with_similar_names_have_separate_documentation(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    for name, columns in (("odd%20one", ["class", "x", "a:b"]), ("odd-one", ["x", "y"])):
        body = document["paths"][f"/models/{name}/predict"]["post"]["requestBody"]
        schema = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert [*document["components"]["schemas"][schema]["properties"]] == columns


def test_operation_ids_are_unique(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    ids = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)


# -- promotions


def test_promotion_changes_predictions_and_documentation(service: Service, registry_of_all: Registry) -> None:
    client, path = service.client, "/models/moving/predict"
    words = {"serving": {"inputs": {"extra": {"description": "What is new"}}}}
    version = registry_of_all.add(
        "moving", factor=3.0, inputs="x: double, act: string?, extra: double?", metadata=words
    )
    assert "What is new" not in client.get("/openapi.json").text
    registry_of_all.promote("moving", version)
    service.until_live("moving", version)
    response = client.post(path, json={"x": 1, "extra": 5})
    assert response.json() == {"prediction": 3.0, "model": {"name": "moving", "version": version}}
    assert response.headers["x-model-version"] == version
    assert "What is new" in client.get("/openapi.json").text
    problem(client.post("/models/moving/versions/1/predict", json={"x": 1}), 404)


def test_promotions_under_load_fail_no_requests(service: Service, registry_of_all: Registry) -> None:
    """Each prediction matches the version in its response, which is never older than the reported one."""
    factors = {f"{number}": float(number) for number in range(1, 100)}
    newest = len(registry_of_all.client.search_model_versions("name='moving'"))
    following = threading.Event()
    reported = [0]
    wrong: list[Any] = []

    def ask() -> None:
        with httpx.Client(base_url=service.url, timeout=60) as client:
            while not following.is_set():
                least = reported[0]
                response = client.post("/models/moving/predict", json={"x": 1})
                version = response.json().get("model", {}).get("version", "0")
                prediction = response.json().get("prediction")
                fine = response.status_code == 200 and int(version) >= least
                if not fine or (least and prediction != factors[version]):
                    wrong.append((least, response.text))

    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(ask) for _ in range(4)]
        try:
            for number in range(newest + 1, newest + 5):
                version = registry_of_all.add("moving", factor=float(number))
                assert version == str(number)
                registry_of_all.client.set_model_version_tag(
                    "moving", version, "serving.allow_breaking", "true"
                )
                registry_of_all.promote("moving", version)
                service.until_live("moving", version)
                reported[0] = number
        finally:
            following.set()
        for task in tasks:
            task.result()
    assert wrong == []


def test_broken_version_is_reported_and_rejected(service: Service, registry_of_all: Registry) -> None:
    before = service.client.get("/models/moving").json()["version"]
    version = registry_of_all.add("moving", example=None, on_load="raise:no_weights")
    registry_of_all.promote("moving", version)

    def refused() -> Any:
        model = service.client.get("/models/moving").json()
        return model if (model["candidate"] or {}).get("state") == "rejected" else None

    model = until(refused)
    assert model["version"] == before
    assert model["candidate"]["version"] == version
    assert "ValueError: no_weights" in model["candidate"]["reason"]
    assert service.client.get("/ready").status_code == 200
    assert service.client.post("/models/moving/predict", json={"x": 1}).status_code == 200
    registry_of_all.promote("moving", before)
    until(lambda: service.client.get("/models/moving").json()["candidate"] is None)


# -- start and stop


@pytest.fixture(scope="module")
def unpromoted(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start a service of models without versions, with a low limit for open files."""
    folder = tmp_path_factory.mktemp("unpromoted")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        try:
            models = "models:/actor/Production,models:/missing/Production"
            starting = served(new_registry(folder), folder, models=models)
            running = stack.enter_context(starting)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        yield running


def test_open_file_limit_is_raised_to_the_maximum(unpromoted: Service) -> None:
    limits = Path(f"/proc/{unpromoted.process.pid}/limits").read_text()
    hard = str(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert re.search(r"Max open files +(\d+) +(\d+)", limits).groups() == (hard, hard)  # type: ignore[union-attr]


def test_service_becomes_ready_after_the_first_promotion(
    unpromoted: Service,
) -> None:
    uri, client = unpromoted.env["MLFLOW_TRACKING_URI"], unpromoted.client
    catalog = Registry(uri)
    reason = "the registry has no version of a model 'actor'"
    until(lambda: unpromoted.ready()["models"][0]["reason"] == reason)
    assert client.get("/health").status_code == 200
    response = client.get("/ready")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["status"] == "not ready"
    refused = client.post("/predict", json={"x": 1})
    assert reason in problem(refused, 503)["detail"]
    assert refused.headers["retry-after"] == "1"
    assert "/predict" not in client.get("/openapi.json").json()["paths"]
    catalog.promote("actor", catalog.add("actor", factor=2.0))
    unpromoted.until_live("actor", "1")
    assert client.post("/predict", json={"x": 1}).json()["prediction"] == 2.0
    assert "/predict" in client.get("/openapi.json").json()["paths"]
    status, printed, _ = serving(unpromoted.env, "status", unpromoted.url)
    assert status == 1
    assert re.search(r"models:/actor/Production +1 +live +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", printed)
    assert re.search(r"models:/missing/Production +– +not live +– +the registry has no version", printed)
    assert f"registry {uri}: reachable" in printed
    catalog.promote("missing", catalog.add("missing"))
    unpromoted.until_ready()
    assert serving(unpromoted.env, "status", f"{unpromoted.url}/")[0] == 0


# -- metrics, cache


def test_requests_are_counted_by_version_and_code(service: Service) -> None:
    client, path, before = service.client, "/models/counted/predict", service.metrics()
    for body, code in (
        ({"x": 1}, 200),
        ({"x": 2}, 200),
        ({"x": "a"}, 422),
        ({"x": 1, "act": "raise"}, 500),
    ):
        assert client.post(path, json=body).status_code == code
    client.post(f"{path}/batch", json={"rows": [{"x": 1}] * 5})
    client.post("/models/nobody/predict", json={})
    metrics_after = service.metrics()
    version, unknown = 'model="counted",version="1"', 'serving_requests_total{code="404",model="",version=""}'
    assert metrics_after[f'serving_requests_total{{code="200",{version}}}'] == 3
    assert metrics_after[f'serving_requests_total{{code="422",{version}}}'] == 1
    assert metrics_after[f'serving_requests_total{{code="500",{version}}}'] == 1
    assert metrics_after[unknown] - before.get(unknown, 0) == 1
    assert metrics_after[f"serving_rows_total{{{version}}}"] == 7
    assert metrics_after[f"serving_request_duration_seconds_count{{{version}}}"] == 3
    assert metrics_after[f"serving_batch_rows_sum{{{version}}}"] == 8


def test_repeated_request_is_served_from_the_cache(service: Service, registry_of_all: Registry) -> None:
    client, path = service.client, "/models/cached/predict"

    def ask(x: float, path: str = path) -> tuple[Any, str | None, str]:
        response = client.post(path, json={"x": x})
        result = response.json()
        return (
            result.get("prediction"),
            response.headers.get("x-cache"),
            response.headers["x-model-version"],
        )

    assert [ask(1), ask(1), ask(2)] == [(2.0, "miss", "1"), (2.0, "hit", "1"), (4.0, "miss", "1")]
    assert ask(1, "/models/other/predict") == (2.0, None, "1")
    bad = [client.post(path, json={"x": "a"}) for _ in range(2)]
    assert [response.status_code for response in bad] == [422, 422]
    batch = {"rows": [{"x": 1}, {"x": 2}]}
    responses = [client.post(f"{path}/batch", json=batch) for _ in range(2)]
    assert [answer.headers["x-cache"] for answer in responses] == ["miss", "hit"]
    assert responses[0].content == responses[1].content
    inputs = [{"name": "x", "datatype": "FP64", "shape": [2], "data": [1, 2]}]
    requests: dict[str, dict[str, Any]] = {
        "/v2/models/cached/infer": {"json": {"inputs": inputs, "parameters": {"binary_data_output": True}}},
        "/v2/models/cached/versions/1/infer": {"json": {"inputs": inputs}},
    }
    own = {"x-cache", "x-request-id", "server-timing", "date"}
    for route, sent in requests.items():
        responses = [client.post(route, **sent) for _ in range(2)]
        assert [answer.headers["x-cache"] for answer in responses] == ["miss", "hit"]
        assert responses[0].content == responses[1].content
        first, second = (dict(answer.headers) for answer in responses)
        assert {name: first[name] for name in first.keys() - own} == {
            name: second[name] for name in second.keys() - own
        }
    assert service.metrics()['serving_cache_hits_total{model="cached",version="1"}'] == 4
    registry_of_all.promote("cached", registry_of_all.add("cached", factor=3.0))
    service.until_live("cached", "2")
    assert [ask(1), ask(1)] == [(3.0, "miss", "2"), (3.0, "hit", "2")]


def test_cache_size_is_limited(client: httpx.Client) -> None:
    path = "/models/bounded/predict"
    outcomes = [client.post(path, json={"x": x}).headers["x-cache"] for x in (1, 2, 3, 3, 1)]
    assert outcomes == ["miss", "miss", "miss", "hit", "miss"]


def test_row_22_stop_completes_pending_requests_and_ends_processes(registry: str, tmp_path: Path) -> None:
    catalog = Registry(registry)
    catalog.promote("actor", catalog.add("actor", factor=2.0))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with served(registry, tmp_path, models="models:/actor/Production") as service:
        service.until_ready()
        idle = [httpx.Client(base_url=service.url) for _ in range(4)]
        for client in idle:
            assert client.get("/health").headers.get("connection") is None
        with Watch(descendants(service.process.pid)) as watch, ThreadPoolExecutor() as pool:
            pending = [pool.submit(service.client.post, "/predict", json={"x": 0, "act": f"wait:{pipe}"})]
            with pipe.open("w"):  # returns when the model has opened it, too
                service.process.send_signal(signal.SIGTERM)
                until(lambda: refused(service.address))
                # Requests on idle connections still complete; their responses close the connection.
                pending += [
                    pool.submit(client.post, "/predict", json={"x": 1}, timeout=60) for client in idle
                ]
            responses = [item.result() for item in pending]
            assert [item.json()["prediction"] for item in responses] == [0.0, 2.0, 2.0, 2.0, 2.0]
            assert [item.headers["connection"] for item in responses] == ["close"] * 5
            assert service.process.wait(60) == 0
            assert watch.left() == set()


def refused(address: tuple[str, int]) -> bool:
    """Return whether the address refuses connections."""
    try:
        socket.create_connection(address, timeout=60).close()
    except ConnectionRefusedError:
        return True
    return False
