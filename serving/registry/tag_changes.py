"""Decides which tags to write for what became of a version: plain functions over the tags that are there.

Each returns the tags in the order in which they are written; None deletes a tag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from serving.registry.live_tag import TAG, encoded, references
from serving.runtime.version import Outcome, Version

LONGEST_REASON = 500
_NOT_EVERYWHERE = "live, but not on every front: "


@dataclass(frozen=True, slots=True)
class Notice:
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


def live(uri: str, held: datetime, claim: Claim, present: Mapping[str, str]) -> dict[str, str | None]:
    """Return the tags to write, in this order, for a version that is live under a reference since `held`."""
    found, reason = references(present), claim.reason[:LONGEST_REASON]
    is_new, was_live = found.get(uri) != held, present.get("serving.state") == Outcome.LIVE
    since = max({**found, uri: held}.values()).isoformat(timespec="seconds")
    tags: dict[str, str | None] = {TAG: encoded(found | {uri: held})} if is_new else {}
    if not was_live:
        # The state last: who sees it finds its reason.
        return tags | {"serving.reason": reason, "serving.since": since, "serving.state": Outcome.LIVE.value}
    said = present.get("serving.reason", "")
    # How it compares differs from front to front, and the first has told.
    is_news = is_new and not said.startswith(_NOT_EVERYWHERE)
    if is_news or (claim.refusal and said == _not_everywhere(claim.refusal)):
        tags["serving.reason"] = reason
    if is_new:
        tags["serving.since"] = since
    return _if_new(tags, present)


def not_live(
    uri: str, held: datetime, reason: str, is_told: bool, present: Mapping[str, str]
) -> dict[str, str | None]:
    """Return the tags to write for a version from which another took a reference at `held`.

    The state of one that is live under no other reference is left to a notice where there is one (`is_told`).
    """
    found = references(present)
    if found.pop(uri, held) > held:
        return {}  # it has taken the reference back since
    tags = {TAG: encoded(found)} if uri in references(present) else {}
    if found or is_told or present.get("serving.state") != Outcome.LIVE:
        return tags
    told = {"serving.reason": reason[:LONGEST_REASON], "serving.since": held.isoformat(timespec="seconds")}
    return tags | told | {"serving.state": Outcome.SUPERSEDED.value}


def outcome(notice: Notice, present: Mapping[str, str]) -> dict[str, str | None]:
    """Return the tags to write, in this order, for what became of a version that is not live."""
    state, outcome, reason = present.get("serving.state"), notice.outcome, notice.reason[:LONGEST_REASON]
    if outcome is Outcome.SUPERSEDED and references(present):
        return {}
    if state == Outcome.LIVE and outcome is Outcome.REJECTED:
        return _if_new({"serving.reason": _not_everywhere(notice.reason)}, present)
    if state != outcome or "serving.since" not in present:
        return {"serving.reason": reason, "serving.since": notice.since, "serving.state": outcome.value}
    return _if_new({"serving.reason": reason}, present)


def _not_everywhere(refusal: str) -> str:
    return f"{_NOT_EVERYWHERE}{refusal}"[:LONGEST_REASON]


def _if_new(tags: dict[str, str | None], present: Mapping[str, str]) -> dict[str, str | None]:
    return {tag: value for tag, value in tags.items() if present.get(tag) != value}
