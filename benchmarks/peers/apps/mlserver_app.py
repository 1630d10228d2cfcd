"""MLServer: its MLflow runtime with adaptive batching and the V2 protocol."""

import json
import os
import sys
from pathlib import Path

FOLDER = Path(os.environ["PEER_FOLDER"])
# Off, as in this service: access log (of `debug`), metrics and gzip.
SERVER = {
    "debug": False,
    "host": "127.0.0.1",
    "http_port": int(os.environ["PEER_PORT"]),
    "grpc_port": int(os.environ["PEER_PORT_2"]),
    "metrics_endpoint": None,
    "metrics_dir": str(FOLDER / "metrics"),
    "environments_dir": str(FOLDER / "environments"),
    "gzip_enabled": False,
    "parallel_workers": 0,  # a second process was no faster here, and starts on an older uvloop only
}
MODEL = {
    "name": "iris",
    "implementation": "mlserver_mlflow.MLflowRuntime",
    "max_batch_size": 64,
    "max_batch_time": 0.0001,
    "parameters": {"uri": os.environ["PEER_MODEL"]},
}

if __name__ == "__main__":
    (FOLDER / "settings.json").write_text(json.dumps(SERVER))
    (FOLDER / "model-settings.json").write_text(json.dumps(MODEL))

    from mlserver.cli import main

    sys.argv[1:] = ["start", str(FOLDER)]
    main()
