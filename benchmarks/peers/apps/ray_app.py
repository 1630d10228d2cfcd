"""Ray Serve: `@serve.batch`, one replica behind HAProxy, on its own Ray without a dashboard.

The variables in the catalog of peers enable what Ray's documentation calls high throughput.
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
    """The model, which predicts all waiting rows as one batch."""

    def __init__(self) -> None:
        self.model = mlflow.pyfunc.load_model(os.environ["PEER_MODEL"])

    # Without a wait, a batch consists of the waiting rows. A wait of 5 ms was a seventh faster at 64
    # connections, but more than four times as slow at one connection.
    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0)
    async def predict(self, rows: list[dict[str, float]]) -> list[list[float]]:
        """Return the probabilities of each row."""
        answers: list[list[float]] = self.model.predict(pd.DataFrame(rows)).tolist()
        return answers

    async def __call__(self, request: Request) -> Any:
        """Handle one request; a GET checks whether the server is up."""
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
