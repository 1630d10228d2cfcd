"""Fuzz bodies: JSON of all routes, tensors of the Open Inference Protocol, and its messages over gRPC.

Every response is a valid problem or the result that a plain parser leads to. The profile `fuzz` of hypothesis
tries more examples.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import math
import re
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import grpc
import httpx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.grpc import inference_pb2 as protos
from serving.grpc import inference_pb2_grpc as services
from tests.support.registry import NewRegistry, Registry
from tests.support.service import SELDOM, Service, served

COLUMNS = ("x", "count", "flag", "text")
EXAMPLE = pd.DataFrame({"x": [1.5], "count": [3], "flag": [True], "text": ["a"]})
REJECTED = {400, 404, 413, 415, 422}
CODES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
TYPES = ["BOOL", "INT8", "INT32", "INT64", "UINT8", "UINT64", "FP16", "FP32", "FP64", "BYTES"]
SECRET = "hush"

text = st.text(max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | text
    | st.sampled_from(["1.5", "NaN", "true", "\0", "\ud83d\ude00", "2020-01-01", "__proto__"])
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
good_rows = st.fixed_dictionaries(
    {"x": st.floats(allow_nan=False, allow_infinity=False)},
    optional={
        "count": st.integers(-(2**63), 2**63 - 1),
        "flag": st.booleans(),
        "text": st.text(max_size=20),
    },
)
rows = good_rows | st.dictionaries(st.sampled_from(COLUMNS) | text, anything, max_size=5)


@st.composite
def mutated(draw: st.DrawFn, bodies: st.SearchStrategy[Any]) -> bytes:
    """Return the JSON of a body, often with some bytes replaced, inserted or removed."""
    body = bytearray(
        json.dumps(draw(bodies), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    )
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2, 5]))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(len(body), start + 4)))
        odd = st.sampled_from([b"[", b"{", b'"', b",", b":", b"\\u0000", b"\\ud800", b"1e999", b"-", b"NaN"])
        body[start:end] = draw(odd | st.binary(max_size=3))
    return bytes(body)


@pytest.fixture(scope="module")
def service(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Serve two models that return their column `x`: one of four columns, one of one."""
    folder = tmp_path_factory.mktemp("fuzz")
    registry = Registry(new_registry(folder))
    inputs = "x: double, count: long?, flag: boolean?, text: string?"
    registry.add("mixed", inputs=inputs, example=EXAMPLE, factor=1.0)
    registry.add("single", inputs="x: double", example=EXAMPLE[["x"]], factor=1.0)
    settings = {
        "models": "models:/mixed/1,models:/single/1",
        "journal_url": f"sqlite:///{folder}/journal.db",
        "grpc_port": 0,
        "webhook_secret": SECRET,
        "poll_seconds": SELDOM,
    }
    with served(registry.uri, folder, **settings) as running:
        running.until_ready()
        yield running


def post(service: Service, path: str, body: bytes, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.client.post(path, content=body, headers={"Content-Type": "application/json"} | named)


def check_rejection(response: httpx.Response) -> None:
    """Check that a request was rejected, in the form of its protocol."""
    assert response.status_code in REJECTED, response.text
    assert len(response.content) <= 8192
    problem = response.json()
    path = response.request.url.path
    if path == "/invocations":
        assert problem.keys() == {"error_code", "message", "request_id"}
    elif path.startswith("/v2/models"):
        assert problem.keys() == {"error", "request_id"}
    else:
        assert response.headers["content-type"] == "application/problem+json"
        assert problem.keys() == {"type", "title", "status", "detail", "request_id", "errors"}
        assert problem["status"] == response.status_code


def plain(body: bytes) -> Any:
    """Parse strict JSON with the parser of the standard library."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(name)

    return json.loads(body.decode(), parse_constant=refuse)


def same(found: float, given: Any) -> bool:
    return isinstance(given, int | float) and math.isclose(found, float(given), rel_tol=0, abs_tol=0)


@given(mutated(rows | anything))
def test_row_is_rejected_or_parsed_as_plain_json(service: Service, body: bytes) -> None:
    response = post(service, "/predict", body)
    if response.status_code != 200:
        check_rejection(response)
        return
    assert same(response.json()["prediction"], plain(body)["x"])


@given(mutated(st.fixed_dictionaries({"rows": st.lists(good_rows | rows, max_size=4)}) | anything))
def test_rows_are_rejected_or_predicted_in_order(service: Service, body: bytes) -> None:
    response = post(service, "/predict/batch", body)
    if response.status_code != 200:
        check_rejection(response)
        return
    found, sent = response.json()["predictions"], plain(body)["rows"]
    assert len(found) == len(sent)
    assert all(same(each["prediction"], row["x"]) for each, row in zip(found, sent, strict=True))


frames = (
    st.fixed_dictionaries({"dataframe_records": st.lists(good_rows | rows, max_size=3)})
    | st.fixed_dictionaries(
        {"inputs": st.dictionaries(st.sampled_from(COLUMNS), st.lists(scalars, max_size=3))}
    )
    | st.fixed_dictionaries({"instances": st.lists(good_rows | anything, max_size=3)})
    | st.fixed_dictionaries(
        {
            "dataframe_split": st.fixed_dictionaries(
                {"columns": st.lists(st.sampled_from(COLUMNS), max_size=4)},
                optional={"data": st.lists(st.lists(scalars, max_size=4), max_size=3), "index": anything},
            )
        }
    )
    | st.fixed_dictionaries({"dataframe_records": st.lists(good_rows, max_size=3), "params": anything})
)


def has_gap(sent: Any) -> bool:
    """Return whether a row lacks its `x`, or a value is null."""
    records = sent.get("dataframe_records") if isinstance(sent, dict) else None
    rows = records if isinstance(records, list) else []
    is_missing = any(isinstance(row, dict) and row.get("x") is None for row in rows)
    return is_missing or "null" in json.dumps(sent)


@given(mutated(frames | anything))
def test_invocations_are_rejected_or_predicted(service: Service, body: bytes) -> None:
    response = post(service, "/invocations", body)
    if response.status_code == 500 and has_gap(plain(body)):
        return  # MLflow fills the gap with NaN, which the model returns and JSON can't hold
    if response.status_code != 200:
        check_rejection(response)
        return
    found, sent = response.json()["predictions"], plain(body)
    if isinstance(records := sent.get("dataframe_records"), list):
        assert all(same(value, row["x"]) for value, row in zip(found, records, strict=True))


outcomes = st.fixed_dictionaries(
    {"prediction_id": st.uuids().map(str) | anything, "outcome": anything}, optional={"row": scalars}
)


@given(mutated(outcomes | st.fixed_dictionaries({"feedback": st.lists(outcomes, max_size=3)}) | anything))
def test_feedback_without_a_prediction_is_rejected(service: Service, body: bytes) -> None:
    check_rejection(post(service, "/feedback", body))


deliveries = itertools.count()


def signed(body: bytes, delivery: str) -> dict[str, str]:
    at = str(int(time.time()))
    digest = hmac.digest(SECRET.encode(), f"{delivery}.{at}.".encode() + body, hashlib.sha256)
    return {
        "X_MLflow_Delivery_ID": delivery,
        "X_MLflow_Timestamp": at,
        "X_MLflow_Signature": f"v1,{base64.b64encode(digest).decode()}",
    }


@given(
    st.binary(max_size=50),
    st.sampled_from(["", "X_MLflow_Timestamp", "X_MLflow_Signature"]),
    text,
)
def test_webhooks_require_a_valid_signature(service: Service, body: bytes, forged: str, value: str) -> None:
    headers = signed(body, str(next(deliveries)))
    if forged:
        headers[forged] = "".join(each for each in value if each.isascii() and each.isprintable()).strip()
    response = post(service, "/webhooks/mlflow", body, **headers)
    assert response.status_code == (401 if forged else 200)


# -- tensors


shapes = st.lists(st.integers(-1, 4), max_size=3) | st.just([2]) | st.just([2, 1]) | anything
tensors = st.fixed_dictionaries(
    {
        "name": st.sampled_from([*COLUMNS, "other"]) | anything,
        "datatype": st.sampled_from(TYPES) | anything,
        "shape": shapes,
    },
    optional={"data": st.lists(scalars | st.lists(scalars, max_size=3), max_size=4), "parameters": anything},
)
good_tensors = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4).map(
    lambda data: {"name": "x", "datatype": "FP64", "shape": [len(data)], "data": data}
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(good_tensors, min_size=1, max_size=1) | st.lists(tensors, max_size=3)},
    optional={
        "id": scalars,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_output", "x"]), scalars) | anything,
        "outputs": st.lists(st.fixed_dictionaries({"name": st.just("output-0") | text}), max_size=2),
    },
)


@given(mutated(requests | anything))
def test_tensors_in_json_are_rejected_or_predicted(service: Service, body: bytes) -> None:
    response = post(service, "/v2/models/single/infer", body)
    if response.status_code != 200:
        check_rejection(response)
        return
    if response.headers["content-type"] == "application/json":
        (sent,) = plain(body)["inputs"]
        if sent["datatype"] == "FP64":
            flat = [*np.array(sent["data"], float).ravel()]
            assert all(output["data"] == flat for output in response.json()["outputs"])


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4),
    st.sampled_from([0, 0, 0, -1, 1, 8, 2**40]),
    st.sampled_from([0, 0, 0, -8, -1, 1, 8]),
    st.sampled_from([None, None, None, "", "-1", "x", "1e3", "99999999999999", "0"]),
    st.sampled_from(["FP64", "FP64", "FP64", *TYPES]),
)
def test_tensors_in_bytes_are_rejected_or_predicted(
    service: Service, values: list[float], size_off: int, bytes_off: int, length: str | None, datatype: str
) -> None:
    raw = np.array(values, "<f8").tobytes()
    parameters = {"binary_data_size": len(raw) + size_off}
    tensor = {"name": "x", "datatype": datatype, "shape": [len(values)], "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    body = head + (raw + b"\0" * bytes_off if bytes_off >= 0 else raw[:bytes_off])
    given_length = str(len(head)) if length is None else length
    response = post(
        service,
        "/v2/models/single/infer",
        body,
        Content_Type="application/octet-stream",
        Inference_Header_Content_Length=given_length,
    )
    if response.status_code != 200:
        check_rejection(response)
        return
    assert (size_off, bytes_off, length, datatype) == (0, 0, None, "FP64")
    assert response.json()["outputs"][0]["data"] == values


@given(st.binary(max_size=200))
def test_invalid_request_bytes_are_rejected(service: Service, body: bytes) -> None:
    length = str(len(body) // 2)
    for path in ("/v2/models/single/infer", "/v2/models/mixed/versions/1/infer"):
        check_rejection(post(service, path, body))
        octets = {"Content_Type": "application/octet-stream", "Inference_Header_Content_Length": length}
        check_rejection(post(service, path, body, **octets))


# -- gRPC


@pytest.fixture(scope="module")
def channel(service: Service) -> Iterator[grpc.Channel]:
    port = service.logged(re.compile(r"serving gRPC at [\d.]+:(\d+)"))[1]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened


clean = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
parameters = st.sampled_from(
    [{}, {"bool_param": True}, {"int64_param": -1}, {"string_param": "x"}, {"double_param": 0.5}]
)
contents = st.fixed_dictionaries(
    {},
    optional={
        "fp64_contents": st.lists(st.floats(), max_size=3),
        "fp32_contents": st.lists(st.floats(width=32), max_size=3),
        "int64_contents": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
        "bool_contents": st.lists(st.booleans(), max_size=3),
        "bytes_contents": st.lists(st.binary(max_size=5), max_size=3),
    },
)
inputs = st.fixed_dictionaries(
    {
        "name": st.sampled_from(COLUMNS) | clean,
        "datatype": st.sampled_from(TYPES) | clean,
        "shape": st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=3),
    },
    optional={"contents": contents, "parameters": st.dictionaries(clean, parameters, max_size=2)},
)
messages = st.fixed_dictionaries(
    {
        "model_name": st.sampled_from(["single", "mixed", "mixed"]) | clean,
        "inputs": st.lists(inputs, max_size=3),
    },
    optional={
        "model_version": st.sampled_from(["", "1"]) | clean,
        "id": clean,
        "parameters": st.dictionaries(clean, parameters, max_size=2),
        "outputs": st.lists(st.fixed_dictionaries({"name": st.just("output-0") | clean}), max_size=2),
        "raw_input_contents": st.lists(st.binary(max_size=24), max_size=3),
    },
)


@given(messages)
def test_messages_are_rejected_or_predicted(channel: grpc.Channel, message: dict[str, Any]) -> None:
    stub = services.GRPCInferenceServiceStub(channel)
    try:
        stub.ModelInfer(protos.ModelInferRequest(**message), timeout=30)
    except grpc.RpcError as error:
        code, details = error.code(), error.details()
    else:
        code, details = grpc.StatusCode.OK, ""
    assert code in CODES, details


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4), st.booleans())
def test_values_of_messages_are_predicted(channel: grpc.Channel, values: list[float], raw: bool) -> None:
    stub = services.GRPCInferenceServiceStub(channel)
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP64", "shape": [len(values)]}
    sent = np.array(values, "<f8").tobytes()
    if raw:
        request = protos.ModelInferRequest(model_name="single", inputs=[tensor], raw_input_contents=[sent])
    else:
        tensor["contents"] = {"fp64_contents": values}
        request = protos.ModelInferRequest(model_name="single", inputs=[tensor])
    (found,) = stub.ModelInfer(request, timeout=30).raw_output_contents
    assert [*np.frombuffer(found, "<f8")] == values


@given(st.binary(max_size=100))
def test_invalid_message_bytes_are_rejected(channel: grpc.Channel, body: bytes) -> None:
    for method in ("ModelInfer", "ModelMetadata", "ModelReady"):
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        try:
            call(body, timeout=30)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            assert code in CODES, details
