"""Parsing of Azure ML's requests for MLflow models: MLflow's scoring protocol, and bodies with `input_data`.

https://learn.microsoft.com/azure/machine-learning/how-to-deploy-mlflow-models describes the bodies: a data
frame in the orientation `split`, an array, or arrays by name. Their response is the output without
`predictions` around it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from serving.codecs.model_input import InputKind
from serving.contract.contract import Contract
from serving.errors import Unprocessable
from serving.protocols.mlflow_scoring import FORMS, ParsedRequest, ScoringParser, parse_object

_FIELD = "input_data"


def parse(parser: ScoringParser, contract: Contract, body: bytes) -> ParsedRequest:
    """Return the rows and the parameters of a JSON body.

    Raises:
        Malformed: the body is not JSON, or repeats a field.
        BodyTooLarge: there are more rows than the contract allows.
        Unprocessable: the body has none of the forms, or does not match the contract.
    """
    document = parse_object(body)
    if _FIELD not in document:
        return parser.parse(document)
    if other := sorted(document.keys() & {*FORMS}):
        raise Unprocessable(f"Send either {_FIELD} or {other[0]}.")
    sent = document.pop(_FIELD)
    return replace(parser.parse(document | {_form(contract, sent): sent}), unwrapped=True)


def _form(contract: Contract, sent: Any) -> str:
    """Return the form of MLflow's protocol that has the same rows."""
    if isinstance(sent, dict):
        is_frame = "columns" in sent or "data" not in {column.name for column in contract.columns}
        return "dataframe_split" if "data" in sent and is_frame else "inputs"
    is_table = contract.form is not InputKind.LIST and isinstance(sent, list) and bool(sent)
    return "dataframe_records" if is_table and all(isinstance(row, dict) for row in sent) else "inputs"
