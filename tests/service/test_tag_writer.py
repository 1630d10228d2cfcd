"""Outcomes are written as tags once, whichever front writes them, and in spite of failures."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from serving.reference import Reference
from serving.registry import tag_writer
from serving.registry.client import RegistryClient
from serving.registry.live_tag import latest
from serving.registry.tag_writer import TagWriter
from serving.settings.settings import Settings
from serving.version import Outcome, Version
from tests.support.registry import NewRegistry, Registry

pytestmark = pytest.mark.anyio


PRODUCTION, CHAMPION = "models:/iris/Production", "models:/iris@champion"


@pytest.fixture
def catalogue(new_registry: NewRegistry, tmp_path: Path) -> Registry:
    """Provide a registry with three versions of iris without artifacts."""
    registry = Registry(new_registry(tmp_path))
    for _ in range(3):
        registry.register("iris", Path("/nowhere"))
    return registry


@pytest.fixture
def client(catalogue: Registry) -> Iterator[RegistryClient]:
    with closing(RegistryClient(Settings(tracking_uri=catalogue.uri))) as registry:
        yield registry


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return a clock that advances one second at every call."""
    moments = iter([datetime(2026, 1, 1, second=second, tzinfo=UTC) for second in range(10)])
    monkeypatch.setattr(tag_writer, "moment", lambda: next(moments))


def publish(writer: TagWriter, of: Version, outcome: Outcome, reason: str) -> None:
    if outcome is Outcome.LIVE:
        writer.live(PRODUCTION, of, reason)
    else:
        writer.publish(of, outcome, reason)


async def version(client: RegistryClient, number: str) -> Version:
    found, _ = await client.resolve(Reference.parse(f"models:/iris/{number}"))
    return found


def tags(catalogue: Registry, number: str) -> dict[str, str]:
    found: dict[str, str] = catalogue.client.get_model_version("iris", number).tags
    return found


def live(catalogue: Registry, number: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(tags(catalogue, number).get("serving.live", "{}"))
    return found


@contextmanager
def registry_away(catalogue: Registry) -> Iterator[None]:
    """Corrupt the database during the block."""
    database = Path(catalogue.uri.removeprefix("sqlite:///"))
    content = database.read_bytes()
    database.write_bytes(b"nonsense" * (len(content) // 8))
    yield
    database.write_bytes(content)


async def test_outcome_is_tagged_with_reason_and_time(
    client: RegistryClient, catalogue: Registry, clock: None
) -> None:
    catalogue.client.set_model_version_tag("iris", "1", "owner", "Ada")
    writer = TagWriter(client)
    writer.publish(await version(client, "1"), Outcome.REJECTED, "it is broken")
    await writer.flush()
    assert tags(catalogue, "1") == {
        "owner": "Ada",
        "serving.state": "rejected",
        "serving.reason": "it is broken",
        "serving.since": "2026-01-01T00:00:00+00:00",
    }


async def test_fronts_with_the_same_outcome_write_it_once(
    client: RegistryClient, catalogue: Registry, clock: None
) -> None:
    for writer in (TagWriter(client), TagWriter(client), TagWriter(client)):
        writer.live(PRODUCTION, await version(client, "1"), "")
        await writer.flush()
    assert tags(catalogue, "1")["serving.since"] == "2026-01-01T00:00:00+00:00"


REFUSED = "live, but not on every front: it needs weights"
REFUSAL = '{"reason": "it needs weights"}'


@pytest.mark.parametrize("refused_first", [True, False], ids=["refused first", "live first"])
async def test_version_live_on_one_front_is_not_tagged_rejected(
    client: RegistryClient, catalogue: Registry, clock: None, refused_first: bool
) -> None:
    able, unable, one = TagWriter(client), TagWriter(client), await version(client, "1")
    able.live(PRODUCTION, one, "")
    unable.publish(one, Outcome.REJECTED, "it needs weights")
    for writer in (unable, able) if refused_first else (able, unable):
        await writer.flush()
    written = tags(catalogue, "1")
    assert written["serving.state"] == "live"
    assert written["serving.reason"] == ("" if refused_first else REFUSED)
    unable.repeat_refusal(await version(client, "1"))
    await unable.flush()
    assert tags(catalogue, "1") == written | {"serving.reason": REFUSED, "serving.refusal": REFUSAL}


async def test_refusal_is_removed_once_the_front_can_load(
    client: RegistryClient, catalogue: Registry, clock: None
) -> None:
    able, unable, one = TagWriter(client), TagWriter(client), await version(client, "1")
    able.live(PRODUCTION, one, "")
    await able.flush()
    for outcome, reason, written, refusal in [
        (Outcome.REJECTED, "it needs weights", REFUSED, {"serving.refusal": REFUSAL}),
        (Outcome.LIVE, "", "", {}),
    ]:
        publish(unable, one, outcome, reason)
        await unable.flush()
        assert tags(catalogue, "1") == {
            "serving.state": "live",
            "serving.reason": written,
            "serving.since": "2026-01-01T00:00:00+00:00",
            "serving.live": json.dumps({PRODUCTION: "2026-01-01T00:00:00.000Z"}),
            **refusal,
        }


@pytest.mark.parametrize("lost", ["serving.reason", "serving.refusal"])
async def test_refusal_that_another_front_overwrote_is_written_again(
    client: RegistryClient, catalogue: Registry, lost: str
) -> None:
    able, unable, one = TagWriter(client), TagWriter(client), await version(client, "1")
    able.live(PRODUCTION, one, "")
    await able.flush()
    unable.publish(one, Outcome.REJECTED, "it needs\nweights")
    await unable.flush()
    complete = tags(catalogue, "1")
    unable.repeat_refusal(await version(client, "1"))
    assert not unable.is_due
    catalogue.client.set_model_version_tag("iris", "1", lost, "")
    unable.repeat_refusal(await version(client, "1"))
    await unable.flush()
    assert tags(catalogue, "1") == complete


async def test_refusal_is_removed_when_another_version_goes_live(
    client: RegistryClient, catalogue: Registry
) -> None:
    able, unable = TagWriter(client), TagWriter(client)
    one, two = await version(client, "1"), await version(client, "2")
    able.live(PRODUCTION, one, "")
    await able.flush()
    unable.publish(one, Outcome.REJECTED, "it needs weights")
    await unable.flush()
    able.live(PRODUCTION, two, "")
    await able.flush()
    assert tags(catalogue, "1")["serving.state"] == "superseded"
    assert "serving.refusal" not in tags(catalogue, "1")


async def test_update_is_delayed_by_the_spread(client: RegistryClient, catalogue: Registry) -> None:
    one, patient, prompt = await version(client, "1"), TagWriter(client, spread=1e9), TagWriter(client)
    for writer in (patient, prompt):
        writer.publish(one, Outcome.REJECTED, "it is broken")
    await patient.flush()
    assert "serving.state" not in tags(catalogue, "1")
    await prompt.flush()
    assert tags(catalogue, "1")["serving.state"] == "rejected"


async def test_comparison_on_another_front_does_not_change_the_reason(
    client: RegistryClient, catalogue: Registry, clock: None
) -> None:
    for reason in ("0.98 as fast", "1.02 as fast", "1.01 as fast"):
        writer = TagWriter(client)
        writer.live(PRODUCTION, await version(client, "1"), reason)
        await writer.flush()
    assert tags(catalogue, "1")["serving.reason"] == "0.98 as fast"
    assert tags(catalogue, "1")["serving.since"] == "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize("other", [Outcome.REJECTED, Outcome.SUPERSEDED])
async def test_overwritten_state_of_a_live_version_is_restored(
    client: RegistryClient, catalogue: Registry, other: Outcome
) -> None:
    writer = TagWriter(client)
    writer.live(PRODUCTION, await version(client, "1"), "")
    await writer.flush()
    writer.reassert(PRODUCTION, await version(client, "1"))
    assert not writer.is_due
    catalogue.client.set_model_version_tag("iris", "1", "serving.state", other)
    writer.reassert(PRODUCTION, await version(client, "1"))
    await writer.flush()
    assert tags(catalogue, "1")["serving.state"] == "live"


async def test_version_reverted_elsewhere_stays_reverted(client: RegistryClient, catalogue: Registry) -> None:
    here, there, one = TagWriter(client), TagWriter(client), await version(client, "1")
    for writer, outcome in ((here, Outcome.LIVE), (there, Outcome.REVERTED)):
        publish(writer, one, outcome, "")
        await writer.flush()
    here.reassert(PRODUCTION, await version(client, "1"))
    await here.flush()
    assert tags(catalogue, "1")["serving.state"] == "reverted"


def unless_stopped(text: str, present: str) -> str:
    return present if present.startswith("stopped") else text


async def test_set_tag_merges_with_the_present_value(client: RegistryClient, catalogue: Registry) -> None:
    one = await version(client, "1")
    for text, written in [("10 %", "10 %"), ("stopped: slow", "stopped: slow"), ("25 %", "stopped: slow")]:
        writer = TagWriter(client)
        writer.set_tag(
            one,
            "serving.canary",
            partial(unless_stopped, text),
        )
        await writer.flush()
        assert tags(catalogue, "1")["serving.canary"] == written


async def test_set_tag_calls_back_once_written(client: RegistryClient, catalogue: Registry) -> None:
    writer, one = TagWriter(client), await version(client, "1")
    written: list[str] = []

    def note(text: str) -> None:
        writer.set_tag(one, "serving.canary", lambda _: text, lambda: written.append(text))

    note("5 %")
    with registry_away(catalogue):
        await writer.flush()
    assert written == []
    note("10 %")
    await writer.flush()
    assert written == ["10 %"]
    await writer.flush()
    assert written == ["10 %"]


async def test_empty_tag_is_not_written(client: RegistryClient, catalogue: Registry) -> None:
    writer = TagWriter(client)
    writer.set_tag(await version(client, "1"), "serving.canary", lambda present: present)
    await writer.flush()
    assert tags(catalogue, "1") == {}


async def test_later_outcome_replaces_the_earlier_one(
    client: RegistryClient, catalogue: Registry, clock: None
) -> None:
    first, second = TagWriter(client), TagWriter(client)
    one, two = await version(client, "1"), await version(client, "2")
    for new, state, reason in [
        (one, "live", ""),
        (two, "superseded", "iris version 2 went live"),
        (one, "live", ""),
    ]:
        for writer in (first, second):
            writer.live(PRODUCTION, new, "")
            await writer.flush()
        assert tags(catalogue, "1")["serving.state"] == state
        assert tags(catalogue, "1")["serving.reason"] == reason


async def test_version_live_under_another_reference_is_not_superseded(
    client: RegistryClient, catalogue: Registry
) -> None:
    writer, one, two = TagWriter(client), await version(client, "1"), await version(client, "2")

    async def go_live(reference: str, new: Version, old: Version | None) -> list[str]:
        if old:
            writer.publish(old, Outcome.SUPERSEDED, f"{new} went live")
        writer.live(reference, new, "")
        await writer.flush()
        return [tags(catalogue, number).get("serving.state", "") for number in ("1", "2")]

    assert await go_live(PRODUCTION, one, None) == ["live", ""]
    assert await go_live(CHAMPION, one, None) == ["live", ""]
    assert await go_live(PRODUCTION, two, one) == ["live", "live"]
    assert await go_live(CHAMPION, two, one) == ["superseded", "live"]


async def test_version_carries_all_its_live_references(
    client: RegistryClient, catalogue: Registry, clock: None
) -> None:
    one, two = [await version(client, number) for number in "12"]
    here, there = TagWriter(client), TagWriter(client)
    for writer, reference in ((here, PRODUCTION), (there, CHAMPION), (there, PRODUCTION)):
        writer.live(reference, one, "")
        await writer.flush()
    assert live(catalogue, "1").keys() == {PRODUCTION, CHAMPION}
    since = tags(catalogue, "1")["serving.since"]
    here.live(PRODUCTION, two, "")
    await here.flush()
    assert [live(catalogue, number).keys() for number in "12"] == [{CHAMPION}, {PRODUCTION}]
    assert tags(catalogue, "1")["serving.state"] == "live"
    here.live(PRODUCTION, one, "it is back")
    await here.flush()
    assert live(catalogue, "1").keys() == {PRODUCTION, CHAMPION}
    written = tags(catalogue, "1")
    assert written["serving.since"] > since
    assert written["serving.reason"] == "it is back"
    assert "serving.live" not in tags(catalogue, "2")
    assert tags(catalogue, "2")["serving.state"] == "superseded"


async def test_all_other_carriers_lose_the_reference(client: RegistryClient, catalogue: Registry) -> None:
    """Version 1 carries two references, version 3 has no state, and version 2 carries none."""
    for number, of in (("1", {PRODUCTION: EARLIER, CHAMPION: EARLIER}), ("3", {PRODUCTION: EARLIER})):
        catalogue.client.set_model_version_tag("iris", number, "serving.live", json.dumps(of))
    writer = TagWriter(client)
    writer.live(PRODUCTION, await version(client, "2"), "")
    await writer.flush()
    assert [live(catalogue, number).keys() for number in "123"] == [{CHAMPION}, {PRODUCTION}, set()]


EARLIER, LATER = "2026-01-01T00:00:00Z", "9026-01-01T00:00:00Z"


@pytest.mark.parametrize("ends", [True, False], ids=["the front ends", "the write fails"])
async def test_new_version_gets_reference_before_old_loses_it(
    client: RegistryClient, catalogue: Registry, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """The missing writes follow later, by this front or by another on which the version is live."""
    one, two = await version(client, "1"), await version(client, "2")
    first, later = TagWriter(client), TagWriter(client)
    first.live(PRODUCTION, one, "")
    await first.flush()
    first.live(PRODUCTION, two, "")
    with monkeypatch.context() as patched:
        patched.setattr(tag_writer, "not_live", fail)
        await first.flush()
    assert live(catalogue, "1")[PRODUCTION] < live(catalogue, "2")[PRODUCTION]
    assert tags(catalogue, "2")["serving.state"] == "live"
    if ends:
        later.live(PRODUCTION, two, "", stands_in=True)
    await (later if ends else first).flush()
    assert [live(catalogue, number).keys() for number in "12"] == [set(), {PRODUCTION}]
    assert tags(catalogue, "1")["serving.state"] == "superseded"


def fail(*_: object) -> Any:
    raise InterruptedError


NONSENSE = [
    "",
    "yes",
    "null",
    "[]",
    "1e999",
    "{",
    "[" * 4000,
    json.dumps([PRODUCTION]),
    json.dumps({PRODUCTION: None}),
    json.dumps({PRODUCTION: {"since": EARLIER}}),
    json.dumps({PRODUCTION: "yesterday"}),
    json.dumps({PRODUCTION: "0001-01-01T00:00:00+23:59"}),
    json.dumps({PRODUCTION: LATER}),
    json.dumps({PRODUCTION: "9999-12-31T23:59:59-23:59"}),
    json.dumps({f"models:/iris@{number}": EARLIER for number in range(1000)}),
    "x" * 100_000,
]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=range(len(NONSENSE)))
async def test_invalid_live_tag_is_ignored(
    client: RegistryClient, catalogue: Registry, nonsense: str
) -> None:
    for number in "12":
        catalogue.client.set_model_version_tag("iris", number, "serving.live", nonsense)
    assert latest(await client.versions("iris"), PRODUCTION) is None
    writer = TagWriter(client)
    writer.live(PRODUCTION, await version(client, "1"), "", stands_in=True)
    await writer.flush()
    assert live(catalogue, "1").keys() == {PRODUCTION}
    writer.reassert(PRODUCTION, await version(client, "1"))
    assert not writer.is_due
    catalogue.client.set_model_version_tag("iris", "1", "serving.live", nonsense)
    writer.reassert(PRODUCTION, await version(client, "1"))
    await writer.flush()
    assert live(catalogue, "1").keys() == {PRODUCTION}


async def test_stand_in_takes_no_reference_from_other_fronts(
    client: RegistryClient, catalogue: Registry
) -> None:
    """A stand-in is a local substitute; the live version of other fronts stays tagged."""
    able, unable, one, two = (
        TagWriter(client),
        TagWriter(client),
        await version(client, "1"),
        await version(client, "2"),
    )
    able.live(PRODUCTION, two, "")
    await able.flush()
    unable.live(PRODUCTION, one, "it served last", stands_in=True)
    await unable.flush()
    assert [live(catalogue, number).keys() for number in "12"] == [set(), {PRODUCTION}]
    assert "serving.state" not in tags(catalogue, "1")


async def test_promoted_version_takes_reference_despite_clock_skew(
    client: RegistryClient, catalogue: Registry
) -> None:
    ahead = (datetime.now(UTC) + timedelta(hours=5)).isoformat()
    catalogue.client.set_model_version_tag("iris", "2", "serving.live", json.dumps({PRODUCTION: ahead}))
    catalogue.promote("iris", "1")
    writer = TagWriter(client)
    writer.live(PRODUCTION, await version(client, "1"), "")
    await writer.flush()
    assert [live(catalogue, number).keys() for number in "12"] == [{PRODUCTION}, set()]
    assert datetime.fromisoformat(live(catalogue, "1")[PRODUCTION]) > datetime.fromisoformat(ahead)


async def test_version_reverted_meanwhile_is_not_tagged_live(
    client: RegistryClient, catalogue: Registry
) -> None:
    one, here, there = await version(client, "1"), TagWriter(client), TagWriter(client)
    there.publish(one, Outcome.REVERTED, "it failed")
    await there.flush()
    here.live(PRODUCTION, one, "")
    await here.flush()
    assert tags(catalogue, "1")["serving.state"] == "reverted"
    catalogue.promote("iris", "1")
    again = await version(client, "1")  # as after another promotion by a user
    here.live(PRODUCTION, again, "once more")
    await here.flush()
    assert tags(catalogue, "1")["serving.state"] == "live"


async def test_updates_during_an_outage_are_written_later(
    client: RegistryClient, catalogue: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    writer, (one, two, three) = TagWriter(client), [await version(client, number) for number in "123"]
    with registry_away(catalogue):
        writer.live(PRODUCTION, one, "")
        writer.publish(two, Outcome.REJECTED, "it is broken")
        writer.live(PRODUCTION, three, "")
        writer.publish(one, Outcome.SUPERSEDED, "3 went live")
        await writer.flush()
        assert "the tags of iris version 3 could not be written" in caplog.text
    assert "serving.state" not in tags(catalogue, "1")
    await writer.flush()
    assert tags(catalogue, "1")["serving.state"] == "superseded"
    assert tags(catalogue, "2")["serving.state"] == "rejected"
    assert live(catalogue, "3").keys() == {PRODUCTION}


async def test_outage_is_logged_once(
    client: RegistryClient, catalogue: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    writer = TagWriter(client)
    writer.live(PRODUCTION, await version(client, "1"), "")
    with registry_away(catalogue):
        for _ in range(5):
            await writer.flush()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1


async def test_deleted_version_does_not_block_other_updates(
    client: RegistryClient, catalogue: Registry
) -> None:
    writer, one, two = TagWriter(client), await version(client, "1"), await version(client, "2")
    catalogue.client.delete_model_version("iris", "1")
    writer.publish(one, Outcome.SUPERSEDED, "2 went live")
    writer.live(PRODUCTION, two, "")
    await writer.flush()
    assert tags(catalogue, "2")["serving.state"] == "live"


async def test_long_reason_is_cut_and_any_text_is_accepted(
    client: RegistryClient, catalogue: Registry
) -> None:
    writer = TagWriter(client)
    for number, reason in [("1", "x" * 9000), ("2", "ValueError: «日本» \U0001f600\n\r\t'\"")]:
        writer.publish(await version(client, number), Outcome.REJECTED, reason)
    await writer.flush()
    reason = tags(catalogue, "1")["serving.reason"]
    assert re.fullmatch("x+ … x+", reason)
    assert len(reason) == 500
    assert tags(catalogue, "2")["serving.reason"].startswith("ValueError: «日本» \U0001f600")


async def test_logged_model_outside_the_registry_gets_no_tags(client: RegistryClient) -> None:
    writer = TagWriter(client)
    writer.live(PRODUCTION, Version("m-1", None, "/nowhere", "models:/m-1", model_id="m-1"), "")
    await writer.flush()


async def test_pending_updates_are_bounded(client: RegistryClient, catalogue: Registry) -> None:
    writer, one = TagWriter(client), await version(client, "1")
    for number in range(1000):
        gone = Version("iris", str(number + 10), "/nowhere", "/nowhere")
        writer.publish(gone, Outcome.SUPERSEDED, "1 went live")
    assert len(writer._updates.pending) == 100
    writer.live(PRODUCTION, one, "")
    await writer.flush()
    assert tags(catalogue, "1")["serving.state"] == "live"
