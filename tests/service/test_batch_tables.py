"""`/predict/batch` with an Arrow table: the response equals that for the same rows in JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from serving.client import Client, InvalidRequest
from serving.client.encoding import ARROW
from tests.support.sample_models import IRIS, sample_models
from tests.support.service import Service


class CStream:
    """A table of another library: it has only the Arrow C stream interface."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


@pytest.fixture(scope="module")
def client(sample_model_service: Service) -> Iterator[Client]:
    with Client(sample_model_service.url) as made:
        yield made


@pytest.mark.parametrize("name", sample_models())
def test_table_of_any_model_equals_rows(client: Client, name: str) -> None:
    rows = [sample_models()[name].row] * 3

    batch = client.predict_batch(rows, model=name)

    frame = pd.DataFrame(rows)
    for table in (frame, CStream(pa.Table.from_pandas(frame[frame.columns[::-1]]))):
        assert client.predict_batch(table, model=name).output == batch.output


def test_fixed_size_lists_are_tensors(client: Client) -> None:
    row = sample_models()["arrays"].row
    table = pa.table(
        {
            "image": pa.array([row["image"]], pa.list_(pa.list_(pa.uint8(), 2))),
            "words": pa.array([row["words"]], pa.list_(pa.large_string(), 2)),
        }
    )
    expected = client.predict_batch([row], model="arrays").output
    assert client.predict_batch(table, model="arrays").output == expected

    x = pa.array([sample_models()["onnx"].row["x"]], pa.list_(pa.float64(), 4))
    expected = client.predict_batch([sample_models()["onnx"].row], model="onnx").output
    assert client.predict_batch(pa.table({"x": x}), model="onnx").output == expected


def test_columns_are_found_by_name(client: Client) -> None:
    shuffled = IRIS[:50][IRIS.columns[::-1]]
    expected = client.predict_batch(IRIS[:50], model="xgboost").output
    assert client.predict_batch(shuffled, model="xgboost").output == expected


@pytest.mark.parametrize(
    ("table", "fields"),
    [
        (IRIS[:2].assign(extra=1), {"extra"}),
        (IRIS[:2].drop(columns="sepal_width"), {"sepal_width"}),
        (IRIS[:0], set()),
    ],
)
def test_table_of_other_columns_is_rejected(client: Client, table: pd.DataFrame, fields: set[str]) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        client.predict_batch(table, model="xgboost")
    assert {error.loc[0] for error in rejected.value.errors if error.loc} == fields
    assert rejected.value.status == 422


def test_bytes_that_are_no_table_are_rejected(sample_model_service: Service) -> None:
    for body in (b"", b"{}", b"\xff\xff\xff\xff\x00\x00\x00\x00"[:5]):
        response = sample_model_service.client.post(
            "/models/xgboost/predict/batch", content=body, headers={"Content-Type": ARROW}
        )
        assert response.status_code == 400, response.text
        assert response.headers["content-type"] == "application/problem+json"
