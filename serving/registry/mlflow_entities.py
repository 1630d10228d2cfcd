"""Converts MLflow's versions and tags to those of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from serving.errors import ReferenceNotFound
from serving.promotion_errors import UntrustedArtifact
from serving.registry.mlflow_errors import map_exceptions
from serving.version import Version

MAX_TAGS = 500
MAX_TAG_LENGTH = 10_000


def bounded(tags: Any) -> dict[str, str]:
    """Return the tags as printable text of bounded number and length."""
    items = [(name, value) for name, value in dict(tags).items() if isinstance(value, str)][:MAX_TAGS]
    return {printable(str(name)): printable(value) for name, value in items}


def printable(text: str) -> str:
    """Return the text of bounded length, with a space for every character that is not printable."""
    text = text[:MAX_TAG_LENGTH]
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def aliased(client: Any, name: str, alias: str) -> Any:
    """Return MLflow's version that has an alias.

    Raises:
        ReferenceNotFound: no version has it.
    """
    try:
        return client.get_model_version_by_alias(name, alias)
    except Exception as error:
        # MLflow reports a missing alias as an invalid parameter, like other mistakes.
        is_invalid = getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"
        if not is_invalid or alias in client.get_registered_model(name).aliases:
            raise
        reason = f"the model {name!r} has no alias {alias!r}"
        raise ReferenceNotFound(f"models:/{name}@{alias} names nothing in the registry ({reason})") from error


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


def logged_model(client: Any, model_id: str) -> Version:
    """Return a logged model as a version without a number."""
    model = client.get_logged_model(model_id)
    return Version(
        name=model_id,
        version=None,
        source=f"models:/{model_id}",
        location=model.artifact_location,
        run_id=model.source_run_id,
        model_id=model_id,
        tags=bounded(model.tags),
    )


def users_of(client: Any, version: Version) -> tuple[str, ...]:
    """Return the users who logged and created a version, as far as MLflow knows them.

    Raises:
        ReferenceNotFound: the version or its run does not exist.
        RegistryUnavailable: the registry did not respond, or not sensibly.
    """
    users = []
    with map_exceptions(f"the run of {version}"):
        if version.version is not None:
            users.append(client.get_model_version(version.name, version.version).user_id)
        if version.run_id:
            run = client.get_run(version.run_id)
            users += [run.data.tags.get("mlflow.user"), run.info.user_id]
    return tuple(dict.fromkeys(filter(None, users)))


def write_logged_model_tags(
    client: Any, model_id: str, change: Callable[[Mapping[str, str]], Mapping[str, str | None]]
) -> None:
    """Write the tags that `change` returns for the present tags of a logged model; None deletes a tag."""
    for tag, value in change(bounded(client.get_logged_model(model_id).tags)).items():
        if value is None:
            client.delete_logged_model_tag(model_id, tag)
        else:
            client.set_logged_model_tags(model_id, {tag: value})
