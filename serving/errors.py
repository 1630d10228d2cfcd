"""Everything that can go wrong, as one tree. No HTTP in here: `app.py` turns classes into statuses.

ServingError
├── InvalidReference            a model reference in none of the known forms
├── RegistryError
│   ├── RegistryUnavailable     no (sensible) answer from the registry or the artifact store; may heal
│   └── Unresolved              the reference names no version at present
├── Rejected                    a version that can't serve, with the reason for the person who promoted it
│   ├── Untypable               no signature, or one from which no typed endpoint can be made
│   ├── LoadFailed              its process failed, hung or died while loading
│   ├── VerificationFailed      it doesn't answer its own example, or live requests, as its contract says
│   ├── Untrusted               the operator's rules do not let it in
│   ├── Breaking                clients of the live version could not go on with it
│   ├── FrontDied               fronts died while it was being verified
│   ├── NoEnvironment           what it requires can't be installed; may heal
│   └── Corrupt                 its artifacts are not those that were registered; may heal
├── BadKeys                     the file of API keys can't be read or written
├── Untraceable                 traces are asked for that can't be sent
├── Unauthenticated             the caller does not prove who it is
├── Forbidden                   the caller's key is not for this
├── RateExceeded                the caller's key is used too often
├── RequestError                the caller's mistake
│   ├── Malformed               not JSON, or JSON of which two readers could read two things
│   ├── BadHost                 it calls the service by a name that is not its own
│   ├── CrossSite               a page of another origin sends it
│   ├── BodyTooLarge
│   ├── TooSlow                 it has not come whole in time
│   ├── UnsupportedMedia
│   ├── Unprocessable           JSON that does not fit the contract
│   ├── NotStreaming            the model can't answer bit by bit
│   ├── Contradictory           its path and its header name different models
│   ├── UnknownModel            no such model, or a version that is not loaded
│   └── UnknownPrediction       feedback on a prediction that is not in the journal
├── Unavailable                 not this caller's mistake; worth another try after `retry_after` seconds
│   ├── NotLive                 the model has no live version yet
│   │   └── NotLoaded           the model is loaded on demand and is not loaded now
│   ├── Overloaded              the queue is full
│   ├── JournalAway             the journal of predictions can't be asked now
│   └── ProcessDied             the model process died under the request, twice
├── CallerLeft                  nobody waits for the answer any more
├── DeadlineExceeded            no answer within the request's deadline
└── ModelFailed                 the model raised, or answered what its contract does not allow
    └── NotSeparable            its output can't be split among the requests of a shared call
"""

from dataclasses import dataclass


class ServingError(Exception):
    """Base of all errors of this package."""


class InvalidReference(ServingError):
    """A model reference in none of the known forms."""


class RegistryError(ServingError):
    """The registry was asked in vain."""


class RegistryUnavailable(RegistryError):
    """The registry or the artifact store gave no sensible answer; it may heal."""


class ReferenceNotFound(RegistryError):
    """The reference names no version at present."""


class Rejected(ServingError):
    """A version that can't serve; the message is written for the person who promoted it."""

    may_heal = False
    """Whether it is worth another try without anybody's doing."""


class UnsupportedSignature(Rejected):
    """No signature, or one from which no typed endpoint can be made."""


class LoadFailed(Rejected):
    """The model process failed, hung or died while loading."""


class VerificationFailed(Rejected):
    """The version doesn't answer its own input example, or live requests, as its contract says."""


class UntrustedArtifact(Rejected):
    """The operator's rules do not let it in."""


class IncompatibleContract(Rejected):
    """Clients of the live version could not go on with it."""


class FrontDied(Rejected):
    """Fronts died while it was being verified."""


class EnvironmentUnavailable(Rejected):
    """What it requires can't be installed; it may heal, unless what it requires can't be read."""

    def __init__(self, detail: str, *, may_heal: bool = True) -> None:
        super().__init__(detail)
        self.may_heal = may_heal


class DigestMismatch(Rejected):
    """Its artifacts are not those that were registered; it may heal."""

    may_heal = True


class ApiKeyFileError(ServingError):
    """The file of API keys can't be read or written."""


class TracingConfigError(ServingError):
    """Traces are asked for that can't be sent; the message names the variable."""


class Unauthenticated(ServingError):
    """The caller does not prove who it is."""


class Forbidden(ServingError):
    """The caller's key is not for this."""


class RateExceeded(ServingError):
    """The caller's key is used too often; worth another try after `retry_after` seconds."""

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong with a request body: where (`loc`), and what (`msg`)."""

    loc: tuple[str | int, ...]
    msg: str


class RequestError(ServingError):
    """The caller's mistake; `faults` says where."""

    def __init__(self, detail: str, faults: tuple[FieldError, ...] = ()) -> None:
        super().__init__(detail)
        self.faults = faults


class Malformed(RequestError):
    """Not JSON, or JSON of which two readers could read two things."""


class BadHost(RequestError):
    """The request calls the service by a name that is not its own."""


class CrossSite(RequestError):
    """A page of another origin sends the request."""


class BodyTooLarge(RequestError):
    """The body is over the limit."""


class RequestTimeout(RequestError):
    """The request has not come whole in time."""


class UnsupportedMedia(RequestError):
    """The body's media type or encoding is not spoken here."""


class Unprocessable(RequestError):
    """JSON that does not fit the contract."""


class NotStreaming(RequestError):
    """The model can't answer bit by bit."""


class ConflictingModel(RequestError):
    """The path of the request and its header name different models."""


class UnknownModel(RequestError):
    """No such model, or a version that is not loaded."""


def not_served(model: str) -> UnknownModel:
    """Return the error for a model that is not served, or that the caller's key does not give access to."""
    return UnknownModel(f"No model {model[:100]!r} is served here.")


class UnknownPrediction(RequestError):
    """Feedback on a prediction that is not in the journal."""


class Unavailable(ServingError):
    """Not this caller's mistake, and worth another try after `retry_after` seconds."""

    retry_after = 1


class NotLive(Unavailable):
    """The model has no live version yet.

    `public` is the detail for callers who may not read reasons, which can contain texts of model code.
    """

    def __init__(self, detail: str, public: str = "The model is not live.") -> None:
        super().__init__(detail)
        self.public = public


class NotLoaded(NotLive):
    """The model is loaded on demand and is not loaded now; `reference` is the URI of its reference."""

    def __init__(self, detail: str, public: str, reference: str) -> None:
        super().__init__(detail, public)
        self.reference = reference


class Overloaded(Unavailable):
    """The queue of the model is full."""


class JournalUnavailable(Unavailable):
    """The journal of predictions can't be asked now."""

    retry_after = 5


class ProcessDied(Unavailable):
    """The model process died under the request, twice."""


class ClientDisconnected(ServingError):
    """Nobody waits for the answer any more."""


class DeadlineExceeded(ServingError):
    """No answer within the request's deadline.

    `hung` if the model itself took half of the service's deadline or more, `dead` if the version had no
    process.
    """

    def __init__(self, detail: str, *, hung: bool = False, dead: bool = False) -> None:
        super().__init__(detail)
        self.hung, self.dead = hung, dead


class ModelFailed(ServingError):
    """The model raised, or answered what its contract does not allow.

    `cause` is for the log alone: it may hold what no client may see. `exception` is the class of what was
    raised.
    """

    def __init__(self, detail: str, cause: str = "", exception: str = "") -> None:
        super().__init__(detail)
        self.cause, self.exception = cause, exception


class NotSeparable(ModelFailed):
    """The output of a shared call can't be split among its requests."""
