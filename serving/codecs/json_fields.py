"""Fields of JSON objects."""

from __future__ import annotations

import json
from typing import Any

from serving.errors import Malformed


def refuse_repeats(body: bytes, fields: int) -> None:
    """Refuse an object that names a field twice: two readers could read two things.

    Every name in JSON is followed by a colon, so that a body with just as many colons as `fields` that were
    read has no repeats; only one with others (in a text, a name, a datetime, a value nested in another or a
    repeated name) is parsed again here.

    Raises:
        Malformed: a field is named twice.
    """
    if body.count(b":") == fields:
        return

    def once(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) != len(pairs):
            raise Malformed("A field is named twice.")

    json.loads(body, object_pairs_hook=once)
