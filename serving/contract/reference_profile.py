"""The reference profile in a model's metadata: how its training rows, and its answers, were distributed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from serving.types.columns import Column
from serving.types.scalars import Scalar

_MAX_COLUMNS = 200
_MAX_OUTPUTS = 20
_MAX_BINS = 50
_TOLERANCE = 0.001

Category = StrictBool | StrictInt | Annotated[StrictStr, Field(max_length=1000)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Distribution(_Form):
    """The shares of the bins of a column, and of missing values, which are together 1.

    The bins are between `edges`, of which each belongs to the bin above it, or one for each of `categories`;
    the last is of all that is above, or of all others.
    """

    edges: Annotated[tuple[FiniteFloat, ...], Field(max_length=_MAX_BINS)] | None = None
    categories: Annotated[tuple[Category, ...], Field(max_length=_MAX_BINS)] | None = None
    shares: tuple[Share, ...]
    missing: Share = 0.0

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        cuts = self.edges if self.categories is None else self.categories
        if cuts is None or None not in (self.edges, self.categories):
            raise ValueError("write edges, or categories")
        if len(self.shares) != len(cuts) + 1:
            raise ValueError(f"write {len(cuts) + 1} shares")
        if abs(sum(self.shares) + self.missing - 1) > _TOLERANCE:
            raise ValueError("shares and missing should be 1 together")
        if len({*cuts}) < len(cuts) or (self.edges and [*self.edges] != sorted(self.edges)):
            raise ValueError("edges should ascend, and categories differ")
        return self


class Profile(_Form):
    """What is known of the rows a model was trained on, and of its answers to them, by column."""

    rows: Annotated[int, Field(ge=1)]
    inputs: Annotated[dict[str, Distribution], Field(max_length=_MAX_COLUMNS)] = {}
    outputs: Annotated[dict[str, Distribution], Field(max_length=_MAX_OUTPUTS)] = {}


def read(told: Any, columns: Iterable[Column], outputs: Mapping[str, Any]) -> Profile:
    """A profile from its entry in the metadata.

    Args:
        columns: The model's inputs.
        outputs: The fields of one prediction.

    Raises:
        ValueError: it has another form, or tells of what is no column, or not of such values.
    """
    try:
        found = Profile.model_validate(told)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:300]) from None
    known = {column.name: column for column in columns}
    for name, distribution in found.inputs.items():
        if name not in known or not _may_be(distribution, known[name]):
            raise ValueError(f"inputs.{name[:100]} is no column, or not one of such values")
    if unknown := found.outputs.keys() - outputs.keys():
        raise ValueError(f"outputs.{min(unknown)[:100]} is none of {', '.join(outputs)}")
    return found


def _may_be(distribution: Distribution, column: Column) -> bool:
    kind = column.kind
    if not isinstance(kind, Scalar) or kind.convert is not None:
        return False
    return kind.python in ((int, float) if distribution.categories is None else (bool, int, str))
