"""LitServe: batched, one worker, one HTTP server."""

import os
from typing import Any

import litserve
import mlflow.pyfunc
import pandas as pd


class Iris(litserve.LitAPI):
    """The model, which predicts all waiting rows as one batch."""

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        self.model = mlflow.pyfunc.load_model(os.environ["PEER_MODEL"])

    def batch(self, inputs: list[dict[str, float]]) -> pd.DataFrame:
        """Combine the rows of several requests into one table."""
        return pd.DataFrame(inputs)

    def predict(self, table: pd.DataFrame) -> Any:
        """Return the probabilities of each row."""
        return self.model.predict(table)

    def unbatch(self, output: Any) -> Any:
        """Return the probabilities by request."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, list[float]]:
        """Return the response to one request."""
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    # Without a timeout, a batch consists of the waiting rows: highest throughput and lowest latency here.
    api = Iris(max_batch_size=64, batch_timeout=0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PEER_PORT"]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
