"""Converts MLflow's versions, tags and errors to those of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving.errors import (
    ReferenceNotFound,
    RegistryDenied,
    RegistryUnavailable,
    ServingError,
    UntrustedArtifact,
)
from serving.telemetry.redaction import redact
from serving.version import Version

MAX_TAGS = 500
MAX_TAG_LENGTH = 10_000
_DENIED = ("PERMISSION_DENIED", "UNAUTHENTICATED")
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def bounded(tags: Any) -> dict[str, str]:
    """Return the tags as printable text of bounded number and length."""
    items = [(name, value) for name, value in dict(tags).items() if isinstance(value, str)][:MAX_TAGS]
    return {printable(str(name)): printable(value) for name, value in items}


def printable(text: str) -> str:
    """Return the text of bounded length, with a space for every character that is not printable."""
    text = text[:MAX_TAG_LENGTH]
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def underlying(client: Any, location: str) -> str:
    """Return the location to which a `runs:` or `models:` URI leads, so that the policy can check it.

    Raises:
        UntrustedArtifact: it leads to a registered model, which may change.
    """
    scheme, _, path = location.partition(":")
    if scheme.lower() == "runs":
        run, _, subpath = path.lstrip("/").partition("/")
        return f"{client.get_run(run).info.artifact_uri.rstrip('/')}/{subpath}"
    if scheme.lower() == "models":
        if not path.startswith("/m-"):
            raise UntrustedArtifact(f"its artifacts are named by another model, {location[:200]}")
        return str(client.get_logged_model(path[1:]).artifact_location)
    return location


@contextmanager
def map_exceptions(subject: str, *, may_be_missing: bool = True) -> Iterator[None]:
    """Map exceptions of MLflow and its libraries in the block to errors of this package."""
    try:
        yield
    except ServingError:
        raise
    except Exception as error:  # MLflow does not wrap those of its libraries: HTTP, SQL, OS, JSON
        # The messages contain the whole address of a server that is away, with its password.
        reason = redact(" ".join(str(error).partition("\n[SQL")[0].split()))[:300]
        if may_be_missing and getattr(error, "error_code", None) in _NOT_THERE:
            raise ReferenceNotFound(f"{subject} names nothing in the registry ({reason})") from error
        kind = RegistryDenied if getattr(error, "error_code", None) in _DENIED else RegistryUnavailable
        raise kind(f"{subject}: {type(error).__name__}: {reason}") from error


def as_version(entity: Any) -> Version:
    """Return MLflow's version as this package's, with tags of bounded number and length."""
    source = str(entity.source)
    return Version(
        name=entity.name,
        version=str(int(entity.version)),
        source=source,
        location=source,
        stage=None if entity.current_stage in (None, "None") else entity.current_stage,
        aliases=tuple(sorted(entity.aliases)),
        run_id=entity.run_id or None,
        model_id=source.removeprefix("models:/") if source.startswith("models:/m-") else None,
        tags=bounded(entity.tags),
    )
