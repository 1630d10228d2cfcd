"""Unity Catalog as the registry: what MLflow's client does differently there.

A search returns versions without their tags and aliases. Artifacts are downloaded with temporary credentials,
which only the repository of a `models:` URI requests. Databricks allows no dots in the names of tags; the
client of open-source Unity Catalog has no tags at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serving.errors import RegistryRejected
from serving.registry import live_tag
from serving.settings.unity_catalog import Catalog
from serving.version import Version

_PREFIX = "serving."
_RENAMED = {
    name.replace(".", "_"): name
    for name in ("serving.canary.state", "serving.shadow.stats", "serving.allow_breaking")
}
"""Tags whose names with dots do not follow from the names without."""
_FILE_OF_VERSION = re.compile(r"models:/+([^/]+/\d+)/(.+)", re.ASCII)
_REJECTED = "INVALID_PARAMETER_VALUE"
MAX_TAG_LENGTH = 1000
"""Maximum length of a tag's value in Databricks; that of its name is 255."""
_MAX_VERSIONS_WITH_TAGS = 50
"""Each costs one call, as a search returns no tags."""


def has_tags(catalog: Catalog | None) -> bool:
    """Return whether MLflow's client can write tags of versions in this registry."""
    return catalog is not Catalog.OPEN_SOURCE


def is_complete(entity: Any) -> bool:
    """Return whether MLflow's version carries its tags; one from a search of Unity Catalog does not."""
    return isinstance(entity.tags, Mapping)


def relevant(entities: Sequence[Any], numbers: Sequence[str | None]) -> list[Any]:
    """Return the versions that changed last, and those with these numbers."""
    recent = sorted(entities, key=lambda v: (v.last_updated_timestamp or 0, int(v.version)), reverse=True)
    required = [v for v in recent[_MAX_VERSIONS_WITH_TAGS:] if str(v.version) in numbers]
    return recent[:_MAX_VERSIONS_WITH_TAGS] + required


def model_uri(version: Version) -> str:
    """Return the URI by which MLflow finds the artifacts of a version."""
    return f"models:/{version.name}/{version.version}"


def split_file_uri(uri: str) -> tuple[str, str] | None:
    """Return the URI of the version that contains a file, and the path of the file; None for other URIs."""
    match = _FILE_OF_VERSION.fullmatch(uri)
    return (f"models:/{match[1]}", match[2]) if match else None


def dotted_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags under the names that the service uses: `serving.state` for `serving_state`."""
    return {_dotted(name): value for name, value in tags.items()}


def _dotted(name: str) -> str:
    if not name.startswith("serving_"):
        return name
    return _RENAMED.get(name, _PREFIX + name.removeprefix("serving_"))


class TagNames:
    """Writes tags under names with dots, or with underscores where Databricks rejects dots.

    Attributes:
        max_length: the maximum length of a tag's value.
    """

    def __init__(self, catalog: Catalog | None) -> None:
        self._may_reject, self._has_dots = catalog is Catalog.DATABRICKS, True
        self.max_length = MAX_TAG_LENGTH if self._may_reject else live_tag.MAX_LENGTH

    def write(self, tag: str, value: str, write: Callable[[str, str], None]) -> None:
        """Call `write` with the name and value of a tag, as the registry accepts them.

        Raises:
            RegistryRejected: the value is too long. A part of it would be invalid JSON.
        """
        if self._may_reject and len(value) > MAX_TAG_LENGTH:
            length = f"it has {len(value)} characters, and Databricks accepts {MAX_TAG_LENGTH}"
            raise RegistryRejected(f"the tag {tag} cannot be written: {length}")
        if self._has_dots:
            try:
                write(tag, value)
                return
            except Exception as error:
                if not self._may_reject or getattr(error, "error_code", None) != _REJECTED:
                    raise
        write(tag.replace(".", "_"), value)
        self._has_dots = False

    def stored(self, tag: str, present: Mapping[str, str]) -> str:
        """Return the name under which a tag is stored, given the present tags of the version."""
        return tag if tag in present else tag.replace(".", "_")
