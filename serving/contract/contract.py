"""The contract of a model version: its inputs, parameters and outputs, and the types of its endpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, FailFast, Field, TypeAdapter, ValidationError, WithJsonSchema
from pydantic_core import SchemaError, SchemaValidator
from typing_extensions import TypedDict

from serving.codecs.json_fields import refuse_repeats
from serving.codecs.model_input import InputKind, InputLayout
from serving.codecs.output_json import OutputColumn
from serving.codecs.prediction_schema import GenericOutput, PredictionSchema, WholeOutput
from serving.codecs.predictions import Predictions
from serving.contract.params import Param
from serving.contract.reference_profile import Profile
from serving.contract.type_hint_schema import item_schema
from serving.errors import BodyTooLarge, FieldError, Malformed, ModelFailed, Unprocessable
from serving.promotion_errors import UnsupportedSignature
from serving.types.columns import Column

_type_dict: Any = TypedDict  # the fields are known only when a version is loaded
Row = dict[str, Any]

_MAX_FIELD_ERRORS = 20


@dataclass(frozen=True)
class Contract:
    """The inputs, parameters and outputs of one model version.

    Versions with equal contracts accept the same requests and return outputs of the same types.
    """

    name: str
    columns: tuple[Column, ...]
    params: tuple[Param, ...]
    outputs: PredictionSchema
    max_rows: int
    form: InputKind = InputKind.FRAME
    streams: bool = False
    """Whether the model can stream its output."""
    output_columns: tuple[OutputColumn, ...] = field(default=(), compare=False)
    """The columns of the model's output, as its signature declares them."""
    profile: Profile | None = field(default=None, compare=False)
    """The distribution of its inputs and predictions in training."""
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """Mistakes in its metadata that do not prevent the version from being served."""
    example: Mapping[str, Any] | None = field(default=None, compare=False)
    input_schema: Mapping[str, Any] | None = field(default=None, compare=False)
    """The JSON Schema of the type hint of its input, which is more precise than the signature."""
    batching: bool | None = field(default=None, compare=False)
    """Whether requests may share a model call, as its metadata sets it; None if verification decides."""

    def with_example(self, row: Row) -> Contract:
        """Return the contract with an example row for the documentation."""
        return self if self.example else replace(self, example=row)

    def with_input_schema(self, schema: Any) -> Contract:
        """Return the contract with the JSON Schema of the model's type hint for the documentation."""
        return (
            replace(self, input_schema=schema) if isinstance(schema, dict) and not self.input_schema else self
        )

    @property
    def is_whole(self) -> bool:
        """Return whether the model does not return one result per row, so that its output stays whole."""
        return isinstance(self.outputs, WholeOutput)

    @property
    def is_open(self) -> bool:
        """Return whether other outputs stay whole, because no example has shown what the model returns."""
        return isinstance(self.outputs, GenericOutput) and self.outputs.flexible

    @cached_property
    def layout(self) -> InputLayout:
        """Return the layout of the table in which rows are sent to the model."""
        return InputLayout(self.columns, self.form)

    @cached_property
    def json_schemas(self) -> Mapping[str, Any]:
        """Return the JSON Schemas of a row, the parameters (if there are any), and a prediction."""
        types = {"row": self.row, "prediction": self.prediction}
        types |= {"params": self.params_type} if self.params else {}
        return {name: TypeAdapter(annotation).json_schema() for name, annotation in types.items()}

    # -- request types

    @cached_property
    def row(self) -> Any:
        """Return the type of one input row: a flat object."""
        fields = {
            column.name: column.annotation if column.required else NotRequired[column.annotation]
            for column in self.columns
        }
        if self.input_schema and self.form is InputKind.LIST:
            (column,) = self.columns
            fields[column.name] = Annotated[
                fields[column.name], WithJsonSchema(item_schema(self.input_schema))
            ]
        extra = {"examples": [dict(self.example)]} if self.example else None
        return self._object("Row", fields, extra)

    @cached_property
    def params_type(self) -> Any:
        """Return the type of the model's parameters: an object whose fields are all optional."""
        fields = {param.name: NotRequired[param.annotation] for param in self.params}
        return self._object("Params", fields)

    @cached_property
    def batch(self) -> Any:
        """Return the type of a batch: `{"rows": [row, …]}`, with `params` if the model has parameters."""
        row: Any = self.row
        rows = Annotated[list[row], Field(min_length=1, max_length=self.max_rows), FailFast()]
        fields: dict[str, Any] = {"rows": rows}
        if self.params:
            fields["params"] = NotRequired[self.params_type]
        return self._object("Batch", fields)

    # -- response types. "Answer" and "Answers" are schema names in the OpenAPI document, which clients use.

    @cached_property
    def prediction(self) -> Any:
        """Return the type of one row's prediction."""
        return self._object("Prediction", self.outputs.fields)

    @cached_property
    def response(self) -> Any:
        """Return the type of the response of `/predict`."""
        return self._object("Answer", self.outputs.fields | {"model": ModelVersion})

    @cached_property
    def batch_response(self) -> Any:
        """Return the type of the response of `/predict/batch`."""
        if self.is_whole:
            return self.response
        prediction: Any = self.prediction
        return self._object("Answers", {"predictions": list[prediction], "model": ModelVersion})

    # -- parsing

    def read_row(self, body: bytes) -> Row:
        """Parse and validate one row from a JSON body.

        Raises:
            Malformed: The body is not JSON, or contains a field twice.
            Unprocessable: It does not match the contract.
        """
        try:
            row: Row = self._row_validator.validate_json(body)
        except ValidationError as error:
            raise self._request_error(error) from None
        refuse_repeats(body, len(row))
        return row

    def read_batch(self, body: bytes) -> tuple[list[Row], dict[str, Any]]:
        """Parse and validate the rows and the parameters of a batch from a JSON body.

        Raises:
            BodyTooLarge: It contains more than `max_rows` rows.
            Malformed, Unprocessable: As in `read_row`.
        """
        try:
            batch = self._batch_validator.validate_json(body)
        except ValidationError as error:
            raise self._request_error(error) from None
        rows, params = batch["rows"], batch.get("params", {})
        refuse_repeats(body, len(batch) + sum(map(len, rows)) + len(params))
        return rows, params

    def read_query(self, query: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Return the model's parameters from the values of a query string.

        Raises:
            Unprocessable: A parameter is unknown or does not match the contract.
        """
        if not query:
            return {}
        known = {param.name: param for param in self.params}
        return self.read_params(
            {name: known[name].read(values) if name in known else values for name, values in query.items()}
        )

    def read_params(self, values: Any) -> dict[str, Any]:
        """Validate the model's parameters from JSON values.

        Raises:
            Unprocessable: They do not match the contract.
        """
        try:
            params: dict[str, Any] = self._params_validator.validate_python(values)
        except ValidationError as error:
            raise self._request_error(error) from None
        return params

    def predictions(self, table: Any) -> Predictions:
        """Return one prediction per row of the model's output.

        Raises:
            ModelFailed: The table does not match the output signature.
        """
        try:
            return self.outputs.predictions(table)
        except ModelFailed:
            raise
        except Exception as error:  # the model process is not trusted: the table may be anything
            raise ModelFailed("the model's output does not match its signature", str(error)) from error

    # -- validators

    def compile(self) -> None:
        """Create all validators now, so that a contract that cannot be compiled is rejected before its use.

        Raises:
            UnsupportedSignature: It cannot be compiled.
        """
        try:
            self._row_validator, self._batch_validator, self._params_validator  # noqa: B018 (cached properties)
        except (SchemaError, TypeError, ValueError) as error:
            raise UnsupportedSignature(f"its contract can't be compiled: {error}") from error

    @cached_property
    def _row_validator(self) -> SchemaValidator:
        return validator(self.row)

    @cached_property
    def _batch_validator(self) -> SchemaValidator:
        return validator(self.batch)

    @cached_property
    def _params_validator(self) -> SchemaValidator:
        return validator(self.params_type)

    def _object(self, kind: str, fields: dict[str, Any], extra: Any = None) -> Any:
        title = "".join(word[:1].upper() + word[1:] for word in re.findall(r"[0-9A-Za-z]+", self.name))
        name = f"{title}{kind}"
        typed_dict = _type_dict(name, fields)
        typed_dict.__pydantic_config__ = ConfigDict(extra="forbid", title=name, json_schema_extra=extra)
        return typed_dict

    def _request_error(self, error: ValidationError) -> Malformed | BodyTooLarge | Unprocessable:
        details = error.errors(include_url=False, include_input=False, include_context=False)
        if details[0]["type"] == "json_invalid":
            return Malformed(details[0]["msg"])
        if any((detail["type"], detail["loc"]) == ("too_long", ("rows",)) for detail in details):
            return BodyTooLarge(f"The batch has more than {self.max_rows} rows.")
        return self.refusal([FieldError(detail["loc"], detail["msg"]) for detail in details])

    def refusal(self, errors: Sequence[FieldError]) -> Unprocessable:
        """Return an error that lists the first of the field errors."""
        listed = tuple(
            FieldError(tuple(_shorten(part) for part in error.loc), error.msg.removeprefix("Value error, "))
            for error in errors[:_MAX_FIELD_ERRORS]
        )
        more = f" (the first {_MAX_FIELD_ERRORS} are listed)" if len(errors) > _MAX_FIELD_ERRORS else ""
        values = "1 value does" if len(errors) == 1 else f"{len(errors)} values do"
        return Unprocessable(f"{values} not match the contract of model {self.name}{more}.", listed)


class ModelVersion(TypedDict):
    """The model version that predicted; the version is null for a logged model outside the registry."""

    name: str
    version: str | None


def validator(annotation: Any) -> SchemaValidator:
    """Return a validator for a type. It bypasses plugins of pydantic, which would observe each call."""
    return SchemaValidator(TypeAdapter(annotation).core_schema)


def _shorten(part: str | int) -> str | int:
    return part if isinstance(part, int) or len(part) <= 100 else f"{part[:100]}…"
