"""What follows an attempt to deliver: done, again, or given up. Pure; the one place for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: The schedule that Standard Webhooks recommends: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h.
RECOMMENDED_PAUSES_SECONDS = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)

#: A pause is drawn from [pause, pause * (1 + this)], so that what failed together does not come back together.
JITTER = 0.2

#: A receiver that asks for a longer pause than this is asked again after this.
LONGEST_PAUSE_SECONDS = 86400.0

_GONE = 410
_MAY_NAME_A_PAUSE = (429, 503)


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """The receiver has it."""


@dataclass(frozen=True, kw_only=True)
class Again:
    """Try again after `delay_seconds`."""

    delay_seconds: float


@dataclass(frozen=True, kw_only=True)
class Abandoned:
    """Give up."""


Verdict = Delivered | Again | Abandoned


def after_attempt(
    status: int | None,
    *,
    attempts_before: int,
    pauses_seconds: Sequence[float],
    retry_after_seconds: float | None,
    jitter: float,
) -> Verdict:
    """Decide what follows an attempt.

    Args:
        status: the HTTP status; None when there was no answer.
        attempts_before: attempts made before this one.
        pauses_seconds: the pause after the first failed attempt, after the second and so on; then it is given up.
        retry_after_seconds: what the receiver asked for; heard with a 429 or 503 only.
        jitter: uniform in [0, 1), drawn by the caller.
    """
    if status is not None and 200 <= status < 300:
        return Delivered()
    if status == _GONE or attempts_before >= len(pauses_seconds):
        return Abandoned()
    delay = pauses_seconds[attempts_before] * (1.0 + JITTER * jitter)
    if status in _MAY_NAME_A_PAUSE and retry_after_seconds is not None:
        delay = max(delay, min(retry_after_seconds, LONGEST_PAUSE_SECONDS))
    return Again(delay_seconds=delay)


def retry_after(value: str | None, now: datetime) -> float | None:
    """The seconds that a Retry-After header asks for, written as a number or as a date; None if it is neither."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())
