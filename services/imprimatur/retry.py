"""What follows a failed attempt: again, after how long, or not at all. Pure; the one place for retry.

Backoff is exponential with full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015):
a uniform draw from [0, min(cap, first * 2^(n-1))] after the n-th spent attempt.
"""

from dataclasses import dataclass

from imprimatur.errors import AttemptError, NotBegun, PermanentError, Postponed

#: A job that is postponed for longer than this, as by a provider that asks for a long pause, is looked at after this.
LONGEST_PAUSE_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How the pauses between attempts grow."""

    first_seconds: float
    cap_seconds: float

    def seconds(self, attempts_spent: int, jitter: float) -> float:
        """The pause after `attempts_spent` >= 1 attempts; `jitter` is uniform in [0, 1)."""
        ceiling = min(self.cap_seconds, self.first_seconds * 2.0 ** (attempts_spent - 1))
        return ceiling * jitter


@dataclass(frozen=True, kw_only=True)
class Again:
    """Try again after `delay_seconds`."""

    delay_seconds: float
    spends_attempt: bool


@dataclass(frozen=True, kw_only=True)
class GiveUp:
    """Do not try again."""

    spends_attempt: bool = True


def after_loss(losses: int, *, by_chance: int) -> float:
    """The pause, in seconds, before a job is run again on which `losses` workers fell silent in all: none while that
    may be chance, then doubling."""
    return 0.0 if losses <= by_chance else 2.0 ** (losses - by_chance)


def after_error(
    error: AttemptError,
    *,
    attempts_before: int,
    max_attempts: int,
    remaining_seconds: float,
    backoff: Backoff,
    jitter: float,
) -> Again | GiveUp:
    """Decide what follows an attempt that ended with `error`.

    Args:
        attempts_before: attempts spent before this one.
        remaining_seconds: until the job's deadline; no attempt begins after it.
        jitter: uniform in [0, 1), drawn by the caller.
    """
    if isinstance(error, PermanentError):
        return GiveUp()
    if isinstance(error, Postponed):
        pause = min(max(error.retry_after_seconds, 0.0), LONGEST_PAUSE_SECONDS)
        delay = pause if isinstance(error, NotBegun) else pause + backoff.first_seconds * jitter
        return Again(delay_seconds=delay, spends_attempt=False) if delay < remaining_seconds else GiveUp()
    spent = attempts_before + 1
    delay = backoff.seconds(spent, jitter)
    if spent >= max_attempts or delay >= remaining_seconds:
        return GiveUp()
    return Again(delay_seconds=delay, spends_attempt=True)
