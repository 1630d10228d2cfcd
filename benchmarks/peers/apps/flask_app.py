"""Flask, behind gunicorn with four threads."""

import os

import mlflow.pyfunc
import pandas as pd
from flask import Flask, Response, jsonify, request


def create_app() -> Flask:
    """Create the application; for gunicorn."""
    app = Flask(__name__)
    model = mlflow.pyfunc.load_model(os.environ["PEER_MODEL"])

    @app.post("/predict")
    def predict() -> Response:
        return jsonify(predictions=model.predict(pd.DataFrame([request.get_json()])).tolist())

    @app.get("/health")
    def health() -> str:
        return "ok"

    return app
