"""The errors of this package as one tree, without HTTP: the front maps the classes to statuses.

ServingError
├── InvalidReference            a model reference in no known form
├── RegistryError
│   ├── RegistryUnavailable     no valid response from the registry or the artifact store; may heal
│   │   ├── RegistryDenied      it requires other credentials or permissions
│   │   ├── RegistryRejected    it rejects the request, or the address is that of another server
│   │   ├── RegistryFault       it reports an internal error
│   │   ├── ArtifactsMissing    the artifact store has no files of the version
│   │   ├── DiskError           the service's own disk is full, or cannot be written
│   │   └── DriverMissing       a package that the URI requires is not installed
│   ├── WebhooksUnsupported     the registry has no webhooks
│   └── ReferenceNotFound       the reference resolves to no version at present
├── Rejected, PromotionWaits    reasons why a version does not go live: see `serving.promotion_errors`
├── ApiKeyFileError             the file of API keys cannot be read or written
├── ApproversFileError          the file of approvers cannot be used
├── TracingConfigError          tracing is configured, but traces cannot be sent
├── Unauthenticated             the caller presents no valid key
├── Forbidden                   the caller's key does not allow this
├── RateExceeded                the caller's key exceeds its rate limit
├── RequestError                a mistake of the caller
│   ├── Malformed               not JSON, or JSON that parsers read differently
│   ├── BadHost                 the host name is not allowed
│   ├── CrossSite               a page of another origin sent the request
│   ├── BodyTooLarge
│   ├── RequestTimeout          the request did not arrive completely in time
│   ├── UnsupportedMedia
│   │   └── UnsupportedEncoding the Content-Encoding of the body
│   ├── Unprocessable           JSON that does not match the contract
│   ├── NotStreaming            the model cannot stream
│   ├── ConflictingModel        the path and the header name different models
│   ├── UnknownModel            no such model, or a version that is not loaded
│   └── UnknownPrediction       feedback on a prediction that is not in the journal
├── Unavailable                 not a mistake of the caller; retry after `retry_after` seconds
│   ├── NotLive                 the model has no live version yet
│   │   └── NotLoaded           the model is loaded on demand and is not loaded now
│   ├── Overloaded              the queue is full
│   ├── JournalUnavailable      the journal of predictions is unavailable
│   └── ProcessDied             the model process died twice during the request
├── ClientDisconnected          the client has closed the connection
├── DeadlineExceeded            the deadline of the request has passed
└── ModelFailed                 the model raised, or its output violates its contract
    └── NotSeparable            the output of a shared call cannot be split among its requests
"""

from dataclasses import dataclass


class ServingError(Exception):
    """Base of all errors of this package."""


class InvalidReference(ServingError):
    """A model reference in no known form."""


class RegistryError(ServingError):
    """A call of the registry failed."""


class RegistryUnavailable(RegistryError):
    """No valid response from the registry or the artifact store; `detail` is only for the log."""

    state = "away"
    """The state of the registry, for status reports."""
    _summary = "{} is away"

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail

    @classmethod
    def summary(cls, server: str = "the registry") -> str:
        """Return the kind of the error in a few words, for the registry or the artifact store."""
        return cls._summary.format(server)


class RegistryDenied(RegistryUnavailable):
    """The registry or the artifact store requires other credentials or permissions."""

    state, _summary = "denied", "{} denies access"


class RegistryRejected(RegistryUnavailable):
    """The registry rejects the request, or the address is that of another server."""

    state, _summary = "rejected", "{} rejects the request"


class RegistryFault(RegistryUnavailable):
    """The registry or the artifact store reports an internal error."""

    state, _summary = "internal error", "{} reports an internal error"


class ArtifactsMissing(RegistryUnavailable):
    """The artifact store has no files of the version."""

    state, _summary = "artifacts missing", "the artifacts are missing"


class DiskError(RegistryUnavailable):
    """The artifacts cannot be stored, because the service's own disk is full or cannot be written."""

    state, _summary = "disk error", "the disk of the service cannot store them"


class DriverMissing(RegistryUnavailable):
    """A package that the URI of the registry or of the artifacts requires is not installed."""

    state, _summary = "driver missing", "a driver is missing"


class WebhooksUnsupported(RegistryError):
    """The registry has no webhooks."""


class ReferenceNotFound(RegistryError):
    """The reference resolves to no version at present."""


class ApiKeyFileError(ServingError):
    """The file of API keys cannot be read or written."""


class ApproversFileError(ServingError):
    """The file of approvers cannot be read, written or used."""


class TracingConfigError(ServingError):
    """Tracing is configured, but traces cannot be sent; the message names the variable."""


class Unauthenticated(ServingError):
    """The caller presents no valid key."""


class Forbidden(ServingError):
    """The caller's key does not allow this."""


class RateExceeded(ServingError):
    """The caller's key exceeds its rate limit; a retry may succeed after `retry_after` seconds."""

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class FieldError:
    """One error in a request body: its location (`loc`) and a message (`msg`)."""

    loc: tuple[str | int, ...]
    msg: str


class RequestError(ServingError):
    """A mistake of the caller; `faults` lists its locations."""

    def __init__(self, detail: str, faults: tuple[FieldError, ...] = ()) -> None:
        super().__init__(detail)
        self.faults = faults


class Malformed(RequestError):
    """Not JSON, or JSON that parsers read differently."""


class BadHost(RequestError):
    """The host name of the request is not allowed."""


class CrossSite(RequestError):
    """A page of another origin sent the request."""


class BodyTooLarge(RequestError):
    """The body exceeds the limit."""


class RequestTimeout(RequestError):
    """The request did not arrive completely in time."""


class UnsupportedMedia(RequestError):
    """The media type or encoding of the body is not supported."""


class UnsupportedEncoding(UnsupportedMedia):
    """The `Content-Encoding` of the body is not supported."""


class Unprocessable(RequestError):
    """JSON that does not match the contract."""


class NotStreaming(RequestError):
    """The model cannot stream."""


class ConflictingModel(RequestError):
    """The path of the request and its header name different models."""


class UnknownModel(RequestError):
    """No such model, or a version that is not loaded."""


def not_served(model: str) -> UnknownModel:
    """Return the error for a model that is not served, or that the caller's key does not allow."""
    return UnknownModel(f"No model {model[:100]!r} is served here.")


class UnknownPrediction(RequestError):
    """Feedback on a prediction that is not in the journal."""


class Unavailable(ServingError):
    """Not a mistake of the caller; a retry may succeed after `retry_after` seconds."""

    retry_after = 1


class NotLive(Unavailable):
    """The model has no live version yet; `public` is the detail for callers who may not read reasons."""

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
    """The journal of predictions is unavailable."""

    retry_after = 5


class ProcessDied(Unavailable):
    """The model process died twice during the request."""


class ClientDisconnected(ServingError):
    """The client has closed the connection."""


class DeadlineExceeded(ServingError):
    """The deadline has passed.

    `hung`: the model itself took at least half of the service's deadline; `dead`: the version has no process.
    """

    def __init__(self, detail: str, *, hung: bool = False, dead: bool = False) -> None:
        super().__init__(detail)
        self.hung, self.dead = hung, dead


class ModelFailed(ServingError):
    """The model raised, or its output violates its contract.

    `cause` is only for the log, because it may contain confidential data. `exception` is the name of the
    class of the model's exception.
    """

    def __init__(self, detail: str, cause: str = "", exception: str = "") -> None:
        super().__init__(detail)
        self.cause, self.exception = cause, exception


class NotSeparable(ModelFailed):
    """The output of a shared call cannot be split among its requests."""
