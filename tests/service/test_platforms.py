"""KServe's protocol v1, TensorFlow Serving's REST API and managed platforms, by their documented requests."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from serving.server.healthcheck import is_alive
from serving.settings import platforms
from tests.support.faulty_proxy import free_port
from tests.support.registry import NewRegistry, Registry
from tests.support.sample_models import HOUSES, IRIS
from tests.support.service import PROGRAM, SELDOM, Service, served
from tests.system.test_open_inference_clients import run_client

FLOWERS = IRIS.iloc[[0, 60, 120]]
LISTS, RECORDS = FLOWERS.to_numpy().tolist(), FLOWERS.to_dict("records")
IMAGES = [[[1, 2], [3, 255]], [[0, 0], [5, 6]]]
WORDS = [["a", "b"], ["c", "ä"]]


@pytest.fixture
def service(sample_model_service: Service) -> Service:
    """Return the service of all sample models."""
    return sample_model_service


@pytest.fixture
def folders(sample_model_folders: dict[str, Path]) -> dict[str, Path]:
    """Return the folders of the sample models by name."""
    return sample_model_folders


def predict(service: Service, model: str, body: Any) -> Any:
    """Return the response to a valid request."""
    response = service.client.post(f"/v1/models/{model}:predict", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["X-Model-Name"] == model.partition("/")[0].partition("@")[0]
    return response.json()


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as JSON objects."""
    found: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", date_format="iso"))
    return found


# -- rows and columns


def test_rows_get_the_predictions_of_pyfunc(service: Service, folders: dict[str, Path]) -> None:
    chances = mlflow.pyfunc.load_model(str(folders["classifier"])).predict(FLOWERS).tolist()
    reordered = [dict(reversed(row.items())) for row in RECORDS]
    for instances in (LISTS, RECORDS, reordered):
        assert predict(service, "classifier", {"instances": instances}) == {"predictions": chances}
    columns = {name: values.tolist() for name, values in FLOWERS.items()}
    body = {"inputs": columns, "signature_name": "serving_default"}
    assert predict(service, "classifier", body) == {"outputs": chances}


def test_integers_dates_and_nulls_keep_their_types(service: Service, folders: dict[str, Path]) -> None:
    prices = mlflow.pyfunc.load_model(str(folders["pipeline"])).predict(HOUSES).tolist()
    rows = records(HOUSES)
    assert predict(service, "pipeline", {"instances": rows}) == {"predictions": prices}
    lists = [[*row.values()] for row in rows]
    assert predict(service, "pipeline", {"instances": lists}) == {"predictions": prices}
    holey = FLOWERS.assign(petal_width=[0.2, math.nan, 1.5])
    loaded = mlflow.pyfunc.load_model(str(folders["lightgbm"]))
    expected = loaded.predict(holey).tolist()
    assert predict(service, "lightgbm", {"instances": records(holey)})["predictions"] == expected
    lists = [[*row.values()] for row in records(holey)]
    assert predict(service, "lightgbm", {"instances": lists})["predictions"] == expected


def test_output_of_one_column_has_no_name(service: Service) -> None:
    rows = FLOWERS.to_numpy(np.float32)
    weights = np.arange(8, dtype=np.float32).reshape(4, 2) / 8
    outputs = predict(service, "onnx", {"instances": rows.tolist()})["predictions"]
    assert np.allclose(outputs, rows @ weights)
    assert predict(service, "onnx", {"instances": [{"x": row} for row in LISTS]})["predictions"] == outputs
    for inputs in (LISTS, {"x": LISTS}):
        assert predict(service, "onnx", {"inputs": inputs}) == {"outputs": outputs}


def test_outputs_of_several_columns_are_rows_or_columns(service: Service) -> None:
    instances = [{"image": image, "words": words} for image, words in zip(IMAGES, WORDS, strict=True)]
    rows = predict(service, "arrays", {"instances": instances})["predictions"]
    columns = predict(service, "arrays", {"inputs": {"image": IMAGES, "words": WORDS}})["outputs"]
    assert columns == {
        "mean": [65.25, 2.75],
        "twice": (np.array(IMAGES) * 2).tolist(),
        "words": ["a b", "c ä"],
    }
    assert rows == [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    values = [5.0, -3.0, 12.5]
    framed = predict(service, "frame", {"instances": values})["predictions"]
    assert [row["half"] for row in framed] == [2.5, -1.5, 6.25]
    assert [row["gap"] for row in framed] == [5.0, None, 12.5]
    assert predict(service, "frame", {"instances": [[value] for value in values]})["predictions"] == framed
    columnar = predict(service, "frame", {"inputs": values})["outputs"]
    assert columnar == {name: [row[name] for row in framed] for name in framed[0]}


def test_values_of_other_models(service: Service) -> None:
    nested = [{"v": [1.0, 2.0], "o": {"a": 1.0}, "m": {"k": 1}}, {"v": [3.0], "o": {"a": 2.5}, "m": {}}]
    scored = service.client.post("/invocations?model=nested", json={"dataframe_records": nested})
    expected = scored.json()["predictions"]
    assert predict(service, "nested", {"instances": nested})["predictions"] == expected
    columns = {name: [row[name] for row in nested] for name in nested[0]}
    assert predict(service, "nested", {"inputs": columns})["outputs"] == expected
    for name in ("parameters", "params"):
        body = {"instances": ["a", "ä"], name: {"times": 2}}
        assert predict(service, "texts", body) == {"predictions": ["AA", "ÄÄ"]}
    message = {"role": "user", "content": "hi"}
    hinted = {"predictions": ["user: hi None"]}
    assert predict(service, "hinted", {"instances": [message]}) == hinted
    whole = {"total": 3.0, "rows": 2}
    assert predict(service, "whole", {"instances": [1.0, 2.0]}) == {"predictions": whole}
    assert predict(service, "whole", {"inputs": [1.0, 2.0]}) == {"outputs": whole}


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        ("classifier", {}, "Send instances or inputs"),
        ("classifier", {"instances": LISTS, "inputs": LISTS}, "Send instances or inputs"),
        ("classifier", {"instances": LISTS, "examples": []}, "Send instances or inputs"),
        ("classifier", {"instances": LISTS, "params": {}, "parameters": {}}, "Send instances or inputs"),
        ("classifier", {"instances": LISTS, "signature_name": "other"}, "no signature of that name"),
        ("classifier", {"instances": LISTS, "parameters": {"k": 1}}, "k: Extra inputs are not permitted"),
        ("classifier", {"instances": []}, "at least one row"),
        ("classifier", {"instances": {}}, "at least one row"),
        ("classifier", {"instances": [LISTS[0][:3]]}, "a list of 4 values in this order: sepal_length"),
        ("classifier", {"instances": [*LISTS, 1]}, "a list of 4 values"),
        ("classifier", {"instances": [LISTS[0], RECORDS[0]]}, "all objects, or none"),
        ("classifier", {"instances": [RECORDS[0] | {"petals": 1}]}, "The model has no input 'petals'"),
        ("classifier", {"instances": [{"sepal_length": 5.1}]}, "petal_width: Field required"),
        ("classifier", {"instances": [{}]}, "The rows have no values"),
        (
            "classifier",
            {"instances": [["5.1", 3.5, 1.4, 0.2]]},
            "sepal_length, 0: Input should be a valid number",
        ),
        ("classifier", {"inputs": LISTS}, "4 inputs: inputs should be an object that names them"),
        ("classifier", {"inputs": {"sepal_length": 5.1}}, "inputs.sepal_length should be a list"),
        ("classifier", {"inputs": 5}, "a list of values, or an object of lists"),
        ("classifier", {"inputs": {name: [1.0] * len(str(name)) for name in FLOWERS}}, "differ in length"),
        (
            "pipeline",
            {"instances": [records(HOUSES)[0] | {"rooms": 1.5}]},
            "rooms, 0: Input should be a valid",
        ),
        ("onnx", {"instances": [[1, 2], [3]]}, "x, 0: List should have at least 4 items"),
        (
            "arrays",
            {"instances": [[IMAGES[0], WORDS[0]]]},
            "each instance should be an object that names them",
        ),
        ("arrays", {"instances": [{"image": [[1, 256]], "words": ["a", "b"]}]}, "less than or equal to 255"),
        ("texts", {"instances": [1]}, "input, 0: Input should be a valid string"),
        ("classifier", [1], "should be a JSON object"),
    ],
)
def test_invalid_bodies_are_rejected(service: Service, model: str, body: Any, message: str) -> None:
    response = service.client.post(f"/v1/models/{model}:predict", json=body)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]
    assert {*response.json()} == {"error", "request_id"}


@pytest.mark.parametrize("number", ["NaN", "1e999", "Infinity"])
def test_numbers_outside_json_are_rejected(service: Service, number: str) -> None:
    body = f'{{"instances": [[{number}, 3.5, 1.4, 0.2]]}}'
    response = service.client.post(
        "/v1/models/classifier:predict", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 400, response.text


def test_body_without_media_type_is_read_as_json(service: Service) -> None:
    """Send what `requests.post(url, data=text)` sends."""
    body = json.dumps({"instances": ["a"]})
    response = service.client.post("/v1/models/texts:predict", content=body)
    assert "content-type" not in response.request.headers
    assert response.json() == {"predictions": ["A"]}
    forged = service.client.post("/v1/models/texts:predict", content=body, headers={"Origin": "http://evil"})
    assert forged.status_code == 403


def test_form_of_curl_is_read_as_json(service: Service) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    body = json.dumps({"instances": ["a"]})
    response = service.client.post("/v1/models/texts:predict", content=body, headers=headers)
    assert response.json() == {"predictions": ["A"]}
    headers = {"Content-Type": "text/csv"}
    refused = service.client.post("/v1/models/texts:predict", content=body, headers=headers)
    assert (refused.status_code, "Send JSON" in refused.json()["error"]) == (415, True)


# -- addresses


def test_versions_and_labels_select_a_version(service: Service) -> None:
    body = {"instances": ["a"]}
    assert predict(service, "texts/versions/1", body) == {"predictions": ["A"]}
    for address in ("texts/versions/2", "texts/labels/1", "texts/labels/champion", "other"):
        response = service.client.post(f"/v1/models/{address}:predict", json=body)
        assert response.status_code == 404, address
        assert {*response.json()} == {"error", "request_id"}


@pytest.mark.parametrize("verb", ["explain", "classify", "regress"])
def test_other_verbs_are_not_implemented(service: Service, verb: str) -> None:
    response = service.client.post(f"/v1/models/texts:{verb}", json={"instances": ["a"]})
    assert (response.status_code, response.json()["error"]) == (501, "Only :predict is implemented.")


def test_get_is_not_allowed_for_predictions(service: Service) -> None:
    response = service.client.get("/v1/models/texts:predict")
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")
    assert "error" in response.json()


def test_status_of_a_model_is_that_of_both_servers(service: Service) -> None:
    state = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    expected = {"name": "texts", "ready": True, "model_version_status": [state]}
    for path in ("texts", "texts/versions/1"):
        assert service.client.get(f"/v1/models/{path}").json() == expected
    for path in ("other", "texts/versions/9", "texts/labels/champion", "texts/versions/9/metadata"):
        response = service.client.get(f"/v1/models/{path}")
        assert (response.status_code, {*response.json()}) == (404, {"error", "request_id"}), path


def test_list_of_models_is_that_of_kserve_and_openai(service: Service, folders: dict[str, Path]) -> None:
    body = service.client.get("/v1/models").json()
    assert body["models"] == [*folders]
    assert (body["object"], [model["id"] for model in body["data"]]) == ("list", [*folders])
    assert {model["object"] for model in body["data"]} == {"model"}
    assert all(model["created"] > 1_700_000_000 for model in body["data"])


def test_metadata_is_that_of_tensorflow_serving(service: Service) -> None:
    def info(name: str, dtype: str, *shape: int) -> dict[str, Any]:
        dimensions = [{"size": str(size), "name": ""} for size in shape]
        return {"dtype": dtype, "tensor_shape": {"dim": dimensions, "unknown_rank": False}, "name": name}

    for path in ("arrays", "arrays/versions/1"):
        body = service.client.get(f"/v1/models/{path}/metadata").json()
        assert body["model_spec"] == {"name": "arrays", "signature_name": "", "version": "1"}
        (signature,) = body["metadata"]["signature_def"]["signature_def"].values()
        assert signature["method_name"] == "tensorflow/serving/predict"
        assert signature["inputs"] == {
            "image": info("image", "DT_UINT8", -1, -1, 2),
            "words": info("words", "DT_STRING", -1, 2),
        }
        assert {*signature["outputs"]} == {"mean", "twice", "words"}
    frame = service.client.get("/v1/models/frame/metadata").json()["metadata"]["signature_def"]
    assert frame["signature_def"]["serving_default"]["inputs"] == {"x": info("x", "DT_DOUBLE", -1)}


# -- SageMaker and Azure ML


def lines(values: list[Any]) -> bytes:
    """Return values as JSON Lines."""
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def invoke(service: Service, model: str, content: bytes, media_type: str, **headers: str) -> Any:
    """Send a request as SageMaker does."""
    sent = {"Content-Type": media_type, "X-Model": model} | headers
    return service.client.post("/invocations", content=content, headers=sent)


def test_json_lines_of_sagemaker(service: Service) -> None:
    chances = predict(service, "classifier", {"instances": LISTS})["predictions"]
    for rows in (LISTS, RECORDS):
        response = invoke(service, "classifier", lines(rows), "application/jsonlines")
        assert response.json() == {"predictions": chances}
    media_type = "application/jsonlines"
    response = invoke(service, "classifier", lines(LISTS), media_type, Accept=media_type)
    assert response.headers["Content-Type"] == media_type
    assert [json.loads(line) for line in response.text.splitlines()] == chances
    whole = invoke(service, "whole", lines([1.0, 2.0]), media_type, Accept=media_type)
    assert json.loads(whole.text) == {"total": 3.0, "rows": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[5.1, 3.5, 1.4, 0.2]\n[5.1,", "Line 2 is not JSON"),
        (b"[5.1, 3.5, 1.4, NaN]", "Line 1 is not JSON"),
        (b'{"sepal_length": 1, "sepal_length": 2}', "A field is named twice"),
        (b"[5.1, 3.5, 1.4]", "a list of 4 values"),
        (b"\n", "at least one row"),
    ],
)
def test_invalid_json_lines_are_rejected(service: Service, content: bytes, message: str) -> None:
    response = invoke(service, "classifier", content, "application/jsonlines")
    assert (response.status_code, message in response.json()["message"]) == (400, True), response.text


def test_csv_without_header(service: Service) -> None:
    chances = predict(service, "classifier", {"instances": LISTS})["predictions"]
    media_type = "text/csv; header=absent"
    csv = FLOWERS.to_csv(index=False, header=False).encode()
    assert invoke(service, "classifier", csv, media_type).json() == {"predictions": chances}
    media_type = "text/csv; charset=utf-8; header=present"
    csv = FLOWERS.to_csv(index=False).encode()
    assert invoke(service, "classifier", csv, media_type).json() == {"predictions": chances}
    for csv in (b"5.1,3.5,1.4\n", b"5.1,3.5,1.4,0.2,1\n", b"5.1,3.5,1.4,x\n"):
        assert invoke(service, "classifier", csv, "text/csv; header=absent").status_code == 400, csv
    assert invoke(service, "classifier", csv, "text/csv; header=other").status_code == 415


def score(service: Service, model: str, body: Any) -> Any:
    """Return the response to a request as Azure ML sends it."""
    response = service.client.post("/score", params={"model": model}, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_input_data_of_azure_ml(service: Service) -> None:
    chances = predict(service, "classifier", {"instances": LISTS})["predictions"]
    split = {"columns": [*FLOWERS], "index": [*range(3)], "data": LISTS}
    for input_data in (split, RECORDS, {name: values.tolist() for name, values in FLOWERS.items()}):
        assert score(service, "classifier", {"input_data": input_data}) == chances
    assert score(service, "classifier", {"dataframe_split": split}) == {"predictions": chances}
    outputs = predict(service, "onnx", {"inputs": LISTS})["outputs"]
    assert score(service, "onnx", {"input_data": {"x": LISTS}}) == {"y": outputs}
    body = {"input_data": ["a"], "params": {"times": 2}}
    assert score(service, "texts", body) == ["AA"]
    for refused in (
        {"input_data": LISTS},
        {"input_data": split, "inputs": {}},
        {"input_data": split, "k": 1},
    ):
        response = service.client.post("/score?model=classifier", json=refused)
        assert (response.status_code, response.json()["error_code"]) == (400, "BAD_REQUEST"), response.text


# -- clients


def test_kserve_client_with_protocol_v1(service: Service, folders: dict[str, Path]) -> None:
    chances = mlflow.pyfunc.load_model(str(folders["classifier"])).predict(IRIS.iloc[[0, 60]]).tolist()
    result = run_client("kserve_rest", service.url, script="kserve_v1")
    assert result == {"model ready": True, "predictions": chances}


# -- containers


@pytest.fixture(scope="module")
def registered(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Register a model that returns twice its input."""
    registry = Registry(new_registry(tmp_path_factory.mktemp("platforms")))
    version = registry.add("model", factor=2.0)
    registry.promote("model", version)
    registry.alias("model", "champion", version)
    return registry


@contextmanager
def container(registry: Registry, folder: Path, command: str, **variables: str) -> Iterator[Service]:
    """Run a command of the service, with a platform's variables and without the service's own port."""
    # `Service` appends `run --port 0`, which the shell drops.
    program = ("env", *(f"{name}={value}" for name, value in variables.items()), "sh", "-c", command, "sh")
    with served(
        registry.uri, folder, program, models="models:/model/Production", poll_seconds=SELDOM
    ) as service:
        service.until_ready()
        yield service


def test_vertex_ai_container(registered: Registry, tmp_path: Path) -> None:
    port = free_port()
    variables = {
        "AIP_HTTP_PORT": str(port),
        "PORT": "1",
        "AIP_HEALTH_ROUTE": "/v1/endpoints/7/deployedModels/9",
        "AIP_PREDICT_ROUTE": "/predict",
    }
    with container(registered, tmp_path, f"exec {PROGRAM} run", **variables) as service:
        assert service.url == f"http://0.0.0.0:{port}"
        assert service.client.get(variables["AIP_HEALTH_ROUTE"]).json() == {"ready": True}
        body = {"instances": [{"x": 2.0}, {"x": -1.5}], "parameters": {}}
        response = service.client.post("/predict", json=body)
        assert response.json() == {"predictions": [4.0, -3.0]}
        assert response.headers["X-Model-Version"] == "1"
        refused = service.client.post("/predict", json={"instances": [{"x": "2"}], "parameters": {}})
        assert (refused.status_code, {*refused.json()}) == (400, {"error", "request_id"})
        pinned = service.client.post("/models/model/predict", json={"x": 2.0})
        assert pinned.json()["prediction"] == 4.0
        for address in ("labels/champion", "labels/Production", "versions/1"):
            response = service.client.post(
                f"/v1/models/model/{address}:predict", json={"instances": [{"x": 1}]}
            )
            assert response.json() == {"predictions": [2.0]}, address
            assert service.client.get(f"/v1/models/model/{address}").json()["ready"] is True, address
        assert is_alive(variables)
        assert not is_alive({"PORT": "1"})


def test_sagemaker_container(registered: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = str(free_port())
    with container(registered, tmp_path, f"exec {PROGRAM} serve", SAGEMAKER_BIND_TO_PORT=port) as service:
        assert service.url == f"http://0.0.0.0:{port}"
        assert service.client.get("/ping").status_code == 200
        response = invoke(service, "model", b'{"x": 2}\n{"x": 3}', "application/jsonlines")
        assert response.json() == {"predictions": [4.0, 6.0]}
        # Without a variable the health check tries the default port, then SageMaker's.
        monkeypatch.setattr(platforms, "DEFAULT_PORT", free_port())
        assert not is_alive({})
        monkeypatch.setattr(platforms, "SAGEMAKER_PORT", int(port))
        assert is_alive({})
