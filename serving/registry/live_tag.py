"""Reads and updates the tag `serving.live`: the references under which a version is live, and since when.

The tag is a JSON object such as `{"models:/iris/Production": "2026-11-27T16:59:04.120Z"}`. MLflow cannot
change two versions in one step, so two may carry a reference for a moment: the later time counts. As clocks
differ, a version that takes over a reference always gets a later time than its predecessor.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from serving.version import Version

TAG = "serving.live"
MAX_LENGTH = 5000
"""Servers before MLflow 3 reject longer tags."""
MAX_AHEAD = timedelta(days=1)
"""Times further in the future are ignored."""
_STEP = timedelta(milliseconds=1)


def moment() -> datetime:
    """Return the time now, to the millisecond, which is the precision of the tag."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def references(tags: Mapping[str, str]) -> dict[str, datetime]:
    """Return the references in the tag, and since when; invalid entries are ignored."""
    text = tags.get(TAG, "")
    if len(text) > MAX_LENGTH:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    times = {uri: _time(time) for uri, time in value.items()} if isinstance(value, dict) else {}
    return {uri: since for uri, since in times.items() if since}


def encode(live: Mapping[str, datetime], max_length: int = MAX_LENGTH) -> str | None:
    """Return the tag's text; None for no tag. The oldest references are dropped if it would be too long."""
    if not live:
        return None
    times = {
        uri: since.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for uri, since in sorted(live.items(), key=lambda item: item[1])
    }
    while len(text := json.dumps(times)) > max_length:
        del times[next(iter(times))]
    return text


def latest(versions: Iterable[Version], uri: str) -> Version | None:
    """Return the version that went live last under a reference."""
    carriers = [version for version in versions if uri in references(version.tags)]
    return max(carriers, key=lambda version: _rank(version, uri), default=None)


def contested(tags: Iterable[Mapping[str, str]]) -> frozenset[str]:
    """Return the references that more than one version carries."""
    counts = Counter(uri for version_tags in tags for uri in references(version_tags))
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

    A version takes over the reference if the reference names it now, if no other version carries it, or if it
    was swapped in later than every other version that does. The reference is never taken from the version
    that it names, unless that one was reverted.

    Args:
        uri: the reference.
        version: the version that is live on this front.
        swapped_at: when it was swapped in; None if it only stands in for one that this front cannot serve.
        versions: all versions of the model, with their tags.
        named: the number of the version that the reference names now, if any.
        named_is_reverted: whether a front has reverted that version.
    """
    versions = list(versions)
    own = next((references(v.tags).get(uri) for v in versions if v.version == version.version), None)
    others = [other for other in versions if other.version != version.version]
    last = latest(others, uri)
    top = _rank(last, uri) if last else None
    if own and (top is None or (own, int(version.version or 0)) > top):
        return own
    rival = latest([other for other in others if not (named_is_reverted and other.version == named)], uri)
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
        time = datetime.fromisoformat(value).astimezone(UTC) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None
    return time if time and time <= datetime.now(UTC) + MAX_AHEAD else None
