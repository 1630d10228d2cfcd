"""What became of a version is written into the registry once, however many tell it, and never in vain."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from casting import Registry
from conftest import NewRegistry

from serving.reference import Reference
from serving.registry import tag_writer as heralds
from serving.registry.client import RegistryClient
from serving.registry.live_tag import latest
from serving.registry.tag_writer import TagWriter
from serving.settings.settings import Settings
from serving.version import Outcome, Version

pytestmark = pytest.mark.anyio


PRODUCTION, CHAMPION = "models:/iris/Production", "models:/iris@champion"


@pytest.fixture
def catalogue(new_registry: NewRegistry, tmp_path: Path) -> Registry:
    """A registry with three versions of iris, whose artifacts are nowhere."""
    made = Registry(new_registry(tmp_path))
    for _ in range(3):
        made.register("iris", Path("/nowhere"))
    return made


@pytest.fixture
def client(catalogue: Registry) -> Iterator[RegistryClient]:
    with closing(RegistryClient(Settings(tracking_uri=catalogue.uri))) as made:
        yield made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments, one at each look at the clock."""
    moments = iter([datetime(2026, 1, 1, second=second, tzinfo=UTC) for second in range(10)])
    monkeypatch.setattr(heralds, "moment", lambda: next(moments))


def tell(herald: TagWriter, of: Version, outcome: Outcome, reason: str) -> None:
    if outcome is Outcome.LIVE:
        herald.live(PRODUCTION, of, reason)
    else:
        herald.publish(of, outcome, reason)


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
def away(catalogue: Registry) -> Iterator[None]:
    """Have the database answer nonsense for a while."""
    database = Path(catalogue.uri.removeprefix("sqlite:///"))
    content = database.read_bytes()
    database.write_bytes(b"nonsense" * (len(content) // 8))
    yield
    database.write_bytes(content)


async def test_outcome_is_tagged_with_reason_and_time(
    client: RegistryClient, catalogue: Registry, clock: None
) -> None:
    catalogue.client.set_model_version_tag("iris", "1", "owner", "Ada")
    herald = TagWriter(client)
    herald.publish(await version(client, "1"), Outcome.REJECTED, "it is broken")
    await herald.flush()
    assert tags(catalogue, "1") == {
        "owner": "Ada",
        "serving.state": "rejected",
        "serving.reason": "it is broken",
        "serving.since": "2026-01-01T00:00:00+00:00",
    }


async def test_fronts_with_the_same_outcome_write_it_once(
    client: RegistryClient, catalogue: Registry, clock: None
) -> None:
    for herald in (TagWriter(client), TagWriter(client), TagWriter(client)):
        herald.live(PRODUCTION, await version(client, "1"), "")
        await herald.flush()
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
    for herald in (unable, able) if refused_first else (able, unable):
        await herald.flush()
    told = tags(catalogue, "1")
    assert told["serving.state"] == "live"
    assert told["serving.reason"] == ("" if refused_first else REFUSED)
    unable.repeat_refusal(await version(client, "1"))
    await unable.flush()
    assert tags(catalogue, "1") == told | {"serving.reason": REFUSED, "serving.refusal": REFUSAL}


async def test_refusal_is_removed_once_the_front_can_load(
    client: RegistryClient, catalogue: Registry, clock: None
) -> None:
    able, unable, one = TagWriter(client), TagWriter(client), await version(client, "1")
    able.live(PRODUCTION, one, "")
    await able.flush()
    for outcome, reason, told, refusal in [
        (Outcome.REJECTED, "it needs weights", REFUSED, {"serving.refusal": REFUSAL}),
        (Outcome.LIVE, "", "", {}),
    ]:
        tell(unable, one, outcome, reason)
        await unable.flush()
        assert tags(catalogue, "1") == {
            "serving.state": "live",
            "serving.reason": told,
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


async def test_update_is_delayed_by_the_spread(
    client: RegistryClient, catalogue: Registry
) -> None:
    one, patient, prompt = await version(client, "1"), TagWriter(client, spread=1e9), TagWriter(client)
    for herald in (patient, prompt):
        herald.publish(one, Outcome.REJECTED, "it is broken")
    await patient.flush()
    assert "serving.state" not in tags(catalogue, "1")
    await prompt.flush()
    assert tags(catalogue, "1")["serving.state"] == "rejected"


async def test_comparison_on_another_front_does_not_change_the_reason(
    client: RegistryClient, catalogue: Registry, clock: None
) -> None:
    for reason in ("0.98 as fast", "1.02 as fast", "1.01 as fast"):
        herald = TagWriter(client)
        herald.live(PRODUCTION, await version(client, "1"), reason)
        await herald.flush()
    assert tags(catalogue, "1")["serving.reason"] == "0.98 as fast"
    assert tags(catalogue, "1")["serving.since"] == "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize("other", [Outcome.REJECTED, Outcome.SUPERSEDED])
async def test_overwritten_state_of_a_live_version_is_restored(
    client: RegistryClient, catalogue: Registry, other: Outcome
) -> None:
    herald = TagWriter(client)
    herald.live(PRODUCTION, await version(client, "1"), "")
    await herald.flush()
    herald.reassert(PRODUCTION, await version(client, "1"))
    assert not herald.is_due
    catalogue.client.set_model_version_tag("iris", "1", "serving.state", other)
    herald.reassert(PRODUCTION, await version(client, "1"))
    await herald.flush()
    assert tags(catalogue, "1")["serving.state"] == "live"


async def test_version_reverted_elsewhere_stays_reverted(client: RegistryClient, catalogue: Registry) -> None:
    here, there, one = TagWriter(client), TagWriter(client), await version(client, "1")
    for herald, outcome in ((here, Outcome.LIVE), (there, Outcome.REVERTED)):
        tell(herald, one, outcome, "")
        await herald.flush()
    here.reassert(PRODUCTION, await version(client, "1"))
    await here.flush()
    assert tags(catalogue, "1")["serving.state"] == "reverted"


async def test_set_tag_merges_with_the_present_value(
    client: RegistryClient, catalogue: Registry
) -> None:
    one = await version(client, "1")
    for text, told in [("10 %", "10 %"), ("stopped: slow", "stopped: slow"), ("25 %", "stopped: slow")]:
        herald = TagWriter(client)
        herald.set_tag(
            one, "serving.canary", lambda said, text=text: said if said.startswith("stopped") else text
        )
        await herald.flush()
        assert tags(catalogue, "1")["serving.canary"] == told


async def test_set_tag_calls_back_once_written(client: RegistryClient, catalogue: Registry) -> None:
    herald, one = TagWriter(client), await version(client, "1")
    written: list[str] = []

    def note(text: str) -> None:
        herald.set_tag(one, "serving.canary", lambda _: text, lambda: written.append(text))

    note("5 %")
    with away(catalogue):
        await herald.flush()
    assert written == []
    note("10 %")
    await herald.flush()
    assert written == ["10 %"]
    await herald.flush()
    assert written == ["10 %"]


async def test_empty_tag_is_not_written(
    client: RegistryClient, catalogue: Registry
) -> None:
    herald = TagWriter(client)
    herald.set_tag(await version(client, "1"), "serving.canary", lambda said: said)
    await herald.flush()
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
        for herald in (first, second):
            herald.live(PRODUCTION, new, "")
            await herald.flush()
        assert tags(catalogue, "1")["serving.state"] == state
        assert tags(catalogue, "1")["serving.reason"] == reason


async def test_version_live_under_another_reference_is_not_superseded(
    client: RegistryClient, catalogue: Registry
) -> None:
    herald, one, two = TagWriter(client), await version(client, "1"), await version(client, "2")

    async def go_live(reference: str, new: Version, old: Version | None) -> list[str]:
        if old:
            herald.publish(old, Outcome.SUPERSEDED, f"{new} went live")
        herald.live(reference, new, "")
        await herald.flush()
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
    for herald, reference in ((here, PRODUCTION), (there, CHAMPION), (there, PRODUCTION)):
        herald.live(reference, one, "")
        await herald.flush()
    assert live(catalogue, "1").keys() == {PRODUCTION, CHAMPION}
    since = tags(catalogue, "1")["serving.since"]
    here.live(PRODUCTION, two, "")
    await here.flush()
    assert [live(catalogue, number).keys() for number in "12"] == [{CHAMPION}, {PRODUCTION}]
    assert tags(catalogue, "1")["serving.state"] == "live"
    here.live(PRODUCTION, one, "it is back")
    await here.flush()
    assert live(catalogue, "1").keys() == {PRODUCTION, CHAMPION}
    told = tags(catalogue, "1")
    assert told["serving.since"] > since
    assert told["serving.reason"] == "it is back"
    assert "serving.live" not in tags(catalogue, "2")
    assert tags(catalogue, "2")["serving.state"] == "superseded"


async def test_all_other_carriers_lose_the_reference(
    client: RegistryClient, catalogue: Registry
) -> None:
    """One carries it beside another, one has no state, and what was live here before carries none."""
    for number, of in (("1", {PRODUCTION: EARLIER, CHAMPION: EARLIER}), ("3", {PRODUCTION: EARLIER})):
        catalogue.client.set_model_version_tag("iris", number, "serving.live", json.dumps(of))
    herald = TagWriter(client)
    herald.live(PRODUCTION, await version(client, "2"), "")
    await herald.flush()
    assert [live(catalogue, number).keys() for number in "123"] == [{CHAMPION}, {PRODUCTION}, set()]


EARLIER, LATER = "2026-01-01T00:00:00Z", "9026-01-01T00:00:00Z"


@pytest.mark.parametrize("ends", [True, False], ids=["the front ends", "the write fails"])
async def test_new_version_gets_reference_before_old_loses_it(
    client: RegistryClient, catalogue: Registry, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """What is left to do is done later, by this front or by another that has the version live."""
    one, two = await version(client, "1"), await version(client, "2")
    first, later = TagWriter(client), TagWriter(client)
    first.live(PRODUCTION, one, "")
    await first.flush()
    first.live(PRODUCTION, two, "")
    with monkeypatch.context() as patched:
        patched.setattr(heralds, "not_live", fail)
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
    herald = TagWriter(client)
    herald.live(PRODUCTION, await version(client, "1"), "", stands_in=True)
    await herald.flush()
    assert live(catalogue, "1").keys() == {PRODUCTION}
    herald.reassert(PRODUCTION, await version(client, "1"))
    assert not herald.is_due
    catalogue.client.set_model_version_tag("iris", "1", "serving.live", nonsense)
    herald.reassert(PRODUCTION, await version(client, "1"))
    await herald.flush()
    assert live(catalogue, "1").keys() == {PRODUCTION}


async def test_stand_in_takes_no_reference_from_other_fronts(
    client: RegistryClient, catalogue: Registry
) -> None:
    """It has nothing else to serve; what other fronts have live stays so."""
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
    herald = TagWriter(client)
    herald.live(PRODUCTION, await version(client, "1"), "")
    await herald.flush()
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
    again = await version(client, "1")  # as a person has promoted it once more
    here.live(PRODUCTION, again, "once more")
    await here.flush()
    assert tags(catalogue, "1")["serving.state"] == "live"


async def test_updates_during_an_outage_are_written_later(
    client: RegistryClient, catalogue: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    herald, (one, two, three) = TagWriter(client), [await version(client, number) for number in "123"]
    with away(catalogue):
        herald.live(PRODUCTION, one, "")
        herald.publish(two, Outcome.REJECTED, "it is broken")
        herald.live(PRODUCTION, three, "")
        herald.publish(one, Outcome.SUPERSEDED, "3 went live")
        await herald.flush()
        assert "the tags of iris version 3 could not be written" in caplog.text
    assert "serving.state" not in tags(catalogue, "1")
    await herald.flush()
    assert tags(catalogue, "1")["serving.state"] == "superseded"
    assert tags(catalogue, "2")["serving.state"] == "rejected"
    assert live(catalogue, "3").keys() == {PRODUCTION}


async def test_outage_is_logged_once(
    client: RegistryClient, catalogue: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    herald = TagWriter(client)
    herald.live(PRODUCTION, await version(client, "1"), "")
    with away(catalogue):
        for _ in range(5):
            await herald.flush()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1


async def test_deleted_version_does_not_block_other_updates(
    client: RegistryClient, catalogue: Registry
) -> None:
    herald, one, two = TagWriter(client), await version(client, "1"), await version(client, "2")
    catalogue.client.delete_model_version("iris", "1")
    herald.publish(one, Outcome.SUPERSEDED, "2 went live")
    herald.live(PRODUCTION, two, "")
    await herald.flush()
    assert tags(catalogue, "2")["serving.state"] == "live"


async def test_long_reason_is_cut_and_any_text_is_accepted(
    client: RegistryClient, catalogue: Registry
) -> None:
    herald = TagWriter(client)
    for number, reason in [("1", "x" * 9000), ("2", "ValueError: «日本» \U0001f600\n\r\t'\"")]:
        herald.publish(await version(client, number), Outcome.REJECTED, reason)
    await herald.flush()
    assert tags(catalogue, "1")["serving.reason"] == "x" * 500
    assert tags(catalogue, "2")["serving.reason"].startswith("ValueError: «日本» \U0001f600")


async def test_logged_model_outside_the_registry_gets_no_tags(client: RegistryClient) -> None:
    herald = TagWriter(client)
    herald.live(PRODUCTION, Version("m-1", None, "/nowhere", "models:/m-1", model_id="m-1"), "")
    await herald.flush()


async def test_pending_updates_are_bounded(client: RegistryClient, catalogue: Registry) -> None:
    herald, one = TagWriter(client), await version(client, "1")
    for number in range(1000):
        gone = Version("iris", str(number + 10), "/nowhere", "/nowhere")
        herald.publish(gone, Outcome.SUPERSEDED, "1 went live")
    assert len(herald._pending) == 100
    herald.live(PRODUCTION, one, "")
    await herald.flush()
    assert tags(catalogue, "1")["serving.state"] == "live"
