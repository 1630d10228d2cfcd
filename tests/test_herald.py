"""What became of a version is written into the registry once, however many tell it, and never in vain."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from casting import Registry
from conftest import NewRegistry

from serving.reference import Reference
from serving.registry import herald as heralds
from serving.registry.client import RegistryClient
from serving.registry.herald import Herald
from serving.runtime.version import Outcome, Version, live_as
from serving.settings import Settings

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
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Moments, one at each look at the clock."""
    moments = iter([f"2026-01-01T00:00:0{second}+00:00" for second in range(10)])
    monkeypatch.setattr(heralds, "now", lambda: next(moments))
    return moments


async def version(client: RegistryClient, number: str) -> Version:
    found, _ = await client.resolve(Reference.parse(f"models:/iris/{number}"))
    return found


def tags(catalogue: Registry, number: str) -> dict[str, str]:
    found: dict[str, str] = catalogue.client.get_model_version("iris", number).tags
    return found


@contextmanager
def away(catalogue: Registry) -> Iterator[None]:
    """Have the database answer nonsense for a while."""
    database = Path(catalogue.uri.removeprefix("sqlite:///"))
    content = database.read_bytes()
    database.write_bytes(b"nonsense" * (len(content) // 8))
    yield
    database.write_bytes(content)


async def test_an_outcome_is_told_with_its_reason_and_its_moment(
    client: RegistryClient, catalogue: Registry, clock: object
) -> None:
    catalogue.client.set_model_version_tag("iris", "1", "owner", "Ada")
    herald = Herald(client)
    herald.tell(PRODUCTION, await version(client, "1"), Outcome.REJECTED, "it is broken")
    await herald.flush()
    assert tags(catalogue, "1") == {
        "owner": "Ada",
        "serving.state": "rejected",
        "serving.reason": "it is broken",
        "serving.since": "2026-01-01T00:00:00+00:00",
    }


async def test_several_fronts_that_tell_the_same_write_it_once(
    client: RegistryClient, catalogue: Registry, clock: object
) -> None:
    for herald in (Herald(client), Herald(client), Herald(client)):
        herald.tell(PRODUCTION, await version(client, "1"), Outcome.LIVE, "")
        await herald.flush()
    assert tags(catalogue, "1")["serving.since"] == "2026-01-01T00:00:00+00:00"


REFUSED = "live, but not on every front: it needs weights"


@pytest.mark.parametrize("refused_first", [True, False], ids=["refused first", "live first"])
async def test_what_is_live_on_one_front_no_other_calls_rejected(
    client: RegistryClient, catalogue: Registry, clock: object, refused_first: bool
) -> None:
    able, unable, one = Herald(client), Herald(client), await version(client, "1")
    able.tell(PRODUCTION, one, Outcome.LIVE, "")
    unable.tell(PRODUCTION, one, Outcome.REJECTED, "it needs weights")
    for herald in (unable, able) if refused_first else (able, unable):
        await herald.flush()
    told = tags(catalogue, "1")
    assert told["serving.state"] == "live"
    assert told["serving.reason"] == ("" if refused_first else REFUSED)


async def test_a_front_that_can_load_it_after_all_takes_back_what_it_said(
    client: RegistryClient, catalogue: Registry, clock: object
) -> None:
    able, unable, one = Herald(client), Herald(client), await version(client, "1")
    able.tell(PRODUCTION, one, Outcome.LIVE, "")
    await able.flush()
    for outcome, reason, told in [
        (Outcome.REJECTED, "it needs weights", REFUSED),
        (Outcome.LIVE, "", ""),
    ]:
        unable.tell(PRODUCTION, one, outcome, reason)
        await unable.flush()
        assert tags(catalogue, "1") == {
            "serving.state": "live",
            "serving.reason": told,
            "serving.since": "2026-01-01T00:00:00+00:00",
            "serving.live_as": PRODUCTION,
        }


async def test_a_notice_waits_so_that_of_several_fronts_one_tells_it(
    client: RegistryClient, catalogue: Registry
) -> None:
    one, patient, prompt = await version(client, "1"), Herald(client, spread=1e9), Herald(client)
    for herald in (patient, prompt):
        herald.tell(PRODUCTION, one, Outcome.REJECTED, "it is broken")
    await patient.flush()
    assert "serving.state" not in tags(catalogue, "1")
    await prompt.flush()
    assert tags(catalogue, "1")["serving.state"] == "rejected"


async def test_how_it_compares_on_another_front_is_no_news(
    client: RegistryClient, catalogue: Registry, clock: object
) -> None:
    for reason in ("0.98 as fast", "1.02 as fast", "1.01 as fast"):
        herald = Herald(client)
        herald.tell(PRODUCTION, await version(client, "1"), Outcome.LIVE, reason)
        await herald.flush()
    assert tags(catalogue, "1")["serving.reason"] == "0.98 as fast"
    assert tags(catalogue, "1")["serving.since"] == "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize("other", [Outcome.REJECTED, Outcome.SUPERSEDED])
async def test_a_front_that_sees_its_live_version_called_something_else_tells_it_once_more(
    client: RegistryClient, catalogue: Registry, other: Outcome
) -> None:
    herald = Herald(client)
    herald.tell(PRODUCTION, await version(client, "1"), Outcome.LIVE, "")
    await herald.flush()
    herald.remind(await version(client, "1"))
    assert not herald._pending
    catalogue.client.set_model_version_tag("iris", "1", "serving.state", other)
    herald.remind(await version(client, "1"))
    await herald.flush()
    assert tags(catalogue, "1")["serving.state"] == "live"


async def test_what_was_reverted_elsewhere_stays_so(client: RegistryClient, catalogue: Registry) -> None:
    here, there, one = Herald(client), Herald(client), await version(client, "1")
    for herald, outcome in ((here, Outcome.LIVE), (there, Outcome.REVERTED)):
        herald.tell(PRODUCTION, one, outcome, "")
        await herald.flush()
    here.remind(await version(client, "1"))
    await here.flush()
    assert tags(catalogue, "1")["serving.state"] == "reverted"


async def test_what_one_front_has_stopped_another_does_not_go_on_with(
    client: RegistryClient, catalogue: Registry
) -> None:
    one = await version(client, "1")
    for text, told in [("10 %", "10 %"), ("stopped: slow", "stopped: slow"), ("25 %", "stopped: slow")]:
        herald = Herald(client)
        herald.note(
            one, "serving.canary", lambda said, text=text: said if said.startswith("stopped") else text
        )
        await herald.flush()
        assert tags(catalogue, "1")["serving.canary"] == told


async def test_who_notes_a_tag_hears_when_it_is_written(client: RegistryClient, catalogue: Registry) -> None:
    herald, one = Herald(client), await version(client, "1")
    written: list[str] = []

    def note(text: str) -> None:
        herald.note(one, "serving.canary", lambda _: text, lambda: written.append(text))

    note("5 %")
    with away(catalogue):
        await herald.flush()
    assert written == []
    note("10 %")
    await herald.flush()
    assert written == ["10 %"]
    await herald.flush()
    assert written == ["10 %"]


async def test_a_tag_that_has_nothing_to_say_is_not_written(
    client: RegistryClient, catalogue: Registry
) -> None:
    herald = Herald(client)
    herald.note(await version(client, "1"), "serving.canary", lambda said: said)
    await herald.flush()
    assert tags(catalogue, "1") == {}


async def test_another_outcome_replaces_the_one_before(
    client: RegistryClient, catalogue: Registry, clock: object
) -> None:
    first, second = Herald(client), Herald(client)
    for outcome, reason in [(Outcome.LIVE, ""), (Outcome.SUPERSEDED, "2 went live"), (Outcome.LIVE, "")]:
        for herald in (first, second):
            herald.tell(PRODUCTION, await version(client, "1"), outcome, reason)
            await herald.flush()
        assert tags(catalogue, "1")["serving.state"] == outcome
        assert tags(catalogue, "1")["serving.reason"] == reason


async def test_a_version_that_is_live_as_another_reference_is_not_superseded(
    client: RegistryClient, catalogue: Registry
) -> None:
    herald, one, two = Herald(client), await version(client, "1"), await version(client, "2")

    async def go_live(reference: str, new: Version, old: Version | None) -> list[str]:
        if old:
            herald.tell(reference, old, Outcome.SUPERSEDED, f"{new} went live")
        herald.tell(reference, new, Outcome.LIVE, "")
        await herald.flush()
        return [tags(catalogue, number).get("serving.state", "") for number in ("1", "2")]

    assert await go_live(PRODUCTION, one, None) == ["live", ""]
    assert await go_live(CHAMPION, one, None) == ["live", ""]
    assert await go_live(PRODUCTION, two, one) == ["live", "live"]
    assert await go_live(CHAMPION, two, one) == ["superseded", "live"]


async def test_a_version_carries_the_references_as_which_it_is_live(
    client: RegistryClient, catalogue: Registry
) -> None:
    one, two = [await version(client, number) for number in "12"]
    here, there = Herald(client), Herald(client)
    for herald, reference in ((here, PRODUCTION), (there, CHAMPION), (there, PRODUCTION)):
        herald.tell(reference, one, Outcome.LIVE, "")
        await herald.flush()
    assert tags(catalogue, "1")["serving.live_as"] == f"{PRODUCTION}, {CHAMPION}"
    here.tell(PRODUCTION, two, Outcome.LIVE, "")
    here.tell(PRODUCTION, one, Outcome.SUPERSEDED, "2 went live")
    await here.flush()
    here.tell(PRODUCTION, one, Outcome.LIVE, "")
    await here.flush()
    assert tags(catalogue, "1")["serving.live_as"] == PRODUCTION
    for number, live in (("1", True), ("2", True), ("3", False)):
        assert (PRODUCTION in live_as(tags(catalogue, number))) is live
        assert CHAMPION not in live_as(tags(catalogue, number))


async def test_what_another_front_went_back_from_meanwhile_is_not_told_to_be_live(
    client: RegistryClient, catalogue: Registry
) -> None:
    one, here, there = await version(client, "1"), Herald(client), Herald(client)
    there.tell(PRODUCTION, one, Outcome.REVERTED, "it failed")
    await there.flush()
    here.tell(PRODUCTION, one, Outcome.LIVE, "")
    await here.flush()
    assert tags(catalogue, "1")["serving.state"] == "reverted"
    again = await version(client, "1")  # as a person has promoted it once more
    here.tell(PRODUCTION, again, Outcome.LIVE, "once more")
    await here.flush()
    assert tags(catalogue, "1")["serving.state"] == "live"


async def test_what_is_told_while_the_registry_is_away_is_written_later(
    client: RegistryClient, catalogue: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    herald, one, two = Herald(client), await version(client, "1"), await version(client, "2")
    with away(catalogue):
        herald.tell(PRODUCTION, one, Outcome.LIVE, "")
        herald.tell(PRODUCTION, two, Outcome.REJECTED, "it is broken")
        herald.tell(PRODUCTION, one, Outcome.SUPERSEDED, "3 went live")
        await herald.flush()
        assert "the tags of iris version 2 could not be written" in caplog.text
    assert "serving.state" not in tags(catalogue, "1")
    await herald.flush()
    assert tags(catalogue, "1")["serving.state"] == "superseded"
    assert tags(catalogue, "2")["serving.state"] == "rejected"


async def test_while_the_registry_is_away_that_is_logged_once(
    client: RegistryClient, catalogue: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    herald = Herald(client)
    herald.tell(PRODUCTION, await version(client, "1"), Outcome.LIVE, "")
    with away(catalogue):
        for _ in range(5):
            await herald.flush()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1


async def test_a_version_that_was_deleted_keeps_none_of_the_others_from_being_told(
    client: RegistryClient, catalogue: Registry
) -> None:
    herald, one, two = Herald(client), await version(client, "1"), await version(client, "2")
    catalogue.client.delete_model_version("iris", "1")
    herald.tell(PRODUCTION, one, Outcome.SUPERSEDED, "2 went live")
    herald.tell(PRODUCTION, two, Outcome.LIVE, "")
    await herald.flush()
    assert tags(catalogue, "2")["serving.state"] == "live"


async def test_a_long_reason_is_cut_and_any_text_is_taken(
    client: RegistryClient, catalogue: Registry
) -> None:
    herald = Herald(client)
    for number, reason in [("1", "x" * 9000), ("2", "ValueError: «日本» \U0001f600\n\r\t'\"")]:
        herald.tell(PRODUCTION, await version(client, number), Outcome.REJECTED, reason)
    await herald.flush()
    assert tags(catalogue, "1")["serving.reason"] == "x" * 500
    assert tags(catalogue, "2")["serving.reason"].startswith("ValueError: «日本» \U0001f600")


async def test_a_logged_model_outside_the_registry_has_no_page_to_tell_it_on(client: RegistryClient) -> None:
    herald = Herald(client)
    herald.tell(PRODUCTION, Version("m-1", None, "/nowhere", "models:/m-1", model_id="m-1"), Outcome.LIVE, "")
    await herald.flush()


async def test_what_waits_to_be_told_is_bounded(client: RegistryClient, catalogue: Registry) -> None:
    herald, one = Herald(client), await version(client, "1")
    for number in range(1000):
        herald.tell(PRODUCTION, Version("iris", str(number + 10), "/nowhere", "/nowhere"), Outcome.LIVE, "")
    herald.tell(PRODUCTION, one, Outcome.LIVE, "")
    await herald.flush()
    assert tags(catalogue, "1")["serving.state"] == "live"
