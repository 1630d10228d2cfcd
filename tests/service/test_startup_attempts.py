"""A version that killed a front is delayed by the next front, and rejected after a second death."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from serving.registry.load_attempts import LoadAttempts
from serving.version import Version
from tests.support.promotions import Model
from tests.support.registry import NewRegistry, Registry
from tests.support.service import Service, environment, until

FOUND = Version(name="iris", version="2", location="s3://iris/2", source="s3://iris/2", stage="Production")


def start(registry: Registry, folder: Path) -> Model:
    models = {"models": "models:/actor/Production", "poll_seconds": 0.1}
    return Model("actor", Service(environment(registry.uri, folder, **models), folder), registry)


def die_verifying(model: Model, note: Path) -> None:
    """Kill the front while it loads the version that writes this note."""
    until(note.exists)
    model.service.process.kill()
    model.service.stop()
    note.unlink()


@pytest.mark.timeout(300)
def test_row_40_version_that_killed_a_front_loads_last(new_registry: NewRegistry, tmp_path: Path) -> None:
    registry, note = Registry(new_registry(tmp_path)), tmp_path / "loading"
    model = start(registry, tmp_path)
    try:
        model.until_live(model.promote())
        model.promote(on_load=f"note:{note} hang", factor=2.0)
        die_verifying(model, note)

        model = start(registry, tmp_path)
        model.until_live("1")
        die_verifying(model, note)

        model = start(registry, tmp_path)
        model.until_live("1")
        assert "the front died while it was being verified" in model.until_refused("2")
        assert "the front died while it was being verified" in model.until_tagged("2", "rejected")["reason"]
        assert model.is_well("1")
        assert not note.exists()

        registry.client.set_model_version_tag("actor", "2", "looked-at", "yes")
        until(note.exists)
        model.promote("1")
        model.until(lambda state: state["candidate"] is None)
    finally:
        model.service.process.kill()
        model.service.stop()


# -- unit tests

DIE = """
import asyncio, os, sys
from pathlib import Path
from serving.registry.load_attempts import LoadAttempts
from serving.version import Version

async def verify():
    async with LoadAttempts(Path(sys.argv[1])).mark(Version(**eval(sys.argv[2]))):
        os._exit(1)

asyncio.run(verify())
"""


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def die(folder: Path, version: Version) -> None:
    facts = {
        "name": version.name,
        "version": version.version,
        "location": version.location,
        "source": version.source,
        "stage": version.stage,
        "tags": dict(version.tags),
    }
    subprocess.run([sys.executable, "-c", DIE, folder, repr(facts)], check=False)


def test_deaths_are_counted_until_something_changes(tmp_path: Path) -> None:
    attempts = LoadAttempts(tmp_path)
    assert attempts.deaths(FOUND) == 0
    die(tmp_path, FOUND)
    assert attempts.deaths(FOUND) == 1
    assert attempts.deaths(FOUND) == 1
    die(tmp_path, FOUND)
    assert LoadAttempts(tmp_path).deaths(FOUND) == 2
    written = replace(FOUND, tags={"serving.state": "rejected"})
    assert attempts.deaths(written) == 2
    assert attempts.deaths(replace(FOUND, tags={"owner": "me"})) == 0
    assert attempts.deaths(replace(FOUND, version="3", source="s3://iris/3")) == 0


def test_promotion_resets_deaths(tmp_path: Path) -> None:
    attempts = LoadAttempts(tmp_path)
    die(tmp_path, FOUND)
    assert attempts.deaths(FOUND) == 1
    attempts.record_resolved("models:/iris/Production", FOUND)
    assert attempts.deaths(FOUND) == 1
    attempts.record_resolved("models:/iris/Production", None)
    attempts.record_resolved("models:/iris/Production", FOUND)
    assert attempts.deaths(FOUND) == 0


@pytest.mark.anyio
async def test_verification_by_another_front_is_no_death(tmp_path: Path) -> None:
    async with LoadAttempts(tmp_path).mark(FOUND):
        assert LoadAttempts(tmp_path).deaths(FOUND) == 0
    assert names(tmp_path) == []


@pytest.mark.anyio
async def test_successful_verification_resets_deaths(tmp_path: Path) -> None:
    die(tmp_path, FOUND)
    attempts = LoadAttempts(tmp_path)
    assert attempts.deaths(FOUND) == 1
    async with attempts.mark(FOUND):
        pass
    assert attempts.deaths(FOUND) == 0


@pytest.mark.anyio
async def test_verification_continues_if_marker_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "attempts").write_text("no folder")
    async with LoadAttempts(tmp_path / "attempts").mark(FOUND):
        pass


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"[]", b'{"deaths": "many", "promotion": 5}'])
def test_damaged_record_counts_no_death(tmp_path: Path, content: bytes) -> None:
    attempts = LoadAttempts(tmp_path)
    die(tmp_path, FOUND)
    assert attempts.deaths(FOUND) == 1
    (record,) = tmp_path.iterdir()
    record.write_bytes(content)
    assert attempts.deaths(FOUND) == 0
