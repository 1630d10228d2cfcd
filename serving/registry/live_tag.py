"""Reads and updates the tag `serving.live`: the references that a version is live under, and since when.

The tag is a JSON object, as `{"models:/iris/Production": "2026-11-27T16:59:04.120Z"}`. MLflow can't change
two versions in one step, so that two may carry a reference for a moment: the later time counts. Clocks
differ: a version that takes a reference over gets a later time than the one before, whatever the clock shows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from serving.version import Version

TAG = "serving.live"
MAX_LENGTH = 5000
"""Servers before MLflow 3 take no longer tag."""
MAX_AHEAD = timedelta(days=1)
"""A time that is further in the future is nonsense."""
_STEP = timedelta(milliseconds=1)


def moment() -> datetime:
    """Return the time now, to the millisecond, as the tag keeps it."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def references(tags: Mapping[str, str]) -> dict[str, datetime]:
    """Return the references in the tag, and since when; what is no such thing is left out."""
    text = tags.get(TAG, "")
    if len(text) > MAX_LENGTH:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    times = {uri: _time(value) for uri, value in found.items()} if isinstance(found, dict) else {}
    return {uri: since for uri, since in times.items() if since}


def encoded(live: Mapping[str, datetime]) -> str | None:
    """Return the tag's text; None for no tag. The oldest references go where it would be too long."""
    if not live:
        return None
    times = {
        uri: since.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for uri, since in sorted(live.items(), key=lambda each: each[1])
    }
    while len(text := json.dumps(times)) > MAX_LENGTH:
        del times[next(iter(times))]
    return text


def latest(versions: Iterable[Version], uri: str) -> Version | None:
    """Return the version that went live last under a reference."""
    carriers = [each for each in versions if uri in references(each.tags)]
    return max(carriers, key=lambda each: _rank(each, uri), default=None)


def contested(tags: Iterable[Mapping[str, str]]) -> frozenset[str]:
    """Return the references that more than one version carries."""
    counts = Counter(uri for each in tags for uri in references(each))
    return frozenset(uri for uri, count in counts.items() if count > 1)


def held_since(
    uri: str,
    version: Version,
    swapped_at: datetime | None,
    versions: Iterable[Version],
    *,
    named: str | None,
    named_is_reverted: bool,
) -> datetime | None:
    """Return since when a version that is live on this front holds a reference; None if another holds it.

    A version takes the reference over if the reference names it now, if no other version carries it, or if it
    was swapped in later than every other that does. The reference is never taken from the version that it
    names, unless that one was reverted.

    Args:
        uri: the reference.
        version: what is live on this front.
        swapped_at: when that was; None if it only stands in for a version that this front can't serve.
        versions: all versions of the model, with their tags.
        named: the number of the version that the reference names now, if any.
        named_is_reverted: a front has gone back from that version.
    """
    own = next((references(each.tags).get(uri) for each in versions if each.version == version.version), None)
    others = [each for each in versions if each.version != version.version]
    last = latest(others, uri)
    top = _rank(last, uri) if last else None
    if own and (top is None or (own, int(version.version or 0)) > top):
        return own
    rival = latest([each for each in others if not (named_is_reverted and each.version == named)], uri)
    is_later = (
        rival is not None
        and rival.version != named
        and swapped_at is not None
        and swapped_at > _rank(rival, uri)[0]
    )
    if version.version == named or rival is None or is_later:
        return max(swapped_at or moment(), top[0] + _STEP) if top else (swapped_at or moment())
    return None


def _rank(version: Version, uri: str) -> tuple[datetime, int]:
    return references(version.tags)[uri], int(version.version or 0)


def _time(value: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(value).astimezone(UTC) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None
    return found if found and found <= datetime.now(UTC) + MAX_AHEAD else None
