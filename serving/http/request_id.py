"""The id of a request: the caller's own where it is fit for a log, or a new one."""

from __future__ import annotations

import itertools
import os
import re

from starlette.types import Scope

_PROCESS, _COUNTER = os.urandom(8).hex(), itertools.count()
_FIT = re.compile(r"[!-~]{1,128}")


def request_id(scope: Scope) -> str:
    """The request's id."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _FIT.fullmatch(given := value.decode("latin-1")):
            return str(given)
    return new_id()


def new_id() -> str:
    """An id that no other request has."""
    return f"{_PROCESS}{next(_COUNTER):016x}"
