"""What a provider's refusal or failure means for the attempt: one of our errors, by which retry is decided.

Messages reach clients: they say what a person can do and never repeat what the provider wrote, which may quote a key.
"""

from pydantic_ai.exceptions import (
    AgentRunError,
    ContentFilterError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestRejectedError,
    ModelRequestTimeout,
    ModelTimeoutError,
    OutputTokenLimitExceeded,
    UnexpectedModelBehavior,
    UserError,
)

from imprimatur.errors import AttemptError, PermanentError, RateLimited, TransientError

STAGE = "examining"
#: The pause when a provider limits the rate and does not say for how long.
DEFAULT_PAUSE_SECONDS = 10.0

_FILTERED = frozenset({"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"})
_TIMED_OUT = frozenset({408, 504})
_BAD_REQUEST, _TOO_LARGE = 400, 413
#: LiteLLM knows the words of many providers, and names what it understood.
_TOO_LONG_FOR_LITELLM = "ContextWindowExceededError"
#: So its proxy refuses, as a 400, every key but its own where it has no database to look others up in.
_UNKNOWN_KEY_TO_LITELLM = "no_db_connection"

_REFUSED = ("refused", "the model or its provider's content filter refuses to look at this creative")
_TOO_LONG = ("too_long", "the creative is longer or larger than the model takes")
_CREDENTIALS = (
    "provider_credentials",
    "the AI provider does not accept the credentials: check IMPRIMATUR_LLM_API_KEY or its file, "
    "and that the key may use the model",
)
TOO_SLOW = ("provider_timeout", "the AI provider took too long")

#: Trying again cannot help. The first class that fits counts.
_PERMANENT: tuple[tuple[type[Exception], tuple[str, str]], ...] = (
    (ContentFilterError, _REFUSED),
    (ModelContextWindowExceededError, _TOO_LONG),
    (ModelAuthenticationError, _CREDENTIALS),
    (
        ModelNotFoundError,
        (
            "provider_model",
            "the AI provider does not know the model: check IMPRIMATUR_LLM_MODEL and IMPRIMATUR_LLM_BASE_URL",
        ),
    ),
    (
        ModelQuotaExceededError,
        ("provider_quota", "the account at the AI provider is used up: raise its limit or balance"),
    ),
    (ModelRequestRejectedError, ("provider_rejected", "the AI provider rejects the request")),
    (
        UserError,
        (
            "provider_model",
            "the model cannot be asked this way: check IMPRIMATUR_LLM_MODEL and IMPRIMATUR_LLM_IMAGES",
        ),
    ),
)

#: May pass by itself.
_TRANSIENT: tuple[tuple[type[Exception], tuple[str, str]], ...] = (
    (ModelTimeoutError, TOO_SLOW),
    (ModelRequestTimeout, TOO_SLOW),
    (ModelConnectionError, ("provider_unreachable", "the connection to the AI provider was lost")),
    (ModelHTTPError, ("provider_error", "the AI provider answered with an error")),
    (ModelAPIError, ("provider_error", "the AI provider answered what no client can read")),
    (OutputTokenLimitExceeded, ("invalid_answer", "the model's answer was cut off at its length limit")),
    (UnexpectedModelBehavior, ("invalid_answer", "the model's answer does not fit the schema it was given")),
    (AgentRunError, ("provider_error", "the AI provider could not be asked")),
)


#: The provider is not there, or not itself. What it refuses, limits or answers badly, it answers.
_OUTAGES = frozenset({"provider_error", "provider_timeout", "provider_unreachable"})


def is_outage(error: AttemptError) -> bool:
    """Whether the provider itself has failed, so that the next call likely fails as well."""
    return error.code in _OUTAGES


def attempt_error(error: AgentRunError | UserError) -> AttemptError:
    """The end of the attempt that `error` is."""
    if isinstance(error, ModelRateLimitError):
        return _rate_limited(error)
    if (special := _by_details(error)) is not None:
        return special
    for kind, (code, message) in _PERMANENT:
        if isinstance(error, kind):
            return PermanentError(message + _status(error), code=code, stage=STAGE)
    code, message = next(meaning for kind, meaning in _TRANSIENT if isinstance(error, kind))
    return TransientError(message + _status(error), code=code, stage=STAGE)


def _rate_limited(error: ModelRateLimitError) -> AttemptError:
    pause = DEFAULT_PAUSE_SECONDS if error.retry_after is None else error.retry_after
    return RateLimited(f"the AI provider asks to wait {pause:g} s", retry_after_seconds=pause, stage=STAGE)


def _by_details(error: Exception) -> AttemptError | None:
    """What only the status, code or phase tells."""
    status = getattr(error, "status_code", 0)
    if isinstance(error, ModelAPIError) and {error.provider_error_code, error.provider_error_type} & _FILTERED:
        return _permanent(*_REFUSED)
    if isinstance(error, ModelAPIError) and error.provider_error_type == _UNKNOWN_KEY_TO_LITELLM:
        return _permanent(_CREDENTIALS[0], _CREDENTIALS[1] + _status(error))
    if status == _TOO_LARGE or (status == _BAD_REQUEST and _TOO_LONG_FOR_LITELLM in str(error)):
        return _permanent(*_TOO_LONG)
    if status in _TIMED_OUT:
        return TransientError(TOO_SLOW[1], code=TOO_SLOW[0], stage=STAGE)
    if isinstance(error, ModelConnectionError) and error.phase == "connect":
        return TransientError("the AI provider cannot be reached", code="provider_unreachable", stage=STAGE)
    return None


def _permanent(code: str, message: str) -> PermanentError:
    return PermanentError(message, code=code, stage=STAGE)


def _status(error: Exception) -> str:
    return f" (HTTP {error.status_code})" if isinstance(error, ModelHTTPError) else ""
