"""Lists the changes between two contracts that break clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from serving.contract.contract import Contract
from serving.types.columns import Column

# All values of the first type are valid for the second.
_WIDENED = {
    ("integer", "long"),
    ("integer", "double"),
    ("long", "double"),
    ("float", "double"),
}


def breaking_changes(old: Contract, new: Contract) -> list[str]:
    """Return a sentence per change that makes requests valid for `old` fail, or changes the output."""
    return [*input_changes(old, new), *_outputs(old, new)]


def input_changes(old: Contract, new: Contract) -> list[str]:
    """Return a sentence per change that makes requests valid for `old` fail on `new`."""
    return [
        *_inputs(old, new),
        *_params(old, new),
        *(["it no longer streams its output"] if old.streams and not new.streams else []),
    ]


def _inputs(old: Contract, new: Contract) -> Iterator[str]:
    before = {column.name: column for column in old.columns}
    after = {column.name: column for column in new.columns}
    for name in before.keys() - after.keys():
        yield f"input {name!r} was removed"
    for name, column in after.items():
        if name in before:
            yield from _column(before[name], column)
        elif column.required:
            yield f"input {name!r} is new and required"


def _column(old: Column, new: Column) -> Iterator[str]:
    if old.type != new.type and (old.type, new.type) not in _WIDENED:
        yield f"input {old.name!r} changed from {old.kind.name} to {new.kind.name}"
        return
    if new.required and not old.required:
        yield f"input {old.name!r} was optional and is now required"
    before, after = dict(old.constraints), dict(new.constraints)
    for bound in _tightened_bounds(before, after):
        yield f"input {old.name!r} accepts fewer values: {bound}"


def _tightened_bounds(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    if _lower(new) > _lower(old):
        yield _change("minimum", old, new)
    if _upper(new) < _upper(old):
        yield _change("maximum", old, new)
    if new.get("minLength", 0) > old.get("minLength", 0):
        yield _change("minLength", old, new)
    if new.get("maxLength", float("inf")) < old.get("maxLength", float("inf")):
        yield _change("maxLength", old, new)
    for keyword in ("pattern", "multipleOf"):  # any change counts: implications are not evaluated
        if keyword in new and new[keyword] != old.get(keyword):
            yield _change(keyword, old, new)
    if "enum" in new and not ("enum" in old and set(old["enum"]) <= set(new["enum"])):
        yield _change("enum", old, new)


def _lower(constraints: Mapping[str, Any]) -> tuple[float, bool]:
    """Return the lower bound and whether it is exclusive. A larger tuple allows fewer values."""
    bounds = [(-float("inf"), False)]
    if "minimum" in constraints:
        bounds.append((constraints["minimum"], False))
    if "exclusiveMinimum" in constraints:
        bounds.append((constraints["exclusiveMinimum"], True))
    return max(bounds)


def _upper(constraints: Mapping[str, Any]) -> tuple[float, bool]:
    """Return the upper bound and whether it is inclusive. A smaller tuple allows fewer values."""
    bounds = [(float("inf"), True)]
    if "maximum" in constraints:
        bounds.append((constraints["maximum"], True))
    if "exclusiveMaximum" in constraints:
        bounds.append((constraints["exclusiveMaximum"], False))
    return min(bounds)


def _change(keyword: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    exclusive = f"exclusive{keyword[:1].upper()}{keyword[1:]}"
    before, after = (side.get(keyword, side.get(exclusive, "none")) for side in (old, new))
    return f"{keyword} {before} becomes {after}"


def _params(old: Contract, new: Contract) -> Iterator[str]:
    after = {param.name: param for param in new.params}
    for param in old.params:
        new_param = after.get(param.name)
        if new_param is None:
            yield f"parameter {param.name!r} was removed"
        elif (new_param.type, new_param.is_list) != (param.type, param.is_list):
            yield f"parameter {param.name!r} changed its type"


def _outputs(old: Contract, new: Contract) -> Iterator[str]:
    if old.outputs != new.outputs:
        yield f"the output changed from {old.outputs.description} to {new.outputs.description}"
