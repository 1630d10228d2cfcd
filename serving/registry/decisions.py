"""What to do about the version that a reference names now: plain functions over plain values."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from serving.version import Outcome, Version

_MAX_RETRY_SECONDS = 30.0
_RESTRAINT, _FORGOTTEN = 4.0, 0.8


class CandidatePhase(Enum):
    """Where a version stands that is to go live."""

    LOADING = "loading"
    WAITING = "waiting"
    REJECTED = "rejected"
    REVERTED = "reverted"


REFUSED = (CandidatePhase.REJECTED, CandidatePhase.REVERTED)
"""Not tried again until a person changes something."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """The version that the reference names while it is not live, and why it is not.

    `retry_at` is the loop time at which it is tried again; None: not until a person changes something.
    """

    version: Version
    state: CandidatePhase
    reason: str = ""
    failures: int = 0
    retry_at: float | None = None

    @property
    def told(self) -> str:
        """Why it is not live, in a sentence of its own."""
        return (
            f"{self.version} is refused: {self.reason}"
            if self.state is CandidatePhase.REJECTED
            else self.reason
        )


class Action(Enum):
    """What a tick does about the version that it found."""

    NOTHING = "nothing"
    START = "start"
    RETURN = "return to the version that is still warm"
    FORGET = "forget the candidate"


def decide(
    found: Version, live: Version | None, warm: Version | None, candidate: Candidate | None, now: float
) -> Action:
    """What to do about the version that the reference names now."""
    if live and live.identity == found.identity:
        return Action.FORGET if candidate else Action.NOTHING
    if candidate is None or candidate.version.identity != found.identity:
        return Action.RETURN if warm and warm.identity == found.identity else Action.START
    if candidate.state is CandidatePhase.LOADING:
        return Action.NOTHING
    changed = candidate.version.user_tags != found.user_tags
    due = candidate.retry_at is not None and now >= candidate.retry_at
    return Action.START if changed or due else Action.NOTHING


def refused(found: Version) -> Candidate | None:
    """A version as fronts have refused it before, as its tags tell; None if they have not."""
    state, reason = found.tags.get("serving.state"), found.tags.get("serving.reason", "")
    if state == Outcome.REJECTED:
        return Candidate(found, CandidatePhase.REJECTED, reason)
    if state == Outcome.REVERTED:
        return Candidate(found, CandidatePhase.REVERTED, f"{found} was reverted: {reason}")
    return None


def retry_delay(failures: int, longest: float = _MAX_RETRY_SECONDS) -> float:
    """Seconds until something that may heal is tried again: growing, and not the same for all fronts."""
    return float(min(longest, 0.5 * 2.0 ** min(failures, 10))) * random.uniform(0.8, 1.2)  # noqa: S311 — no secret


def next_poll_delay(poll: float, waited: float, before: float) -> float:
    """Seconds until the next look, where the registry took `waited` to answer and the last rest was `before`.

    Many fronts together may ask more than a registry can answer, and what they give up costs it as much as
    what they hear. So each waits for it a fifth of its time at most, and comes back by and by, not all at
    once. `python -m benchmarks fleet` shows what becomes of that.
    """
    return max(poll, min(_MAX_RETRY_SECONDS, max(_RESTRAINT * waited, _FORGOTTEN * before)))


def outranked_reason(rival: Version, found: Version, stage: str) -> str:
    """Why a version that was promoted is not served, where another in its stage has a higher number."""
    return (
        f"it is in {stage} too, but {found} has the higher number and is served: if {rival} was "
        f"meant, open {found} in the MLflow UI and transition it to Archived"
    )


def stage_conflict_warning(rivals: Sequence[Version], found: Version, stage: str) -> str:
    """What a person should know where several versions are in one stage."""
    others = ", ".join(str(rival.version) for rival in rivals)
    return (
        f"versions {others} and {found.version} are all in {stage}, and the highest number is served: if "
        f"another was meant, open version {found.version} in the MLflow UI and transition it to Archived"
    )
