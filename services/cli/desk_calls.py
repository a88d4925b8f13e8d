"""What a desk does at the server, so that a lost connection loses nothing and nothing is decided twice.

A decision carries the token of the claim under which it was made. When no answer comes, it is sent again until one
does: it is then applied once, or refused because it is applied already, or because the claim was lost meanwhile.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from typing import TypeVar

import grpc

from imprimatur.client import Client, ClientError
from imprimatur.v1.creative_pb2 import Decision
from imprimatur.v1.review_service_pb2 import ClaimNextReviewResponse, PendingReview, ReviewFilter

_PAUSE_SECONDS = 2.0
_UNKNOWN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
_Answer = TypeVar("_Answer")


class Fate(Enum):
    """What became of a decision."""

    DECIDED = auto()
    LOST = auto()  #: the claim was lost, or somebody else was first; the message says which


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A decision that a person has made at the desk."""

    review: PendingReview
    decision: Decision.ValueType
    reason: str


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What became of it."""

    fate: Fate
    message: str = ""


class DeskCalls:
    """Calls in the name of one person.

    Args:
        tell: says in a line that the connection is lost, and that it is back.
    """

    def __init__(self, client: Client, reviewer: str, lease: timedelta, tell: Callable[[str], None]) -> None:
        self._client = client
        self._reviewer = reviewer
        self._lease = lease
        self._tell = tell
        self._away = False

    async def take_next(self, wanted: ReviewFilter, passed_over: list[str]) -> ClaimNextReviewResponse:
        """The most urgent review that is free, waited for while the server is away."""
        return await self._patiently(
            lambda: self._client.claim_next_review(
                wanted, lease=self._lease, reviewer=self._reviewer, except_job_ids=passed_over
            )
        )

    async def renew(self, review: PendingReview) -> str:
        """Prolong a claim; says what is wrong when it is lost. A server that is away may be back in time."""
        try:
            await self._client.renew_review(
                review.job.id, review.claim_token, lease=self._lease, reviewer=self._reviewer
            )
        except ClientError as error:
            return "" if _is_away(error) else error.message
        return ""

    async def release(self, review: PendingReview) -> None:
        """Give a claim back, if that can be done; else it runs out."""
        try:
            await self._client.release_review(review.job.id, review.claim_token, reviewer=self._reviewer)
        except ClientError as error:
            if _is_away(error):
                self._tell(f"{review.job.id} could not be released; it is free when the claim runs out")

    async def send(self, verdict: Verdict) -> Sent:
        """Decide, however often it takes."""
        job_id, unsure = verdict.review.job.id, False
        while True:
            try:
                await self._client.decide(
                    job_id,
                    verdict.decision,
                    verdict.reason,
                    reviewer=self._reviewer,
                    token=verdict.review.claim_token,
                )
            except ClientError as error:
                if not _is_away(error):
                    return self._refused(error, unsure=unsure)
                unsure = True  # it may have been applied all the same
                await self._pause()
            else:
                self._back()
                return Sent(fate=Fate.DECIDED)

    def _refused(self, error: ClientError, *, unsure: bool) -> Sent:
        self._back()
        mine = error.reason == "ALREADY_DECIDED" and unsure
        return Sent(fate=Fate.DECIDED) if mine else Sent(fate=Fate.LOST, message=error.message)

    async def _patiently(self, call: Callable[[], Awaitable[_Answer]]) -> _Answer:
        while True:
            try:
                answer = await call()
            except ClientError as error:
                if not _is_away(error):
                    raise
                await self._pause()
            else:
                self._back()
                return answer

    async def _pause(self) -> None:
        if not self._away:
            self._tell("no connection; trying again until there is one")
        self._away = True
        await asyncio.sleep(_PAUSE_SECONDS)

    def _back(self) -> None:
        if self._away:
            self._tell("the connection is back")
        self._away = False


def _is_away(error: ClientError) -> bool:
    return error.passing or error.code in _UNKNOWN
