"""Decides which tags to write for the outcome of a promotion: plain functions over the present tags.

They return the tags in the order in which they are written; None deletes a tag.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from serving.registry.live_tag import MAX_LENGTH, TAG, encode, references
from serving.registry.mlflow_entities import printable
from serving.text import shorten
from serving.version import Outcome, Version

MAX_REASON_LENGTH = 500
REFUSAL_TAG = "serving.refusal"
"""JSON: `{"reason": …}`, why some front cannot serve a version that is live on others."""


@dataclass(frozen=True, slots=True)
class StatusUpdate:
    """The outcome for a version that is not live, and since when."""

    version: Version
    outcome: Outcome
    reason: str
    since: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A version that this front swapped in for a reference, to be written into its tags.

    `swapped_at` is None if it only stands in for a version that this front cannot serve; `refusal` is the
    reason if this front had refused it before.
    """

    version: Version
    reason: str
    swapped_at: datetime | None
    refusal: str = ""
    is_loaded: bool = True
    is_written: bool = False


def is_reverted_elsewhere(claim: Claim, present: Mapping[str, str]) -> bool:
    """Return whether another front has reverted the version since it went live here."""
    was_reverted = claim.version.tags.get("serving.state") == Outcome.REVERTED
    return present.get("serving.state") == Outcome.REVERTED and (claim.is_written or not was_reverted)


def hides_refusals(present: Mapping[str, str]) -> bool:
    """Return whether the tags show a version as live, without the refusal of any front.

    A refusal counts as shown only if the sentence for people shows it too: two fronts that write at the same
    moment may overwrite one of the two tags.
    """
    refusal = _refusal(present)
    is_shown = refusal is not None and present.get("serving.reason") == _refusal_sentence(refusal)
    return present.get("serving.state") == Outcome.LIVE and not is_shown


def live(
    uri: str, held: datetime, claim: Claim, present: Mapping[str, str], *, max_length: int = MAX_LENGTH
) -> dict[str, str | None]:
    """Return the tags to write for a version that is live under a reference since `held`.

    `max_length` is that of a tag's value in the registry.
    """
    times = references(present)
    is_new, was_live = times.get(uri) != held, present.get("serving.state") == Outcome.LIVE
    since = max({**times, uri: held}.values()).isoformat(timespec="seconds")
    tags: dict[str, str | None] = {TAG: encode(times | {uri: held}, max_length)} if is_new else {}
    if not was_live:
        return tags | _status(StatusUpdate(claim.version, Outcome.LIVE, claim.reason, since), present)
    refusal = _refusal(present)
    is_resolved = bool(claim.refusal) and refusal == _refusal_text(claim.refusal)
    if is_resolved:
        tags[REFUSAL_TAG] = None
    # The comparison with the predecessor differs between fronts; the first one's stays.
    if is_resolved or (is_new and refusal is None):
        tags["serving.reason"] = shorten(claim.reason, MAX_REASON_LENGTH)
    if is_new:
        tags["serving.since"] = since
    # The reference last: the write is repeated as long as the version does not carry it.
    return _changed(dict(reversed(tags.items())), present)


def not_live(
    uri: str, held: datetime, update: StatusUpdate, present: Mapping[str, str]
) -> dict[str, str | None]:
    """Return the tags to write for a version from which another took a reference at `held`.

    A version that is live under no other reference gets the outcome in `update`. Its reference is removed
    last: the write is repeated as long as the version carries it.
    """
    times = references(present)
    if uri not in times or times[uri] > held:  # the version has taken the reference back since
        return {}
    del times[uri]
    tags: dict[str, str | None] = {}
    if not times and present.get("serving.state") == Outcome.LIVE:
        tags |= _status(update, present)
    return tags | {TAG: encode(times)}


def outcome(update: StatusUpdate, present: Mapping[str, str]) -> dict[str, str | None]:
    """Return the tags to write for the outcome of a version that is not live on this front."""
    state, reason = present.get("serving.state"), shorten(update.reason, MAX_REASON_LENGTH)
    if update.outcome is Outcome.SUPERSEDED and references(present):
        return {}
    if state == Outcome.LIVE and update.outcome in (Outcome.REJECTED, Outcome.WAITING):
        refusal = _refusal_text(update.reason)
        value = json.dumps({"reason": refusal}, ensure_ascii=False)
        return _changed({"serving.reason": _refusal_sentence(refusal), REFUSAL_TAG: value}, present)
    if state != update.outcome or "serving.since" not in present:
        return _status(update, present)
    return _changed({"serving.reason": reason}, present)


def _status(update: StatusUpdate, present: Mapping[str, str]) -> dict[str, str | None]:
    """Return an outcome as tags, the state last: a reader who sees the state also sees its reason."""
    obsolete: dict[str, str | None] = {REFUSAL_TAG: None} if REFUSAL_TAG in present else {}
    return {
        "serving.reason": shorten(update.reason, MAX_REASON_LENGTH),
        "serving.since": update.since,
        **obsolete,
        "serving.state": update.outcome.value,
    }


def _refusal(present: Mapping[str, str]) -> str | None:
    """Return why a front refuses the version, according to the tag; None if none does."""
    try:
        value = json.loads(present.get(REFUSAL_TAG, "null"))
    except (ValueError, RecursionError):
        return None
    reason = value.get("reason") if isinstance(value, dict) else None
    return reason if isinstance(reason, str) else None


def _refusal_text(reason: str) -> str:
    return shorten(printable(reason), MAX_REASON_LENGTH)


def _refusal_sentence(refusal: str) -> str:
    return shorten(f"live, but not on every front: {refusal}", MAX_REASON_LENGTH)


def _changed(tags: dict[str, str | None], present: Mapping[str, str]) -> dict[str, str | None]:
    return {tag: value for tag, value in tags.items() if present.get(tag) != value}


def merged_tag(tag: str, merge: Callable[[str], str], present: Mapping[str, str]) -> dict[str, str | None]:
    """Return the tag with the value that `merge` returns for the present one; nothing if it is the same."""
    value = present.get(tag, "")
    merged = shorten(merge(value), MAX_REASON_LENGTH)
    return {} if merged == value else {tag: merged}
