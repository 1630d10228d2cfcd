"""Followers of many models detect a change by one query that they share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from serving.reference import Reference
from serving.registry.change_detector import ChangeDetector
from serving.registry.client import RegistryClient
from serving.settings.settings import Settings
from tests.support.registry import Registry

pytestmark = pytest.mark.anyio

PRODUCTION = Reference.parse("models:/iris/Production")
FRESH = 0.0


@pytest.fixture
def catalogue(registry: str) -> Registry:
    """Create a registry with two versions of iris and one of rose, without artifacts."""
    found = Registry(registry)
    for name in ("iris", "iris", "rose"):
        found.register(name, Path("/nowhere"))
    found.promote("iris", "1")
    return found


@pytest.fixture
def client(registry: str) -> Iterator[RegistryClient]:
    with closing(RegistryClient(Settings(tracking_uri=registry))) as opened:
        yield opened


async def test_poll_is_due_at_first_and_after_every_change(
    client: RegistryClient, catalogue: Registry
) -> None:
    detector = ChangeDetector(client, PRODUCTION, shared=True)
    changes = [
        lambda: None,
        lambda: catalogue.promote("iris", "2"),
        lambda: catalogue.promote("iris", "1"),
        lambda: catalogue.register("iris", Path("/nowhere")),
        lambda: catalogue.client.delete_model_version("iris", "3"),
        detector.reset,
    ]
    for change in changes:
        change()
        assert await detector.has_changed(FRESH)
        assert not await detector.has_changed(FRESH)


async def test_change_of_another_model_makes_no_poll_due(client: RegistryClient, catalogue: Registry) -> None:
    detector = ChangeDetector(client, PRODUCTION, shared=True)
    assert await detector.has_changed(FRESH)
    for _ in range(3):
        catalogue.promote("rose", catalogue.register("rose", Path("/nowhere")))
        assert not await detector.has_changed(FRESH)
    catalogue.promote("iris", "2")
    assert await detector.has_changed(FRESH)


async def test_more_changes_than_the_cursor_shows_affect_all(
    client: RegistryClient, catalogue: Registry
) -> None:
    detector = ChangeDetector(client, PRODUCTION, shared=True)
    assert await detector.has_changed(FRESH)
    catalogue.promote("iris", "2")
    for _ in range(5):
        catalogue.register("rose", Path("/nowhere"))
    assert await detector.has_changed(FRESH)


async def test_followers_share_one_query(client: RegistryClient, catalogue: Registry) -> None:
    glances = [ChangeDetector(client, PRODUCTION, shared=True) for _ in range(50)]
    asked, mark = [], client._fetch_cursor

    def counted() -> object:
        asked.append(1)
        return mark()

    client._fetch_cursor = counted  # type: ignore[method-assign, assignment]
    assert all([await detector.has_changed(120) for detector in glances])
    assert not any([await detector.has_changed(120) for detector in glances])
    assert len(asked) == 1
    assert client.reachable


@pytest.mark.parametrize("uri", ["models:/iris@champion", "models:/iris/1"])
async def test_aliases_and_versions_are_polled_every_time(
    client: RegistryClient, catalogue: Registry, uri: str
) -> None:
    detector = ChangeDetector(client, Reference.parse(uri), shared=True)
    assert [await detector.has_changed(FRESH) for _ in range(3)] == [True] * 3


async def test_few_models_are_polled_every_time(client: RegistryClient, catalogue: Registry) -> None:
    detector = ChangeDetector(client, PRODUCTION, shared=False)
    assert [await detector.has_changed(FRESH) for _ in range(3)] == [True] * 3


async def test_poll_is_due_while_the_registry_is_away() -> None:
    with closing(RegistryClient(Settings(tracking_uri="http://127.0.0.1:9"))) as away:
        detector = ChangeDetector(away, PRODUCTION, shared=True)
        assert [await detector.has_changed(FRESH) for _ in range(2)] == [True] * 2
