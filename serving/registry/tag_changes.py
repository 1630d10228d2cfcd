"""Decides which tags to write for what became of a version: plain functions over the tags that are there.

Each returns the tags in the order in which they are written; None deletes a tag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from serving.registry.live_tag import TAG, encoded, references
from serving.version import Outcome, Version

MAX_REASON_LENGTH = 500
_NOT_EVERYWHERE = "live, but not on every front: "


@dataclass(frozen=True, slots=True)
class StatusUpdate:
    """What became of a version that is not live, and since when."""

    version: Version
    outcome: Outcome
    reason: str
    since: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A version that this front swapped in for a reference, to be written into its tags.

    `swapped_at` is None where it only stands in for a version that this front can't serve; `refusal` is why
    this front had refused it before.
    """

    version: Version
    reason: str
    swapped_at: datetime | None
    refusal: str = ""
    is_loaded: bool = True
    is_written: bool = False


def is_reverted_elsewhere(claim: Claim, present: Mapping[str, str]) -> bool:
    """Return whether another front has gone back from the version since it went live here."""
    was_reverted = claim.version.tags.get("serving.state") == Outcome.REVERTED
    return present.get("serving.state") == Outcome.REVERTED and (claim.is_written or not was_reverted)


def is_live_everywhere(present: Mapping[str, str]) -> bool:
    """Return whether the tags show a version as live, and no front that can't serve it."""
    reason = present.get("serving.reason", "")
    return present.get("serving.state") == Outcome.LIVE and not reason.startswith(_NOT_EVERYWHERE)


def live(uri: str, held: datetime, claim: Claim, present: Mapping[str, str]) -> dict[str, str | None]:
    """Return the tags to write, in this order, for a version that is live under a reference since `held`."""
    found, reason = references(present), claim.reason[:MAX_REASON_LENGTH]
    is_new, was_live = found.get(uri) != held, present.get("serving.state") == Outcome.LIVE
    since = max({**found, uri: held}.values()).isoformat(timespec="seconds")
    tag: dict[str, str | None] = {TAG: encoded(found | {uri: held})} if is_new else {}
    if not was_live:
        return tag | _told(StatusUpdate(claim.version, Outcome.LIVE, reason, since))
    said, tags = present.get("serving.reason", ""), tag.copy()
    # How it compares differs from front to front, and the first has told.
    is_news = is_new and not said.startswith(_NOT_EVERYWHERE)
    if is_news or (claim.refusal and said == _not_everywhere(claim.refusal)):
        tags["serving.reason"] = reason
    if is_new:
        tags["serving.since"] = since
    # The reference last: as long as the version does not carry it, what is left to write is repeated.
    return _if_new(dict(reversed(tags.items())), present)


def not_live(
    uri: str, held: datetime, notice: StatusUpdate, present: Mapping[str, str]
) -> dict[str, str | None]:
    """Return the tags to write, in this order, for a version from which another took a reference at `held`.

    One that is live under no other reference gets the outcome in `notice`. Its reference goes last: as long
    as a version carries that, what is left to write is repeated.
    """
    found = references(present)
    if uri not in found or found[uri] > held:  # it has taken the reference back since
        return {}
    del found[uri]
    tags: dict[str, str | None] = {}
    if not found and present.get("serving.state") == Outcome.LIVE:
        tags |= _told(notice)
    return tags | {TAG: encoded(found)}


def outcome(notice: StatusUpdate, present: Mapping[str, str]) -> dict[str, str | None]:
    """Return the tags to write, in this order, for what became of a version that is not live."""
    state, outcome, reason = present.get("serving.state"), notice.outcome, notice.reason[:MAX_REASON_LENGTH]
    if outcome is Outcome.SUPERSEDED and references(present):
        return {}
    if state == Outcome.LIVE and outcome is Outcome.REJECTED:
        return _if_new({"serving.reason": _not_everywhere(notice.reason)}, present)
    if state != outcome or "serving.since" not in present:
        return _told(notice)
    return _if_new({"serving.reason": reason}, present)


def _told(notice: StatusUpdate) -> dict[str, str | None]:
    """Return an outcome as tags, the state last: who sees it finds its reason."""
    return {
        "serving.reason": notice.reason[:MAX_REASON_LENGTH],
        "serving.since": notice.since,
        "serving.state": notice.outcome.value,
    }


def _not_everywhere(refusal: str) -> str:
    return f"{_NOT_EVERYWHERE}{refusal}"[:MAX_REASON_LENGTH]


def _if_new(tags: dict[str, str | None], present: Mapping[str, str]) -> dict[str, str | None]:
    return {tag: value for tag, value in tags.items() if present.get(tag) != value}
