"""Restricts the files of the service to its own user, because records and models may be confidential."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from serving.settings.groups import RegistrySettings
from serving.settings.journal import JournalSettings

_OTHERS_ACCESS = 0o077


def set_umask() -> None:
    """Make new files and folders accessible only to the user of this process; children inherit the umask."""
    os.umask(_OTHERS_ACCESS)


def restrict(journal: JournalSettings, registry: RegistrySettings) -> None:
    """Remove other users' access to the store and the journal's file, which earlier releases allowed."""
    from sqlalchemy.engine import make_url  # heavy, and the commands need only the umask

    paths = [registry.store_dir]
    url = make_url(journal.journal_url.get_secret_value()) if journal.journal_url else None
    if url and url.get_backend_name() == "sqlite":
        paths += [Path(f"{url.database}{end}") for end in ("", "-wal", "-shm")]
    for path in paths:
        with suppress(OSError):  # it does not exist yet, or belongs to another user
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & _OTHERS_ACCESS:
                path.chmod(mode & ~_OTHERS_ACCESS)
