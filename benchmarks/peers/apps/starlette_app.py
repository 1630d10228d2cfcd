"""Starlette: predict in the handler."""

import os

import mlflow.pyfunc
import pandas as pd
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route


def create_app() -> Starlette:
    """Create the application; for uvicorn's `--factory`."""
    model = mlflow.pyfunc.load_model(os.environ["PEER_MODEL"])

    async def predict(request: Request) -> JSONResponse:
        row = await request.json()
        return JSONResponse({"predictions": model.predict(pd.DataFrame([row])).tolist()})

    async def health(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    return Starlette(routes=[Route("/predict", predict, methods=["POST"]), Route("/health", health)])
