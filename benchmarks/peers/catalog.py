"""The peers: requirements, command, request and response format of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.throughput import ROW

ProbabilityReader = Callable[[Any], Sequence[float]]

_UVICORN = ("uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0")


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server for the same model, in its own environment.

    `requirements` are pinned, with the peer itself first; they override the model's own pins. `command` may
    contain `{python}`, `{port}`, `{model}`, `{apps}` and `{folder}`; the apps read `PEER_PORT`,
    `PEER_PORT_2`, `PEER_MODEL` and `PEER_FOLDER` from their environment. `read_probabilities` extracts the
    probabilities of the row in `body` from a response.
    """

    name: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    setting: str
    path: str = "/predict"
    ready: str = "/health"
    body: Mapping[str, Any] = field(default_factory=lambda: ROW)
    read_probabilities: ProbabilityReader = lambda response: response["predictions"][0]
    env: Mapping[str, str] = field(default_factory=dict)


def _python(command: str) -> tuple[str, ...]:
    return "{python}", *command.split()


def _uvicorn(app: str) -> tuple[str, ...]:
    options = "--factory --app-dir {apps} --port {port} --no-access-log --log-level warning"
    return _python(f"-m uvicorn {app}:create_app {options}")


def _gunicorn(app: str) -> tuple[str, ...]:
    return _python(f"-m gunicorn {app} --chdir {{apps}} --bind 127.0.0.1:{{port}} --workers 1 --threads 4")


PEERS = (
    Peer(
        name="MLflow models serve",
        requirements=("mlflow==3.17.2", *_UVICORN),
        command=_python(
            "-m mlflow models serve --env-manager local --host 127.0.0.1 --port {port} --model-uri {model}"
        ),
        setting="/invocations, records; one worker",
        path="/invocations",
        ready="/ping",
        body={"dataframe_records": [ROW]},
        env={"UVICORN_ACCESS_LOG": "false"},
    ),
    Peer(
        name="MLServer",
        requirements=("mlserver==1.7.1", "mlserver-mlflow==1.7.1", *_UVICORN),
        command=_python("{apps}/mlserver_app.py"),
        setting="its MLflow runtime, V2 protocol; adaptive batching of up to 64 within 0.1 ms",
        path="/v2/models/iris/infer",
        ready="/v2/models/iris/ready",
        body={
            "inputs": [
                {"name": name, "shape": [1, 1], "datatype": "FP64", "data": [value]}
                for name, value in ROW.items()
            ]
        },
        read_probabilities=lambda response: response["outputs"][0]["data"],
    ),
    Peer(
        name="BentoML",
        requirements=("bentoml==1.4.39", *_UVICORN),
        command=_python(
            "-m bentoml serve bentoml_app:Iris --working-dir {apps} --host 127.0.0.1 --port {port}"
        ),
        setting="batchable arrays, up to 64 at once; one worker; no metrics",
        ready="/readyz",
        body={"rows": [[*ROW.values()]]},
        read_probabilities=lambda response: response[0],
        env={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Peer(
        name="Ray Serve",
        requirements=("ray[serve]==2.60.0", *_UVICORN),
        command=_python("{apps}/ray_app.py"),
        setting="@serve.batch of up to 64 of what waits; one replica behind HAProxy, throughput-optimized",
        ready="/",
        env={
            "RAY_SERVE_ENABLE_HA_PROXY": "1",  # ten times as fast as its Python proxy
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
    ),
    Peer(
        name="LitServe",
        requirements=("litserve==0.2.19", *_UVICORN),
        command=_python("{apps}/litserve_app.py"),
        setting="batches of up to 64 of what waits; one worker, one HTTP server",
        read_probabilities=lambda response: response["predictions"],
    ),
    Peer(
        name="fastapi-mlflow",
        # It requires pandas and NumPy no newer than these.
        requirements=("fastapi-mlflow==0.8.0", "numpy==1.26.4", "pandas==2.3.3", *_UVICORN),
        command=_uvicorn("fastapi_mlflow_app"),
        setting="uvicorn; one column per class: it has no type for a matrix",
        path="/predictions",
        ready="/docs",
        body={"data": [ROW]},
        read_probabilities=lambda response: [*response["data"][0].values()],
    ),
    Peer(
        name="FastAPI",
        requirements=("fastapi==0.165.0", *_UVICORN),
        command=_uvicorn("fastapi_app"),
        setting="uvicorn; a typed row, predict in a plain def route",
    ),
    Peer(
        name="Starlette",
        requirements=("starlette==1.10.0", *_UVICORN),
        command=_uvicorn("starlette_app"),
        setting="uvicorn; predict in the handler",
    ),
    Peer(
        name="aiohttp",
        requirements=("aiohttp==3.14.5", "uvloop==0.23.0"),
        command=_python("{apps}/aiohttp_app.py"),
        setting="uvloop; predict in the handler",
    ),
    Peer(
        name="Flask",
        requirements=("flask==3.1.3", "gunicorn==26.2.0"),
        command=_gunicorn("flask_app:create_app()"),
        setting="gunicorn, one worker of 4 threads",
    ),
    Peer(
        name="Django",
        requirements=("django==5.2.19", "gunicorn==26.2.0"),
        command=_gunicorn("django_app"),
        setting="gunicorn, one worker of 4 threads; no database, no middleware",
    ),
)
