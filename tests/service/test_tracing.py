"""Spans of requests that a collector receives over OTLP, and trace context in model code."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from serving.codecs.model_input import InputLayout
from serving.errors import TracingConfigError
from serving.grpc import inference_pb2 as protos
from serving.grpc import inference_pb2_grpc as services
from serving.observers import tracing
from serving.observers.spans import TraceRecorder
from serving.request_context import RequestContext
from tests.support.registry import NewRegistry, Registry
from tests.support.service import PROGRAM, SELDOM, Service, environment, served, until

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Collector:
    """Receives spans over OTLP, as a collector does."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, Any] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, request: ExportTraceServiceRequest) -> None:
        for of_resource in request.resource_spans:
            self.resource = attributes(of_resource.resource)
            for scope in of_resource.scope_spans:
                self.spans += scope.spans

    def trace(self, trace_id: str) -> dict[str, list[Span]]:
        """Wait for the server span of a trace, which is sent last; return the spans by name."""

        def found() -> list[Span]:
            spans = [span for span in self.spans if span.trace_id.hex() == trace_id]
            return spans if any(span.kind == Span.SPAN_KIND_SERVER for span in spans) else []

        by_name: dict[str, list[Span]] = {}
        for span in until(found):
            by_name.setdefault("server" if span.kind == Span.SPAN_KIND_SERVER else span.name, []).append(span)
        return by_name


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    instance = Collector()
    thread = Thread(target=instance.server.serve_forever)
    thread.start()
    yield instance
    instance.server.shutdown()
    thread.join()
    instance.server.server_close()


@pytest.fixture(scope="module")
def service(
    collector: Collector, new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Serve an actor and a streaming one with tracing enabled."""
    folder = tmp_path_factory.mktemp("traces")
    registry = Registry(new_registry(folder))
    # Batching is declared, so that a shared call is not repeated and model code records its trace once.
    registry.add("actor", factor=2.0, metadata={"serving": {"batching": True}})
    registry.add("speaker", streams=True, factor=2.0)
    variables = {f"_{ENDPOINT}": collector.url, "_otel_bsp_schedule_delay": 50}
    variables |= {"_otel_resource_attributes": "deployment.environment.name=test"}
    models = "models:/actor/1,models:/speaker/1"
    with served(
        registry.uri, folder, models=models, grpc_port=0, poll_seconds=SELDOM, **variables
    ) as running:
        running.until_ready()
        yield running


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def attributes(of: Any) -> dict[str, Any]:
    """Return the attributes of a span or a resource."""
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in of.attributes}


def parent(number: int, flags: str = "01") -> str:
    """Return the `traceparent` header of a client."""
    return f"00-{number:032x}-{number:016x}-{flags}"


def predict(
    service: Service, number: int, act: str = "", flags: str = "01", **headers: str
) -> httpx.Response:
    """Send a prediction request in the trace of this number."""
    sent = {"traceparent": parent(number, flags)} | headers
    return service.client.post("/predict", json={"x": 1, "act": act}, headers=sent)


def noted(note: Path) -> list[list[str]]:
    """Return trace id, span id and state of each call, as recorded by model code."""
    return [line.split(" ") for line in note.read_text().splitlines()]


def linked(span: Span) -> list[tuple[str, str]]:
    return [(link.trace_id.hex(), link.span_id.hex()) for link in span.links]


# -- one request


def test_request_span_continues_the_client_trace(service: Service, collector: Collector) -> None:
    assert predict(service, 1, **{"X-Request-ID": "the-first"}).status_code == 200
    found = collector.trace(f"{1:032x}")
    (server,), (validate,), (queue,), (infer,) = (
        found[name] for name in ("server", "validate", "queue", "infer")
    )
    assert server.name == "POST /predict"
    assert server.parent_span_id.hex() == f"{1:016x}"
    recorded = attributes(server)
    assert {
        "http.request.method": "POST",
        "http.route": "/predict",
        "url.path": "/predict",
    }.items() <= recorded.items()
    assert {"http.response.status_code": 200, "client.address": "127.0.0.1"}.items() <= recorded.items()
    assert {"serving.model.name": "actor", "serving.model.version": "1"}.items() <= recorded.items()
    assert {"serving.rows": 1, "serving.request_id": "the-first"}.items() <= recorded.items()
    assert attributes(infer) == {"serving.batch.rows": 1, "serving.batch.requests": 1}
    assert {span.parent_span_id for span in (validate, queue, infer)} == {server.span_id}
    moments = [server.start_time_unix_nano]
    for span in (validate, queue, infer):
        moments += [span.start_time_unix_nano, span.end_time_unix_nano]
    assert moments == sorted(moments)
    assert moments[-1] <= server.end_time_unix_nano
    assert server.status.code == Status.STATUS_CODE_UNSET


def test_resource_attributes_come_from_the_environment(service: Service, collector: Collector) -> None:
    predict(service, 2)
    collector.trace(f"{2:032x}")
    assert collector.resource["service.name"] == "serving"
    assert collector.resource["deployment.environment.name"] == "test"


def test_model_code_continues_the_trace(service: Service, collector: Collector, tmp_path: Path) -> None:
    note = tmp_path / "note"
    predict(service, 3, f"trace:{note}", tracestate="shop=a,other=b")
    (infer,) = collector.trace(f"{3:032x}")["infer"]
    assert noted(note) == [[f"{3:032x}", infer.span_id.hex(), "shop=a,other=b"]]


def test_request_without_trace_starts_one(service: Service, collector: Collector, tmp_path: Path) -> None:
    note = tmp_path / "note"
    service.client.post(
        "/predict", json={"x": 1, "act": f"trace:{note}"}, headers={"traceparent": "00-nonsense"}
    )
    ((trace_id, span_id, _),) = noted(note)
    found = collector.trace(trace_id)
    assert found["server"][0].parent_span_id == b""
    assert found["infer"][0].span_id.hex() == span_id


def test_unsampled_trace_is_propagated_but_not_exported(
    service: Service, collector: Collector, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    predict(service, 4, f"trace:{note}", flags="00")
    assert noted(note)[0][0] == f"{4:032x}"
    predict(service, 5)
    collector.trace(f"{5:032x}")  # sent later
    assert not [span for span in collector.spans if span.trace_id.hex() == f"{4:032x}"]


def test_streamed_response_is_traced(service: Service, collector: Collector, tmp_path: Path) -> None:
    note = tmp_path / "note"
    row = {"x": 1, "act": f"trace:{note}"}
    path, headers = "/models/speaker/predict/stream", {"traceparent": parent(6)}
    assert service.client.post(path, json=row, headers=headers).status_code == 200
    found = collector.trace(f"{6:032x}")
    assert found["server"][0].name == "POST /models/{name}/predict/stream"
    assert noted(note) == [[f"{6:032x}", found["infer"][0].span_id.hex(), ""]]


@pytest.fixture
def stub(service: Service) -> Iterator[Any]:
    with grpc.insecure_channel(service.logged(re.compile(r"serving gRPC at ([\d.:]+)"))[1]) as channel:
        yield services.GRPCInferenceServiceStub(channel)


def inferred(model: str, act: str = "") -> Any:
    """Return a gRPC inference request."""
    x = {"name": "x", "datatype": "FP64", "shape": [1], "contents": {"fp64_contents": [1.0]}}
    acts = {"name": "act", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [act.encode()]}}
    return protos.ModelInferRequest(model_name=model, inputs=[x, acts])


def test_grpc_request_is_traced(service: Service, collector: Collector, stub: Any, tmp_path: Path) -> None:
    note = tmp_path / "note"
    stub.ModelInfer(inferred("actor", f"trace:{note}"), metadata=[("traceparent", parent(7))])
    with pytest.raises(grpc.RpcError):
        stub.ModelInfer(inferred("nobody"), metadata=[("traceparent", parent(8))])
    found = collector.trace(f"{7:032x}")
    assert found["server"][0].name == "inference.GRPCInferenceService/ModelInfer"
    server = attributes(found["server"][0])
    assert {
        "rpc.system": "grpc",
        "rpc.method": "ModelInfer",
        "client.address": "127.0.0.1",
    }.items() <= server.items()
    assert noted(note)[0][:2] == [f"{7:032x}", found["infer"][0].span_id.hex()]
    assert attributes(collector.trace(f"{8:032x}")["server"][0])["error.type"] == "UnknownModel"


def test_cancelled_grpc_request_is_traced(
    service: Service, collector: Collector, stub: Any, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    held = pool.submit(predict, service, 90, f"wait:{pipe}")
    with pipe.open("w"):  # blocks until the model opens it
        leaving = stub.ModelInfer.future(inferred("actor"), metadata=[("traceparent", parent(91))])
        until(lambda: waiting(service) == 1)
        assert leaving.cancel()
        found = collector.trace(f"{91:032x}")
    assert held.result().status_code == 200
    assert attributes(found["server"][0])["error.type"] == "ClientDisconnected"
    assert "infer" not in found


# -- failures


@pytest.mark.parametrize(
    ("number", "path", "act", "status", "error", "code"),
    [
        (10, "/predict", 1, 422, "Unprocessable", Status.STATUS_CODE_UNSET),
        (11, "/models/nobody/versions/1/predict", "", 404, "UnknownModel", Status.STATUS_CODE_UNSET),
        (12, "/predict", "raise:hunter2", 500, "ModelFailed", Status.STATUS_CODE_ERROR),
    ],
)
def test_failed_request_span_names_the_error(
    service: Service,
    collector: Collector,
    number: int,
    path: str,
    act: Any,
    status: int,
    error: str,
    code: Any,
) -> None:
    headers = {"traceparent": parent(number), "X-Request-ID": f"number-{number}"}
    assert service.client.post(path, json={"x": 1, "act": act}, headers=headers).status_code == status
    found = collector.trace(f"{number:032x}")
    (server,) = found["server"]
    recorded = attributes(server)
    assert (recorded["http.response.status_code"], recorded["error.type"]) == (status, error)
    assert server.status.code == code
    assert "hunter2" not in str(server)
    assert "nobody" not in recorded["http.route"]
    assert ("infer" in found) == (status == 500)
    assert all(span.status.code == code for span in found.get("infer", ()))


def test_log_lines_contain_the_trace_id(service: Service) -> None:
    predict(service, 13, "raise:it", **{"X-Request-ID": "traced"})
    for logger in ("serving", "serving.access"):
        assert service.wait_for_log(request_id="traced", logger=logger)["trace_id"] == f"{13:032x}"


# -- several requests in one batch


def together(
    service: Service, pool: ThreadPoolExecutor, folder: Path, first: int, acts: Sequence[str]
) -> list[int]:
    """Send requests that form one batch, in consecutive traces; return their statuses."""
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    busy = pool.submit(predict, service, first - 1, f"wait:{pipe}")
    with pipe.open("w"):
        futures = []
        for number, act in enumerate(acts):
            futures.append(pool.submit(predict, service, first + number, act))
            until(lambda number=number: waiting(service) == number + 1)  # type: ignore[misc]
    assert busy.result().status_code == 200
    return [future.result().status_code for future in futures]


def waiting(service: Service) -> float:
    sample = 'serving_waiting_requests{model="actor",version="1"} '
    lines = service.client.get("/metrics").text.splitlines()
    return next(float(line.removeprefix(sample)) for line in lines if line.startswith(sample))


def test_batch_continues_the_first_trace_and_links_others(
    service: Service, collector: Collector, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    assert together(service, pool, tmp_path, 21, ["", f"trace:{note}", ""]) == [200] * 3
    first, second, third = (collector.trace(f"{number:032x}") for number in (21, 22, 23))
    (home,) = first["infer"]
    assert noted(note) == [[f"{21:032x}", home.span_id.hex(), ""]]
    assert linked(home) == [
        (f"{number:032x}", found["server"][0].span_id.hex()) for number, found in ((22, second), (23, third))
    ]
    for found in (first, second, third):
        (infer,) = found["infer"]
        assert attributes(infer) == {"serving.batch.rows": 3, "serving.batch.requests": 3}
        assert infer.start_time_unix_nano >= found["queue"][0].end_time_unix_nano - 1000
    for found in (second, third):
        assert linked(found["infer"][0]) == [(f"{21:032x}", home.span_id.hex())]


def test_each_retry_of_a_batch_is_a_span(
    service: Service, collector: Collector, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    assert together(service, pool, tmp_path, 31, ["", "raise:it"]) == [200, 500]
    good, poison = (collector.trace(f"{number:032x}") for number in (31, 32))
    failed, unset = Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET
    assert [(span.status.code, attributes(span)["serving.batch.rows"]) for span in good["infer"]] == [
        (failed, 2),
        (unset, 1),
    ]
    assert [span.status.code for span in poison["infer"]] == [failed, failed]
    assert [span.status.code for span in (good["server"][0], poison["server"][0])] == [unset, failed]


# -- shutdown


def traced_request(number: int) -> RequestContext:
    """Return a request in the trace of this number."""
    headers = [(b"traceparent", parent(number).encode())]
    return RequestContext("one", "POST", "/predict", headers, None, {"scheme": "http", "http_version": "1.1"})


@pytest.mark.anyio
async def test_pending_spans_are_sent_at_shutdown(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT, collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    (feature,) = tracing.features()
    (traces,) = feature.hooks
    assert feature.aclose
    context = traced_request(41)
    traces.on_request(context)
    traces.on_error(context, 503, RuntimeError("it"))
    await feature.aclose(30)
    assert [span for span in collector.spans if span.trace_id.hex() == f"{41:032x}"]


@pytest.mark.anyio
async def test_silent_collector_does_not_delay_shutdown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{silent.getsockname()[1]}")
        traces = TraceRecorder()
        context = traced_request(42)
        traces.on_request(context)
        traces.on_error(context, 503, RuntimeError("it"))
        await traces.aclose(0.1)
        assert "traces could not be sent within 0.1 s" in caplog.text


# -- disabled or misconfigured


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {ENDPOINT: ""},
        {ENDPOINT: "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "TRUE"},
        {ENDPOINT: "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:9"},
    ],
)
def test_tracing_is_off_by_default(variables: dict[str, str]) -> None:
    assert tracing.features(variables) == []


def test_table_without_trace_has_no_trace_metadata() -> None:
    assert b"trace" not in InputLayout(()).encode([{}], '{"x": 1}')


@pytest.mark.parametrize(
    "variables",
    [{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, {"OTEL_TRACES_EXPORTER": "zipkin"}],
)
def test_unsupported_exporter_is_a_configuration_error(variables: dict[str, str]) -> None:
    with pytest.raises(TracingConfigError, match=f"^{next(iter(variables))}: .* is not supported; set .*"):
        tracing.features({ENDPOINT: "http://127.0.0.1:9"} | variables)


def test_missing_tracing_extra_fails_at_startup(registry: str, tmp_path: Path) -> None:
    missing = "import sys; sys.modules['opentelemetry.exporter.otlp.proto.http.trace_exporter'] = None"
    (tmp_path / "sitecustomize.py").write_text(missing)
    env = environment(registry, tmp_path) | {ENDPOINT: "http://127.0.0.1:9", "PYTHONPATH": str(tmp_path)}
    command: list[Any] = [PROGRAM, "run", "--port", "0"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"✗ {ENDPOINT}: tracing is not installed: pip install 'mlflow-serving-front[tracing]'\n"
    )
