"""MLflow's scoring server for several models, by folder name: `python scoring_server.py PORT FOLDER …`."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import mlflow.pyfunc
import uvicorn
from fastapi import FastAPI
from mlflow.pyfunc import scoring_server


def main(port: str, *folders: str) -> None:
    """Serve until the process is killed."""
    app = FastAPI()
    for folder in folders:
        app.mount(f"/{Path(folder).name}", scoring_server.init(mlflow.pyfunc.load_model(folder)))
    uvicorn.run(app, port=int(port), log_level="warning")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
