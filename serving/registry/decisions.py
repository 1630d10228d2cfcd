"""Decides what a follower does about the version that its reference names: plain functions over values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from serving.backoff import Backoff
from serving.errors import ProcessDied, RegistryError, RegistryUnavailable
from serving.promotion_errors import PromotionWaits, Rejected
from serving.telemetry.redaction import redact
from serving.version import Outcome, Version

_MAX_RETRY_SECONDS = 30.0
_LATENCY_FACTOR = 4.0
"""A follower waits this many times the registry's last latency, so it occupies it a fifth of the time."""
_DECAY_FACTOR = 0.8


class CandidatePhase(Enum):
    """The progress of a version that the reference names but that is not live."""

    LOADING = "loading"
    WAITING = "waiting"
    REJECTED = "rejected"
    REVERTED = "reverted"


REFUSED = (CandidatePhase.REJECTED, CandidatePhase.REVERTED)
"""Phases that end only when a person changes something."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """The version that the reference names while it is not live, and the reason.

    `retry_at` is the loop time of the next attempt; None: no attempt until a person changes something.
    """

    version: Version
    state: CandidatePhase
    reason: str = ""
    failures: int = 0
    retry_at: float | None = None
    outcome: Outcome | None = None
    """The outcome of its last attempt for the people who promote; None for a failure that passes."""
    detail: str = ""
    """The whole message of the cause, only for the log."""

    @property
    def status(self) -> str:
        """Return the reason as a sentence that names the version."""
        if self.state is CandidatePhase.REJECTED:
            return f"{self.version} is rejected: {self.reason}"
        return self.reason


class Action(Enum):
    """What a tick does about the version that the reference names."""

    NOTHING = "nothing"
    START = "start"
    FORGET = "forget the candidate"


def decide(resolved: Version, live: Version | None, candidate: Candidate | None, now: float) -> Action:
    """Return what to do about the version that the reference names now."""
    if live and live.identity == resolved.identity:
        return Action.FORGET if candidate else Action.NOTHING
    if candidate is None or candidate.version.identity != resolved.identity:
        return Action.START
    if candidate.state is CandidatePhase.LOADING:
        return Action.NOTHING
    changed = candidate.version.user_tags != resolved.user_tags
    due = candidate.retry_at is not None and now >= candidate.retry_at
    return Action.START if changed or due else Action.NOTHING


def refused(version: Version) -> Candidate | None:
    """Return a version that a front has refused before, according to its tags; None if none has."""
    state, reason = version.tags.get("serving.state"), version.tags.get("serving.reason", "")
    if state == Outcome.REJECTED:
        return Candidate(version, CandidatePhase.REJECTED, reason)
    if state == Outcome.REVERTED:
        return Candidate(version, CandidatePhase.REVERTED, f"{version} was reverted: {reason}")
    return None


def failed_candidate(version: Version, error: Exception, failures: int) -> tuple[Candidate, float | None]:
    """Return a version whose start failed with `error`, after a number of earlier failures.

    The second value is the number of seconds until the next attempt; None: no attempt until a person changes
    something.
    """
    phase, reason, seconds = CandidatePhase.REJECTED, redact(str(error)), None
    outcome: Outcome | None = Outcome.REJECTED
    if isinstance(error, (RegistryError, ProcessDied)):  # not the version's fault
        phase, reason, outcome = CandidatePhase.WAITING, f"{version} waits: {reason}", None
        seconds = retry_delay(failures)
    elif isinstance(error, PromotionWaits):
        phase, reason, outcome = CandidatePhase.WAITING, f"{version} waits: {reason}", Outcome.WAITING
        seconds = retry_delay(failures + 3) if error.retry else None
    elif not isinstance(error, Rejected):
        reason = f"{type(error).__name__} in the serving front; see its log"
    elif error.may_heal:
        seconds = retry_delay(failures + 3)
    detail = error.detail if isinstance(error, RegistryUnavailable) else ""
    return Candidate(version, phase, reason, failures + 1, outcome=outcome, detail=detail), seconds


def due_now(candidate: Candidate | None) -> Candidate | None:
    """Return the candidate with its next attempt due at once, unless it was reverted."""
    if candidate is None or candidate.state is CandidatePhase.REVERTED:
        return candidate
    return replace(candidate, retry_at=0.0)


def retry_delay(failures: int, max_seconds: float = _MAX_RETRY_SECONDS) -> float:
    """Return the seconds until the next attempt: growing, and different for each front."""
    return Backoff(0.5, max_seconds, jitter=0.2).delay(failures)


def next_poll_delay(poll: float, latency: float, previous: float) -> float:
    """Return the seconds until the next poll.

    Many fronts together may send more calls than a registry can handle, and a call that times out costs it
    as much as one that succeeds. So the delay grows with the latency, and shrinks gradually afterwards.
    `python -m benchmarks fleet` shows the effect.

    Args:
        poll: the configured seconds between polls.
        latency: the seconds that the registry took to respond to the last poll.
        previous: the previous delay, in seconds.
    """
    return max(poll, min(_MAX_RETRY_SECONDS, max(_LATENCY_FACTOR * latency, _DECAY_FACTOR * previous)))


def outranked_reason(rival: Version, served: Version, stage: str) -> str:
    """Return why a promoted version is not served while its stage holds a higher version number."""
    return (
        f"it is in {stage} too, but {served} has the higher number and is served: if {rival} was "
        f"meant, open {served} in the MLflow UI and transition it to Archived"
    )


def stage_conflict_warning(rivals: Sequence[Version], served: Version, stage: str) -> str:
    """Return the warning about several versions in one stage."""
    others = ", ".join(str(rival.version) for rival in rivals)
    return (
        f"versions {others} and {served.version} are all in {stage}, and the highest number is served: if "
        f"another was meant, open version {served.version} in the MLflow UI and transition it to Archived"
    )
