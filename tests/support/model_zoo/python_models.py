"""Custom models: a `PythonModel` for every shape of output."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature, infer_signature
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import AnyType, Array, Map, Object, Property

from tests.support.model_zoo.entries import Entry, Save, records, table, values

X = pd.DataFrame({"x": [1.0, 3.0, 10.0]})
ONE_X = (table(X), table(X[1:2]), table(X[2:]), table(X[:2]))
SIGNED = pd.DataFrame({"x": [1.0, -1.0, 2.0]})
SIGNED_X = (table(SIGNED), table(SIGNED[:1]), table(SIGNED[1:2]), table(SIGNED[2:]))
KEEP = "keep"
"""Output schema that MLflow infers from the model's output for the example."""


class FunctionModel(PythonModel):
    """A model that returns what a function returns for its input."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def predict(self, context, model_input, params=None):  # without types, as in most models
        """Return the function's output."""
        return self.function(model_input)


class FunctionModelWithParams(FunctionModel):
    """A model that passes its parameters to the function too."""

    def predict(self, context, model_input, params=None):
        """Return the function's output."""
        return self.function(model_input, params)


class Vocabulary(PythonModel):
    """A model that reads an artifact when it is loaded."""

    def load_context(self, context: Any) -> None:
        """Read the words."""
        self.words = Path(context.artifacts["words"]).read_text().split()

    def predict(self, context, model_input, params=None):
        """Return the positions of the words."""
        return [self.words.index(word) if word in self.words else -1 for word in model_input["word"]]


def _saved(
    function: Callable[..., Any],
    example: Any,
    outputs: Any = KEEP,
    *,
    inputs: Schema | None = None,
    params: Any = None,
    model: type[FunctionModel] = FunctionModel,
    with_example: bool = True,
) -> Save:
    """Save the model of a function; `outputs` are a schema, None, or `KEEP`."""

    def save(folder: Path) -> None:
        signature = None
        if inputs is not None or outputs is not KEEP or params is not None or not with_example:
            arguments = (example,) if params is None else (example, params)
            inferred = infer_signature(example, function(*arguments), params)
            outgoing = inferred.outputs if outputs is KEEP else outputs
            signature = ModelSignature(inputs or inferred.inputs, outgoing, inferred.params)
        mlflow.pyfunc.save_model(
            folder,
            python_model=model(function),
            signature=signature,
            input_example=example if with_example else None,
            pip_requirements=[],
        )

    return save


def _row_wise(function: Callable[[Any], Any], outputs: Any = KEEP, **more: Any) -> Entry:
    return Entry(_saved(function, X, outputs, **more), ONE_X)


def _whole(function: Callable[[Any], Any], outputs: Any = KEEP, **more: Any) -> Entry:
    return Entry(_saved(function, X, outputs, **more), ONE_X, whole=True)


def _column(kind: Any, name: str | None = None, required: bool = True) -> Schema:
    return Schema([ColSpec(kind, name, required)])


# -- one result per row


def _size(x: float) -> str:
    return "large" if x > 5 else "small"


def _two_columns(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"half": frame["x"] / 2, "size": [*map(_size, frame["x"])]})


def _labels(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{"label": _size(x), "score": x / 20} for x in frame["x"]]


def _nested(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{"spans": [{"text": _size(x), "at": int(x)}], "scores": {"a": x, "b": x / 2}} for x in frame["x"]]


def _ragged(frame: pd.DataFrame) -> list[list[float]]:
    return [[x] * (1 + int(x) % 3) for x in frame["x"]]


def _dates(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"day": pd.to_datetime(frame["x"], unit="D"), "whole": frame["x"].astype(int)})


ROW_WISE = {
    "py_series": _row_wise(lambda frame: frame["x"] * 2),
    "py_series_of_strings": _row_wise(lambda frame: frame["x"].map(_size)),
    "py_frame": _row_wise(_two_columns),
    "py_frame_one_column": _row_wise(lambda frame: pd.DataFrame({"half": frame["x"] / 2})),
    "py_frame_of_dates": _row_wise(_dates),
    "py_array": _row_wise(lambda frame: frame["x"].to_numpy() / 3),
    "py_array_of_booleans": _row_wise(lambda frame: frame["x"].to_numpy() > 2),
    "py_array_of_rows": _row_wise(lambda frame: np.outer(frame["x"], [1.0, 0.5, 0.25])),
    "py_array_of_one_column": _row_wise(lambda frame: frame[["x"]].to_numpy() * 2),
    "py_list": _row_wise(lambda frame: [x + 1 for x in frame["x"]]),
    "py_list_of_strings": _row_wise(lambda frame: [*map(_size, frame["x"])]),
    "py_list_of_lists": _row_wise(_ragged),
    "py_list_of_dicts": _row_wise(_labels),
    "py_list_of_dicts_undeclared": _row_wise(_labels, None),
    "py_list_of_dicts_without_example": _row_wise(_labels, with_example=False),
    "py_list_of_nested_dicts": _row_wise(_nested),
    "py_dict_of_arrays": _row_wise(
        lambda frame: {"low": frame["x"].to_numpy() - 1, "high": frame["x"].to_numpy() + 1}
    ),
    "py_series_with_none": _row_wise(
        lambda frame: pd.Series(["large" if x > 2 else None for x in frame["x"]], dtype=object),
        _column("string"),
    ),
    "py_list_with_none": _row_wise(
        lambda frame: ["large" if x > 2 else None for x in frame["x"]], _column("string")
    ),
    "py_series_with_nan": _row_wise(
        lambda frame: frame["x"].where(frame["x"] > 2), _column("double"), with_example=False
    ),
    "py_anything": _row_wise(
        lambda frame: [int(x) if x > 2 else _size(x) for x in frame["x"]], _column(AnyType())
    ),
    "py_undeclared": _row_wise(lambda frame: frame["x"] * 2, None),
    "py_processes": _row_wise(lambda frame: _in_processes([*frame["x"]])),
}


def _in_processes(numbers: list[float]) -> list[float]:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(abs, numbers)


# -- one output for all rows

SHOPS = {"shops": ["best", "second"]}

WHOLE = {
    "py_fixed_lists": _whole(lambda frame: SHOPS, _column(Array("string"), "shops")),
    "py_fixed_lists_inferred": _whole(lambda frame: SHOPS),
    "py_fixed_list": Entry(_saved(lambda frame: ["best", "second"], X, _column("string")), ONE_X, whole=None),
    "py_whole_dict": _whole(lambda frame: {"total": float(frame["x"].sum()), "rows": len(frame)}),
    "py_whole_dict_undeclared": _whole(
        lambda frame: {"total": float(frame["x"].sum()), "rows": len(frame)}, None
    ),
    "py_whole_nested_dict": _whole(
        lambda frame: {"summary": {"total": float(frame["x"].sum())}, "shops": ["best"]}
    ),
    "py_whole_string": _whole(lambda frame: f"{len(frame)} rows"),
    "py_whole_number": _whole(lambda frame: float(frame["x"].sum())),
    "py_whole_anything": _whole(lambda frame: {"total": float(frame["x"].sum())}, _column(AnyType())),
    "py_whole_none": _whole(lambda frame: None, None, with_example=True),
}


# -- results that depend on the other rows


def _repeated(frame: pd.DataFrame) -> pd.Series:
    first = int(frame["x"].iloc[0])
    return pd.Series(np.arange(first) + frame["x"].iloc[0] / 10)


REDUCING = {
    "py_share": _row_wise(lambda frame: frame["x"] / frame["x"].sum()),
    "py_share_without_example": _row_wise(lambda frame: frame["x"] / frame["x"].sum(), with_example=False),
    "py_centred": _row_wise(lambda frame: frame - frame.mean()),
    "py_row_count": _row_wise(lambda frame: [len(frame)] * len(frame)),
    "py_sorted": _row_wise(lambda frame: np.sort(frame["x"].to_numpy())[::-1]),
    "py_running_total": _row_wise(lambda frame: frame["x"].cumsum()),
    "py_dropping": Entry(_saved(lambda frame: frame.loc[frame["x"] >= 0, "x"] * 2, X), SIGNED_X, whole=None),
    "py_dropping_frame": Entry(_saved(lambda frame: frame[frame["x"] >= 0], SIGNED), SIGNED_X, whole=None),
    "py_repeating": Entry(
        _saved(_repeated, X),
        (table(X[1:2]), table(pd.DataFrame({"x": [2.0]})), table(pd.DataFrame({"x": [5.0]})), table(X[:1])),
        whole=None,
    ),
    "py_exploding": Entry(
        _saved(lambda frame: frame["x"].repeat(2).reset_index(drop=True), X), ONE_X, whole=None
    ),
}


# -- optional columns, and columns of every type


def _with_defaults(frame: pd.DataFrame) -> list[str]:
    units = frame["unit"] if "unit" in frame else ["kg"] * len(frame)
    weights = frame["w"] if "w" in frame else [1.0] * len(frame)
    flags = frame["b"] if "b" in frame else [True] * len(frame)
    rows = zip(frame["x"], units, weights, flags, strict=True)
    return [
        f"{x * (0 if pd.isna(w) else w)} {'?' if pd.isna(unit) else unit} {'?' if pd.isna(b) else bool(b)}"
        for x, unit, w, b in rows
    ]


OPTIONAL = Schema(
    [
        ColSpec("double", "x"),
        ColSpec("string", "unit", False),
        ColSpec("double", "w", False),
        ColSpec("boolean", "b", False),
    ]
)
FULL = {"x": 2.0, "unit": "g", "w": 0.5, "b": False}
TYPED = pd.DataFrame(
    {
        "flag": [True, False],
        "small": np.array([1, -2], np.int32),
        "large": np.array([2**40, 3], np.int64),
        "single": np.array([0.5, 1.5], np.float32),
        "double": [1 / 3, 2.0],
        "text": ["a", 'ä\n"b"'],
        "day": pd.to_datetime(["2024-01-05", "2024-02-17T12:30:00"], format="ISO8601"),
    }
)


def _described(frame: pd.DataFrame) -> list[str]:
    return [
        " ".join(f"{name}={value!r}:{type(value).__name__}" for name, value in row.items())
        for row in frame.to_dict("records")
    ]


def _holes(frame: pd.DataFrame) -> list[str]:
    return [f"{text!r}" if isinstance(text, str) else f"{type(text).__name__}" for text in frame["text"]]


COLUMNS = {
    "py_defaults": Entry(
        _saved(_with_defaults, pd.DataFrame([FULL]), inputs=OPTIONAL),
        (
            records({"x": 2.0}),
            records({"x": 2.0}, {"x": 3.5}),
            records(FULL),
            records(FULL, FULL | {"x": 3.0}),
            records(FULL | {"unit": None}),
            records(FULL | {"w": None}),
            records(FULL | {"b": None}),
            records({"x": 2.0, "unit": None, "w": None, "b": None}),
            records({"x": 2.0, "unit": "t"}),
            records({"x": 2.0, "w": 3.0}),
            records({"x": 2.0, "b": True}),
            records({"x": 2.0}, FULL),
            records({"x": 2.0, "unit": "t"}, {"x": 1.0, "unit": None}, {"x": 1.5}),
            table(pd.DataFrame([FULL, FULL])),
            table(pd.DataFrame({"x": [2.0]})),
        ),
    ),
    "py_defaults_without_example": Entry(
        _saved(_with_defaults, pd.DataFrame([FULL]), inputs=OPTIONAL, with_example=False),
        (records({"x": 2.0}), records(FULL), records({"x": 2.0, "unit": None})),
    ),
    "py_types": Entry(_saved(_described, TYPED), (table(TYPED), table(TYPED[1:]))),
    "py_optional_text": Entry(
        _saved(_holes, pd.DataFrame({"text": ["a", None]})),
        (
            table(pd.DataFrame({"text": ["a", None, "b"]})),
            records({"text": None}),
            records({"text": "a"}),
            records({"text": ""}),
        ),
    ),
    "py_nested_columns": Entry(
        _saved(
            lambda frame: [f"{[*row['v']]} {row['o']['a']} {row['m']}" for row in frame.to_dict("records")],
            pd.DataFrame({"v": [[1.0, 2.0]], "o": [{"a": "b"}], "m": [{"k": 1}]}),
            inputs=Schema(
                [
                    ColSpec(Array("double"), "v"),
                    ColSpec(Object([Property("a", "string")]), "o"),
                    ColSpec(Map("long"), "m"),
                ]
            ),
        ),
        (
            records({"v": [1.5], "o": {"a": "c"}, "m": {"k": 2, "l": 3}}),
            records({"v": [1.5], "o": {"a": "c"}, "m": {}}, {"v": [2.0, 3.0], "o": {"a": ""}, "m": {"k": 1}}),
        ),
    ),
    "py_texts": Entry(
        _saved(lambda frame: [text.upper() for text in frame[0]], ["a", "bc"]),
        (values("a"), values("b", "cd"), values("")),
    ),
    "py_vocabulary": Entry(
        lambda folder: _vocabulary(folder), (records({"word": "b"}), records({"word": "a"}, {"word": "z"}))
    ),
}


def _vocabulary(folder: Path) -> None:
    words = folder.parent / "words.txt"
    words.write_text("a b c")
    mlflow.pyfunc.save_model(
        folder,
        python_model=Vocabulary(),
        artifacts={"words": str(words)},
        signature=infer_signature(pd.DataFrame({"word": ["a"]}), [0]),
        pip_requirements=[],
    )


# -- parameters


def _scaled(frame: pd.DataFrame, params: dict[str, Any]) -> list[float]:
    return [x * params["factor"] + sum(params["extra"]) for x in frame["x"]]


def _in_session(frame: pd.DataFrame, params: dict[str, Any]) -> list[str]:
    return [f"{params['configurable']['session_id']}: {x}" for x in frame["x"]]


PARAMS = {
    "py_params": Entry(
        _saved(_scaled, X, params={"factor": 2.0, "extra": [1.0, 2.0]}, model=FunctionModelWithParams),
        (
            table(X),
            table(X, {"factor": 3.0}),
            table(X[:1], {"factor": 0.5, "extra": [4.0]}),
            table(X[:1], {}),
        ),
    ),
    "py_object_params": Entry(
        _saved(_in_session, X, params={"configurable": {"session_id": "0"}}, model=FunctionModelWithParams),
        (
            table(X),
            table(X[:1], {"configurable": {"session_id": "1"}}),
            table(X[1:], {"configurable": {"session_id": "2"}}),
        ),
    ),
}

ENTRIES = ROW_WISE | WHOLE | REDUCING | COLUMNS | PARAMS
