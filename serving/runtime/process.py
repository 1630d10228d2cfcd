"""The model process: loads one model version, answers tables, and does nothing else."""

from __future__ import annotations

import gc
import json
import socket
import traceback
from pathlib import Path
from typing import Any

from serving.runtime import table, wire

_MOST_TEXT = 8000


def serve(connection: socket.socket, folder: Path) -> None:
    """Load the model in `folder` and answer what comes over `connection`, until the front hangs up."""
    try:
        model = _load(folder)
    except (Exception, SystemExit) as error:
        connection.sendall(wire.pack(wire.Kind.FAILED, _described(error)))
        return
    connection.sendall(wire.pack(wire.Kind.READY))
    while (frame := wire.receive(connection)) is not None:
        connection.sendall(_answered(model, frame[1]))


def _load(folder: Path) -> Any:
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(folder))
    # A full collection over the heap of pandas and MLflow takes 200 ms, which would be seen at p99.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    return model


def _answered(model: Any, stream: bytes) -> bytes:
    try:
        frame, params = table.decode(stream)
        return wire.pack(wire.Kind.ANSWER, table.encode_answer(model.predict(frame, params=params)))
    except (Exception, SystemExit) as error:
        return wire.pack(wire.Kind.FAILED, _described(error))


def _described(error: BaseException) -> bytes:
    told = {
        "error": "".join(traceback.format_exception_only(error)).strip()[:_MOST_TEXT],
        "traceback": "".join(traceback.format_exception(error))[-_MOST_TEXT:],
    }
    return json.dumps(told).encode()
