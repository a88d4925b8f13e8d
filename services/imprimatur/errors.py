"""The exception tree, on one page. Whether an error may be retried is its class.

Two branches: `RequestError` is an answer to a caller and maps to one gRPC status (`gateway.errors` does it, by
the `code` and `reason` given here); `AttemptError` is the end of one attempt at a job, and `retry` decides what
follows. Messages reach clients and result pages: they name the field and what is allowed, never a secret.
"""

from typing import Self

import grpc


class ImprimaturError(Exception):
    """Root of everything this system raises on purpose."""


# --- answers to a caller ---------------------------------------------------------------------------------


class RequestError(ImprimaturError):
    """A request cannot be served as asked.

    `reason` is the stable UPPER_SNAKE_CASE identifier of AIP-193; `metadata` its machine-readable details.
    """

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL
    reason: str = "INTERNAL"
    #: When the same call may succeed, as far as can be said; None: not by waiting.
    retry_after_seconds: float | None = None

    def __init__(self, message: str, *, reason: str | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.metadata = metadata

    def retry_after(self, seconds: float) -> Self:
        """The same error, which may pass in so many seconds."""
        self.retry_after_seconds = seconds
        return self

    def within(self, path: str) -> "RequestError":
        """The same about a field of a larger request: "items[3]." before "labels" gives "items[3].labels"."""
        if "field" not in self.metadata:
            return self
        outer = self.metadata | {"field": path + self.metadata["field"]}
        return type(self)(path + self.message, reason=self.reason, **outer)


class InvalidRequest(RequestError):
    """A field has a value that is not allowed. `metadata["field"]` is its path, e.g. "items[3].task"."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_FIELD"

    def __init__(self, field: str, message: str, *, reason: str | None = None, **metadata: str) -> None:
        super().__init__(f"{field}: {message}", reason=reason, field=field, **metadata)
        self.field = field
        self.description = message

    def within(self, path: str) -> "InvalidRequest":
        """As for every RequestError."""
        outer = dict(self.metadata)
        del outer["field"]
        return InvalidRequest(path + self.field, self.description, reason=self.reason, **outer)


class OutOfRange(RequestError):
    """Something that does not exist yet is asked for."""

    code = grpc.StatusCode.OUT_OF_RANGE
    reason = "OUT_OF_RANGE"


class Unauthenticated(RequestError):
    """No key, or one that does not exist or was revoked."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "INVALID_API_KEY"


class PermissionDenied(RequestError):
    """The key is good, but its role or its user may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "ROLE_NOT_ALLOWED"


class NotFound(RequestError):
    """Does not exist, or belongs to another tenant or user: the two are not told apart."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExists(RequestError):
    """The same identifier stands for something else already."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class FailedPrecondition(RequestError):
    """The thing exists but is not in a state that allows this."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "WRONG_STATE"


class ResourceExhausted(RequestError):
    """A limit of this system or tenant is reached. Where waiting helps, `retry_after_seconds` says how long."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "LIMIT_REACHED"


class Unavailable(RequestError):
    """Something this service needs is out of reach now; the same call may succeed soon."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "TEMPORARILY_UNAVAILABLE"
    retry_after_seconds = 1.0


class Contended(RequestError):
    """Others came in between: what was begun is undone, and may be begun anew at once."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "KEY_CONTENDED"
    retry_after_seconds = 0.1


# --- ends of an attempt ----------------------------------------------------------------------------------


class AttemptError(ImprimaturError):
    """One attempt at a job ended without a result.

    `code` is a stable snake_case word; `message` tells a person what to do; `stage` is where it struck.
    """

    code: str = "internal"
    #: What it cost nonetheless: at which engine, in tokens and in millionths of a US dollar.
    engine: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int = 0

    def __init__(self, message: str, *, code: str | None = None, stage: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.stage = stage

    def after_spending(
        self, engine: str, *, input_tokens: int = 0, output_tokens: int = 0, cost_micros: int = 0
    ) -> "AttemptError":
        """The same error, with what the attempt cost."""
        self.engine = engine
        self.input_tokens, self.output_tokens, self.cost_micros = input_tokens, output_tokens, cost_micros
        return self


class TransientError(AttemptError):
    """May pass by itself: a network fault, a provider's 5xx, an engine process that died."""

    code = "transient"


class TimedOut(TransientError):
    """The attempt took longer than its time-out."""

    code = "timed_out"


class Postponed(AttemptError):
    """Not now, and that is not the job's doing. Spends no attempt."""

    code = "postponed"

    def __init__(self, message: str, *, retry_after_seconds: float, code: str | None = None, stage: str = "") -> None:
        super().__init__(message, code=code, stage=stage)
        self.retry_after_seconds = retry_after_seconds


class RateLimited(Postponed):
    """The provider was asked, and asks to wait."""

    code = "rate_limited"


class NotBegun(Postponed):
    """The provider was not asked. Whoever raises it has seen to it that jobs do not all come back at once."""

    code = "not_begun"


class PermanentError(AttemptError):
    """Trying again cannot help, for example because an engine refuses to answer."""

    code = "permanent"


class BudgetExhausted(PermanentError):
    """The tenant has spent what it may spend in a day."""

    code = "budget_exhausted"


class UnreviewableInput(PermanentError):
    """The input itself cannot be worked on, such as an image that is not one. The job fails."""

    code = "unreviewable_input"


# --- faults of the surroundings --------------------------------------------------------------------------


class BrokerError(ImprimaturError):
    """The broker did not confirm. Whether it has the message is unknown: publish again, same message id."""


class Unroutable(BrokerError):
    """The broker has no queue for the message: the topology must be declared again."""


class MalformedMessage(ImprimaturError):
    """A broker message that this version cannot read. It is set aside, never retried."""


class Locked(ImprimaturError):
    """Others keep locked what a transaction needs, for longer than it was to wait. Nothing of it is written."""


class ConfigurationError(ImprimaturError):
    """The process cannot start as configured; the message names the setting."""
