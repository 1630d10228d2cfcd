"""The Open Inference Protocol over gRPC: messages and status codes."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.grpc import inference_pb2 as protos
from serving.grpc import inference_pb2_grpc as services
from tests.support.registry import NewRegistry, Registry
from tests.support.service import SELDOM, Service, served, until


@pytest.fixture(scope="module")
def service(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("rpc")
    registry = Registry(new_registry(folder))
    registry.promote("actor", registry.add("actor"))
    registry.promote("sleeper", registry.add("sleeper"))
    with served(
        registry.uri,
        folder,
        models="models:/actor/Production,models:/nobody/Production",
        on_demand="models:/sleeper/Production",
        grpc_port=0,
        poll_seconds=SELDOM,
        deadline_seconds=5,
        max_body_bytes=10_000,
        access_log=1,
    ) as service:
        until(lambda: service.client.get("/models/actor").json()["state"] == "live")
        yield service


@pytest.fixture(scope="module")
def stub(service: Service) -> Iterator[Any]:
    with grpc.insecure_channel(service.logged(re.compile(r"serving gRPC at ([\d.:]+)"))[1]) as channel:
        yield services.GRPCInferenceServiceStub(channel)


def infer_request(x: list[float], *acts: str, model: str = "actor", version: str = "", **more: Any) -> Any:
    """Return a request whose inputs use the typed contents fields."""
    inputs = [{"name": "x", "datatype": "FP64", "shape": [len(x)], "contents": {"fp64_contents": x}}]
    if acts:
        texts = {"bytes_contents": [act.encode() for act in acts]}
        inputs.append({"name": "act", "datatype": "BYTES", "shape": [len(acts)], "contents": texts})
    return protos.ModelInferRequest(model_name=model, model_version=version, inputs=inputs, **more)


def test_response_has_raw_contents(stub: Any) -> None:
    found = stub.ModelInfer(infer_request([1.0, 2.5], id="mine"))
    assert (found.model_name, found.model_version, found.id) == ("actor", "1", "mine")
    (output,) = found.outputs
    assert (output.name, output.datatype, [*output.shape]) == ("output-0", "FP64", [2])
    assert struct.unpack("<2d", found.raw_output_contents[0]) == (1.0, 2.5)
    assert stub.ModelInfer(infer_request([1.0], version="1")).id  # the server assigns a missing id


@pytest.mark.parametrize(
    ("datatype", "field", "raw"),
    [
        ("FP32", "fp32_contents", "<2f"),
        ("FP64", "fp64_contents", "<2d"),
        ("INT8", "int_contents", "<2b"),
        ("INT16", "int_contents", "<2h"),
        ("INT32", "int_contents", "<2i"),
        ("INT64", "int64_contents", "<2q"),
        ("UINT8", "uint_contents", "<2B"),
        ("UINT16", "uint_contents", "<2H"),
        ("UINT32", "uint_contents", "<2I"),
        ("UINT64", "uint64_contents", "<2Q"),
        ("FP16", "", "<2e"),
    ],
)
def test_all_numeric_datatypes_in_typed_and_raw_contents(
    stub: Any, datatype: str, field: str, raw: str
) -> None:
    plain = {"name": "x", "datatype": datatype, "shape": [2]}
    requests = [
        protos.ModelInferRequest(
            model_name="actor", inputs=[plain], raw_input_contents=[struct.pack(raw, 3, 4)]
        )
    ]
    if field:
        inputs = [plain | {"contents": {field: [3, 4]}}]
        requests.append(protos.ModelInferRequest(model_name="actor", inputs=inputs))
    for request in requests:
        assert struct.unpack("<2d", stub.ModelInfer(request).raw_output_contents[0]) == (3.0, 4.0)


def refusal(call: Any, *args: Any, **more: Any) -> tuple[Any, str]:
    with pytest.raises(grpc.RpcError) as error:
        call(*args, **more)
    return error.value.code(), error.value.details()


def _input(**more: Any) -> dict[str, Any]:
    contents = {"fp64_contents": [1.0]}
    return {"name": "x", "datatype": "FP64", "shape": [1], "contents": contents} | more


def test_cancelled_request_is_counted(stub: Any, service: Service, tmp_path: Path) -> None:
    left = 'serving_requests_total{code="499",model="actor",version="1"}'
    before, pipe = service.metrics().get(left, 0), tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        held = pool.submit(stub.ModelInfer, infer_request([1.0], f"wait:{pipe}"))
        with pipe.open("w"):  # blocks until the model opens it

            def late() -> bool:  # the server may receive the request late
                code, _ = refusal(stub.ModelInfer, infer_request([2.0]), timeout=0.1)
                assert code is grpc.StatusCode.DEADLINE_EXCEEDED
                return service.metrics().get(left, 0) > before

            until(late)
            before = service.metrics()[left]
            cancelled = stub.ModelInfer.future(infer_request([3.0]))
            until(lambda: service.metrics()['serving_waiting_requests{model="actor",version="1"}'] == 1)
            assert cancelled.cancel()
            until(lambda: service.metrics()[left] > before)
            assert service.metrics()['serving_waiting_requests{model="actor",version="1"}'] == 0
        assert held.result().model_version == "1"
    line = service.wait_for_log(logger="serving.access", path="ModelInfer", status=499)
    assert (line["method"], line["model"], line["version"]) == ("gRPC", "actor", "1")


@pytest.mark.parametrize(
    ("inputs", "detail"),
    [
        ([], "inputs"),
        ([_input(shape=[2])], "has 1 values, which is not the shape"),
        ([_input(shape=[])], "shape"),
        ([_input(datatype="FP8")], "is of datatype 'FP8'"),
        ([_input(datatype="FP16")], "raw contents only"),
        ([_input(datatype="UINT8", contents={"uint_contents": [300]})], "has values that are no UINT8"),
        ([_input(), _input()], "named twice"),
        ([_input(name="y")], "has no input 'y'"),
        ([_input(datatype="BYTES", contents={"bytes_contents": [b"one"]})], "x"),
    ],
)
def test_invalid_inputs_are_an_invalid_argument(stub: Any, inputs: list[dict[str, Any]], detail: str) -> None:
    code, message = refusal(stub.ModelInfer, protos.ModelInferRequest(model_name="actor", inputs=inputs))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert detail in message


def test_number_of_raw_contents_must_match_inputs(stub: Any) -> None:
    code, message = refusal(stub.ModelInfer, infer_request([1.0], "", raw_input_contents=[b""]))
    assert (code, message) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "There are 1 raw contents for 2 inputs.",
    )


def test_failures_map_to_grpc_status_codes(stub: Any, service: Service) -> None:
    code = grpc.StatusCode
    assert refusal(stub.ModelInfer, infer_request([1.0], model="no"))[0] is code.NOT_FOUND
    assert refusal(stub.ModelInfer, infer_request([1.0], version="9"))[0] is code.NOT_FOUND
    assert refusal(stub.ModelInfer, infer_request([1.0], model="nobody"))[0] is code.UNAVAILABLE
    failed, detail = refusal(stub.ModelInfer, infer_request([1.0], "raise:secret"))
    assert (failed, detail) == (code.INTERNAL, "The model failed on this request.")
    assert refusal(stub.ModelInfer, infer_request([1.0] * 5000))[0] is code.RESOURCE_EXHAUSTED
    assert refusal(stub.ModelInfer, infer_request([1.0], "hang"), timeout=0.5)[0] is code.DEADLINE_EXCEEDED
    assert stub.ModelInfer(infer_request([1.0])).model_version == "1"
    metrics = service.client.get("/metrics").text
    assert re.search(r'serving_requests_total\{[^}]*"500"[^}]*\} 1', metrics)


def test_on_demand_model_is_loaded(stub: Any) -> None:
    ready = protos.ModelReadyRequest(name="sleeper")
    assert not stub.ModelReady(ready).ready
    assert stub.ModelInfer(infer_request([1.0], model="sleeper")).model_name == "sleeper"
    assert stub.ModelReady(ready).ready


def test_server_is_ready_once_required_models_are(stub: Any) -> None:
    assert stub.ServerLive(protos.ServerLiveRequest()).live
    assert not stub.ServerReady(protos.ServerReadyRequest()).ready  # one model has no version in Production
    assert refusal(stub.ModelReady, protos.ModelReadyRequest(name="no"))[0] is grpc.StatusCode.NOT_FOUND
    assert stub.ServerMetadata(protos.ServerMetadataRequest()).name == "mlflow-serving-front"
    found = stub.ModelMetadata(protos.ModelMetadataRequest(name="actor"))
    assert [(tensor.name, tensor.datatype) for tensor in found.inputs] == [("x", "FP64"), ("act", "BYTES")]
