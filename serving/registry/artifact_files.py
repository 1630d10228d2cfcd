"""Checks and copies artifact folders: only files and folders, of bounded number, depth and size."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.promotion_errors import UntrustedArtifact

MAX_FILES = 20_000
MAX_DEPTH = 50
_CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class Usage:
    """The number of files and folders in a folder, the size of the files in bytes, and their blocks."""

    entries: int = 0
    size: int = 0
    blocks: int = 0

    def plus(self, entry: os.stat_result) -> Usage:
        """Return the usage with one more file or folder."""
        if not stat.S_ISREG(entry.st_mode):
            return Usage(self.entries + 1, self.size, self.blocks)
        return Usage(self.entries + 1, self.size + entry.st_size, self.blocks + entry.st_blocks)

    def has_more_data(self, before: Usage) -> bool:
        """Return whether the files have grown; a file that is created in its final size grows by blocks."""
        return self.size > before.size or self.blocks > before.blocks


def check_files(folder: Path, max_bytes: int | None = None) -> Usage:
    """Check the content of a folder, and return its usage.

    Raises:
        UntrustedArtifact: it contains anything but folders and regular files, or too many or too large ones.
    """
    with _opened(folder) as handle:
        usages = [usage for _, _, usage in _entries(handle, max_bytes)]
    return usages[-1] if usages else Usage()


def copy(source: Path, target: Path, max_bytes: int | None = None) -> Path:
    """Copy a folder to a new one, without following a link, even one that is created meanwhile.

    Raises:
        UntrustedArtifact: it contains anything but folders and regular files, or too many or too large ones.
    """
    target.mkdir(parents=True)
    copied = 0
    with _opened(source) as handle:
        for path, folder, _ in _entries(handle, max_bytes):
            if folder is None:
                (target / path).mkdir()
                continue
            left = None if max_bytes is None else max_bytes - copied
            copied += _copy_file(folder, path, target / path, left)
            _check_size(copied, max_bytes)
    return target


def _copy_file(folder: int, path: str, target: Path, max_bytes: int | None) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(os.path.basename(path), flags, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_regular(path, "a link") from error
        raise
    with open(handle, "rb") as file, target.open("xb") as new:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise _not_regular(path, "no file")
        copied = 0
        while chunk := file.read(_CHUNK):
            copied += len(chunk)
            if max_bytes is not None and copied > max_bytes:
                break
            if not os.fstat(new.fileno()).st_nlink:
                raise FileNotFoundError(errno.ENOENT, "the copy was removed meanwhile", str(target))
            new.write(chunk)
        return copied


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """Open a folder whose path contains no link, part by part, so that no link can be inserted meanwhile."""
    parts = folder.absolute().parts
    handle = os.open(parts[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[1:]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            child = os.open(part, flags, dir_fd=handle)
            os.close(handle)
            handle = child
        yield handle
    finally:
        os.close(handle)


def _entries(handle: int, max_bytes: int | None) -> Iterator[tuple[str, int | None, Usage]]:
    """Yield the relative path of each folder and file, the open folder of a file, and the usage so far."""
    usage = Usage()
    for top, folders, files, folder in os.fwalk(".", dir_fd=handle, follow_symlinks=False):
        for name, is_folder in [*((name, True) for name in folders), *((name, False) for name in files)]:
            path = os.path.normpath(f"{top}/{name}")
            _check_name(name, path)
            entry = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not (stat.S_ISDIR(entry.st_mode) if is_folder else stat.S_ISREG(entry.st_mode)):
                raise _not_regular(path, "a link" if stat.S_ISLNK(entry.st_mode) else "no file")
            usage = usage.plus(entry)
            if usage.entries > MAX_FILES:
                raise UntrustedArtifact(f"its artifacts are more than {MAX_FILES} files and folders")
            _check_size(usage.size, max_bytes)
            yield path, None if is_folder else folder, usage


def _check_name(name: str, path: str) -> None:
    if not name.isprintable():  # this also covers names that are not UTF-8
        raise UntrustedArtifact(f"the name of one of its artifacts is not printable: {ascii(name)[:100]}")
    if path.count(os.sep) >= MAX_DEPTH:
        raise UntrustedArtifact(
            f"its artifacts are in folders that are nested deeper than {MAX_DEPTH} levels"
        )


def _check_size(size: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size > max_bytes:
        raise UntrustedArtifact(f"its artifacts are larger than SERVING_MAX_MODEL_BYTES ({max_bytes} bytes)")


def _not_regular(path: str, kind: str) -> UntrustedArtifact:
    return UntrustedArtifact(f"{path[:200]} among its artifacts is {kind}")
