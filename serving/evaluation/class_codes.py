"""Resolve labels and predicted classes, which are names, numbers or indices, as indices.

A value is a class if it has its name, or the same number: 1, 1.0 and True are one value. Otherwise it may be
the index of a class. Where both readings are possible, that of more values counts, for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import numpy as np
import pyarrow as pa
from pyarrow import compute, types

from serving.evaluation.intervals import Indices
from serving.evaluation.outcomes import UNKNOWN_PREDICTION, NotComputable

_MAX_NAMES = 5


@dataclass(frozen=True)
class Values:
    """A column of values.

    Args:
        texts: the distinct values; a whole number has no fraction, and a truth value is True or False.
        places: the index of each row's value in `texts`, or its length if the value is missing.
    """

    texts: Sequence[str]
    places: Indices

    def codes(self, codes: Sequence[int | None]) -> Indices:
        """Return the code of each row from those of the distinct values."""
        known = [UNKNOWN_PREDICTION if code is None else code for code in (*codes, None)]
        return np.array(known, np.intp)[self.places]


def values(array: pa.Array) -> Values:
    """Return the distinct values of a column, and which of them each row has.

    Raises:
        NotComputable: values of this type are no classes.
    """
    try:
        encoded = array if types.is_dictionary(array.type) else array.dictionary_encode()
        distinct = encoded.dictionary
        is_whole = types.is_floating(distinct.type) and compute.all(
            compute.equal(compute.floor(distinct), distinct), skip_nulls=True, min_count=0
        )
        if is_whole and is_whole.as_py():
            distinct = compute.cast(distinct, pa.int64())
        texts = compute.cast(distinct, pa.string()).to_pylist()
    except pa.ArrowException:
        raise NotComputable(f"values of type {array.type} are no classes") from None
    if types.is_boolean(distinct.type):
        texts = [text and text.capitalize() for text in texts]
    indices = compute.fill_null(encoded.indices, len(texts)).to_numpy(zero_copy_only=False)
    return Values([text or "" for text in texts], indices.astype(np.intp))


def number(text: str) -> Decimal | None:
    """Return the number that a text denotes, with 1 for true and 0 for false; None if it denotes none."""
    if text.lower() in ("true", "false"):
        return Decimal(text.lower() == "true")
    try:
        parsed = Decimal(text)
    except InvalidOperation:
        return None
    return parsed if parsed.is_finite() and "_" not in text else None


class ClassNames:
    """A list of classes that grows, and in which values are looked up.

    Args:
        names: the first classes.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._indices: dict[str, int] = {}
        self._numbers: dict[Decimal, int] = {}
        for name in names:
            self._append(name)

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def names(self) -> list[str]:
        """All classes."""
        return [*self._indices]

    @property
    def has_numbers(self) -> bool:
        """Whether the name of a class is a number."""
        return bool(self._numbers)

    def find(self, text: str) -> int | None:
        """Return the index of the class with this name, or with the same number; None if there is none."""
        index = self._indices.get(text)
        if index is None and self._numbers and (parsed := number(text)) is not None:
            return self._numbers.get(parsed)
        return index

    def add(self, text: str) -> int:
        """Return the index of a class, which is appended if it is absent."""
        index = self.find(text)
        return self._append(text) if index is None else index

    def _append(self, name: str) -> int:
        index = self._indices.setdefault(name, len(self._indices))
        if (parsed := number(name)) is not None:
            self._numbers.setdefault(parsed, index)
        return index


def resolve(
    texts: Sequence[str], classes: Sequence[str], *, prefer_ids: bool = False
) -> tuple[list[int | None], bool]:
    """Return the index of each value in `classes`, or None; and whether the values are indices.

    Args:
        texts: distinct values.
        classes: the names of the classes.
        prefer_ids: whether values that all can be indices are indices.
    """
    lookup = ClassNames(classes)
    named = [lookup.find(text) for text in texts]
    ids = [_index(text, len(classes)) for text in texts]
    found_ids, found_names = (sum(code is not None for code in codes) for codes in (ids, named))
    are_ids = found_ids > found_names or (prefer_ids and found_ids == len(texts))
    first, second = (ids, named) if are_ids else (named, ids)
    if lookup.has_numbers:  # a number could be both; mixing the readings would make one value two classes
        return first, are_ids
    return [other if code is None else code for code, other in zip(first, second, strict=True)], are_ids


def _index(text: str, count: int) -> int | None:
    parsed = number(text)
    return int(parsed) if parsed is not None and 0 <= parsed < count and parsed % 1 == 0 else None


def in_order(names: Iterable[str]) -> list[str]:
    """Return names in the order of their numbers, or else of their characters."""
    numbers = {name: number(name) for name in names}
    if None in numbers.values():
        return sorted(numbers)
    return sorted(numbers, key=lambda name: numbers[name] or 0)


def enumeration(names: Sequence[str]) -> str:
    """Return the first names as text."""
    return ", ".join([*names[:_MAX_NAMES], *(["…"] if len(names) > _MAX_NAMES else [])])
