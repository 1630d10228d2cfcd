"""MLflow's scoring protocol: responses are the same as those of MLflow's own server."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pyarrow as pa
import pytest
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from pyarrow import parquet

from tests.support.faulty_proxy import free_port
from tests.support.sample_models import HOUSES, IRIS, sample_models
from tests.support.service import Service, until

SERVER = Path(__file__).parents[1] / "support" / "scoring_server.py"
JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def mlflow_server(sample_model_folders: dict[str, Path]) -> Iterator[httpx.Client]:
    """Run MLflow's own server."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, str(SERVER), str(port), *map(str, sample_model_folders.values())]
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

        def is_ready() -> bool:
            assert server.poll() is None
            try:
                return client.get("/classifier/ping").is_success
            except httpx.ConnectError:
                return False

        try:
            until(is_ready)
            yield client
        finally:
            server.kill()
            server.wait()


def split(frame: pd.DataFrame) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(frame.to_json(orient="split", date_format="iso"))
    return {"dataframe_split": found}


def records(frame: pd.DataFrame) -> dict[str, Any]:
    return {"dataframe_records": json.loads(frame.to_json(orient="records", date_format="iso"))}


def columns(frame: pd.DataFrame) -> dict[str, Any]:
    return {str(name): values.tolist() for name, values in frame.items()}


FLOWERS = IRIS.iloc[[0, 60, 120]]
HOLEY = FLOWERS.assign(petal_width=[0.2, math.nan, 1.5])
X = pd.DataFrame({"x": [5.0, -3.0, 12.5]})
NESTED = [{"v": [1.0, 2.0], "o": {"a": 1.0}, "m": {"k": 1}}, {"v": [3.0], "o": {"a": 2.5}, "m": {}}]
IMAGES = [[[1, 2], [3, 255]], [[0, 0], [5, 6]]]
MESSAGES = [
    {"role": "user", "content": "hi"},
    {"role": "bot", "content": "ä: ü", "at": None},
]
BODIES: dict[str, list[Any]] = {
    "classifier": [
        split(FLOWERS),
        split(FLOWERS[FLOWERS.columns[::-1]]),
        split(FLOWERS.assign(extra=1)),
        records(FLOWERS),
        records(FLOWERS.round().astype(int)),
        {"inputs": columns(FLOWERS)},
        {"inputs": FLOWERS.iloc[0].to_dict()},
        {"instances": FLOWERS.to_dict("records")},
        {"inputs": FLOWERS.to_dict("records"), "params": {}},
    ],
    "pipeline": [split(HOUSES), records(HOUSES), records(HOUSES[:1])],
    "xgboost": [split(FLOWERS), records(HOLEY)],
    "lightgbm": [split(HOLEY), records(HOLEY), {"inputs": columns(FLOWERS)}],
    "onnx": [
        {"inputs": {"x": FLOWERS.to_numpy().tolist()}},
        {"instances": [{"x": row} for row in FLOWERS.to_numpy().tolist()]},
        {"dataframe_records": [{"x": row} for row in FLOWERS.to_numpy().tolist()]},
        {"dataframe_split": {"columns": ["x"], "data": [[row] for row in FLOWERS.to_numpy().tolist()]}},
    ],
    "nested": [
        {"dataframe_records": NESTED},
        {"dataframe_split": {"columns": [*NESTED[0]], "data": [[*row.values()] for row in NESTED]}},
        {"inputs": NESTED},
        {"dataframe_records": [{key: row[key] for key in "vo"} for row in NESTED]},
    ],
    "arrays": [
        {"inputs": {"image": IMAGES, "words": [["a", "b"], ["c", "d"]]}},
        {"instances": [{"image": image, "words": ["a", "b"]} for image in IMAGES]},
        {"inputs": {"image": [[[1, 2]]], "words": [["", "ä"]]}},
    ],
    "texts": [
        {"inputs": ["a", "bc"]},
        {"inputs": "a"},
        {"instances": ["a", "bc"]},
        {"dataframe_split": {"data": [["a"], ["b"]]}},
        {"inputs": ["a"], "params": {"times": 3}},
    ],
    "frame": [split(X[:1]), {"inputs": columns(X[:1])}],
    "whole": [split(X), records(X[:1])],
    "hinted": [{"inputs": MESSAGES}, {"inputs": MESSAGES[:1]}],
    "optional": [
        {"dataframe_records": [{"x": 1.5}, {}]},
        {"dataframe_records": [{}]},
        {"dataframe_records": [{}, {}]},
        {"dataframe_records": []},
        {"dataframe_records": [{"other": 1}, {"other": 2}]},
        {"dataframe_split": {"columns": [], "data": [[], []]}},
        {"dataframe_split": {"columns": [], "data": [[], []], "index": [3, 4]}},
        {"dataframe_split": {"columns": ["other"], "data": [[1]]}},
        {"instances": [{}, {}]},
        {"inputs": [{}, {}]},
        {"inputs": {}},
        {"inputs": {"other": [1]}},
    ],
}
CASES = [(name, body) for name, bodies in BODIES.items() for body in bodies]


@pytest.mark.parametrize(("name", "body"), CASES, ids=[f"{name}-{next(iter(body))}" for name, body in CASES])
def test_response_equals_that_of_mlflow_server(
    sample_model_service: Service, mlflow_server: httpx.Client, name: str, body: dict[str, Any]
) -> None:
    wanted = mlflow_server.post(f"/{name}/invocations", json=body)
    found = sample_model_service.client.post("/invocations", params={"model": name}, json=body)
    assert (wanted.status_code, found.status_code) == (200, 200), (wanted.text, found.text)
    assert found.json() == wanted.json()
    assert found.headers["X-Model-Name"] == name


# -- tables


def as_csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()


def as_parquet(frame: pd.DataFrame) -> bytes:
    return bytes(frame.to_parquet(index=False))


def as_arrow(frame: pd.DataFrame) -> bytes:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    sink = BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("classifier", FLOWERS),
        ("xgboost", HOLEY),
        ("lightgbm", HOLEY),
        ("pipeline", HOUSES),
        ("frame", X[:1]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tables_get_the_same_predictions_as_json(
    sample_model_service: Service, mlflow_server: httpx.Client, name: str, frame: pd.DataFrame
) -> None:
    wanted = mlflow_server.post(f"/{name}/invocations", json=split(frame)).json()
    for media_type, write in ((CSV, as_csv), (PARQUET, as_parquet), (ARROW, as_arrow)):
        headers = {"Content-Type": media_type}
        found = sample_model_service.client.post(
            f"/invocations?model={name}", content=write(frame), headers=headers
        )
        assert found.json() == wanted, media_type
        if media_type != ARROW and name != "pipeline":  # MLflow's server cannot read dates in CSV, nor Arrow
            response = mlflow_server.post(f"/{name}/invocations", content=write(frame), headers=headers)
            assert response.json() == wanted, media_type


def test_response_format_follows_accept_header(sample_model_service: Service) -> None:
    def ask(name: str, body: Any, media_type: str) -> BytesIO:
        headers = {"Accept": f"{media_type}, application/json;q=0.5"}
        found = sample_model_service.client.post(f"/invocations?model={name}", json=body, headers=headers)
        assert found.headers["Content-Type"] == media_type
        assert found.headers["X-Model-Name"] == name
        return BytesIO(found.content)

    chances = sample_model_service.client.post("/invocations", json=split(FLOWERS)).json()["predictions"]
    table = pa.ipc.open_stream(ask("classifier", split(FLOWERS), ARROW)).read_all()
    assert table.to_pydict() == {"predictions": chances}
    assert parquet.read_table(ask("classifier", split(FLOWERS), PARQUET)).to_pydict() == {
        "predictions": chances
    }
    read = pd.read_csv(ask("classifier", split(FLOWERS), CSV))
    assert read.columns.tolist() == ["predictions_0", "predictions_1", "predictions_2"]
    assert read.to_numpy().tolist() == chances
    framed = pa.ipc.open_stream(ask("frame", split(X[:1]), ARROW)).read_all()
    assert framed.column_names == ["half", "gap", "note", "at", "whole", "is_large"]
    assert pd.read_csv(ask("nested", {"inputs": NESTED}, CSV)).columns.tolist() == ["predictions"]


def test_ten_thousand_predictions_keep_their_order(sample_model_service: Service) -> None:
    rows = pd.DataFrame({"x": [float(number) for number in range(1, 10_001)]})
    for headers, body in (({}, json.dumps(split(rows))), ({"Content-Type": CSV}, as_csv(rows))):
        headers = {"Content-Type": JSON} | headers
        result = sample_model_service.client.post(
            "/invocations?model=frame", content=body, headers=headers
        ).json()
        assert [row["half"] for row in result["predictions"]] == [number / 2 for number in range(1, 10_001)]


# -- stricter validation and errors


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        (
            "pipeline",
            records(HOUSES.assign(rooms=[1.9, 2, 3, 4])),
            "rooms, 0: Input should be a valid integer",
        ),
        ("pipeline", records(HOUSES.assign(garden="false")), "garden, 0: Input should be a valid boolean"),
        ("classifier", records(FLOWERS.assign(petal_width="1.5")), "petal_width, 0: Input should be a valid"),
        ("classifier", split(FLOWERS.drop(columns="petal_width")), "petal_width: Field required"),
        ("classifier", {}, "Send exactly one of dataframe_split"),
        ("classifier", split(FLOWERS) | records(FLOWERS), "Send exactly one of"),
        ("classifier", split(FLOWERS) | {"more": 1}, "Send exactly one of"),
        ("classifier", split(FLOWERS) | {"params": {"k": 1}}, "k: Extra inputs are not permitted"),
        ("classifier", {"dataframe_records": []}, "sepal_length: Field required"),
        ("classifier", {"dataframe_split": {"columns": ["x"], "data": [[1, 2]]}}, "1 values in each row"),
        ("classifier", {"dataframe_split": {"columns": ["x", "x"], "data": []}}, "different names"),
        ("classifier", {"dataframe_records": {}}, "should be a list of objects"),
        ("classifier", {"instances": {}}, "should be a list of rows"),
        ("classifier", {"inputs": [1, 2]}, "4 inputs: inputs should name them"),
        ("classifier", {"inputs": {name: [1.0] * len(str(name)) for name in FLOWERS}}, "differ in length"),
        ("classifier", [1], "should be a JSON object"),
        ("onnx", {"inputs": {"x": [[1, 2], [3]]}}, "x, 0: List should have at least 4 items"),
        ("onnx", {"inputs": {"x": [[1, 2, 3, "4"]]}}, "x, 0, 3: Input should be a valid number"),
        ("arrays", {"inputs": {"image": [[[1, 256]]], "words": [["a", "b"]]}}, "less than or equal to 255"),
        ("arrays", {"inputs": {"image": [[[1, 2]], IMAGES[0]], "words": [["a", "b"]] * 2}}, "one shape"),
        ("nested", {"dataframe_records": [NESTED[0] | {"o": {"b": 1}}]}, "o, 0, a: Field required"),
        ("nested", {"dataframe_records": [NESTED[0] | {"v": [1, None]}]}, "v, 0, 1: Input should be a valid"),
        ("hinted", {"dataframe_records": MESSAGES}, "This model takes values, not a table"),
        ("texts", {"inputs": [1]}, "input, 0: Input should be a valid string"),
    ],
)
def test_invalid_inputs_are_rejected_in_mlflow_format(
    sample_model_service: Service, name: str, body: Any, message: str
) -> None:
    found = sample_model_service.client.post("/invocations", headers={"X-Model": name}, json=body)
    assert found.status_code == 400, found.text
    assert found.json().keys() == {"error_code", "message", "request_id"}
    assert found.json()["error_code"] == "BAD_REQUEST"
    assert message in found.json()["message"]


@pytest.mark.parametrize(
    ("media_type", "body", "status"),
    [
        (JSON, b"{", 400),
        (JSON, b'{"inputs": [NaN]}', 400),
        (JSON, b'{"inputs": {"x": [1], "x": [2]}}', 400),
        (JSON, b'{"inputs": [1e999]}', 400),
        (CSV, b"", 400),
        (CSV, b"x\n1,2\n", 400),
        (CSV, b"x,x\n1,2\n", 400),
        (CSV, b"x\none\n", 400),
        (CSV, b"x\n\xff\xfe\n", 400),
        (PARQUET, b"PAR1 and nothing more PAR1", 400),
        (ARROW, b"\xff\xff\xff\xff", 400),
        ("text/plain", b"x", 415),
        ("application/json; charset=utf-16", b"{}", 415),
    ],
)
def test_malformed_body_is_rejected(
    sample_model_service: Service, media_type: str, body: bytes, status: int
) -> None:
    headers = {"Content-Type": media_type}
    found = sample_model_service.client.post("/invocations?model=frame", content=body, headers=headers)
    assert found.status_code == status, found.text
    assert found.json()["error_code"] == "BAD_REQUEST"


def test_nested_dates_are_parsed(sample_model_service: Service) -> None:
    rows = [NESTED[0] | {"o": {"a": 1, "at": "2026-01-31T10:00:00"}}]
    found = sample_model_service.client.post(
        "/invocations?model=nested", json={"dataframe_records": rows}
    ).json()
    assert (
        "2026, 1, 31, 10" in found["predictions"][0]["told"]
        or "2026-01-31" in found["predictions"][0]["told"]
    )
    message = {"role": "user", "content": "hi", "at": "2026-01-31T10:00:00"}
    found = sample_model_service.client.post("/invocations?model=hinted", json={"inputs": [message]}).json()
    assert found == {"predictions": ["user: hi 2026-01-31 10:00:00"]}


def test_missing_predictions_are_null(sample_model_service: Service) -> None:
    gap = sample_model_service.client.post("/invocations?model=frame", json=split(X)).json()["predictions"]
    assert [row["gap"] for row in gap] == [5.0, None, 12.5]
    assert [row["note"] for row in gap] == ["n5", None, "n12.5"]


def test_unknown_model_is_404_in_mlflow_format(sample_model_service: Service) -> None:
    found = sample_model_service.client.post("/invocations?model=nobody", json=split(FLOWERS))
    assert (found.status_code, found.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")


def test_streaming_parses_inputs_by_type_hints(sample_model_service: Service) -> None:
    row = {"input": {"role": "user", "content": "hi\nthere"}}
    found = sample_model_service.client.post("/models/hinted/predict/stream", json=row)
    assert found.text.splitlines()[:4:2] == ['data: "user: hi"', 'data: "user: there"']


def test_mlflow_client_is_supported(sample_model_service: Service) -> None:
    client = ScoringServerClient(*sample_model_service.address)
    client.wait_server_ready(timeout=10, scoring_server_proc=sample_model_service.process)
    found = client.invoke(FLOWERS).get_predictions()
    assert found.to_numpy().tolist() == scored(sample_model_service, split(FLOWERS))


def scored(service: Service, body: Any) -> Any:
    return service.client.post("/invocations", json=body).json()["predictions"]


def test_ping_and_version_equal_mlflow_server(
    sample_model_service: Service, mlflow_server: httpx.Client
) -> None:
    for path in ("/ping", "/version"):
        found, wanted = sample_model_service.client.get(path), mlflow_server.get(f"/classifier{path}")
        assert (found.status_code, found.text) == (wanted.status_code, wanted.text)


# -- the typed endpoints of the same models


@pytest.mark.parametrize("name", [*sample_models()])
def test_typed_endpoints_serve_every_zoo_model(sample_model_service: Service, name: str) -> None:
    row = sample_models()[name].row
    one = sample_model_service.client.post(f"/models/{name}/predict", json=row)
    assert one.status_code == 200, one.text
    batch = sample_model_service.client.post(f"/models/{name}/predict/batch", json={"rows": [row]})
    result = {key: value for key, value in one.json().items() if key != "model"}
    whole = {"predictions": {"total": 5.0, "rows": 1}}
    assert result == whole if name == "whole" else "prediction" in result
    assert batch.json()["predictions"] == (whole["predictions"] if name == "whole" else [result])
    document = sample_model_service.client.get("/openapi.json").json()
    assert f"/models/{name}/predict" in document["paths"]


def test_rows_without_values_do_not_stop_batching(sample_model_service: Service) -> None:
    client = sample_model_service.client
    requests: list[list[dict[str, int]]] = [[{}], [{}, {}], [{"x": 1}, {}], [{"x": 1, "count": 2}, {}]]
    for rows in requests:
        client.post("/models/optional/predict/batch", json={"rows": rows})
        client.post("/invocations", params={"model": "optional"}, json={"dataframe_records": rows})
    assert client.get("/models/optional").json()["batching"]["shared"]


def test_typed_rows_without_values_are_rejected(sample_model_service: Service) -> None:
    client, path = sample_model_service.client, "/models/optional/predict"
    sink = BytesIO()
    table = pa.table({"x": [1.0, 2.0]}).select([])
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for response in (
        client.post(path, json={}),
        client.post(f"{path}/batch", json={"rows": [{}, {}]}),
        client.post(f"{path}/batch", content=sink.getvalue(), headers={"Content-Type": ARROW}),
    ):
        assert response.status_code == 422
        assert response.json()["detail"] == "The rows have no values: send x, note, count."
    assert client.post(f"{path}/batch", json={"rows": [{}, {"x": 1}]}).json()["predictions"] == [
        {"prediction": 0},
        {"prediction": 1},
    ]
