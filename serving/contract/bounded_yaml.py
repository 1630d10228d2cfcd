"""Parses untrusted YAML and JSON to plain values, with limits on depth, aliases and lengths."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 64
MAX_NODES = 100_000
MAX_PLAIN_LENGTH = 100
"""Limit on the characters of a number or a date; PyYAML parses them in quadratic time."""

_TEXT_TAGS = ("!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:binary")


class Refused(Exception):
    """A file exceeds a limit or can't be parsed; the message states why."""


def parse_yaml(content: bytes) -> Any:
    """Return the content of a YAML file as JSON values.

    Constructs that two parsers could read differently are rejected, because the model process parses the file
    again.

    Raises:
        Refused: The file exceeds a limit or contains such a construct.
    """
    import yaml

    _scan(yaml, content)
    return _to_json(yaml.load(content, Loader=yaml.CSafeLoader))


class _OpenNode:
    """A sequence or mapping that contains the current event: its anchor, its nodes so far, and its keys."""

    __slots__ = ("anchor", "expects_key", "keys", "nodes")

    def __init__(self, anchor: str | None, keys: set[str] | None) -> None:
        self.anchor, self.keys = anchor, keys
        self.nodes, self.expects_key = 1, keys is not None


def _scan(yaml: Any, content: bytes) -> None:
    """Check the events of a YAML file, which libyaml produces without recursion."""
    resolver = yaml.resolver.Resolver()
    stack: list[_OpenNode] = []
    sizes: dict[str, int] = {}
    nodes = 0
    for event in yaml.parse(content, Loader=yaml.CSafeLoader):
        size, is_scalar = 1, isinstance(event, yaml.ScalarEvent)
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            closed = stack.pop()
            if closed.anchor:
                sizes[closed.anchor] = closed.nodes
            if stack:
                stack[-1].nodes += closed.nodes
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise Refused("an alias refers to no anchor before it")
            size = sizes[event.anchor]
        elif not isinstance(event, yaml.NodeEvent):
            continue
        _check_key(event, stack[-1] if stack else None, is_scalar)
        nodes += size
        if nodes > MAX_NODES:
            raise Refused(f"it has more than {MAX_NODES} values, aliases expanded")
        if event.__class__ is not yaml.AliasEvent and event.tag and event.tag not in _TEXT_TAGS:
            raise Refused(f"it has the tag {event.tag[:50]}, which is not supported")
        if is_scalar:
            _check_scalar(yaml, resolver, event)
            if event.anchor:
                sizes[event.anchor] = 1
        if stack and (is_scalar or isinstance(event, yaml.AliasEvent)):
            stack[-1].nodes += size
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            is_mapping = isinstance(event, yaml.MappingStartEvent)
            stack.append(_OpenNode(event.anchor, set() if is_mapping else None))
            if len(stack) > MAX_DEPTH:
                raise Refused(f"it is nested deeper than {MAX_DEPTH} levels")


def _check_key(event: Any, parent: _OpenNode | None, is_scalar: bool) -> None:
    if parent is None or parent.keys is None:
        return
    if parent.expects_key:
        if not is_scalar:
            raise Refused("a key of a mapping is not a single value")
        if event.value == "<<":
            raise Refused("it has a merge key (<<), which is not supported")
        if event.value in parent.keys:
            raise Refused(f"a mapping has the key {event.value[:50]!r} twice")
        parent.keys.add(event.value)
    parent.expects_key = not parent.expects_key


def _check_scalar(yaml: Any, resolver: Any, event: Any) -> None:
    if event.implicit[0] and len(event.value) > MAX_PLAIN_LENGTH:
        kind = resolver.resolve(yaml.ScalarNode, event.value, event.implicit)
        if kind != "tag:yaml.org,2002:str":
            raise Refused(f"it has a number or a date of more than {MAX_PLAIN_LENGTH} characters")


def _to_json(value: Any) -> Any:
    """Convert a YAML value to JSON values; `_scan` has limited its depth and size."""
    if isinstance(value, dict):
        return {_key(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _key(key: Any) -> str:
    if key is None or isinstance(key, (bool, int, float)):
        return json.dumps(key)
    return str(key)


def check_json(value: Any, max_nodes: int) -> None:
    """Check the depth and the number of values, level by level.

    Raises:
        Refused: A limit is exceeded.
    """
    level, nodes = [value], 0
    for _ in range(MAX_DEPTH):
        nodes += len(level)
        if nodes > max_nodes:
            raise Refused(f"it has more than {max_nodes} values")
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                below.extend(node.values())
            elif isinstance(node, list):
                below.extend(node)
            if nodes + len(below) > max_nodes:
                raise Refused(f"it has more than {max_nodes} values")
        if not below:
            return
        level = below
    raise Refused(f"it is nested deeper than {MAX_DEPTH} levels")
