"""A typed Python client of the service, synchronous and asynchronous.

It needs only httpx; DataFrames also need pyarrow, and pandas if they are pandas' own.

    with Client("http://127.0.0.1:8000") as client:
        result = client.predict({"sepal_length": 5.1, …})
        print(result.prediction, result.model.version)
"""

from serving.client.async_client import AsyncClient, AsyncPredictionStream
from serving.client.errors import (
    AccessDenied,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    FieldError,
    InvalidRequest,
    ModelFailed,
    NotFound,
    RateLimited,
    ResponseError,
    Unavailable,
    UnexpectedResponse,
)
from serving.client.requests import Options
from serving.client.results import (
    BatchResult,
    Feedback,
    ModelInfo,
    ModelVersion,
    Prediction,
    PredictionResult,
    Readiness,
    ScoringResult,
)
from serving.client.sync_client import Client, PredictionStream

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "AsyncPredictionStream",
    "BatchResult",
    "Client",
    "ClientError",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Feedback",
    "FieldError",
    "InvalidRequest",
    "ModelFailed",
    "ModelInfo",
    "ModelVersion",
    "NotFound",
    "Options",
    "Prediction",
    "PredictionResult",
    "PredictionStream",
    "RateLimited",
    "Readiness",
    "ResponseError",
    "ScoringResult",
    "Unavailable",
    "UnexpectedResponse",
]
