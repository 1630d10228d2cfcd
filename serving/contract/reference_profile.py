"""Reads the reference profile in a model's metadata: distributions of its training data and predictions."""

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

from serving.text import shorten
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
    """The shares of the bins of a column and the share of missing values; their sum is 1.

    Either `edges` separate the bins, and an edge belongs to the bin above it, or there is a bin per category
    and a last bin for all other values.
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
            raise ValueError("the sum of shares and missing should be 1")
        if len({*cuts}) < len(cuts) or (self.edges and [*self.edges] != sorted(self.edges)):
            raise ValueError("edges should ascend, and categories should differ")
        return self


class Profile(_Form):
    """The distributions of a model's training rows and of its predictions for them, by column."""

    rows: Annotated[int, Field(ge=1)]
    inputs: Annotated[dict[str, Distribution], Field(max_length=_MAX_COLUMNS)] = {}
    outputs: Annotated[dict[str, Distribution], Field(max_length=_MAX_OUTPUTS)] = {}


def read(entry: Any, columns: Iterable[Column], outputs: Mapping[str, Any]) -> Profile:
    """Return the profile in an entry of the metadata.

    Args:
        entry: The entry of the metadata.
        columns: The model's inputs.
        outputs: The fields of one prediction.

    Raises:
        ValueError: The entry is invalid, or does not match the columns or their types.
    """
    try:
        profile = Profile.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(shorten(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 300)) from None
    known = {column.name: column for column in columns}
    for name, distribution in profile.inputs.items():
        if name not in known or not _matches_type(distribution, known[name]):
            raise ValueError(f"inputs.{name[:100]} is not a column, or has another type of values")
    if unknown := profile.outputs.keys() - outputs.keys():
        raise ValueError(f"outputs.{min(unknown)[:100]} is none of {', '.join(outputs)}")
    return profile


def _matches_type(distribution: Distribution, column: Column) -> bool:
    kind = column.kind
    if not isinstance(kind, Scalar) or kind.convert is not None:
        return False
    return kind.python in ((int, float) if distribution.categories is None else (bool, int, str))
