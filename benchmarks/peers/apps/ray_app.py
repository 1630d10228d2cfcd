"""Ray Serve: `@serve.batch`, one replica behind HAProxy, on a Ray of its own without a dashboard.

What its documentation calls high throughput is on, by variables that the table of peers has.
"""

import os
import signal
import threading
from typing import Any

import mlflow.pyfunc
import pandas as pd
import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Iris:
    """The model, which answers what waits as one batch."""

    def __init__(self) -> None:
        self.model = mlflow.pyfunc.load_model(os.environ["PEER_MODEL"])

    # Without a time to wait, a batch is what waits. Waiting 5 ms did a seventh more at 64 connections here,
    # but took more than four times as long at one.
    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0)
    async def predict(self, rows: list[dict[str, float]]) -> list[list[float]]:
        """The probabilities of each row."""
        answers: list[list[float]] = self.model.predict(pd.DataFrame(rows)).tolist()
        return answers

    async def __call__(self, request: Request) -> Any:
        """One request: a GET asks whether it is up."""
        if request.method == "GET":
            return "ok"
        return {"predictions": [await self.predict(await request.json())]}


if __name__ == "__main__":
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=int(os.environ["PEER_PORT"])),
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    serve.run(Iris.options(logging_config=LoggingConfig(enable_access_log=False)).bind(), route_prefix="/")
    ended.wait()
    serve.shutdown()
    ray.shutdown()
