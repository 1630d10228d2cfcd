"""Whether clients of one contract can go on as clients of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from serving.contract.contract import Contract
from serving.types.columns import Column

# A value of the first type is taken where the second is asked for, whatever it is.
_WIDENED = {
    ("integer", "long"),
    ("integer", "double"),
    ("long", "double"),
    ("float", "double"),
}


def breaking_changes(old: Contract, new: Contract) -> list[str]:
    """What makes requests that `old` takes fail on `new`, or its answers read otherwise; a sentence each."""
    return [*input_changes(old, new), *_outputs(old, new)]


def input_changes(old: Contract, new: Contract) -> list[str]:
    """What makes requests that `old` takes fail on `new`; a sentence each."""
    return [
        *_inputs(old, new),
        *_params(old, new),
        *(["it does not stream its answers any more"] if old.streams and not new.streams else []),
    ]


def _inputs(old: Contract, new: Contract) -> Iterator[str]:
    before = {column.name: column for column in old.columns}
    after = {column.name: column for column in new.columns}
    for name in before.keys() - after.keys():
        yield f"input {name!r} is gone"
    for name, column in after.items():
        if name in before:
            yield from _column(before[name], column)
        elif column.required:
            yield f"input {name!r} is new and required"


def _column(old: Column, new: Column) -> Iterator[str]:
    if old.type != new.type and (old.type, new.type) not in _WIDENED:
        yield f"input {old.name!r} changes from {old.kind.told} to {new.kind.told}"
        return
    if new.required and not old.required:
        yield f"input {old.name!r} was optional and is required"
    before, after = dict(old.constraints), dict(new.constraints)
    for bound in _tightened_bounds(before, after):
        yield f"input {old.name!r} takes less: {bound}"


def _tightened_bounds(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    if _lower(new) > _lower(old):
        yield _change("minimum", old, new)
    if _upper(new) < _upper(old):
        yield _change("maximum", old, new)
    if new.get("minLength", 0) > old.get("minLength", 0):
        yield _change("minLength", old, new)
    if new.get("maxLength", float("inf")) < old.get("maxLength", float("inf")):
        yield _change("maxLength", old, new)
    for word in ("pattern", "multipleOf"):  # whether one implies the other is not decided here
        if word in new and new[word] != old.get(word):
            yield _change(word, old, new)
    if "enum" in new and not ("enum" in old and set(old["enum"]) <= set(new["enum"])):
        yield _change("enum", old, new)


def _lower(facets: Mapping[str, Any]) -> tuple[float, bool]:
    """The lower bound, and whether it is excluded itself: the larger, the narrower."""
    bounds = [(-float("inf"), False)]
    if "minimum" in facets:
        bounds.append((facets["minimum"], False))
    if "exclusiveMinimum" in facets:
        bounds.append((facets["exclusiveMinimum"], True))
    return max(bounds)


def _upper(facets: Mapping[str, Any]) -> tuple[float, bool]:
    """The upper bound, and whether it is included itself: the smaller, the narrower."""
    bounds = [(float("inf"), True)]
    if "maximum" in facets:
        bounds.append((facets["maximum"], True))
    if "exclusiveMaximum" in facets:
        bounds.append((facets["exclusiveMaximum"], False))
    return min(bounds)


def _change(word: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    exclusive = f"exclusive{word[:1].upper()}{word[1:]}"

    def told(facets: Mapping[str, Any]) -> str:
        return str(facets.get(word, facets.get(exclusive, "none")))

    return f"{word} {told(old)} becomes {told(new)}"


def _params(old: Contract, new: Contract) -> Iterator[str]:
    after = {param.name: param for param in new.params}
    for param in old.params:
        found = after.get(param.name)
        if found is None:
            yield f"parameter {param.name!r} is gone"
        elif (found.type, found.is_list) != (param.type, param.is_list):
            yield f"parameter {param.name!r} changes its type"


def _outputs(old: Contract, new: Contract) -> Iterator[str]:
    if old.outputs != new.outputs:
        yield f"the answer changes from {old.outputs.description} to {new.outputs.description}"
