"""The model process: loads one model version, answers tables, and does nothing else."""

from __future__ import annotations

import gc
import inspect
import json
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.runtime import answers, table, wire

_MOST_TEXT = 8000

Predict = Callable[[Any, dict[str, Any] | None], Any]


def serve(connection: socket.socket, folder: Path, *, enforce: bool) -> None:
    """Load the model in `folder` and answer what comes over `connection`, until the front hangs up."""
    try:
        predict = load(folder, enforce=enforce)
    except (Exception, SystemExit) as error:
        connection.sendall(wire.pack(wire.Kind.FAILED, _described(error)))
        return
    connection.sendall(wire.pack(wire.Kind.READY))
    while (frame := wire.receive(connection)) is not None:
        connection.sendall(_answered(predict, frame[1]))


def load(folder: Path, *, enforce: bool) -> Predict:
    """Load a model; gives its predict function, which takes the data and the parameters.

    The contract has enforced the signature already, with the dtypes that pyfunc enforces. Unless `enforce` is
    set, the model is asked without doing that again, which would take as long as a small model itself.
    """
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(folder))
    predict = model.predict if enforce or _converts(model) else _unenforced(model)
    # A full collection over the heap of pandas and MLflow takes 200 ms, which would be seen at p99.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    return predict


def _converts(model: Any) -> bool:
    """Whether pyfunc does more than enforce: it makes the input anew, after hints, an example or types."""
    from mlflow.types.schema import DataType

    metadata = model.metadata
    schema = metadata.get_input_schema()
    return bool(
        metadata._is_signature_from_type_hint()
        or metadata._is_type_hint_from_example()
        or (
            not schema.is_tensor_spec()
            and not all(isinstance(kind, DataType) for kind in schema.input_types())
        )
    )


def _unenforced(model: Any) -> Predict:
    """The predict function that pyfunc would call in the end, by its interface for developers."""
    from mlflow.models.utils import _enforce_params_schema

    function = model.metadata.flavors["python_function"].get("predict_fn", "predict")
    predict = getattr(model._model_impl, function)
    schema = model.metadata.get_params_schema()
    wanted = inspect.signature(predict).parameters.get("params")
    if wanted is None or wanted.kind is inspect.Parameter.VAR_KEYWORD:
        return lambda frame, params: predict(frame)
    return lambda frame, params: predict(frame, params=_enforce_params_schema(params, schema))


def _answered(predict: Predict, stream: bytes) -> bytes:
    try:
        data, rows, params = table.decode(stream)
        return wire.pack(wire.Kind.ANSWER, answers.encode(predict(data, params), rows))
    except (Exception, SystemExit) as error:
        return wire.pack(wire.Kind.FAILED, _described(error))


def _described(error: BaseException) -> bytes:
    told = {
        "error": "".join(traceback.format_exception_only(error)).strip()[:_MOST_TEXT],
        "traceback": "".join(traceback.format_exception(error))[-_MOST_TEXT:],
    }
    return json.dumps(told).encode()
