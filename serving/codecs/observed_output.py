"""Derive the output schema of a model from an observed output, and compare it with the signature.

A signature may be inferred from training labels, or be absent. If the contract followed the signature instead
of the model, it would reject outputs that MLflow returns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from serving.codecs import model_output
from serving.codecs.model_output import OutputForm
from serving.codecs.output_columns import columns
from serving.codecs.output_json import OutputColumn
from serving.codecs.prediction_schema import GenericOutput, PredictionSchema, WholeOutput
from serving.errors import ModelFailed

HOW_TO_DECLARE = "log it with signature=mlflow.models.infer_signature(inputs, model.predict(inputs))"


def is_whole(output: pa.RecordBatch, rows: int) -> bool:
    """Return whether an output for `rows` rows is not one result per row."""
    return model_output.form(output) is OutputForm.WHOLE or len(output) != rows


def outputs_of(
    declared: Sequence[OutputColumn], output: pa.RecordBatch, rows: int
) -> tuple[PredictionSchema, tuple[str, ...]]:
    """Return the schema of outputs like this one, and warnings where it differs from the signature.

    Args:
        declared: output columns of the signature.
        output: output of the model for its example.
        rows: number of rows of the example.
    """
    if is_whole(output, rows):
        return WholeOutput(json.dumps(_schema(declared, output))), ()
    expected = tuple(declared) or (OutputColumn(None, "any", required=False),)
    names = output.schema.names
    if declared and len(names) <= len(declared):
        try:
            arrays = columns(output, [value.name for value in expected])
        except ModelFailed:
            pass
        else:
            fitted = tuple(_fitted(value, array) for value, array in zip(expected, arrays, strict=True))
            mismatches = [
                value for value, now in zip(expected, fitted, strict=True) if now.kind == "any" != value.kind
            ]
            return GenericOutput(fitted), _warnings(mismatches)
    known = {value.name: value for value in declared}
    if len(names) == 1:
        return GenericOutput((OutputColumn(None, "any", required=False),)), _warnings(declared)
    values = [known.get(name) or OutputColumn(name, "any", required=False) for name in names]
    fitted = tuple(_fitted(value, output.column(index)) for index, value in enumerate(values))
    return GenericOutput(fitted), _warnings([value for value in declared if value.kind != "any"])


def _fitted(value: OutputColumn, array: pa.Array) -> OutputColumn:
    """Return the declared column if the array fits it, otherwise a more general one."""
    for candidate in (value, OutputColumn(value.name, "number", value.shape, value.required)):
        if candidate is not value and value.kind != "integer":
            continue
        try:
            candidate.to_json(array)
        except ModelFailed:
            continue
        return candidate
    return OutputColumn(value.name, "any", required=False)


def _warnings(mismatches: Sequence[OutputColumn]) -> tuple[str, ...]:
    if not mismatches:
        return ()
    declared = ", ".join(f"{value.name or 'one column'} ({value.description})" for value in mismatches[:10])
    return (f"it returns something else than its signature declares, {declared}: {HOW_TO_DECLARE}",)


def _schema(declared: Sequence[OutputColumn], output: pa.RecordBatch) -> dict[str, Any]:
    """Return the JSON Schema of a whole output, with types from the signature if they fit."""
    known = {value.name: value.schema for value in declared}
    only = declared[0].schema if len(declared) == 1 else {}
    match model_output.form(output):
        case OutputForm.RECORDS:
            properties = {name: known.get(name, {}) for name in output.schema.names}
            return {"type": "array", "items": {"type": "object", "properties": properties}}
        case OutputForm.VALUES:
            return {"type": "array", "items": only}
        case OutputForm.COLUMNS:
            columns = {name: {"type": "array", "items": known.get(name, {})} for name in output.schema.names}
            return {"type": "object", "properties": columns}
    if None in known or not known:
        return only
    return {"type": "object", "properties": known}
