"""Reject JSON objects with repeated field names."""

from __future__ import annotations

import json
from typing import Any

from serving.errors import Malformed


def refuse_repeats(body: bytes, fields: int) -> None:
    """Reject an object that names a field twice, because two parsers could read different values.

    In JSON, a colon follows each name. A body with as many colons as parsed `fields` therefore repeats no
    name. Only a body with further colons (in a string, a nested object or a repeated name) is parsed again.

    Raises:
        Malformed: a field is named twice.
    """
    if body.count(b":") == fields:
        return

    def once(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) != len(pairs):
            raise Malformed("A field is named twice.")

    json.loads(body, object_pairs_hook=once)
