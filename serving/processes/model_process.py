"""The model process: loads one model version, answers tables, and does nothing else."""

from __future__ import annotations

import inspect
import json
import socket
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.codecs import model_output
from serving.processes import framing, gc_tuning, pyfunc_input
from serving.telemetry import trace_context

_MAX_TEXT_LENGTH = 8000
_MAX_FAULTS = 20
_UNTRACED = nullcontext()

Predict = Callable[[Any, dict[str, Any] | None], Any]


@dataclass(frozen=True, slots=True)
class Model:
    """What a loaded model can do; both functions take the data and the parameters."""

    predict: Predict
    predict_stream: Callable[[Any, dict[str, Any] | None], Iterable[Any]]
    """Of one row, bit by bit."""
    depths: Mapping[str, model_output.Depth]
    """How its outputs are nested, as its signature declares."""
    hint: Any = None
    """The type hint of its input, by which pyfunc validates it."""

    def ready(self) -> bytes:
        """Return what only the loaded model shows, as the payload of a `READY` frame."""
        shown: dict[str, Any] = {}
        if self.hint:
            from pydantic import PydanticUserError, TypeAdapter

            with suppress(PydanticUserError, TypeError, ValueError):  # a type without a JSON Schema
                shown["input_schema"] = TypeAdapter(self.hint).json_schema()
        return json.dumps(shown).encode()


def serve(connection: socket.socket, folder: Path, *, enforce: bool) -> None:
    """Load the model in `folder` and answer what comes over `connection`, until the front hangs up."""
    try:
        model = load(folder, enforce=enforce)
    except (Exception, SystemExit) as error:
        connection.sendall(framing.pack(framing.FrameType.FAILED, _described(error)))
        return
    connection.sendall(framing.pack(framing.FrameType.READY, model.ready()))
    while (frame := framing.receive(connection)) is not None:
        kind, payload = frame
        if kind is framing.FrameType.PREDICT:
            connection.sendall(_answered(model, payload))
        elif kind is framing.FrameType.STREAM:
            connection.sendall(_streamed(model, payload, connection))


def load(folder: Path, *, enforce: bool) -> Model:
    """Load a model.

    The contract has enforced the signature already, with the dtypes that pyfunc enforces. Unless `enforce` is
    set, the model is asked without doing that again, which would take as long as a small model itself.
    """
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(folder))
    predict = model.predict if enforce or _needs_pyfunc_conversion(model) else _unwrapped_predict(model)
    gc_tuning.freeze()
    hint = _hint(model)
    outputs = model.metadata.get_output_schema()
    depths = model_output.depths(outputs.to_dict() if outputs else [])
    stream = _type_hint_stream(model) if hint else getattr(model, "predict_stream", predict)
    return Model(predict, stream, depths, hint)


def _hint(model: Any) -> Any:
    """The type hint from which MLflow made the signature; None where there is none."""
    is_hinted = _has_fact(model.metadata, "_is_signature_from_type_hint")
    return model.unwrap_python_model().predict_type_hints.input if is_hinted else None


def _needs_pyfunc_conversion(model: Any) -> bool:
    """Whether pyfunc does more than enforce: it makes the input anew, after hints, an example or types."""
    from mlflow.types.schema import DataType

    metadata = model.metadata
    schema = metadata.get_input_schema()
    return bool(
        any(
            _has_fact(metadata, name)
            for name in ("_is_signature_from_type_hint", "_is_type_hint_from_example")
        )
        or (
            not schema.is_tensor_spec()
            and not all(isinstance(kind, DataType) for kind in schema.input_types())
        )
    )


def _has_fact(metadata: Any, name: str) -> bool:
    """Ask a model's metadata for a fact; MLflow before 2.20 has no type hints, and none of these facts."""
    return bool(getattr(metadata, name, bool)())


def _unwrapped_predict(model: Any) -> Predict:
    """The predict function that pyfunc would call in the end, by its interface for developers."""
    from mlflow.models.utils import _enforce_params_schema

    function = model.metadata.flavors["python_function"].get("predict_fn", "predict")
    predict = getattr(model._model_impl, function)
    schema = model.metadata.get_params_schema()
    wanted = inspect.signature(predict).parameters.get("params")
    if wanted is None or wanted.kind is inspect.Parameter.VAR_KEYWORD:
        return lambda frame, params: predict(frame)
    return lambda frame, params: predict(frame, params=_enforce_params_schema(params, schema))


def _type_hint_stream(model: Any) -> Predict:
    """The function that streams; pyfunc's own refuses whatever a signature of type hints allows."""
    from mlflow.types.type_hints import _validate_data_against_type_hint

    def predict_stream(rows: Any, params: dict[str, Any] | None) -> Any:
        hints = model.unwrap_python_model().predict_type_hints.input
        (row,) = _validate_data_against_type_hint(rows, hints)
        return model._model_impl.predict_stream(row, params=params)

    return predict_stream


def _answered(model: Model, payload: bytes) -> bytes:
    try:
        data, rows, params, headers = pyfunc_input.decode(payload)
        data = _fitted(model, data)
        with trace_context.attach(headers) if headers else _UNTRACED:
            answer = model.predict(data, params)
        return framing.pack(framing.FrameType.ANSWER, model_output.encode(answer, rows, model.depths))
    except _InvalidInput as error:
        return framing.pack(framing.FrameType.INVALID, error.args[0])
    except (Exception, SystemExit) as error:
        return framing.pack(framing.FrameType.FAILED, _described(error))


def _streamed(model: Model, payload: bytes, connection: socket.socket) -> bytes:
    """Send each chunk as it comes, until there are no more or the front stops it; returns the last frame."""
    try:
        data, _, params, headers = pyfunc_input.decode(payload)
        data = _fitted(model, data)
        with trace_context.attach(headers) if headers else _UNTRACED:
            chunks = model.predict_stream(data, params)
            for chunk in chunks:
                connection.sendall(framing.pack(framing.FrameType.CHUNK, model_output.text(chunk)))
                if _has_pending_message(connection):
                    break
            if isinstance(chunks, Generator):
                chunks.close()
    except _InvalidInput as error:
        return framing.pack(framing.FrameType.INVALID, error.args[0])
    except (Exception, SystemExit) as error:
        return framing.pack(framing.FrameType.FAILED, _described(error))
    return framing.pack(framing.FrameType.END)


class _InvalidInput(Exception):  # never leaves this module
    """The input does not fit the type hint; its argument is the payload of an `INVALID` frame."""


def _fitted(model: Model, data: Any) -> Any:
    """Return the input as the type hint has it: as it is, or with what JSON has no word for, such as dates.

    Raises:
        _InvalidInput: it does not fit.
    """
    if model.hint is None:
        return data
    from mlflow.exceptions import MlflowException
    from mlflow.types.type_hints import _validate_data_against_type_hint

    try:
        _validate_data_against_type_hint(data, model.hint)
    except MlflowException:  # its message has the data in it, and no place
        return _parsed(model.hint, data)
    return data


def _parsed(hint: Any, data: Any) -> Any:
    from pydantic import PydanticUserError, TypeAdapter, ValidationError

    faults: Sequence[Any] = [{"loc": (), "msg": "Input should fit the type hint of the model"}]
    try:
        return TypeAdapter(hint).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)[:_MAX_FAULTS]
    except (PydanticUserError, TypeError, ValueError):
        pass
    told = [{"loc": fault["loc"], "msg": fault["msg"]} for fault in faults]
    raise _InvalidInput(json.dumps(told).encode())


def _has_pending_message(connection: socket.socket) -> bool:
    """Whether the front has something to say, or has hung up."""
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    return True


def _described(error: BaseException) -> bytes:
    told = {
        "error": "".join(traceback.format_exception_only(error)).strip()[:_MAX_TEXT_LENGTH],
        "traceback": "".join(traceback.format_exception(error))[-_MAX_TEXT_LENGTH:],
    }
    return json.dumps(told).encode()
