"""Restricts the files of the service to its own user, because records and models may be confidential."""

from __future__ import annotations

import os
import stat
import tempfile
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


def replace(file: Path, content: bytes) -> None:
    """Write a file, and keep its owner and mode; only its owner may read a new file. Raises OSError.

    A complete new file replaces the old one, so that readers never get a partial file. Only if the system
    does not let this user set the owner of the new file, the content is written into the old one.
    """
    file = file.resolve()  # replace the target of a link, not the link
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.stat() if file.exists() else None
    try:
        _replace(file, content, before)
    except PermissionError:
        if before is None:
            raise
        _overwrite(file, content)


def _replace(file: Path, content: bytes, before: os.stat_result | None) -> None:
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".new-", delete=False) as new:
        try:
            if before:
                created = os.fstat(new.fileno())
                if (before.st_uid, before.st_gid) != (created.st_uid, created.st_gid):
                    os.fchown(new.fileno(), before.st_uid, before.st_gid)
                os.fchmod(new.fileno(), stat.S_IMODE(before.st_mode))
            new.write(content)
            new.flush()
            os.fsync(new.fileno())
            os.replace(new.name, file)
        except BaseException:
            os.unlink(new.name)
            raise


def _overwrite(file: Path, content: bytes) -> None:
    with file.open("r+b") as opened:
        opened.write(content)
        opened.truncate()
        os.fsync(opened.fileno())
