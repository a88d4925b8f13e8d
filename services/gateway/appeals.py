"""Appeals: a new job against the decision of another, which a person decides in any case."""

import uuid
from dataclasses import replace
from typing import Any

from gateway.access import Caller
from gateway.repeats import retry_of
from gateway.validation import job_not_found
from imprimatur import metrics
from imprimatur.errors import FailedPrecondition, RequestError
from imprimatur.human import Appeal, AuditAction
from imprimatur.job import Job, JobType, NewJob, State
from imprimatur.policy import Decision
from imprimatur.retention import Retention
from imprimatur.storage import acceptance, audit, jobs, people
from imprimatur.storage.acceptance import Submitted
from imprimatur.storage.audit import Actor
from imprimatur.storage.database import Database, Reader, Transaction
from imprimatur.wire.creatives import ai_reason

_DECIDED = (Decision.APPROVED, Decision.REJECTED)


async def appeal_against(
    database: Database, who: Caller, job_id: uuid.UUID, *, reason: str, request_id: str, retention: Retention
) -> NewJob:
    """The appeal to be stored by `store`, as far as can be told before.

    Raises:
        RequestError: the job is not there, or not decided.
    """
    async with database.read() as reader:
        old = await jobs.content_of(reader, who.owner, job_id)
        if old is None:
            raise job_not_found(job_id, retention)
        if old.state != State.SUCCEEDED or old.type != JobType.CREATIVE_REVIEW or old.decision not in _DECIDED:
            raise FailedPrecondition(
                f"the job is {old.state}; only decided creative reviews can be appealed against",
                reason="NOT_DECIDED",
                state=old.state,
            )
        appeal = await _appeal(reader, who, old, reason)
    new = retry_of(old, request_id)
    return replace(new, retry_of=None, appeal_of=job_id, appeal=appeal.document())


async def _appeal(reader: Reader, who: Caller, old: Any, reason: str) -> Appeal:
    decided = await people.latest_decision(reader, old.id)
    before = Appeal.of(old.appeal).barred if old.appeal else ()
    known = (decided.reviewer,) if decided is not None and decided.person_known else ()
    return Appeal(
        reason=reason,
        appellant=who.user_id or who.key_name,
        former_decision=Decision(old.decision),
        former_reviewer=decided.reviewer if decided is not None else "",
        former_reason=decided.reason if decided is not None else ai_reason(old.result),
        barred=tuple(dict.fromkeys((*before, *known))),
    )


async def store(tx: Transaction, who: Caller, new: NewJob, *, release_at_once: int, most_of_a_tenant: int) -> Submitted:
    """Accept an appeal, unless another against the same decision is under way.

    Raises:
        FailedPrecondition: one is.
        Contended: as `acceptance.submit`.
    """
    assert new.appeal_of is not None
    old = await people.lock_decided(tx, who.owner, new.appeal_of)
    if old is None:
        raise FailedPrecondition("the job was cleaned up meanwhile", reason="WRONG_STATE")
    if (again := await _accepted_before(tx, new)) is not None:
        return again
    if (other := await people.open_appeal(tx, old.id)) is not None:
        raise _open(other)
    [submitted] = await acceptance.submit(tx, [new], release_at_once=release_at_once, most_of_a_tenant=most_of_a_tenant)
    if submitted.created:
        await _put_on_record(tx, who, old, new)
    return submitted


async def _accepted_before(tx: Transaction, new: NewJob) -> Submitted | None:
    if new.request_id is None:
        return None
    known = await acceptance.accepted_before(tx, [(new.tenant_id, new.request_id)])
    found = known.get((new.tenant_id, new.request_id))
    return acceptance.again(new, *found) if found is not None else None


async def _put_on_record(tx: Transaction, who: Caller, old: Job, new: NewJob) -> None:
    assert new.appeal is not None
    by = Actor(person=new.appeal["appellant"], key_id=who.key_id, key_name=who.key_name)
    details = {"appeal": str(new.id), "former_decision": new.appeal["former_decision"]}
    await audit.record(tx, AuditAction.APPEALED, old, by, reason=new.appeal["reason"], details=details)


def count(submitted: Submitted) -> None:
    """Count an appeal that was made just now."""
    if submitted.created:
        metrics.appeals.labels("made").inc()


def _open(other: uuid.UUID) -> RequestError:
    return FailedPrecondition(
        f"an appeal against this decision is under way already: {other}", reason="APPEAL_OPEN", job_id=str(other)
    )
