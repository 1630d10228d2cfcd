"""MLflow's own server of several models, each at its folder's name: `python theirs.py PORT FOLDER …`."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import mlflow.pyfunc
import uvicorn
from fastapi import FastAPI
from mlflow.pyfunc import scoring_server


def main(port: str, *folders: str) -> None:
    """Serve until it is killed."""
    app = FastAPI()
    for folder in folders:
        app.mount(f"/{Path(folder).name}", scoring_server.init(mlflow.pyfunc.load_model(folder)))
    uvicorn.run(app, port=int(port), log_level="warning")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
