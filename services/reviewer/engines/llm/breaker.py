"""The circuit breaker of one provider: while that fails again and again, it is left alone, and jobs wait unspent.

Closed: calls go through. After some failures in a row it opens: for a pause nothing is asked. Then one call is let
through to try; it closes the breaker, or opens it for twice the pause. Each reviewer finds out for itself: what keeps
one from a provider need not keep the others.

A provider that hangs fails, too, when jobs have less patience than calls: a call that its job's time-out cuts off is a
failure, unless the provider answered another meanwhile. Then it was the job that was impatient.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial

import structlog

from imprimatur import metrics
from imprimatur.errors import AttemptError, NotBegun
from reviewer.engines import out_of_time
from reviewer.engines.llm.faults import STAGE, is_outage

log = structlog.get_logger(__name__)

#: The pause doubles with each call that was let through in vain, up to this.
LONGEST_PAUSE_SECONDS = 120.0
#: Who is cut off sooner, by a time-out that other work of the attempt has used up, has seen nothing of the provider.
LEAST_PATIENCE_SECONDS = 1.0


class Circuit(StrEnum):
    """What becomes of a call."""

    CLOSED = "closed"  #: it goes through
    OPEN = "open"  #: it does not
    TRYING = "trying"  #: the pause is over: one goes through, or is under way, to see


class Breaker:
    """Watches the calls to one provider.

    Args:
        failures: so many in a row open it; answers in between begin the count anew.
        pause_seconds: the first pause.
        clock, draw: seconds that only grow, and a number in [0, 1) by which waiting jobs are spread.
    """

    def __init__(
        self,
        provider: str,
        *,
        failures: int = 5,
        pause_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.provider = provider
        self._most_failures = failures
        self._first_pause_seconds = self._pause_seconds = pause_seconds
        self._clock = clock
        self._draw = draw
        self._failures = 0
        self._until = 0.0
        self._answered_at = -math.inf
        self._state = Circuit.CLOSED
        for each in Circuit:
            metrics.circuit.labels(provider, each).set_function(partial(self._is, each))
        metrics.circuit_openings.labels(provider)

    @property
    def state(self) -> Circuit:
        """Where it stands."""
        if self._state is Circuit.OPEN and self._until <= self._clock():
            return Circuit.TRYING
        return self._state

    def require_ready(self) -> None:
        """Make sure that a call would go through now.

        Raises:
            NotBegun: it would not; says when to come back.
        """
        left = self._until - self._clock()
        if self._state is Circuit.TRYING:
            left = self._pause_seconds
        elif self._state is Circuit.CLOSED or left <= 0:
            return
        # Spread over half a pause, so that what waits does not come back as one.
        raise NotBegun(
            "the AI provider keeps failing; the job waits, and no attempt is spent",
            retry_after_seconds=left + self._pause_seconds * self._draw() / 2,
            code="provider_paused",
            stage=STAGE,
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around one call, which ends with an answer, an AttemptError or a cancellation; `out_of_time` says whether
        that is the job's time-out.

        Raises:
            NotBegun: the call must not be made.
        """
        self.require_ready()
        tries, began = self._state is Circuit.OPEN, self._clock()
        if tries:
            self._state = Circuit.TRYING
        try:
            yield
        except AttemptError as error:
            if is_outage(error):
                self._failed(tries=tries)
            else:  # the provider is there, whatever it said
                self._answered(tries=tries)
            raise
        except BaseException as end:
            if isinstance(end, asyncio.CancelledError) and self._has_hung_since(began):
                self._failed(tries=tries)
            elif tries:  # nothing was learned; the next may try
                self._state = Circuit.OPEN
            raise
        self._answered(tries=tries)

    def _has_hung_since(self, began: float) -> bool:
        waited_seconds = self._clock() - began
        return out_of_time() and waited_seconds >= LEAST_PATIENCE_SECONDS and self._answered_at < began

    def _answered(self, *, tries: bool) -> None:
        self._answered_at = self._clock()
        if self._state is Circuit.CLOSED or tries:
            self._failures = 0
            self._pause_seconds = self._first_pause_seconds
        if tries:
            log.info("the AI provider answers again", provider=self.provider)
            self._state = Circuit.CLOSED

    def _failed(self, *, tries: bool) -> None:
        if tries:
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
            self._open()
        elif self._state is Circuit.CLOSED:  # what was under way when it opened, says nothing new
            self._failures += 1
            if self._failures >= self._most_failures:
                self._open()

    def _open(self) -> None:
        self._until = self._clock() + self._pause_seconds
        metrics.circuit_openings.labels(self.provider).inc()
        log.warning("the AI provider is left alone", provider=self.provider, seconds=self._pause_seconds)
        self._state = Circuit.OPEN

    def _is(self, state: Circuit) -> float:
        return float(self.state is state)
