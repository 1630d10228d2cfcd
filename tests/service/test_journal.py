"""The journal records predictions of every protocol in every database; feedback measures their quality."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import mlflow
import pyarrow as pa
import pytest
from mlflow.types import ParamSpec
from pyarrow import parquet

from serving.grpc import inference_pb2 as protos
from serving.grpc import inference_pb2_grpc as services
from tests.service.test_http_service import DIABETES, IRIS, ROW, log_diabetes, log_iris, problem
from tests.support.journal_reader import JournalReader, measured, recorded
from tests.support.registry import NewRegistry, Registry, quiet
from tests.support.sample_models import sample_models
from tests.support.service import FOR_SKLEARN, PROGRAM, Service, served, until

FLOWERS = [IRIS.iloc[index].to_dict() for index in (0, 75, 149)]
PATIENT = DIABETES.iloc[0].to_dict()
SLICE = "petal_width"
ODD = ("nested", "arrays", "texts", "whole")


@pytest.fixture(scope="module")
def stock(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Serve a classifier, a regressor, models without a task, a streaming one and a cached one."""
    folder = tmp_path_factory.mktemp("stock")
    made = Registry(new_registry(folder))
    with pytest.MonkeyPatch.context() as patch, quiet():
        patch.setenv("MLFLOW_TRACKING_URI", made.uri)
        with mlflow.start_run():
            log_iris(made)
        with mlflow.start_run():
            log_diabetes(made)
        for name in ODD:
            sample_models()[name].save(folder / name)
            made.register(name, folder / name)
    made.add("actor", params=[ParamSpec("factor", "double", 2.0)])
    made.add("speaker", streams=True, factor=2.0)
    made.add("kept", params=[ParamSpec("factor", "double", 2.0)])
    made.add("bytes", inputs="x: double, photo: binary, at: datetime", example=None)
    return made


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('journal')}/journal.db"
    database_url: str = request.getfixturevalue("postgres").create("journal")
    return database_url


@pytest.fixture(scope="module")
def service(stock: Registry, url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    names = ("actor", "speaker", "kept", "bytes", *ODD)
    models = ",".join(["models:/iris@champion", "models:/diabetes@best", *(f"models:/{n}/1" for n in names)])
    settings = {
        "models": models,
        "cached_models": "kept",
        "grpc_port": 0,
        "journal_url": url,
        "poll_seconds": 5,
        "quality_seconds": 1,
        "quality_slices": "petal_width",
        "quality_mlflow": True,
    }
    settings["preload"] = FOR_SKLEARN
    with served(stock.uri, tmp_path_factory.mktemp("service"), **settings) as running:
        running.until_ready()
        yield running


@pytest.fixture(scope="module")
def journal_reader(url: str, service: Service) -> Iterator[JournalReader]:
    made = JournalReader(url)
    until(lambda: "serving_journal_failing 0.0" in service.client.get("/metrics").text)
    recorded(service.client.post("/predict", json=ROW))
    until(lambda: measured(service, "written")[0])
    yield made
    made.engine.dispose()


@pytest.fixture(scope="module")
def stub(service: Service) -> Iterator[Any]:
    with grpc.insecure_channel(service.logged(re.compile(r"serving gRPC at ([\d.:]+)"))[1]) as channel:
        yield services.GRPCInferenceServiceStub(channel)


def batch(service: Service, model: str, rows: list[Any]) -> list[Any]:
    """Return the response of the typed route to these rows."""
    answer = service.client.post(f"/models/{model}/predict/batch", json={"rows": rows})
    results: list[Any] = answer.json()["predictions"]
    return results


# -- records


def test_prediction_is_recorded_with_its_metadata(
    service: Service, journal_reader: JournalReader, stock: Registry
) -> None:
    before = datetime.now(UTC)
    answer = service.client.post("/predict", json=ROW, headers={"X-Request-ID": "mine"})
    after = datetime.now(UTC)
    stored = journal_reader.prediction(recorded(answer))
    body = answer.json()
    assert (stored["model"], stored["number"]) == (body["model"]["name"], body["model"]["version"])
    assert stored["run_id"] == stock.client.get_model_version("iris", "1").run_id
    assert stored["task"] == "classification"
    assert (stored["protocol"], stored["rows"], stored["params"]) == ("predict", 1, None)
    assert stored["inputs"] == [ROW]
    del body["model"]
    assert stored["outputs"] == [body]
    assert stored["request_id"] == "mine"
    assert 0 < stored["latency"] < (after - before).total_seconds()
    at = stored["at"].replace(tzinfo=UTC)
    assert before - timedelta(milliseconds=1) <= at <= after


IN_COLUMNS = {name: [row[name] for row in FLOWERS] for name in FLOWERS[0]}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "batch": ("/predict/batch", {"json": {"rows": FLOWERS}}),
    "invocations": ("/invocations", {"json": {"dataframe_records": FLOWERS}}),
    "invocations as csv": (
        "/invocations",
        {
            "content": IRIS.iloc[[0, 75, 149]].to_csv(index=False),
            "headers": {"Content-Type": "text/csv", "Accept": "text/csv"},
        },
    ),
    "v2": (
        "/v2/models/iris/infer",
        {
            "json": {
                "inputs": [
                    {"name": name, "datatype": "FP64", "shape": [3], "data": values}
                    for name, values in IN_COLUMNS.items()
                ]
            }
        },
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_http_protocol_is_recorded_alike(
    service: Service, journal_reader: JournalReader, way: str
) -> None:
    path, sent = WAYS[way]
    answer = service.client.post(path, **sent)
    stored = journal_reader.prediction(recorded(answer))
    assert (stored["model"], stored["protocol"], stored["rows"]) == ("iris", way.split()[0], 3)
    assert stored["inputs"] == FLOWERS
    assert stored["outputs"] == batch(service, "iris", FLOWERS)
    assert stored["request_id"] == answer.headers["x-request-id"]


def test_grpc_predictions_are_recorded(service: Service, journal_reader: JournalReader, stub: Any) -> None:
    inputs = [
        {"name": name, "datatype": "FP64", "shape": [3], "contents": {"fp64_contents": values}}
        for name, values in IN_COLUMNS.items()
    ]
    answer, call = stub.ModelInfer.with_call(protos.ModelInferRequest(model_name="iris", inputs=inputs))
    metadata = dict(call.initial_metadata())
    stored = journal_reader.prediction(metadata["x-prediction-id"])
    assert (stored["protocol"], stored["rows"], stored["request_id"]) == ("grpc", 3, answer.id)
    assert (stored["inputs"], stored["outputs"]) == (FLOWERS, batch(service, "iris", FLOWERS))


def test_stream_is_recorded_by_part(service: Service, journal_reader: JournalReader) -> None:
    row = {"x": 2.0, "act": "say:a say:b"}
    answer = service.client.post("/models/speaker/predict/stream", json=row)
    stored = journal_reader.prediction(recorded(answer))
    assert (stored["protocol"], stored["rows"]) == ("stream", 1)
    assert (stored["inputs"], stored["outputs"]) == ([row], [["a", "b"]])


@pytest.mark.parametrize("name", ["nested", "arrays"])
def test_nested_values_are_recorded_as_json(
    service: Service, journal_reader: JournalReader, name: str
) -> None:
    row = sample_models()[name].row
    for path, sent in [
        (f"/models/{name}/predict", row),
        (f"/invocations?model={name}", {"inputs": [row]} if name == "nested" else {"instances": [row]}),
    ]:
        stored = journal_reader.prediction(recorded(service.client.post(path, json=sent)))
        (inputs,) = stored["inputs"]
        assert {name: value for name, value in inputs.items() if value is not None} == json.loads(
            json.dumps(row)
        )
        assert stored["outputs"] == batch(service, name, [row])


def test_bytes_and_dates_are_recorded_as_base64_and_iso_8601(
    service: Service, journal_reader: JournalReader
) -> None:
    photo = base64.b64encode(b"\x00\xff").decode()
    sent = {"dataframe_records": [{"x": 1.0, "photo": photo, "at": "2026-01-31T10:00:00"}]}
    stored = journal_reader.prediction(recorded(service.client.post("/invocations?model=bytes", json=sent)))
    assert stored["inputs"] == sent["dataframe_records"]


def test_single_output_for_all_rows_is_recorded_once(service: Service, journal_reader: JournalReader) -> None:
    sent = {"dataframe_records": [{"x": 1.0}, {"x": 2.5}]}
    stored = journal_reader.prediction(recorded(service.client.post("/invocations?model=whole", json=sent)))
    assert stored["rows"] == 2
    assert stored["outputs"] == [{"prediction": {"total": 3.5, "rows": 2}}]


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/models/actor/predict?factor=3", {"x": 1.0}),
        ("/models/actor/predict/batch", {"rows": [{"x": 1.0}], "params": {"factor": 3.0}}),
        ("/invocations?model=actor", {"inputs": [{"x": 1.0}], "params": {"factor": 3.0}}),
    ],
)
def test_parameters_are_recorded_with_the_rows(
    service: Service, journal_reader: JournalReader, path: str, sent: Any
) -> None:
    stored = journal_reader.prediction(recorded(service.client.post(path, json=sent)))
    assert json.loads(stored["params"]) == {"factor": 3.0}
    assert [row["x"] for row in stored["inputs"]] == [1.0]
    assert stored["outputs"] == [{"prediction": 3.0}]


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/models/kept/predict?factor=3", {"x": 7.0}),
        ("/models/kept/predict/batch", {"rows": [{"x": 7.0}], "params": {"factor": 3.0}}),
    ],
)
def test_cached_response_is_a_separate_prediction(
    service: Service, journal_reader: JournalReader, path: str, sent: Any
) -> None:
    answers = [service.client.post(path, json=sent) for _ in range(2)]
    assert [answer.headers["x-cache"] for answer in answers] == ["miss", "hit"]
    first, second = (journal_reader.prediction(recorded(answer)) for answer in answers)
    assert first["id"] != second["id"]
    fields = ("inputs", "outputs", "params", "rows", "protocol")
    assert [first[name] for name in fields] == [second[name] for name in fields]
    assert json.loads(second["params"]) == {"factor": 3.0}


def test_cached_response_of_another_protocol_is_recorded(
    service: Service, journal_reader: JournalReader
) -> None:
    sent = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [2], "data": [9.0, 8.0]}]}
    answers = [service.client.post("/v2/models/kept/infer", json=sent) for _ in range(2)]
    assert answers[1].headers["x-cache"] == "hit"
    stored = journal_reader.prediction(recorded(answers[1]))
    assert stored["outputs"] == [{"prediction": 18.0}, {"prediction": 16.0}]
    first = journal_reader.prediction(recorded(answers[0]))
    fields = ("inputs", "outputs", "params", "rows", "protocol")
    assert [first[name] for name in fields] == [stored[name] for name in fields]


def test_rejected_and_failed_requests_are_not_recorded(
    service: Service, journal_reader: JournalReader
) -> None:
    first = recorded(service.client.post("/predict", json=ROW))
    for path, sent in [("/predict", {}), ("/models/actor/predict", {"x": 1.0, "act": "raise:no"})]:
        answer = service.client.post(path, json=sent)
        assert answer.is_error
        assert "x-prediction-id" not in answer.headers
    last = recorded(service.client.post("/predict", json=ROW))
    assert journal_reader.prediction(last)
    assert [each for each in journal_reader.ids() if first <= each <= last] == [first, last]


def test_concurrent_predictions_have_distinct_ids(service: Service, journal_reader: JournalReader) -> None:
    def ask(number: int) -> tuple[str, float]:
        sent = {"x": float(number)}
        return recorded(service.client.post("/models/actor/predict", json=sent)), 2.0 * number

    with ThreadPoolExecutor(16) as pool:
        asked = dict(pool.map(ask, range(400)))
    assert len(asked) == 400
    until(lambda: {*asked} <= {*journal_reader.ids()})
    for identity in [*asked][::40]:
        assert journal_reader.prediction(identity)["outputs"] == [{"prediction": asked[identity]}]


# -- feedback


def feed_back(service: Service, sent: Any, **headers: str) -> Any:
    return service.client.post("/feedback", json=sent, headers=headers)


def quality(service: Service, name: str) -> dict[str, Any] | None:
    """Return the quality of a model's live version in `/ready`."""
    stored: dict[str, Any] | None = next(
        each["quality"] for each in service.ready()["models"] if each["name"] == name
    )
    return stored


def test_immediate_feedback_measures_a_classifier(
    service: Service, journal_reader: JournalReader, stock: Registry
) -> None:
    assert quality(service, "iris") is None
    answers = service.client.post("/predict/batch", json={"rows": FLOWERS})
    identity = recorded(answers)
    labels = [each["label"] for each in answers.json()["predictions"]]
    sent = [
        {"prediction_id": identity, "row": 0, "outcome": labels[0]},
        {"prediction_id": identity, "row": 1, "outcome": 1},
        {"prediction_id": identity, "row": 2, "outcome": "setosa"},
    ]
    assert labels == ["setosa", "versicolor", "virginica"]
    assert feed_back(service, {"feedback": sent}).json() == {"recorded": 3}
    assert journal_reader.outcomes(identity) == {0: "setosa", 1: 1, 2: "setosa"}
    assert quality(service, "iris") == {
        "feedback": 3,
        "accuracy": 2 / 3,
        "mean_absolute_error": None,
        "root_mean_squared_error": None,
    }
    # A second outcome for the same row corrects the first.
    corrected = {"prediction_id": identity, "row": 2, "outcome": "virginica"}
    assert feed_back(service, corrected).json() == {"recorded": 1}
    assert quality(service, "iris") == quality(service, "iris") | {"feedback": 3, "accuracy": 1.0}  # type: ignore[operator]
    metrics = service.client.get("/metrics").text
    assert 'serving_quality{metric="accuracy",model="iris",version="1"} 1.0' in metrics
    assert "serving_feedback_total 4.0" in metrics


def test_feedback_is_written_to_the_run_of_the_version(
    service: Service, journal_reader: JournalReader, stock: Registry
) -> None:
    answer = service.client.post("/models/diabetes/predict/batch", json={"rows": [PATIENT, PATIENT]})
    predicted = answer.json()["predictions"][0]["prediction"]
    identity = recorded(answer)
    sent = [
        {"prediction_id": identity, "row": row, "outcome": predicted + error}
        for row, error in enumerate([3, -1])
    ]
    assert feed_back(service, {"feedback": sent}).json() == {"recorded": 2}
    assert quality(service, "diabetes") == {
        "feedback": 2,
        "accuracy": None,
        "mean_absolute_error": pytest.approx(2.0),
        "root_mean_squared_error": pytest.approx(5.0**0.5),
    }
    version = stock.client.get_model_version("diabetes", "1")
    assert version.run_id
    assert version.source
    run_id, model_id = version.run_id, version.source.removeprefix("models:/")

    def told() -> Any:
        points = stock.client.get_metric_history(run_id, "serving.mean_absolute_error")
        return [point for point in points if point.step == 2]

    assert until(told)[0].value == pytest.approx(2.0)
    metrics = stock.client.get_run(run_id).data.metrics
    assert metrics["serving.root_mean_squared_error"] == pytest.approx(5.0**0.5)
    assert metrics["serving.feedback_count"] == 2.0
    of_model = stock.client.get_logged_model(model_id).metrics
    assert {each.key: each.value for each in of_model or ()}.items() >= metrics.items() & {
        (name, value) for name, value in metrics.items() if name.startswith("serving.")
    }


def test_recent_quality_is_computed_by_class_and_slice(
    service: Service, journal_reader: JournalReader, stock: Registry
) -> None:
    def recent() -> dict[str, Any]:
        found: dict[str, Any] = service.ready()["models"][0].get("recent_quality") or {"rows": 0}
        return found

    before = until(recent)["rows"]
    answers = service.client.post("/predict/batch", json={"rows": FLOWERS * 10})
    sent = [
        {"prediction_id": recorded(answers), "row": row, "outcome": row % 3 if row else 2}
        for row in range(30)
    ]
    assert feed_back(service, {"feedback": sent}).json() == {"recorded": 30}
    quality = until(lambda: found if (found := recent())["rows"] >= before + 30 else None, pause=0.5)
    accuracy = 1 - 1 / quality["rows"]
    assert quality["metrics"]["accuracy"] == pytest.approx(accuracy)
    assert quality["metrics"].keys() == {
        *("accuracy", "precision", "recall", "f1", "roc_auc", "log_loss", "brier_score", "calibration_error")
    }
    assert quality["classes"]["versicolor"]["recall"] == 1.0
    assert quality["classes"]["virginica"]["recall"] < 1.0
    slices = {where: values["accuracy"] for where, values in quality["slices"].items()}
    setosa, versicolor = (f"{SLICE}={FLOWERS[index][SLICE]}" for index in (0, 1))
    assert slices[setosa] < 1.0
    assert slices[versicolor] == 1.0
    labels = f'class="",metric="accuracy",model="iris",slice="{versicolor}",version="1"'
    until(lambda: service.metrics().get(f"serving_recent_quality{{{labels}}}") == 1.0)

    def run() -> Any:
        run_id = str(stock.client.get_model_version("iris", "1").run_id)
        experiment = stock.client.get_run(run_id).info.experiment_id
        runs = stock.client.search_runs([experiment], "tags.`serving.quality` = 'iris/1'")
        return runs[0] if runs and runs[0].data.metrics.get("rows", 0) >= 30 else None

    assert until(run).data.metrics["f1/class/versicolor"] == 1.0


def test_feedback_works_for_other_protocols(service: Service, journal_reader: JournalReader) -> None:
    for path, sent in WAYS.values():
        identity = recorded(service.client.post(path, **sent))
        assert feed_back(service, {"prediction_id": identity, "row": 1, "outcome": "versicolor"}).is_success
        assert journal_reader.outcomes(identity) == {1: "versicolor"}


def test_feedback_on_a_cached_response_counts(service: Service, journal_reader: JournalReader) -> None:
    sent = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [2], "data": [2.5, 3.5]}]}
    answers = [service.client.post("/v2/models/kept/infer", json=sent) for _ in range(2)]
    assert answers[1].headers["x-cache"] == "hit"
    assert feed_back(service, {"prediction_id": recorded(answers[1]), "row": 1, "outcome": 6.0}).is_success
    assert quality(service, "kept")["mean_absolute_error"] == 1.0  # type: ignore[index]


@pytest.mark.parametrize(
    ("model", "row", "outcome"),
    [
        ("iris", ROW, "tulip"),
        ("iris", ROW, 3),
        ("iris", ROW, True),
        ("iris", ROW, 0.5),
        ("iris", ROW, None),
        ("diabetes", PATIENT, "high"),
        ("diabetes", PATIENT, None),
        ("diabetes", PATIENT, 1e200),
        ("actor", {"x": 1.0}, "high"),
        ("texts", {"input": "a"}, 1),
        ("nested", sample_models()["nested"].row, {"sum": 1.0}),
    ],
)
def test_impossible_outcome_is_rejected(
    service: Service, journal_reader: JournalReader, model: str, row: Any, outcome: Any
) -> None:
    identity = recorded(service.client.post(f"/models/{model}/predict", json=row))
    body = problem(feed_back(service, {"prediction_id": identity, "outcome": outcome}), 422)
    assert body["errors"][0]["loc"] == ["outcome"]
    listed = {"feedback": [{"prediction_id": identity, "row": 7, "outcome": outcome}]}
    body = problem(feed_back(service, listed), 422)
    assert body["errors"][0]["loc"] == ["feedback", 0, "row"]
    assert journal_reader.outcomes(identity) == {}


def test_one_invalid_outcome_rejects_the_batch(service: Service, journal_reader: JournalReader) -> None:
    known = recorded(service.client.post("/predict", json=ROW))
    unknown = "00000000-0000-7000-8000-000000000000"
    sent = [{"prediction_id": each, "outcome": "setosa"} for each in (known, unknown)]
    body = problem(feed_back(service, {"feedback": sent}), 404)
    assert body["errors"] == [{"loc": ["feedback", 1, "prediction_id"], "msg": "There is no such prediction"}]
    assert journal_reader.outcomes(known) == {}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b'{"prediction_id": "01a2134c-3a0c-71e4-a2d0-d3282d66e74e", "outcome": NaN}', 400),
        (b'{"prediction_id": "mine", "outcome": 1}', 422),
        (b'{"outcome": 1}', 422),
        (b'{"feedback": []}', 422),
        (b"[]", 422),
        (b'{"prediction_id": "01a2134c-3a0c-71e4-a2d0-d3282d66e74e", "outcome": 1, "row": -1}', 422),
        (b'{"prediction_id": "01a2134c-3a0c-71e4-a2d0-d3282d66e74e", "outcome": 1, "row": true}', 422),
        (b'{"prediction_id": "01a2134c-3a0c-71e4-a2d0-d3282d66e74e", "outcome": 1, "more": 1}', 422),
        (b'{"prediction_id": "01a2134c-3a0c-71e4-a2d0-d3282d66e74e", "outcome": [1e400]}', 422),
        (b'{"prediction_id": "01a2134c-3a0c-71e4-a2d0-d3282d66e74e", "outcome": 18446744073709551616}', 422),
        (b'{"prediction_id": "01a2134c-3a0c-71e4-a2d0-d3282d66e74e", "outcome": 1}', 404),
    ],
)
def test_invalid_feedback_is_rejected(
    service: Service, journal_reader: JournalReader, content: bytes, status: int
) -> None:
    answer = service.client.post("/feedback", content=content, headers={"Content-Type": "application/json"})
    problem(answer, status)


# -- export


def test_export_has_one_line_per_row(
    service: Service, journal_reader: JournalReader, url: str, tmp_path: Path
) -> None:
    first = service.client.post("/predict/batch", json={"rows": FLOWERS})
    identity = recorded(first)
    feed_back(service, {"prediction_id": identity, "row": 2, "outcome": "setosa"})
    until(lambda: identity in journal_reader.ids())

    def exported(*options: str) -> list[dict[str, Any]]:
        file = tmp_path / "journal.parquet"
        command: list[Any] = [PROGRAM, "journal", "export", file, "--journal-url", url, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        table: pa.Table = parquet.read_table(file)
        assert f"{table.num_rows:,} rows" in done.stderr
        lines: list[dict[str, Any]] = table.to_pylist()
        return lines

    since = journal_reader.prediction(identity)["at"].replace(tzinfo=UTC)
    lines = exported("--model", "iris", "--version", "1", "--since", since.isoformat())
    own = [line for line in lines if line["id"] == identity]
    assert [line["row"] for line in own] == [0, 1, 2]
    assert [json.loads(line["input"]) for line in own] == FLOWERS
    assert [json.loads(line["output"]) for line in own] == first.json()["predictions"]
    assert [(line["outcome"], line["correct"]) for line in own] == [
        (None, None),
        (None, None),
        ('"setosa"', False),
    ]
    assert {line["at"] for line in own} == {since}
    assert {line["model"] for line in lines} == {"iris"}
    assert {(line["request_id"], line["protocol"]) for line in own} == {
        (first.headers["x-request-id"], "batch")
    }
    everything = exported("--until", (datetime.now(UTC) + timedelta(hours=1)).isoformat())
    assert len({line["id"] for line in everything}) == journal_reader.count()
    assert exported("--until", "2020-01-01") == exported("--version", "9") == []
