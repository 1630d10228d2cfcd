"""The tensor type: a column with one array per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import pyarrow as pa

from serving.promotion_errors import UnsupportedSignature
from serving.types.constraints import ANNOTATIONS
from serving.types.scalars import FLOAT32_MAX, coerce_integral


@dataclass(frozen=True, slots=True)
class Tensor:
    """One array per row."""

    dtype: str
    shape: tuple[int, ...]
    """The shape of one array; -1 is a size that may differ between requests."""
    keywords = ANNOTATIONS
    nullable = False
    is_object = False

    @property
    def name(self) -> str:
        """Return the type of its elements and its shape, such as `float64[n, 3]`."""
        return f"{self.dtype}[{', '.join(str(size) if size >= 0 else 'n' for size in self.shape)}]"

    @property
    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of one value: nested arrays."""
        schema = element(self.dtype)[1]
        for size in reversed(self.shape):
            schema = {"type": "array", "items": schema}
            if size >= 0:
                schema |= {"minItems": size, "maxItems": size}
        return schema

    def json_schema(self, constraints: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON Schema of one value with annotations."""
        return self.schema | dict(constraints)

    def annotation(self, constraints: Mapping[str, Any]) -> Any:
        """Return the pydantic type of one value: nested lists that become an array of the exact dtype."""
        from pydantic import AfterValidator, Field

        nested: Any = element(self.dtype)[0]
        for size in reversed(self.shape):
            inner: Any = nested
            exact = Field(min_length=size, max_length=size) if size >= 0 else Field()
            nested = Annotated[list[inner], Field(strict=True), exact]
        return Annotated[nested, AfterValidator(self._to_array)]

    def array(self, values: Sequence[Any]) -> pa.Array:
        """Return arrays of one shape as an Arrow array of fixed-size lists.

        Raises:
            ValueError: The shapes differ.
        """
        stacked = np.stack([np.asarray(value, self._numpy) for value in values])
        return to_list_array(stacked, pa.large_string() if self.dtype == "object" else None)

    @property
    def _numpy(self) -> Any:
        return object if self.dtype in ("str", "object") else np.dtype(self.dtype)

    def _to_array(self, value: Any) -> np.ndarray[Any, Any]:
        try:
            array = np.array(value, self._numpy)
        except ValueError:  # nested lists of different lengths
            array = None
        if array is None or array.ndim != len(self.shape) or not array.size:
            raise ValueError(f"Input should be a regular array of {len(self.shape)} dimensions, not empty")
        return array


def from_list_array(values: pa.Array) -> np.ndarray[Any, Any]:
    """Return nested fixed-size lists as a numpy array with one dimension more."""
    shape = [len(values)]
    while pa.types.is_fixed_size_list(values.type):
        shape.append(values.type.list_size)
        values = values.flatten()
    flat: np.ndarray[Any, Any] = values.to_numpy(zero_copy_only=False)
    if pa.types.is_string(values.type):
        flat = flat.astype(str)
    return flat.reshape(shape)


def to_list_array(array: np.ndarray[Any, Any], type: pa.DataType | None = None) -> pa.Array:
    """Return a numpy array as nested fixed-size lists; its first dimension becomes the rows."""
    return fixed_size_list(pa.array(np.ascontiguousarray(array).reshape(-1), type), array.shape)


def fixed_size_list(flat: pa.Array, shape: Sequence[int]) -> pa.Array:
    """Return the elements of an array of this shape as nested fixed-size lists."""
    for size in reversed(shape[1:]):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat


def tensor(spec: Mapping[str, Any]) -> Tensor:
    """Return the tensor type for an entry of the signature.

    Raises:
        UnsupportedSignature: JSON cannot represent its elements, or it has no dimension for rows.
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
            f"is a tensor of shape {shape}, which has no dimension for rows: its first dimension must be -1"
        )
    return Tensor(dtype, shape[1:])


@lru_cache
def element(dtype: str) -> tuple[Any, dict[str, Any]]:
    """Return the pydantic type and the JSON Schema of a tensor's element.

    Raises:
        TypeError: JSON cannot represent the dtype.
    """
    from pydantic import BeforeValidator, Field

    if dtype in ("str", "object"):
        return Annotated[str, Field(strict=True)], {"type": "string"}
    numpy = np.dtype(dtype)
    if numpy.kind == "b":
        return Annotated[bool, Field(strict=True)], {"type": "boolean"}
    if numpy.kind in "iu":
        info = np.iinfo(numpy)
        low, high = int(info.min), int(info.max)
        schema = {"type": "integer", "minimum": low, "maximum": high}
        return Annotated[int, BeforeValidator(coerce_integral), Field(strict=True, ge=low, le=high)], schema
    if numpy.kind != "f" or numpy.itemsize > 8:
        raise TypeError(dtype)
    if numpy.itemsize == 8:
        return Annotated[float, Field(strict=True, allow_inf_nan=False)], {"type": "number"}
    bound = FLOAT32_MAX if numpy.itemsize == 4 else float(np.finfo(numpy).max)
    limits = Field(strict=True, allow_inf_nan=False, ge=-bound, le=bound)
    return Annotated[float, limits], {"type": "number", "minimum": -bound, "maximum": bound}
