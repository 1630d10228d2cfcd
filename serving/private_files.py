"""Keeps the files of the service to its own user: what it records and downloads may be confidential."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from sqlalchemy.engine import make_url

from serving.settings.groups import JournalSettings, RegistrySettings

_FOR_OTHERS = 0o077


def set_umask() -> None:
    """Make new files and folders accessible to the user of this process alone; its children inherit that."""
    os.umask(_FOR_OTHERS)


def restrict(journal: JournalSettings, registry: RegistrySettings) -> None:
    """Take other users' access from the store and the journal's file; earlier releases gave it."""
    paths = [registry.store_dir]
    url = make_url(journal.journal_url.get_secret_value()) if journal.journal_url else None
    if url and url.get_backend_name() == "sqlite":
        paths += [Path(f"{url.database}{end}") for end in ("", "-wal", "-shm")]
    for path in paths:
        with suppress(OSError):  # it is not there yet, or belongs to another user
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & _FOR_OTHERS:
                path.chmod(mode & ~_FOR_OTHERS)
