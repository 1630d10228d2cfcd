"""The MLflow registry: resolves a reference to a version and downloads its artifacts.

MLflow's client blocks, so that its calls are made in threads of their own, with short timeouts; it takes
seconds to import, so that this happens in such a thread too. MLflow's errors end here.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from serving.errors import ReferenceNotFound, RegistryUnavailable
from serving.reference import Reference, ReferenceKind
from serving.registry import artifact_files, blocking_calls, bounded_http
from serving.registry.artifact_policy import local_folder
from serving.registry.downloads import Downloads
from serving.registry.live_tag import contested
from serving.registry.mlflow_entities import as_version, translated, underlying
from serving.settings.groups import RegistrySettings
from serving.telemetry.redaction import redact
from serving.version import Version

T = TypeVar("T")

# By default MLflow blocks for minutes on a registry that is away; who asks here tries again anyway.
_DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}
_DEFAULTS["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
WEBHOOK_EVENTS = ["model_version.created", "model_version_tag.set", "model_version_tag.deleted"]
WEBHOOK_EVENTS += ["model_version_alias.created", "model_version_alias.deleted"]
_CURSOR_SIZE = 5
_CALLS_AT_ONCE = 4
_THREAD = "registry"
_MAX_CALL_SECONDS = 20.0
_MAX_FIRST_CALL_SECONDS = 120.0
"""The first call imports MLflow."""
RegistryCursor: TypeAlias = tuple[tuple[str, str, int], ...]
News: TypeAlias = Callable[[Mapping[str, str]], Mapping[str, str | None]]
"""What is to be written over the tags that are there; None deletes a tag."""


class RegistryClient:
    """Asks the registry that the settings name.

    `reachable` tells of the last look, None before the first; `checked_at` when a look last succeeded;
    `failures` how many did not; `waited` how many seconds it took; `contested` which references several
    versions of a model carried in `serving.live`, at the last look at all of them.
    """

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings
        self._places = asyncio.Semaphore(_CALLS_AT_ONCE)
        self._downloads = Downloads(settings)
        self._is_ready, self._is_closed = False, False
        self.reachable: bool | None = None
        self.checked_at: datetime | None = None
        self.failures, self.waited = 0, 0.0
        self.contested: dict[str, frozenset[str]] = {}
        self._marking: asyncio.Future[RegistryCursor] | None = None
        self._marked_at = 0.0

    @property
    def uri(self) -> str:
        """Where the registry is, without passwords."""
        uri = self._settings.registry_uri or self._settings.tracking_uri
        return redact(uri)

    async def resolve(self, reference: Reference) -> tuple[Version, tuple[Version, ...]]:
        """The version that the reference names now, and lower ones in the same stage, which are not served.

        Raises:
            Unresolved: it names none at present.
            RegistryUnavailable: the registry gave no sensible answer.
        """
        try:
            found = await self._look(self._resolve, reference)
        except RegistryUnavailable:
            self.reachable, self.failures = False, self.failures + 1
            raise
        except ReferenceNotFound:
            self._reached()
            raise
        self._reached()
        return found

    async def versions(self, name: str) -> tuple[Version, ...]:
        """Return all versions of a model, with their tags; raises RegistryUnavailable."""
        return await self._ask(self._listed, name)

    async def cursor(self, max_age: float) -> RegistryCursor:
        """What is another one as soon as a version is made, moved to another stage or deleted: a cheap look.

        It may be `max_age` seconds old: several followers share it. Aliases and tags leave it as it is.

        Raises:
            RegistryUnavailable: the registry gave no sensible answer.
        """
        now = asyncio.get_running_loop().time()
        if self._marking is None or now - self._marked_at > max_age:
            self._marked_at = now
            self._marking = asyncio.ensure_future(self._look(self._fetch_cursor))
        marker = await asyncio.shield(self._marking)
        self._reached()
        return marker

    async def aliases(self, version: Version) -> tuple[str, ...]:
        """The aliases that the version has now.

        Raises:
            RegistryUnavailable: the registry gave no sensible answer.
        """
        return await self._ask(self._aliases, version)

    async def complete(self, version: Version) -> Version:
        """The version with its aliases and the location of its artifacts, which take calls of their own."""
        return await self._ask(self._complete, version)

    async def download(self, version: Version, folder: Path, check: Callable[[Path], None]) -> Path:
        """Download the version's artifacts into the new `folder`; return where they lie.

        `check` refuses a source on this machine by its path without links.

        Raises:
            RegistryUnavailable: the artifact store gave no sensible answer, or none in time.
            Untrusted: they are too large, or something else than files.
        """
        with translated(f"the artifacts of {version}", may_be_missing=False):
            call = partial(self._download, version, folder, check)
            return await self._downloads.run(version.location, folder, call)

    async def write_tags(self, version: Version, news: News) -> None:
        """Write the tags that `news` gives for those which the version has now, in that order.

        Raises:
            RegistryUnavailable: the registry did not take them.
        """
        await self._ask(self._write_tags, version, news)

    async def log_metrics(
        self, run_id: str, model_id: str | None, metrics: Mapping[str, float], step: int, at: int
    ) -> None:
        """Have a run, and the model that it logged, carry these metrics, at a time in milliseconds.

        The very same points are kept once.

        Raises:
            Unresolved: there is no such run.
            RegistryUnavailable: the tracking server did not take them.
        """
        await self._ask(self._log_metrics, run_id, model_id, metrics, step, at)

    async def create_webhook(self, name: str, url: str, secret: str) -> str:
        """Have the registry send its events on versions and aliases to `url`; gives the webhook's id."""
        return await self._ask(self._create_webhook, name, url, secret)

    def close(self) -> None:
        """Make no further calls."""
        self._is_closed = True

    def _reached(self) -> None:
        self.reachable, self.checked_at = True, datetime.now(UTC)

    async def _look(self, call: Callable[..., T], *args: Any) -> T:
        return await self._ask(self._timed, call, *args)

    async def _ask(self, call: Callable[..., T], *args: Any) -> T:
        async with self._places:
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

    def _timed(self, call: Callable[..., T], *args: Any) -> T:
        began = time.monotonic()
        try:
            return call(*args)
        finally:
            if self.checked_at:  # the first look imports MLflow, for which the registry can do nothing
                self.waited = time.monotonic() - began

    @cached_property
    def _client(self) -> Any:
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        bounded_http.install(blocking_calls.thread_name(_THREAD))
        self._is_ready = True
        return MlflowClient(self._settings.tracking_uri, self._settings.registry_uri)

    def _resolve(self, reference: Reference) -> tuple[Version, tuple[Version, ...]]:
        with translated(str(reference)):
            if reference.kind is ReferenceKind.MODEL_ID:
                return self._logged_model(reference.selector), ()
            found, *rivals = self._found(reference)
            return as_version(found), tuple(map(as_version, rivals))

    def _found(self, reference: Reference) -> list[Any]:
        """What the reference names, the version that is served first."""
        client, name = self._client, reference.name
        if reference.kind is ReferenceKind.VERSION:
            return [client.get_model_version(name, reference.selector)]
        if reference.kind is ReferenceKind.ALIAS:
            return [client.get_model_version_by_alias(name, reference.selector)]
        versions = sorted(self._versions(name), key=lambda each: int(each.version), reverse=True)
        if not versions:
            raise ReferenceNotFound(f"the registry has no version of a model {name!r}")
        if reference.kind is ReferenceKind.LATEST:
            return [versions[0]]
        staged = [each for each in versions if each.current_stage == reference.selector]
        if not staged:
            raise ReferenceNotFound(f"no version of {name!r} is in stage {reference.selector}")
        return staged

    def _versions(self, name: str) -> list[Any]:
        quote = '"' if "'" in name else "'"
        found = list(self._client.search_model_versions(f"name={quote}{name}{quote}"))
        self.contested[name] = contested(each.tags for each in found if isinstance(each.tags, Mapping))
        return found

    def _listed(self, name: str) -> tuple[Version, ...]:
        with translated(f"the versions of {name!r}"):
            found, one = self._versions(name), self._client.get_model_version
            if not all(isinstance(each.tags, Mapping) for each in found):  # Unity Catalog's search has none
                found = [one(name, each.version) for each in found]
            return tuple(map(as_version, found))

    def _logged_model(self, model_id: str) -> Version:
        model = self._client.get_logged_model(model_id)
        return Version(
            name=model_id,
            version=None,
            source=f"models:/{model_id}",
            location=model.artifact_location,
            run_id=model.source_run_id,
            model_id=model_id,
            tags=dict(model.tags),
        )

    def _fetch_cursor(self) -> RegistryCursor:
        with translated("the versions that changed last"):
            order = ["last_updated_timestamp DESC", "name ASC", "version_number DESC"]
            found = self._client.search_model_versions(max_results=_CURSOR_SIZE, order_by=order)
            return tuple((each.name, each.version, each.last_updated_timestamp) for each in found)

    def _aliases(self, version: Version) -> tuple[str, ...]:
        if version.version is None:
            return ()
        with translated(str(version)):
            aliases = self._client.get_registered_model(version.name).aliases
        return tuple(sorted(alias for alias, of in aliases.items() if str(of) == version.version))

    def _complete(self, version: Version) -> Version:
        if version.version is None:
            return version
        with translated(str(version)):
            place = self._client.get_model_version_download_uri(version.name, version.version)
            location = underlying(self._client, str(place))
        return replace(version, aliases=self._aliases(version), location=location)

    def _write_tags(self, version: Version, news: News) -> None:
        with translated(str(version)):
            client, place = self._client, (version.name, version.version)
            for tag, value in news(client.get_model_version(*place).tags).items():
                if value is None:
                    client.delete_model_version_tag(*place, tag)
                else:
                    client.set_model_version_tag(*place, tag, value)

    def _log_metrics(
        self, run_id: str, model_id: str | None, metrics: Mapping[str, float], step: int, at: int
    ) -> None:
        with translated(f"run {run_id}"):
            from mlflow.entities import Metric

            points = [Metric(name, value, at, step, model_id) for name, value in metrics.items()]
            self._client.log_batch(run_id, points)

    def _create_webhook(self, name: str, url: str, secret: str) -> str:
        with translated("the webhook"):
            return str(self._client.create_webhook(name, url, WEBHOOK_EVENTS, secret=secret).webhook_id)

    def _download(self, version: Version, folder: Path, check: Callable[[Path], None]) -> Path:
        if source := local_folder(version.location):
            source = source.resolve(strict=True)
            check(source)
            return artifact_files.copy(source, folder, self._settings.max_model_bytes)
        from mlflow.artifacts import download_artifacts

        found = download_artifacts(
            artifact_uri=version.location,
            dst_path=str(folder),
            tracking_uri=self._settings.tracking_uri,
            registry_uri=self._settings.registry_uri,
        )
        artifact_files.check_files(folder.resolve(), self._settings.max_model_bytes)
        return Path(found)
