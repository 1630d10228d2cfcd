"""Tensors: an array for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import pyarrow as pa

from serving.errors import UnsupportedSignature
from serving.types.constraints import ANNOTATIONS
from serving.types.scalars import FLOAT32_MAX, coerce_integral


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array for each row; -1 in its shape is a size that may differ from request to request."""

    dtype: str
    shape: tuple[int, ...]
    keywords = ANNOTATIONS
    nullable = False
    is_object = False

    @property
    def told(self) -> str:
        """The type of its elements, and its shape."""
        return f"{self.dtype}[{', '.join(str(size) if size >= 0 else 'n' for size in self.shape)}]"

    @property
    def schema(self) -> dict[str, Any]:
        """Arrays in arrays."""
        described = element(self.dtype)[1]
        for size in reversed(self.shape):
            described = {"type": "array", "items": described}
            if size >= 0:
                described |= {"minItems": size, "maxItems": size}
        return described

    def json_schema(self, facets: Mapping[str, Any]) -> dict[str, Any]:
        """Its schema, and notes on it."""
        return self.schema | dict(facets)

    def annotation(self, facets: Mapping[str, Any]) -> Any:
        """Lists in lists, which become a numpy array of the exact dtype."""
        from pydantic import AfterValidator, Field

        found: Any = element(self.dtype)[0]
        for size in reversed(self.shape):
            inner: Any = found
            exact = Field(min_length=size, max_length=size) if size >= 0 else Field()
            found = Annotated[list[inner], Field(strict=True), exact]
        return Annotated[found, AfterValidator(self._made)]

    def array(self, values: Sequence[Any]) -> pa.Array:
        """Arrays of one shape as lists of a fixed size."""
        made = np.stack([np.asarray(value, self._numpy) for value in values])
        return to_list_array(made, pa.large_string() if self.dtype == "object" else None)

    @property
    def _numpy(self) -> Any:
        return object if self.dtype in ("str", "object") else np.dtype(self.dtype)

    def _made(self, value: Any) -> np.ndarray[Any, Any]:
        try:
            made = np.array(value, self._numpy)
        except ValueError:  # lists of different lengths in one
            made = None
        if made is None or made.ndim != len(self.shape) or not made.size:
            raise ValueError(f"Input should be a regular array of {len(self.shape)} dimensions, not empty")
        return made


def from_list_array(values: pa.Array) -> np.ndarray[Any, Any]:
    """The array that lists of a fixed size in one another are."""
    shape = [len(values)]
    while pa.types.is_fixed_size_list(values.type):
        shape.append(values.type.list_size)
        values = values.flatten()
    flat: np.ndarray[Any, Any] = values.to_numpy(zero_copy_only=False)
    if pa.types.is_string(values.type):
        flat = flat.astype(str)
    return flat.reshape(shape)


def to_list_array(array: np.ndarray[Any, Any], type: pa.DataType | None = None) -> pa.Array:
    """An array of any number of dimensions as lists of a fixed size in one another."""
    return fixed_size_list(pa.array(np.ascontiguousarray(array).reshape(-1), type), array.shape)


def fixed_size_list(flat: pa.Array, shape: Sequence[int]) -> pa.Array:
    """The elements of an array of this shape as lists of a fixed size in one another."""
    for size in reversed(shape[1:]):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat


def tensor(spec: Mapping[str, Any]) -> Tensor:
    """A tensor from its entry in the signature.

    Raises:
        Untypable: its elements can't be told in JSON, or it has no dimension for rows.
    """
    dtype, shape = str(spec["dtype"]), tuple(spec["shape"])
    try:
        element(dtype)
    except (KeyError, TypeError):
        raise UnsupportedSignature(
            f"is a tensor of {dtype}, from which no typed endpoint can be made"
        ) from None
    if not shape or shape[0] not in (-1, 1):
        raise UnsupportedSignature(
            f"is a tensor of shape {shape}, which has no dimension for rows: let its first be -1"
        )
    return Tensor(dtype, shape[1:])


@lru_cache
def element(dtype: str) -> tuple[Any, dict[str, Any]]:
    """The type of a tensor's element for pydantic, and its JSON Schema."""
    from pydantic import BeforeValidator, Field

    if dtype in ("str", "object"):
        return Annotated[str, Field(strict=True)], {"type": "string"}
    found = np.dtype(dtype)
    if found.kind == "b":
        return Annotated[bool, Field(strict=True)], {"type": "boolean"}
    if found.kind in "iu":
        info = np.iinfo(found)
        least, most = int(info.min), int(info.max)
        schema = {"type": "integer", "minimum": least, "maximum": most}
        return Annotated[int, BeforeValidator(coerce_integral), Field(strict=True, ge=least, le=most)], schema
    if found.kind != "f" or found.itemsize > 8:
        raise TypeError(dtype)
    if found.itemsize == 8:
        return Annotated[float, Field(strict=True, allow_inf_nan=False)], {"type": "number"}
    bound = FLOAT32_MAX if found.itemsize == 4 else float(np.finfo(found).max)
    limits = Field(strict=True, allow_inf_nan=False, ge=-bound, le=bound)
    return Annotated[float, limits], {"type": "number", "minimum": -bound, "maximum": bound}
