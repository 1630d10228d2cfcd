"""The model process: loads one model version, answers tables, and does nothing else."""

from __future__ import annotations

import inspect
import json
import socket
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.runtime import answers, heap, table, trace, wire

_MOST_TEXT = 8000
_UNTRACED = nullcontext()

Predict = Callable[[Any, dict[str, Any] | None], Any]


@dataclass(frozen=True, slots=True)
class Model:
    """What a loaded model can do; both functions take the data and the parameters."""

    predict: Predict
    predict_stream: Callable[[Any, dict[str, Any] | None], Iterable[Any]]
    """Of one row, bit by bit."""


def serve(connection: socket.socket, folder: Path, *, enforce: bool) -> None:
    """Load the model in `folder` and answer what comes over `connection`, until the front hangs up."""
    try:
        model = load(folder, enforce=enforce)
    except (Exception, SystemExit) as error:
        connection.sendall(wire.pack(wire.Kind.FAILED, _described(error)))
        return
    connection.sendall(wire.pack(wire.Kind.READY))
    while (frame := wire.receive(connection)) is not None:
        kind, payload = frame
        if kind is wire.Kind.PREDICT:
            connection.sendall(_answered(model, payload))
        elif kind is wire.Kind.STREAM:
            connection.sendall(_streamed(model, payload, connection))


def load(folder: Path, *, enforce: bool) -> Model:
    """Load a model.

    The contract has enforced the signature already, with the dtypes that pyfunc enforces. Unless `enforce` is
    set, the model is asked without doing that again, which would take as long as a small model itself.
    """
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(folder))
    predict = model.predict if enforce or _converts(model) else _unenforced(model)
    heap.settle()
    hinted = _has_fact(model.metadata, "_is_signature_from_type_hint")
    return Model(predict, _of_hints(model) if hinted else getattr(model, "predict_stream", predict))


def _converts(model: Any) -> bool:
    """Whether pyfunc does more than enforce: it makes the input anew, after hints, an example or types."""
    from mlflow.types.schema import DataType

    metadata = model.metadata
    schema = metadata.get_input_schema()
    return bool(
        _has_fact(metadata, "_is_signature_from_type_hint")
        or _has_fact(metadata, "_is_type_hint_from_example")
        or (
            not schema.is_tensor_spec()
            and not all(isinstance(kind, DataType) for kind in schema.input_types())
        )
    )


def _has_fact(metadata: Any, name: str) -> bool:
    """Ask a model's metadata for a fact; MLflow before 2.20 has no type hints, and none of these facts."""
    return bool(getattr(metadata, name, bool)())


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


def _of_hints(model: Any) -> Predict:
    """The function that streams; pyfunc's own refuses whatever a signature of type hints allows."""
    from mlflow.types.type_hints import _validate_data_against_type_hint

    def predict_stream(rows: Any, params: dict[str, Any] | None) -> Any:
        hints = model.unwrap_python_model().predict_type_hints.input
        (row,) = _validate_data_against_type_hint(rows, hints)
        return model._model_impl.predict_stream(row, params=params)

    return predict_stream


def _answered(model: Model, asked: bytes) -> bytes:
    try:
        data, rows, params, carried = table.decode(asked)
        with trace.continued(carried) if carried else _UNTRACED:
            answer = model.predict(data, params)
        return wire.pack(wire.Kind.ANSWER, answers.encode(answer, rows))
    except (Exception, SystemExit) as error:
        return wire.pack(wire.Kind.FAILED, _described(error))


def _streamed(model: Model, asked: bytes, connection: socket.socket) -> bytes:
    """Send each chunk as it comes, until there are no more or nobody wants them; gives the last frame."""
    try:
        data, _, params, carried = table.decode(asked)
        with trace.continued(carried) if carried else _UNTRACED:
            chunks = model.predict_stream(data, params)
            for chunk in chunks:
                connection.sendall(wire.pack(wire.Kind.CHUNK, answers.text(chunk)))
                if _is_called(connection):
                    break
            if isinstance(chunks, Generator):
                chunks.close()
    except (Exception, SystemExit) as error:
        return wire.pack(wire.Kind.FAILED, _described(error))
    return wire.pack(wire.Kind.END)


def _is_called(connection: socket.socket) -> bool:
    """Whether the front has something to say, or has hung up."""
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    return True


def _described(error: BaseException) -> bytes:
    told = {
        "error": "".join(traceback.format_exception_only(error)).strip()[:_MOST_TEXT],
        "traceback": "".join(traceback.format_exception(error))[-_MOST_TEXT:],
    }
    return json.dumps(told).encode()
