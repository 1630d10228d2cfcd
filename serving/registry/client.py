"""Client of the MLflow registry: resolves references, downloads artifacts and writes tags.

MLflow's client blocks, so every call runs in a thread of its own, with a short timeout. Its import takes
seconds, so it runs in such a thread too. MLflow's errors are mapped to this package's errors.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from serving.errors import ReferenceNotFound, RegistryUnavailable
from serving.reference import Reference, ReferenceKind
from serving.registry import (
    blocking_calls,
    mlflow_client,
    mlflow_entities,
    unity_catalog,
    version_search,
    webhooks,
)
from serving.registry.download_limits import Downloads
from serving.registry.live_tag import contested
from serving.registry.mlflow_errors import map_exceptions
from serving.settings.groups import RegistrySettings
from serving.settings.unity_catalog import Catalog
from serving.telemetry.redaction import redact
from serving.version import Version

T = TypeVar("T")

_CURSOR_SIZE = 5
_MAX_CONCURRENT_CALLS = 4
_THREAD = "registry"
_MAX_CALL_SECONDS = 20.0
_MAX_FIRST_CALL_SECONDS = 120.0
"""The first call imports MLflow."""
RegistryCursor: TypeAlias = tuple[tuple[str, str, int], ...]
TagChange: TypeAlias = Callable[[Mapping[str, str]], Mapping[str, str | None]]
"""Returns the tags to write, given those that are present; None deletes a tag."""


class RegistryClient:
    """Calls the registry that the settings name.

    Attributes:
        reachable: whether the last poll succeeded; None before the first one.
        state: "reachable", or the kind of the last poll's failure; None before the first poll.
        checked_at: the time of the last poll that succeeded.
        failures: the number of polls that failed.
        last_latency: the duration of the last poll in seconds.
        has_tags: whether tags of versions can be written in this registry.
        max_tag_length: the maximum length of a tag's value.
        contested: by model, the references that several versions carried in `serving.live`, when all of them
            were read last.
    """

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings, self._catalog = settings, settings.catalog
        self.has_tags = unity_catalog.has_tags(settings.catalog)
        self._tag_names = unity_catalog.TagNames(settings.catalog)
        self.max_tag_length = self._tag_names.max_length
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT_CALLS)
        self._downloads = Downloads(settings)
        self._is_ready, self._is_closed = False, False
        self.reachable: bool | None = None
        self.state: str | None = None
        self.checked_at: datetime | None = None
        self.failures, self.last_latency = 0, 0.0
        self.contested: dict[str, frozenset[str]] = {}
        self._cursor: asyncio.Future[RegistryCursor] | None = None
        self._cursor_at = 0.0

    @property
    def uri(self) -> str:
        """Return the URI of the registry, without passwords."""
        uri = self._settings.registry_uri or self._settings.tracking_uri
        return redact(uri)

    async def resolve(self, reference: Reference) -> tuple[Version, tuple[Version, ...]]:
        """Return the version that the reference names now, and the lower ones in its stage.

        Raises:
            ReferenceNotFound: it names no version at present.
            RegistryUnavailable: the registry did not respond, or not sensibly.
        """
        try:
            versions = await self._timed_call(self._resolve, reference)
        except RegistryUnavailable as error:
            self.reachable, self.state, self.failures = False, error.state, self.failures + 1
            raise
        except ReferenceNotFound:
            self._record_success()
            raise
        self._record_success()
        return versions

    async def versions(self, name: str, *numbers: str | None) -> tuple[Version, ...]:
        """Return all versions of a model, with their tags; raises RegistryUnavailable.

        In Unity Catalog they are the versions that changed last, and those with these `numbers`.
        """
        return await self._call(self._list_versions, name, numbers)

    async def cursor(self, max_age: float) -> RegistryCursor:
        """Return a cursor that changes when a version is created, moved to another stage or deleted.

        It is one cheap query, shared by several followers, and may be `max_age` seconds old. Changes of
        aliases and tags do not change it.

        Raises:
            RegistryUnavailable: the registry did not respond, or not sensibly.
        """
        now = asyncio.get_running_loop().time()
        if self._cursor is None or now - self._cursor_at > max_age:
            self._cursor_at = now
            self._cursor = asyncio.ensure_future(self._timed_call(self._fetch_cursor))
        cursor = await asyncio.shield(self._cursor)
        self._record_success()
        return cursor

    async def aliases(self, version: Version) -> tuple[str, ...]:
        """Return the aliases that the version has now.

        Raises:
            RegistryUnavailable: the registry did not respond, or not sensibly.
        """
        return await self._call(self._aliases, version)

    async def complete(self, version: Version) -> Version:
        """Return the version with its aliases and the location of its artifacts, which cost extra calls."""
        return await self._call(self._complete, version)

    async def download(self, version: Version, folder: Path, check: Callable[[Path], None]) -> Path:
        """Download the version's artifacts into the new `folder`; return their path.

        `check` raises if a source on this machine, given by its path without links, is not allowed.

        Raises:
            RegistryUnavailable: the artifact store did not respond sensibly, or not in time.
            UntrustedArtifact: they are too large, or contain anything but files and folders.
        """
        subject = f"the artifacts of {version}"
        with map_exceptions(subject, may_be_missing=False, download=folder):
            call = partial(mlflow_client.download, version, folder, check, self._settings)
            return await self._downloads.run(version.location, folder, call, subject)

    async def download_file(self, subject: str, uri: str, location: str, folder: Path) -> Path:
        """Download a file into `folder`, unless it is on this machine; return its path.

        `location` is where the URI leads. Errors name the subject; raises RegistryUnavailable.
        """
        with map_exceptions(subject, may_be_missing=False, download=folder):
            call = partial(mlflow_client.download_file, uri, location, folder, self._settings)
            return await self._downloads.run(location, folder, call, subject)

    async def write_tags(self, version: Version, change: TagChange) -> None:
        """Write the tags that `change` returns for the version's present tags, in that order.

        Raises:
            ReferenceNotFound: the version does not exist.
            RegistryUnavailable: the registry did not accept them.
        """
        await self._call(self._write_tags, version, change)

    async def model_tags(self, name: str) -> Mapping[str, str]:
        """Return the tags of a registered model; raises RegistryError."""
        model = await self.use_client(f"the model {name!r}", lambda client: client.get_registered_model(name))
        return self._tags(mlflow_entities.bounded(model.tags))

    async def run(self, call: Callable[[Any], T]) -> T:
        """Return the result of a function of MLflow's client, which runs in a registry thread.

        Raises:
            RegistryUnavailable: the registry did not respond in time; and what `call` raises.
        """
        return await self._call(lambda: call(self._client))

    async def use_client(self, subject: str, call: Callable[[Any], T]) -> T:
        """Return the result of a function of MLflow's client, as `run`, with errors that name the subject.

        Raises:
            ReferenceNotFound: MLflow does not know what it names.
            RegistryUnavailable: it failed, or took too long.
        """

        def use(client: Any) -> T:
            with map_exceptions(subject):
                return call(client)

        return await self.run(use)

    async def create_webhook(self, name: str, url: str, secret: str) -> str:
        """Create a webhook that sends events on versions and aliases to `url`; return its id.

        Raises:
            RegistryUnavailable: the registry did not accept it, or has no webhooks.
        """
        return await self.run(lambda client: webhooks.create(client, name, url, secret))

    async def check_webhooks(self) -> None:
        """Check that the registry has webhooks; raises WebhooksUnsupported if not."""
        await self.run(webhooks.check)

    def close(self) -> None:
        """Make no further calls."""
        self._is_closed = True

    def _record_success(self) -> None:
        self.reachable, self.state, self.checked_at = True, "reachable", datetime.now(UTC)

    async def _timed_call(self, call: Callable[..., T], *args: Any) -> T:
        return await self._call(self._time, call, *args)

    async def _call(self, call: Callable[..., T], *args: Any) -> T:
        async with self._slots:
            if self._is_closed:
                raise RegistryUnavailable("the service is stopping")
            seconds = _MAX_CALL_SECONDS if self._is_ready else _MAX_FIRST_CALL_SECONDS
            try:
                async with asyncio.timeout(seconds):
                    return await blocking_calls.start(call, *args, name=_THREAD)
            except TimeoutError:
                raise RegistryUnavailable(
                    f"no complete response from the registry in {seconds:g} s"
                ) from None
            except blocking_calls.TooManyHang as error:
                raise RegistryUnavailable(str(error)) from error

    # -- in the registry's threads

    def _time(self, call: Callable[..., T], *args: Any) -> T:
        started = time.monotonic()
        try:
            return call(*args)
        finally:
            if self.checked_at:  # the first poll also imports MLflow, which is no latency of the registry
                self.last_latency = time.monotonic() - started

    @cached_property
    def _client(self) -> Any:
        client = mlflow_client.create(blocking_calls.thread_name(_THREAD), self._settings)
        self._is_ready = True
        return client

    def _resolve(self, reference: Reference) -> tuple[Version, tuple[Version, ...]]:
        with map_exceptions(str(reference)):
            if reference.kind is ReferenceKind.MODEL_ID:
                return mlflow_entities.logged_model(self._client, reference.selector), ()
            served, *rivals = version_search.named(self._client, reference, self._search_versions)
            return self._as_version(served), tuple(map(self._as_version, rivals))

    def _as_version(self, entity: Any) -> Version:
        """Return MLflow's version, with its tags and aliases."""
        if not unity_catalog.is_complete(entity):
            entity = self._client.get_model_version(entity.name, entity.version)
        version = mlflow_entities.as_version(entity)
        return replace(version, tags=self._tags(version.tags))

    def _tags(self, tags: Mapping[str, str]) -> Mapping[str, str]:
        return unity_catalog.dotted_tags(tags) if self._catalog else tags

    def _search_versions(self, name: str) -> list[Any]:
        versions = version_search.search(self._client, name)
        self.contested[name] = contested(v.tags for v in versions if isinstance(v.tags, Mapping))
        return versions

    def _list_versions(self, name: str, numbers: tuple[str | None, ...]) -> tuple[Version, ...]:
        with map_exceptions(f"the versions of {name!r}"):
            versions = self._search_versions(name)
            if self._catalog:
                versions = unity_catalog.relevant(versions, numbers)
            return tuple(map(self._as_version, versions))

    def _fetch_cursor(self) -> RegistryCursor:
        with map_exceptions("the versions that changed last"):
            order = ["last_updated_timestamp DESC", "name ASC", "version_number DESC"]
            versions = self._client.search_model_versions(max_results=_CURSOR_SIZE, order_by=order)
            return tuple((v.name, v.version, v.last_updated_timestamp) for v in versions)

    def _aliases(self, version: Version) -> tuple[str, ...]:
        if version.version is None:
            return ()
        with map_exceptions(str(version)):
            aliases = self._client.get_registered_model(version.name).aliases
        return tuple(sorted(alias for alias, number in aliases.items() if str(number) == version.version))

    def _complete(self, version: Version) -> Version:
        if version.version is None:
            return version
        with map_exceptions(str(version)):
            uri = self._client.get_model_version_download_uri(version.name, version.version)
            location = mlflow_entities.underlying(self._client, str(uri))
        if self._catalog is Catalog.DATABRICKS and "://" not in location:
            location = unity_catalog.model_uri(version)
        return replace(version, aliases=self._aliases(version), location=location)

    def _write_tags(self, version: Version, change: TagChange) -> None:
        with map_exceptions(str(version)):
            client, key = self._client, (version.name, version.version)
            if version.version is None:
                mlflow_entities.write_logged_model_tags(client, version.name, change)
                return
            entity = client.get_model_version(*key)
            for tag, value in change(self._tags(entity.tags)).items():
                if value is None:
                    client.delete_model_version_tag(*key, self._tag_names.stored(tag, entity.tags))
                else:
                    self._tag_names.write(tag, value, partial(client.set_model_version_tag, *key))
