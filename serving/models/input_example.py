"""Read the input example that a model was logged with, as rows of its contract."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.codecs.model_input import InputKind, objects
from serving.codecs.output_json import to_jsonable
from serving.contract.column_validator import ColumnValidator
from serving.contract.contract import Contract, Row
from serving.contract.model_files import ModelFiles
from serving.errors import RequestError
from serving.promotion_errors import VerificationFailed
from serving.protocols.mlflow_scoring import FORMS, UNWRAPPED, ScoringParser
from serving.types.scalars import Scalar

_MAX_ROWS = 100
_SCORING_FORMS: Mapping[str, str] = {
    "dataframe": "dataframe_split",
    "ndarray": "inputs",
    "json_object": "inputs",
}
"""Form of the scoring protocol, by the example's type in the MLmodel file of MLflow 2.0 and later."""


@dataclass(frozen=True, slots=True)
class Example:
    """The rows and the parameters of an input example."""

    rows: Sequence[Row]
    params: Mapping[str, Any]
    shown: Row
    """The first row in JSON types, for the documentation."""


def example(files: ModelFiles, contract: Contract) -> Example | None:
    """Return the logged input example; None if there is none, or none that consists of rows.

    Raises:
        VerificationFailed: the example does not fit the contract of the model, or exceeds a limit.
    """
    if fault := files.faults.get("example"):
        raise VerificationFailed(f"its input example can't be read: {fault}: log it with fewer rows")
    logged = _logged(files)
    if not logged or not logged.keys() & {*FORMS, *UNWRAPPED}:
        return None
    try:
        rows = _rows(logged, contract)[: min(_MAX_ROWS, contract.max_rows)]
        if not rows:
            return None
        _refuse_nulls(rows, contract)
        body: dict[str, Any] = {"rows": rows}
        if params := logged.get("params"):
            body["params"] = params
        return Example(*contract.read_batch(json.dumps(body).encode()), rows[0])
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise VerificationFailed(f"its input example has an unknown form: {error!r:.200}") from error
    except RequestError as error:
        faults = "; ".join(f"{_format_location(fault.loc)}: {fault.msg}" for fault in error.faults[:3])
        raise VerificationFailed(
            f"its input example does not fit its own signature: {faults or error}"
        ) from error


def _logged(files: ModelFiles) -> dict[str, Any] | None:
    """Return the example as a body of MLflow's scoring protocol.

    MLflow 2.15 and later log such a body. Earlier versions log only the example and its type.
    """
    info: Any = files.mlmodel.get("saved_input_example_info")
    data: Any = files.example
    if data is None or not isinstance(info, Mapping):
        return None
    if "serving_input_path" in info:
        return data if isinstance(data, dict) else None
    form = _SCORING_FORMS.get(str(info.get("type")))
    if form is None:
        return None
    params: Any = None
    if info.get("params") and isinstance(data, dict):
        data, params = data.get("inputs"), data.get("params")
    if form == "dataframe_split" and isinstance(data, dict) and "columns" not in data:
        form, data = "inputs", data.get("data")
    if (
        form == "inputs"
        and isinstance(data, dict)
        and {*data} & {*UNWRAPPED}
        and info["type"] == "json_object"
    ):
        return {**data, **(params or {})}
    return {form: data, **({"params": params} if params else {})}


def _rows(logged: Mapping[str, Any], contract: Contract) -> list[Any]:
    if contract.form is not InputKind.FRAME or "dataframe_split" not in logged:
        rows = ScoringParser(contract, ColumnValidator(contract)).read(json.dumps(logged).encode()).rows
        return [to_jsonable(row) for row in objects(rows)]
    split = logged["dataframe_split"]
    dates = {column.name for column in contract.columns if column.type == "datetime"}
    names = [*map(str, split.get("columns") or (column.name for column in contract.columns))]
    return [
        {name: _or_null(value, name in dates) for name, value in zip(names, row, strict=True)}
        for row in split["data"]
    ]


def _refuse_nulls(rows: Sequence[Row], contract: Contract) -> None:
    """Reject a null in a column of integers: the model would fail as if the column were missing.

    Raises:
        VerificationFailed: there is one.
    """
    for column in contract.columns:
        if not isinstance(column.kind, Scalar) or column.kind.nullable:
            continue
        for number, row in enumerate(rows, start=1):
            if column.name in row and row[column.name] is None:
                raise VerificationFailed(
                    f"row {number} of its input example has no value in column {column.name!r}, and MLflow "
                    f"takes no missing values in a column of type {column.kind.name}: log it with an example "
                    "without missing values, or make the column a float before fit and infer_signature: "
                    f"data[{column.name!r}].astype('float64')"
                )


def _or_null(value: Any, is_date: bool) -> Any:
    """Return None for a missing value: MLflow writes NaN for a number or text and "NaT" for a datetime."""
    return None if value != value or (is_date and value == "NaT") else value


def _format_location(loc: Sequence[str | int]) -> str:
    """Return a location in a batch for people: `rows, 0, x` becomes `row 1, x`."""
    if len(loc) > 1 and loc[0] == "rows" and isinstance(loc[1], int):
        return ", ".join([f"row {loc[1] + 1}", *map(str, loc[2:])])
    return ", ".join(map(str, loc))
