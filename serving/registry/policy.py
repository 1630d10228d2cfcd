"""What is let in: where a version's artifacts may come from, and what they may be, before any is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from serving.errors import Untrusted
from serving.groups import Trust
from serving.runtime.version import Version

# In strict mode: the flavors whose files hold data alone, and what those files are called.
_LOADERS = {f"mlflow.{name}": name for name in ("sklearn", "xgboost", "lightgbm", "catboost", "onnx")}
_DATA = {".cbm", ".csv", ".json", ".lgb", ".md", ".onnx", ".parquet", ".skops", ".txt", ".ubj", ".xgb"}
_DATA |= {".yaml", ".yml", ""}
_NAMES_WITHOUT_SUFFIX = {"MLmodel"}
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_LOCAL_HOSTS = ("", "localhost", "127.0.0.1", "[::1]")
_PATHS = {"artifact_path", "code", "conda", "data", "model_data", "model_path", "path", "pickled_model"}
_PATHS |= {"python_model", "serving_input_path", "virtualenv"}


class Policy:
    """The operator's rules."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust

    def check_source(self, version: Version) -> None:
        """Refuse a version whose artifacts come from elsewhere than the operator allows.

        Raises:
            Untrusted: they do.
        """
        allowed = self._trust.allowed_sources
        if allowed and not any(is_below(version.location, each) for each in allowed):
            raise self._elsewhere(version.location)
        if folder := local_folder(version.location):
            self.check_folder(folder.resolve())

    def check_folder(self, folder: Path) -> None:
        """Refuse a folder on this machine, by its path without links, that is not below an allowed one.

        Raises:
            Untrusted: it is not.
        """
        allowed = self._trust.allowed_sources
        roots = [root.resolve() for each in allowed if (root := local_folder(each))]
        if allowed and not any(folder.is_relative_to(root) for root in roots):
            raise self._elsewhere(str(folder))

    def _elsewhere(self, location: str) -> Untrusted:
        return Untrusted(
            f"its artifacts come from {without_query(location)[:500]}, which is none of "
            f"SERVING_ALLOWED_SOURCES ({', '.join(self._trust.allowed_sources)})"
        )

    def check_model(self, folder: Path, described: Mapping[str, Any]) -> None:
        """Refuse a downloaded version that leads out of its folder, or in strict mode is more than data.

        Raises:
            Untrusted: it does, or is.
        """
        named = (described.get("flavors"), described.get("saved_input_example_info"))
        for key, path in (found for each in named for found in _paths(each)):
            if path.startswith(("/", "\\")) or ".." in PurePosixPath(path.replace("\\", "/")).parts:
                raise Untrusted(f"its MLmodel file names a {key} outside its folder")
        if self._trust.strict:
            _check_strictly(folder, described, self._trust.trusted_types)


def is_below(location: str, allowed: str) -> bool:
    """Whether a URI or path is an allowed one, or below it."""
    found, wanted = _parts(location), _parts(allowed)
    return ".." not in found and found[: len(wanted)] == wanted


def _parts(location: str) -> tuple[str, ...]:
    at = urlsplit(location)
    folder = local_folder(location)
    path = unquote(unquote(at.path if folder is None else str(folder)))
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    return ("", "", *parts) if folder else (at.scheme.lower(), at.netloc.lower(), *parts)


def without_query(location: str) -> str:
    """A location as it may be told: what comes behind `?` may be a signature."""
    return location.partition("?")[0]


def local_folder(location: str) -> Path | None:
    """Return the folder on this machine that a path or file URL names, as MLflow reads it; None for others.

    Raises:
        Untrusted: it is a file URL of another machine.
    """
    if not _SCHEME.match(location):
        return Path(unquote(location))
    at = urlsplit(location)
    if at.scheme.lower() != "file":
        return None
    if at.netloc.lower() not in _LOCAL_HOSTS:
        raise Untrusted(f"its artifacts are at a file URL of another machine, {at.netloc[:100]!r}")
    return Path(unquote(at.path))


def _paths(described: Any) -> Iterator[tuple[str, str]]:
    if isinstance(described, Mapping):
        for key, value in described.items():
            if key in _PATHS and isinstance(value, str):
                yield key, value
            else:
                yield from _paths(value)
    elif isinstance(described, list):
        for each in described:
            yield from _paths(each)


# -- strictly


def _check_strictly(folder: Path, described: Mapping[str, Any], trusted: Sequence[str]) -> None:
    flavors = described.get("flavors")
    python = flavors.get("python_function") if isinstance(flavors, Mapping) else None
    if not isinstance(flavors, Mapping) or not isinstance(python, Mapping):
        raise Untrusted("its MLmodel file names no flavor that strict mode knows")
    name = _LOADERS.get(str(python.get("loader_module")))
    flavor = flavors.get(name) if name else None
    if not isinstance(flavor, Mapping):
        raise Untrusted(
            f"it is loaded by {python.get('loader_module')}, which may run code that comes with it: strict "
            f"mode lets in {', '.join(_LOADERS.values())}"
        )
    if python.get("code") or flavor.get("code"):
        raise Untrusted("it brings code along, which strict mode does not let in")
    own_class = str(flavor.get("model_class", f"{name}."))
    if not own_class.startswith(f"{name}."):
        raise Untrusted(f"it names {own_class[:100]} as its class, which is not of {name}")
    form = flavor.get("serialization_format", "pickle" if name == "sklearn" else "skops")
    if form != "skops":
        raise Untrusted(f"it is serialized by {form}, which strict mode does not let in: log it with skops")
    if unknown := sorted({*map(str, flavor.get("skops_trusted_types") or ())} - {*trusted}):
        raise Untrusted(f"it needs types that are not in SERVING_TRUSTED_TYPES: {', '.join(unknown)[:500]}")
    for path in folder.rglob("*"):
        if path.is_file() and not _is_data(path):
            raise Untrusted(f"{path.relative_to(folder)} among its artifacts may hold code")


def _is_data(path: Path) -> bool:
    if path.suffix not in _DATA or (not path.suffix and path.name not in _NAMES_WITHOUT_SUFFIX):
        return False
    with path.open("rb") as file:
        start = file.read(2)
    return not (start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05"))
