"""Reasons why a version does not go live."""

from __future__ import annotations

from serving.errors import ServingError


class Rejected(ServingError):
    """A version that cannot serve; the message is for the person who promoted it."""

    may_heal = False
    """Whether a retry may succeed without any action."""


class PromotionWaits(ServingError):
    """A version that must not go live yet; the message is for the person who promoted it.

    Args:
        reason: what is missing, as a clause without a subject.
        retry: whether something may change that the version's tags do not show, so that it is tried again.
    """

    def __init__(self, reason: str, *, retry: bool = False) -> None:
        super().__init__(reason)
        self.retry = retry


class UnsupportedSignature(Rejected):
    """No signature, or one that cannot be served."""


class LoadFailed(Rejected):
    """The model process failed, hung or died while loading."""


class VerificationFailed(Rejected):
    """The outputs of the version for its example or for live requests violate its contract."""


class UntrustedArtifact(Rejected):
    """The operator's rules do not allow the version."""


class IncompatibleContract(Rejected):
    """The version would break clients of the live version."""


class FrontDied(Rejected):
    """Fronts died while the version was being verified."""


class EnvironmentUnavailable(Rejected):
    """The requirements of the version cannot be installed; it may heal, unless they cannot be read."""

    def __init__(self, detail: str, *, may_heal: bool = True) -> None:
        super().__init__(detail)
        self.may_heal = may_heal


class DigestMismatch(Rejected):
    """The artifacts of the version differ from those that were registered; it may heal."""

    may_heal = True
