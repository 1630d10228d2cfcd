"""Runs in the model process: loads one model version and calls it with the tables that the front sends."""

from __future__ import annotations

import inspect
import json
import os
import socket
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from serving.codecs import model_output
from serving.processes import framing, gc_tuning, pyfunc_input
from serving.telemetry import trace_context
from serving.text import shorten

_MAX_ERROR_LENGTH = 8000
_MAX_FIELD_ERRORS = 20
_UNTRACED = nullcontext()

Predict = Callable[[Any, dict[str, Any] | None], Any]


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model. Both functions take the data and the parameters."""

    predict: Predict
    predict_stream: Callable[[Any, dict[str, Any] | None], Iterable[Any]]
    """Streams the output for one row."""
    depths: Mapping[str, model_output.Depth]
    """The nesting of its outputs, as its signature declares it."""
    hint: Any = None
    """The type hint of its input; pyfunc validates the input against it."""

    def ready(self) -> bytes:
        """Return the payload of a `READY` frame: facts that only the loaded model reveals."""
        facts: dict[str, Any] = {}
        if self.hint:
            from pydantic import PydanticUserError, TypeAdapter

            with suppress(PydanticUserError, TypeError, ValueError):  # a type without a JSON Schema
                facts["input_schema"] = TypeAdapter(self.hint).json_schema()
        return json.dumps(facts).encode()


def serve(connection: socket.socket, folder: Path, *, enforce: bool) -> None:
    """Load the model in `folder` and process the calls on `connection` until the front hangs up."""
    try:
        model = load(folder, enforce=enforce)
    except (Exception, SystemExit) as error:
        connection.sendall(framing.pack(framing.FrameType.FAILED, _describe_error(error)))
        return
    connection.sendall(framing.pack(framing.FrameType.READY, model.ready()))
    while (frame := framing.receive(connection)) is not None:
        kind, payload = frame
        if kind is framing.FrameType.PREDICT:
            connection.sendall(_predict(model, payload))
        elif kind is framing.FrameType.STREAM:
            connection.sendall(_stream(model, payload, connection))


def load(folder: Path, *, enforce: bool) -> Model:
    """Load a model.

    The contract has already enforced the signature, with the dtypes that pyfunc enforces. Unless `enforce` is
    set, the model is called without a second enforcement, which would take as long as a small model itself.
    """
    import mlflow.pyfunc

    _write_no_bytecode_into(folder)
    model = mlflow.pyfunc.load_model(str(folder))
    predict = model.predict if enforce or _needs_pyfunc_conversion(model) else _unwrapped_predict(model)
    gc_tuning.freeze()
    hint = _hint(model)
    outputs = model.metadata.get_output_schema()
    depths = model_output.depths(outputs.to_dict() if outputs else [])
    stream = _type_hint_stream(model) if hint else getattr(model, "predict_stream", predict)
    return Model(predict, stream, depths, hint)


def _write_no_bytecode_into(folder: Path) -> None:
    """Keep Python from writing the bytecode of the model's code beside it, which would change the digest.

    Bytecode of installed packages is written as usual: large ones take seconds to compile.
    """
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # for processes that the model starts
    folder, write = folder.resolve(), SourceFileLoader.set_data

    def set_data(loader: SourceFileLoader, path: str, data: bytes, **options: Any) -> None:
        if not Path(path).resolve().is_relative_to(folder):
            write(loader, path, data, **options)

    # Python has no option for a single folder.
    SourceFileLoader.set_data = set_data  # type: ignore[assignment, method-assign]  # equal arguments


def _hint(model: Any) -> Any:
    """Return the type hint from which MLflow derived the signature; None if there is none."""
    is_hinted = _metadata_flag(model.metadata, "_is_signature_from_type_hint")
    return model.unwrap_python_model().predict_type_hints.input if is_hinted else None


def _needs_pyfunc_conversion(model: Any) -> bool:
    """Return whether pyfunc converts the input, by a type hint, an example or nested types."""
    from mlflow.types.schema import DataType

    metadata = model.metadata
    schema = metadata.get_input_schema()
    return bool(
        any(
            _metadata_flag(metadata, name)
            for name in ("_is_signature_from_type_hint", "_is_type_hint_from_example")
        )
        or (
            not schema.is_tensor_spec()
            and not all(isinstance(kind, DataType) for kind in schema.input_types())
        )
    )


def _metadata_flag(metadata: Any, name: str) -> bool:
    """Return a flag of the metadata; false before MLflow 2.20, which has no type hints and no such flags."""
    return bool(getattr(metadata, name, bool)())


def _unwrapped_predict(model: Any) -> Predict:
    """Return the predict function of the flavor that pyfunc wraps."""
    from mlflow.models.utils import _enforce_params_schema

    function = model.metadata.flavors["python_function"].get("predict_fn", "predict")
    predict = getattr(model._model_impl, function)
    schema = model.metadata.get_params_schema()
    parameter = inspect.signature(predict).parameters.get("params")
    if parameter is None or parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return lambda frame, params: predict(frame)
    return lambda frame, params: predict(frame, params=_enforce_params_schema(params, schema))


def _type_hint_stream(model: Any) -> Predict:
    """Return a function that streams; pyfunc's own rejects all inputs that a type hint allows."""
    from mlflow.types.type_hints import _validate_data_against_type_hint

    def predict_stream(rows: Any, params: dict[str, Any] | None) -> Any:
        hints = model.unwrap_python_model().predict_type_hints.input
        (row,) = _validate_data_against_type_hint(rows, hints)
        return model._model_impl.predict_stream(row, params=params)

    return predict_stream


def _predict(model: Model, payload: bytes) -> bytes:
    """Call the model and return the frame of its output or failure."""
    try:
        data, rows, params, headers = pyfunc_input.decode(payload)
        data = _validate(model, data)
        with trace_context.attach(headers) if headers else _UNTRACED:
            output = model.predict(data, params)
        return framing.pack(framing.FrameType.OUTPUT, model_output.encode(output, rows, model.depths))
    except _InvalidInput as error:
        return framing.pack(framing.FrameType.INVALID, error.args[0])
    except (Exception, SystemExit) as error:
        return framing.pack(framing.FrameType.FAILED, _describe_error(error))


def _stream(model: Model, payload: bytes, connection: socket.socket) -> bytes:
    """Send the chunks of the output until it ends or the front cancels it; return the last frame."""
    try:
        data, _, params, headers = pyfunc_input.decode(payload)
        data = _validate(model, data)
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
        return framing.pack(framing.FrameType.FAILED, _describe_error(error))
    return framing.pack(framing.FrameType.END)


class _InvalidInput(Exception):  # never leaves this module
    """The input does not match the type hint; its argument is the payload of an `INVALID` frame."""


def _validate(model: Model, data: Any) -> Any:
    """Return the input in the types of the type hint, with types that JSON lacks, such as dates.

    Raises:
        _InvalidInput: It does not match.
    """
    if model.hint is None:
        return data
    from mlflow.exceptions import MlflowException
    from mlflow.types.type_hints import _validate_data_against_type_hint

    try:
        _validate_data_against_type_hint(data, model.hint)
    except MlflowException:  # its message contains the data but not the location of the error
        return _parse(model.hint, data)
    return data


def _parse(hint: Any, data: Any) -> Any:
    from pydantic import PydanticUserError, TypeAdapter, ValidationError

    errors: Sequence[Any] = [{"loc": (), "msg": "Input should match the type hint of the model"}]
    try:
        return TypeAdapter(hint).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
    except (PydanticUserError, TypeError, ValueError):
        pass
    fields = [{"loc": error["loc"], "msg": error["msg"]} for error in errors[:_MAX_FIELD_ERRORS]]
    raise _InvalidInput(json.dumps(fields).encode())


def _has_pending_message(connection: socket.socket) -> bool:
    """Return whether the front has sent a message (`STOP`) or has hung up."""
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    return True


def _describe_error(error: BaseException) -> bytes:
    description = {
        "error": shorten("".join(traceback.format_exception_only(error)).strip(), _MAX_ERROR_LENGTH),
        "traceback": "".join(traceback.format_exception(error))[-_MAX_ERROR_LENGTH:],
    }
    return json.dumps(description).encode()
