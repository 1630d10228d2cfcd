"""What a model version takes and answers, and the types of its endpoints that are made of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, FailFast, Field, TypeAdapter, ValidationError, WithJsonSchema
from pydantic_core import SchemaError, SchemaValidator, from_json
from typing_extensions import TypedDict

from serving.codecs.json_fields import refuse_repeats
from serving.codecs.json_values import OutputColumn
from serving.codecs.model_input import InputKind, InputLayout
from serving.codecs.prediction_schema import GenericOutput, PredictionSchema, WholeOutput
from serving.codecs.predictions import Predictions
from serving.contract.reference_profile import Profile
from serving.contract.type_hint_schema import item_schema
from serving.errors import (
    BodyTooLarge,
    FieldError,
    Malformed,
    ModelFailed,
    Unprocessable,
    UnsupportedSignature,
)
from serving.types.columns import Column
from serving.types.scalars import SCALARS

type_dict: Any = TypedDict  # its fields are known only when a version is loaded
Row = dict[str, Any]

_MAX_FIELD_ERRORS = 20


@dataclass(frozen=True, slots=True)
class Param:
    """One model parameter: its MLflow type, its default, and whether it is a list."""

    name: str
    type: str
    default: Any
    is_list: bool

    @property
    def annotation(self) -> Any:
        """The strict type of its value for pydantic."""
        value: Any = Column(self.name, self.type).annotation
        value = list[value] if self.is_list else value
        return value if self.default is not None else value | None

    @property
    def is_nested(self) -> bool:
        """Whether it is an object, a map or an array of such."""
        return self.type not in SCALARS

    def read(self, texts: Sequence[str]) -> Any:
        """Read its value from a query string: a list is the parameter repeated, all but a text is JSON."""
        is_text = not self.is_nested and SCALARS[self.type].python is str
        values = [text if is_text else _json_or_text(text) for text in texts]
        return values if self.is_list or len(values) != 1 else values[0]


@dataclass(frozen=True)
class Contract:
    """The inputs, parameters and outputs of one model version.

    Two versions whose contracts are equal share all types made from them.
    """

    name: str
    columns: tuple[Column, ...]
    params: tuple[Param, ...]
    outputs: PredictionSchema
    max_rows: int
    form: InputKind = InputKind.FRAME
    streams: bool = False
    """Whether the model can answer bit by bit."""
    answered: tuple[OutputColumn, ...] = field(default=(), compare=False)
    """The columns of the model's answer, as its signature says."""
    profile: Profile | None = field(default=None, compare=False)
    """What its inputs and predictions were like in training."""
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """What is wrong with its metadata that does not keep it from being served."""
    example: Mapping[str, Any] | None = field(default=None, compare=False)
    input_schema: Mapping[str, Any] | None = field(default=None, compare=False)
    """The JSON Schema of the type hint of its input, which says more than the signature."""
    batching: bool | None = field(default=None, compare=False)
    """Whether callers may share a call of the model, as its metadata decides; None: as is proven."""

    def with_example(self, row: Row) -> Contract:
        """The same contract, its documentation with an example row."""
        return self if self.example else replace(self, example=row)

    def with_input_schema(self, schema: Any) -> Contract:
        """Return the same contract, its documentation with the JSON Schema of the model's type hint."""
        return (
            replace(self, input_schema=schema) if isinstance(schema, dict) and not self.input_schema else self
        )

    @property
    def is_whole(self) -> bool:
        """Whether the model does not return one result per row, so that its output is returned whole."""
        return isinstance(self.outputs, WholeOutput)

    @property
    def is_open(self) -> bool:
        """Whether no example has shown what the model returns, so that another output is returned whole."""
        return isinstance(self.outputs, GenericOutput) and self.outputs.flexible

    @cached_property
    def layout(self) -> InputLayout:
        """The table that rows become."""
        return InputLayout(self.columns, self.form)

    @cached_property
    def json_schemas(self) -> Mapping[str, Any]:
        """The JSON Schemas of a row, of the parameters if there are any, and of a prediction."""
        types = {"row": self.row, "prediction": self.prediction}
        types |= {"params": self.params_type} if self.params else {}
        return {name: TypeAdapter(each).json_schema() for name, each in types.items()}

    # -- what clients send

    @cached_property
    def row(self) -> Any:
        """The type of one input row: a flat object."""
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
        """The type of the model's parameters: an object of which everything may be left out."""
        fields = {param.name: NotRequired[param.annotation] for param in self.params}
        return self._object("Params", fields)

    @cached_property
    def batch(self) -> Any:
        """The type of a batch: `{"rows": [row, …]}`, with `params` where the model has any."""
        row: Any = self.row
        rows = Annotated[list[row], Field(min_length=1, max_length=self.max_rows), FailFast()]
        fields: dict[str, Any] = {"rows": rows}
        if self.params:
            fields["params"] = NotRequired[self.params_type]
        return self._object("Batch", fields)

    # -- what clients are answered

    @cached_property
    def prediction(self) -> Any:
        """The type of one row's prediction."""
        return self._object("Prediction", self.outputs.fields)

    @cached_property
    def answer(self) -> Any:
        """The type of `/predict`'s answer."""
        return self._object("Answer", self.outputs.fields | {"model": ModelVersion})

    @cached_property
    def answers(self) -> Any:
        """The type of `/predict/batch`'s answer."""
        if self.is_whole:
            return self.answer
        prediction: Any = self.prediction
        return self._object("Answers", {"predictions": list[prediction], "model": ModelVersion})

    # -- reading

    def read_row(self, body: bytes) -> Row:
        """One row from a JSON body.

        Raises:
            Malformed: the body is not JSON, or names a field twice.
            Unprocessable: it does not fit the contract.
        """
        try:
            row: Row = self._row_validator.validate_json(body)
        except ValidationError as error:
            raise self._refusal(error) from None
        refuse_repeats(body, len(row))
        return row

    def read_batch(self, body: bytes) -> tuple[list[Row], dict[str, Any]]:
        """The rows and the parameters of a batch's JSON body; raises as `read_row` does.

        Raises:
            BodyTooLarge: there are more than `max_rows` rows.
        """
        try:
            batch = self._batch_validator.validate_json(body)
        except ValidationError as error:
            raise self._refusal(error) from None
        rows, params = batch["rows"], batch.get("params", {})
        refuse_repeats(body, len(batch) + sum(map(len, rows)) + len(params))
        return rows, params

    def read_query(self, query: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The model's parameters from a query string's values.

        Raises:
            Unprocessable: a parameter is unknown or does not fit the contract.
        """
        if not query:
            return {}
        known = {param.name: param for param in self.params}
        return self.read_params(
            {name: known[name].read(values) if name in known else values for name, values in query.items()}
        )

    def read_params(self, given: Any) -> dict[str, Any]:
        """The model's parameters from values as JSON has them.

        Raises:
            Unprocessable: they do not fit the contract.
        """
        try:
            params: dict[str, Any] = self._params_validator.validate_python(given)
        except ValidationError as error:
            raise self._refusal(error) from None
        return params

    def predictions(self, table: Any) -> Predictions:
        """One prediction for each row of a model's answer.

        Raises:
            ModelFailed: the table is not what the output signature says.
        """
        try:
            return self.outputs.predictions(table)
        except ModelFailed:
            raise
        except Exception as error:  # the model process is not trusted to have sent anything sensible
            raise ModelFailed("the model's answer does not fit its signature", str(error)) from error

    # -- making

    def compile(self) -> None:
        """Make every validator now, so that a contract which can't be compiled is refused before it is used.

        Raises:
            Untypable: it can't be compiled.
        """
        try:
            self._row_validator, self._batch_validator, self._params_validator  # noqa: B018
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
        made = type_dict(f"{title}{kind}", fields)
        made.__pydantic_config__ = ConfigDict(extra="forbid", title=f"{title}{kind}", json_schema_extra=extra)
        return made

    def _refusal(self, error: ValidationError) -> Malformed | BodyTooLarge | Unprocessable:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        kinds = {(fault["type"], fault["loc"]) for fault in found}
        if found[0]["type"] == "json_invalid":
            return Malformed(found[0]["msg"])
        if ("too_long", ("rows",)) in kinds:
            return BodyTooLarge(f"The batch has more than {self.max_rows} rows.")
        return self.refusal([FieldError(fault["loc"], fault["msg"]) for fault in found])

    def refusal(self, faults: Sequence[FieldError]) -> Unprocessable:
        """The error for what does not fit; the first of many faults are listed."""
        listed = tuple(
            FieldError(tuple(_short(part) for part in fault.loc), fault.msg.removeprefix("Value error, "))
            for fault in faults[:_MAX_FIELD_ERRORS]
        )
        more = f" (the first {_MAX_FIELD_ERRORS} are listed)" if len(faults) > _MAX_FIELD_ERRORS else ""
        things = "1 thing does" if len(faults) == 1 else f"{len(faults)} things do"
        return Unprocessable(f"{things} not fit the contract of model {self.name}{more}.", listed)


class ModelVersion(TypedDict):
    """The model version that answered; the version is null for a logged model outside the registry."""

    name: str
    version: str | None


def validator(annotation: Any) -> SchemaValidator:
    # Of the adapter itself the validator is another where plugins of pydantic are installed, which watch
    # each call.
    return SchemaValidator(TypeAdapter(annotation).core_schema)


def _json_or_text(text: str) -> Any:
    try:
        return from_json(text)
    except ValueError:
        return text


def _short(part: str | int) -> str | int:
    return part if isinstance(part, int) or len(part) <= 100 else f"{part[:100]}…"
