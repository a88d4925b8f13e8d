"""One HTTP POST to a receiver, and what came of it. Reads little of the answer and stores none of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from aiohttp import ClientError

from imprimatur import metrics
from imprimatur.guard import Guard, GuardedClient, UrlForbidden, as_forbidden, in_words
from notifier.schedule import retry_after

#: Read so that the connection can serve again; a receiver that sends more has its connection closed.
_READ_BYTES = 4096
_HEADERS = {
    "Content-Type": "application/json",
    "User-Agent": "Imprimatur-Webhooks/1",
}


class Outcome(StrEnum):
    """What a post came to, as metrics count it."""

    DELIVERED = "delivered"  #: 2xx
    REFUSED = "refused"  #: another status
    FAILED = "failed"  #: no answer
    BLOCKED = "blocked"  #: an address that the guard forbids


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a post went. `error` is empty for a delivered one, else a sentence without any of the answer's text."""

    outcome: Outcome
    status: int | None = None
    error: str = ""
    retry_after_seconds: float | None = None
    duration_seconds: float = 0.0


class Poster:
    """Posts. One per event loop.

    Args:
        timeout_seconds: the longest that one post may take in all.
    """

    def __init__(self, guard: Guard, *, timeout_seconds: float) -> None:
        self._client = GuardedClient(guard, timeout_seconds=timeout_seconds, headers=_HEADERS)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post once. Raises nothing but cancellation: whatever goes wrong is an answer."""
        began = time.monotonic()
        answer = await self._answer(url, body, headers)
        seconds = time.monotonic() - began
        metrics.webhook_attempts.labels(answer.outcome).inc()
        metrics.webhook_seconds.observe(seconds)
        return Answer(
            outcome=answer.outcome,
            status=answer.status,
            error=answer.error,
            retry_after_seconds=answer.retry_after_seconds,
            duration_seconds=seconds,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    async def _answer(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        try:
            async with self._client.request("POST", url, body=body, headers=headers) as response:
                await response.content.read(_READ_BYTES)
                asked = retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
                return _of_status(response.status, asked)
        except UrlForbidden as forbidden:
            return Answer(outcome=Outcome.BLOCKED, error=str(forbidden))
        except TimeoutError:
            return Answer(outcome=Outcome.FAILED, error="no answer within the time allowed")
        except (ClientError, OSError, ValueError) as fault:
            return _of_fault(fault)


def _of_status(status: int, retry_after_seconds: float | None) -> Answer:
    if 200 <= status < 300:
        return Answer(outcome=Outcome.DELIVERED, status=status)
    error = f"HTTP {status}" + (": redirects are not followed" if 300 <= status < 400 else "")
    return Answer(outcome=Outcome.REFUSED, status=status, error=error, retry_after_seconds=retry_after_seconds)


def _of_fault(fault: Exception) -> Answer:
    if forbidden := as_forbidden(fault):
        return Answer(outcome=Outcome.BLOCKED, error=str(forbidden))
    return Answer(outcome=Outcome.FAILED, error=in_words(fault))
