"""MLflow's versions, tags and errors as those of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving.errors import ReferenceNotFound, RegistryUnavailable, ServingError, UntrustedArtifact
from serving.telemetry.redaction import redact
from serving.version import Version

MAX_TAGS = 500
MAX_TAG_LENGTH = 10_000
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def bounded(tags: Any) -> dict[str, str]:
    """Return the tags as printable text of bounded number and length."""
    found = [(name, value) for name, value in dict(tags).items() if isinstance(value, str)][:MAX_TAGS]
    return {_printable(str(name)): _printable(value) for name, value in found}


def _printable(text: str) -> str:
    text = text[:MAX_TAG_LENGTH]
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def underlying(client: Any, location: str) -> str:
    """Return the location of artifacts that is named by a run or a logged model, so that it can be checked.

    Raises:
        Untrusted: it is named by a registered model, whose meaning may change.
    """
    scheme, _, path = location.partition(":")
    if scheme.lower() == "runs":
        run, _, below = path.lstrip("/").partition("/")
        return f"{client.get_run(run).info.artifact_uri.rstrip('/')}/{below}"
    if scheme.lower() == "models":
        if not path.startswith("/m-"):
            raise UntrustedArtifact(f"its artifacts are named by another model, {location[:200]}")
        return str(client.get_logged_model(path[1:]).artifact_location)
    return location


@contextmanager
def translated(what: str, *, may_be_missing: bool = True) -> Iterator[None]:
    """Raise what MLflow and its libraries raise in the block as errors of this package."""
    try:
        yield
    except ServingError:
        raise
    except Exception as error:  # MLflow lets through what its libraries raise: HTTP, SQL, OS, JSON
        # MLflow tells the whole address of a server that is away.
        reason = redact(" ".join(str(error).partition("\n[SQL")[0].split()))[:300]
        if may_be_missing and getattr(error, "error_code", None) in _NOT_THERE:
            raise ReferenceNotFound(f"{what} names nothing in the registry ({reason})") from error
        raise RegistryUnavailable(f"{what}: {type(error).__name__}: {reason}") from error


def as_version(found: Any) -> Version:
    """Return a version as the registry describes it, with tags of bounded number and length."""
    source = str(found.source)
    return Version(
        name=found.name,
        version=str(int(found.version)),
        source=source,
        location=source,
        stage=None if found.current_stage in (None, "None") else found.current_stage,
        aliases=tuple(sorted(found.aliases)),
        run_id=found.run_id or None,
        model_id=source.removeprefix("models:/") if source.startswith("models:/m-") else None,
        tags=bounded(found.tags),
    )
