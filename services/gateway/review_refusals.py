"""Why a review can be neither taken nor decided, nor a claim on it be prolonged or given back."""

import uuid
from textwrap import shorten

from gateway.access import Caller
from gateway.validation import job_not_found
from imprimatur.errors import FailedPrecondition, RequestError
from imprimatur.human import Appeal
from imprimatur.job import Job, State
from imprimatur.retention import Retention
from imprimatur.storage import jobs, people
from imprimatur.storage.audit import Actor
from imprimatur.storage.database import Reader


async def why_not(
    reader: Reader,
    who: Caller,
    job_id: uuid.UUID,
    retention: Retention,
    *,
    by: Actor,
    token: uuid.UUID | None,
) -> RequestError:
    """Which of the reasons it is, looked up when it has just been refused."""
    job = await jobs.find(reader, who.owner, job_id)
    if job is None:
        return job_not_found(job_id, retention)
    if job.state is State.AWAITING_REVIEW and job.appeal and by.person in Appeal.of(job.appeal).barred:
        return FailedPrecondition(
            f"{by.person} decided it before; another person decides the appeal",
            reason="DECIDED_BEFORE",
            appeal_of=str(job.appeal_of),
        )
    if holder := await people.holder(reader, job_id):
        return _held(holder, by, token, own=await people.holds(reader, job_id, by))
    if job.state is State.AWAITING_REVIEW and token is not None:
        message = "the claim ran out or was released, and nobody holds it now; claim it again"
        return FailedPrecondition(message, reason="CLAIM_LOST")
    return await _why_no_more(reader, job)


def _held(holder: str, by: Actor, token: uuid.UUID | None, *, own: bool) -> RequestError:
    if holder != by.person:
        message = f"{holder} is reviewing this one now"
        return FailedPrecondition(message, reason="CLAIMED_BY_ANOTHER", claimed_by=holder)
    if token is None and not own:
        message = f"{holder} claimed it with another key: send the token of that claim, or use a key bound to {holder}"
        return FailedPrecondition(message, reason="TOKEN_REQUIRED", claimed_by=holder)
    if token is None:
        message = "you hold this one: send the token of your claim, or claim it again for a new one"
        return FailedPrecondition(message, reason="TOKEN_REQUIRED", claimed_by=holder)
    message = "the token is not that of the present claim: you claimed it again since, elsewhere"
    return FailedPrecondition(message, reason="CLAIM_LOST", claimed_by=holder)


async def _why_no_more(reader: Reader, job: Job) -> RequestError:
    decided = await people.latest_decision(reader, job.id)
    if job.state is State.SUCCEEDED and decided is not None:
        return FailedPrecondition(
            f"{decided.reviewer} has already {decided.decision} it: {shorten(decided.reason, 100)}",
            reason="ALREADY_DECIDED",
            reviewer=decided.reviewer,
            decision=decided.decision,
            decided_at=decided.decided_at.isoformat(),
        )
    if job.superseded_by is not None:
        return FailedPrecondition(
            f"the job is {job.state}: {job.superseded_by} has taken its place, with other content",
            reason="WRONG_STATE",
            state=job.state,
            superseded_by=str(job.superseded_by),
        )
    return FailedPrecondition(
        f"the job is {job.state}; only jobs that await a review can be decided", reason="WRONG_STATE", state=job.state
    )


def nobody_holds(error: RequestError, job_id: uuid.UUID, token: uuid.UUID | None) -> RequestError:
    """Of what waits and is not held, that it is not; else the error as it is."""
    waits = error.reason == "WRONG_STATE" and error.metadata.get("state") == State.AWAITING_REVIEW
    if not waits or token is not None:
        return error
    return FailedPrecondition("nobody holds this review", reason="NOT_CLAIMED", job_id=str(job_id))
