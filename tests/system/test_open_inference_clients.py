"""The Open Inference Protocol with the clients of Triton, KServe and MLServer."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks.peers.environments import FOLDER, environment
from tests.support.sample_models import HOUSES, IRIS
from tests.support.service import Service

CLIENTS = Path(__file__).parents[1] / "support" / "clients"
MANIFESTS = Path(__file__).parents[2] / "deploy" / "kubernetes" / "kserve"
REQUIREMENTS = {
    "triton": ["tritonclient[http]==2.73.0", "numpy==2.4.6"],
    "triton_grpc": ["tritonclient[grpc]==2.73.0", "numpy==2.4.6"],
    "kserve_rest": ["kserve==0.21.0"],
    "mlserver_codecs": ["mlserver==1.7.1"],
}
FLOWERS = IRIS.iloc[[0, 60]]
IMAGES = [[[1, 2], [3, 255]], [[0, 0], [5, 6]]]
CLIENT_INPUT = {
    "names": [*IRIS],
    "flowers": FLOWERS.to_numpy().tolist(),
    "images": IMAGES,
    "houses": {
        name: values.astype(str).tolist() if name == "built" else values.tolist()
        for name, values in HOUSES.items()
    },
}


def run_client(client: str, address: str, script: str | None = None) -> Any:
    """Run a script (by default, the client's own) in the client's environment; return its output."""
    python = environment(FOLDER.parent / "clients", client, REQUIREMENTS[client])
    command = [str(python), str(CLIENTS / f"{script or client}.py"), address, json.dumps(CLIENT_INPUT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def scored(service: Service, model: str, frame: pd.DataFrame) -> Any:
    """Return the predictions for a frame over MLflow's protocol."""
    body = {"dataframe_records": json.loads(frame.to_json(orient="records", date_format="iso"))}
    return service.client.post(f"/invocations?model={model}", json=body).json()["predictions"]


def grpc_address(service: Service) -> str:
    """Return the gRPC address of a service."""
    return service.logged(re.compile(r"serving gRPC at ([\d.:]+)"))[1]


@pytest.mark.parametrize("client", ["triton", "triton_grpc"])
def test_triton_client_with_default_options(sample_model_service: Service, client: str) -> None:
    chances = scored(sample_model_service, "classifier", FLOWERS)
    over_http = client == "triton"
    address = (
        sample_model_service.url.removeprefix("http://") if over_http else grpc_address(sample_model_service)
    )
    result = run_client(client, address)
    assert (result["live"], result["ready"]) == (True, True)
    assert result["server"] == "mlflow-serving-front"
    image, words = result["model"]["inputs"][0], result["model"]["outputs"][2]
    assert (image["name"], image["datatype"], [*map(int, image["shape"])]) == ("image", "UINT8", [-1, -1, 2])
    assert (words["name"], words["datatype"], [*map(int, words["shape"])]) == ("words", "BYTES", [-1])
    assert not over_http or "hinted" in result["index"]
    for case in ("one tensor", "pinned", "a tensor a column", *["in JSON"] * over_http):
        assert result[case] == {"output-0": chances}, case
    assert np.allclose(result["single precision"]["output-0"], chances, atol=1e-6)
    assert result["columns of all kinds"] == {
        "output-0": scored(sample_model_service, "pipeline", HOUSES[:2])
    }
    assert result["texts with a parameter"] == {"output-0": ["AA", "ÄÄ"]}
    assert result["arrays"]["mean"] == [65.25, 2.75]
    assert result["arrays"]["twice"] == (np.array(IMAGES) * 2).tolist()
    assert result["arrays"]["words"] == ["a b", "c d"]
    assert result["a frame"] == {"half": [2.5], "at": ["1970-01-06T00:00:00"]}
    status, message = result["refused"]
    assert status == ("400" if over_http else "StatusCode.INVALID_ARGUMENT")
    assert "input" in message


def test_kserve_client(sample_model_service: Service) -> None:
    result = run_client("kserve_rest", sample_model_service.url)
    expected = ["mine", "classifier", scored(sample_model_service, "classifier", FLOWERS)]
    assert result == {
        "live": True,
        "ready": True,
        "model ready": True,
        "in JSON": expected,
        "in bytes": expected,
    }


def test_manifest_fields_exist_in_kserve_models() -> None:
    kinds = {"serving-runtime": "V1alpha1ServingRuntime", "inference-service": "V1beta1InferenceService"}
    manifests = [
        (kind, yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text())) for name, kind in kinds.items()
    ]
    manifests += [(kind, manifest | {"spec": {"wrong": 1}}) for kind, manifest in manifests]
    python = environment(FOLDER.parent / "clients", "kserve_rest", REQUIREMENTS["kserve_rest"])
    command = [str(python), str(CLIENTS / "kserve_runtime.py"), json.dumps(manifests)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed.splitlines()[-1]) == [[], [], [".spec.wrong"], [".spec.wrong"]]


def test_mlserver_codecs(sample_model_service: Service) -> None:
    chances = scored(sample_model_service, "classifier", FLOWERS)
    result = run_client("mlserver_codecs", sample_model_service.url)
    assert result["numpy"] == result["pandas"] == chances
    assert np.ravel(result["houses"]).tolist() == scored(sample_model_service, "pipeline", HOUSES)
    assert result["strings"] == ["A", "B"]
    assert result["frame"] == {"half": [2.5], "note": ["n5"], "whole": [5], "is_large": [False]}


def infer(service: Service, model: str, *inputs: dict[str, Any], **more: Any) -> httpx.Response:
    return service.client.post(f"/v2/models/{model}/infer", json={"inputs": [*inputs], **more})


def tensor(name: str, datatype: str, data: list[Any], shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or [*np.shape(data)], "data": data}


def test_json_request_has_json_response(sample_model_service: Service) -> None:
    response = infer(
        sample_model_service, "xgboost", tensor("x", "FP64", np.ravel(FLOWERS).tolist(), [2, 4]), id="7"
    )
    assert response.headers["X-Model-Version"] == "1"
    body = response.json()
    (output,) = body.pop("outputs")
    assert body == {"model_name": "xgboost", "model_version": "1", "id": "7"}
    assert output == {
        "name": "output-0",
        "shape": [2],
        "datatype": "FP32",
        "data": scored(sample_model_service, "xgboost", FLOWERS),
    }


def test_missing_value_is_null(sample_model_service: Service) -> None:
    row = dict(zip(FLOWERS, FLOWERS.to_numpy()[0].tolist(), strict=True)) | {"petal_width": None}
    inputs = [tensor(str(name), "FP64", [value], [1, 1]) for name, value in row.items()]
    result = infer(sample_model_service, "lightgbm", *inputs).json()
    assert result["outputs"][0]["data"] == scored(sample_model_service, "lightgbm", pd.DataFrame([row]))
    gap = infer(sample_model_service, "frame", tensor("x", "FP64", [-5.0])).json()["outputs"]
    assert [item["data"] for item in gap[1:3]] == [[None], [None]]


def test_nested_values_are_json_in_byte_tensors(sample_model_service: Service) -> None:
    inputs = [
        tensor("v", "FP64", [[1.0, 2.0]]),
        tensor("o", "BYTES", ['{"a": 1}']),
        tensor("m", "BYTES", ['{"k": 2}']),
    ]
    (output,) = infer(sample_model_service, "nested", *inputs).json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1])
    assert json.loads(output["data"][0])["sum"] == 3.0
    message = json.dumps({"role": "user", "content": "hi"})
    (output,) = infer(sample_model_service, "hinted", tensor("message", "BYTES", [message])).json()["outputs"]
    assert output["data"] == ["user: hi None"]


@pytest.mark.parametrize(
    "datatype", ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]
)
@pytest.mark.parametrize("binary", [False, True])
def test_integers_of_any_width_are_doubles(
    sample_model_service: Service, datatype: str, binary: bool
) -> None:
    sent = tensor("x", datatype, [5, 7])
    if not binary:
        result = infer(sample_model_service, "frame", sent).json()
    else:
        dtype = datatype.lower().replace("fp", "float")
        data = np.array(sent.pop("data"), dtype).tobytes()
        result = post_binary(sample_model_service, "frame", sent, data).json()
    assert result["outputs"][0]["data"] == [2.5, 3.5]


def post_binary(
    service: Service, model: str, sent: dict[str, Any], data: bytes, length: Any = None
) -> httpx.Response:
    """Send a request with the data of its only input after the JSON."""
    head = json.dumps({"inputs": [sent | {"parameters": {"binary_data_size": len(data)}}]}).encode()
    headers = {
        "Inference-Header-Content-Length": str(len(head) if length is None else length),
        "Content-Type": "application/octet-stream",
    }
    return service.client.post(f"/v2/models/{model}/infer", content=head + data, headers=headers)


TEXTS = {"name": "input", "datatype": "BYTES", "shape": [1]}


@pytest.mark.parametrize(
    ("sent", "data", "length"),
    [
        (TEXTS, struct.pack("<I", 5) + b"abc", None),
        (TEXTS, b"abc", None),
        (TEXTS, struct.pack("<I", 1) + b"\xff", None),
        (TEXTS, (struct.pack("<I", 1) + b"a") * 2, None),
        (TEXTS | {"datatype": "FP64"}, b"\0" * 7, None),
        (TEXTS, b"", 10_000),
        (TEXTS, b"", "ten"),
        (TEXTS | {"shape": [2**40]}, b"", None),
    ],
)
def test_malformed_binary_tensor_is_rejected(
    sample_model_service: Service, sent: Any, data: bytes, length: Any
) -> None:
    response = post_binary(sample_model_service, "texts", sent, data, length)
    assert (response.status_code, [*response.json()]) == (400, ["error", "request_id"])


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        ("frame", {}, "inputs: Field required"),
        ("frame", {"inputs": []}, "inputs: List should have at least 1 item"),
        ("frame", {"inputs": [tensor("x", "FP64", [1.0]) | {"datatype": "FP12"}]}, "is of datatype 'FP12'"),
        ("frame", {"inputs": [tensor("x", "FP64", [1.0], [2])]}, "has 1 values, which is not the shape [2]"),
        ("frame", {"inputs": [tensor("x", "FP64", ["1"])]}, "has values that are no FP64"),
        ("frame", {"inputs": [tensor("x", "FP64", [True])]}, "has values that are no FP64"),
        ("frame", {"inputs": [tensor("x", "INT64", [1.5])]}, "has values that are no INT64"),
        ("frame", {"inputs": [tensor("x", "UINT8", [256])]}, "has values that are no UINT8"),
        ("frame", {"inputs": [tensor("x", "FP64", [], [0])]}, "is empty"),
        ("frame", {"inputs": [tensor("x", "FP64", [[1.0, 2.0]])]}, "x, 0: Input should be a valid number"),
        ("frame", {"inputs": [tensor("x", "FP64", [1.0])] * 2}, "An input is named twice"),
        ("frame", {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1]}]}, "has no data"),
        ("frame", {"inputs": [tensor("x", "FP64", [1.0])], "outputs": [{"name": "no"}]}, "no output 'no'"),
        ("pipeline", {"inputs": [tensor("x", "FP64", [1.0])]}, "no input 'x'"),
        ("pipeline", {"inputs": [tensor("city", "BYTES", ["Bonn"])]}, "garden: Field required"),
        (
            "arrays",
            {"inputs": [tensor("image", "INT64", [[[1, 256]]]), tensor("words", "BYTES", [["a", "b"]])]},
            "range of uint8",
        ),
        ("onnx", {"inputs": [tensor("x", "FP64", [[1.0, 2.0]])]}, "shape [4] a row"),
        ("onnx", {"inputs": [tensor("x", "BYTES", [["a"] * 4])]}, "of type float32"),
    ],
)
def test_invalid_request_is_rejected_in_protocol_format(
    sample_model_service: Service, model: str, body: Any, message: str
) -> None:
    response = sample_model_service.client.post(f"/v2/models/{model}/infer", json=body)
    assert (response.status_code, [*response.json()]) == (400, ["error", "request_id"])
    assert message in response.json()["error"]


def test_unknown_model_or_version_is_404(sample_model_service: Service) -> None:
    sent = tensor("x", "FP64", [1.0])
    for path in ("nobody", "frame/versions/2"):
        response = infer(sample_model_service, path, sent)
        assert (response.status_code, [*response.json()]) == (404, ["error", "request_id"])
    assert sample_model_service.client.get("/v2/models/nobody").status_code == 404
    assert sample_model_service.client.get("/v2/models/frame/versions/1/ready").json() == {
        "name": "frame",
        "ready": True,
    }
