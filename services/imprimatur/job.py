"""The job and its transition table. Pure: no I/O, no clock, no SQL, no protobuf.

Every change of a job's state, in whatever service, is one of the happenings below and follows this table;
`storage.transitions` is the only place that writes a state.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

from imprimatur.errors import AttemptError, NotBegun, PermanentError, TimedOut, UnreviewableInput
from imprimatur.retry import Backoff


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"  #: accepted; waits for its time, its turn or its next attempt
    RUNNING = "running"  #: a worker holds a lease on it
    SUCCEEDED = "succeeded"  #: terminal, with a result
    FAILED = "failed"  #: terminal, with an error
    CANCELLED = "cancelled"  #: terminal, by the caller or superseded
    AWAITING_REVIEW = "awaiting_review"  #: a person decides

    @property
    def terminal(self) -> bool:
        """Whether nothing follows."""
        return self in TERMINAL


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
#: What may be tried again, as a new job.
RETRYABLE = (State.FAILED, State.CANCELLED)


class JobType(StrEnum):
    """What kind of work a job is."""

    CREATIVE_REVIEW = "creative_review"


class Priority(IntEnum):
    """Lower numbers first."""

    HIGH = 1
    NORMAL = 2
    LOW = 3


class AttemptOutcome(StrEnum):
    """How one attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    LOST = "lost"  #: the worker fell silent
    HANDED_BACK = "handed_back"  #: not begun or cut short: the worker stopped, its database or the provider was away
    CANCELLED = "cancelled"  #: the job was cancelled meanwhile
    WAITING_FOR_TWIN = "waiting_for_twin"  #: not begun: an equal job is being examined, and its evidence will do


class WhenBusy(StrEnum):
    """What becomes of a job whose concurrency key is held by an unfinished one."""

    REFUSE = "refuse"  #: it is not accepted
    SUPERSEDE = "supersede"  #: it takes the other's place, which is cancelled


class Happening(StrEnum):
    """What can happen to a job; the value is the kind of the event that it leaves in the job's history."""

    CLAIMED = "started"
    COMPLETED = "succeeded"
    REFERRED = "awaiting_review"  #: the AI may not decide it
    GAVE_UP = "failed"
    RETRY_SCHEDULED = "retry_scheduled"
    HANDED_BACK = "handed_back"
    WAITING_FOR_TWIN = "waiting_for_twin"  #: an equal job is being examined: what is found there will do for this one
    LEASE_LOST = "lease_lost"
    CANCELLED = "cancelled"
    HELD_BY_PERSON = "claimed_by_person"
    RELEASED_BY_PERSON = "released_by_person"
    HOLD_EXPIRED = "claim_expired"
    DECIDED = "decided"
    REDECIDED = "redecided"  #: a changed policy decides it by what the engine found before
    REVIEW_AGAIN = "review_again"  #: what failed for the engine's sake is sent back to it


#: The kind of the first event in every history; it makes the job rather than changing it.
SUBMITTED = "submitted"


@dataclass(frozen=True, kw_only=True)
class Transition:
    """From which states something may happen, and to which state it leads.

    `notifies` is the webhook event type that tells of it, empty for none.
    """

    sources: frozenset[State]
    target: State
    notifies: str = ""


_RUNNING = frozenset({State.RUNNING})
_AWAITING = frozenset({State.AWAITING_REVIEW})
#: A queued job gives up or is referred when its deadline passes.
_UNFINISHED_BY_MACHINE = frozenset({State.QUEUED, State.RUNNING})

TRANSITIONS: Mapping[Happening, Transition] = {
    Happening.CLAIMED: Transition(sources=frozenset({State.QUEUED}), target=State.RUNNING),
    Happening.COMPLETED: Transition(sources=_RUNNING, target=State.SUCCEEDED, notifies="job.succeeded"),
    Happening.REFERRED: Transition(
        sources=_UNFINISHED_BY_MACHINE, target=State.AWAITING_REVIEW, notifies="job.awaiting_review"
    ),
    Happening.GAVE_UP: Transition(sources=_UNFINISHED_BY_MACHINE, target=State.FAILED, notifies="job.failed"),
    Happening.RETRY_SCHEDULED: Transition(sources=_RUNNING, target=State.QUEUED),
    Happening.HANDED_BACK: Transition(sources=_RUNNING, target=State.QUEUED),
    Happening.WAITING_FOR_TWIN: Transition(sources=_RUNNING, target=State.QUEUED),
    Happening.LEASE_LOST: Transition(sources=_RUNNING, target=State.QUEUED),
    Happening.CANCELLED: Transition(
        sources=frozenset({State.QUEUED, State.RUNNING, State.AWAITING_REVIEW}),
        target=State.CANCELLED,
        notifies="job.cancelled",
    ),
    Happening.HELD_BY_PERSON: Transition(sources=_AWAITING, target=State.AWAITING_REVIEW),
    Happening.RELEASED_BY_PERSON: Transition(sources=_AWAITING, target=State.AWAITING_REVIEW),
    Happening.HOLD_EXPIRED: Transition(sources=_AWAITING, target=State.AWAITING_REVIEW),
    Happening.DECIDED: Transition(sources=_AWAITING, target=State.SUCCEEDED, notifies="job.succeeded"),
    Happening.REDECIDED: Transition(sources=_AWAITING, target=State.SUCCEEDED, notifies="job.succeeded"),
    Happening.REVIEW_AGAIN: Transition(sources=_AWAITING, target=State.QUEUED),
}

#: Every webhook event type.
WEBHOOK_EVENT_TYPES = tuple(sorted({step.notifies for step in TRANSITIONS.values() if step.notifies}))


def outcome_of(error: AttemptError) -> AttemptOutcome:
    """How an attempt ended that ended with `error`."""
    if isinstance(error, NotBegun):
        return AttemptOutcome.HANDED_BACK
    return AttemptOutcome.TIMED_OUT if isinstance(error, TimedOut) else AttemptOutcome.FAILED


#: A job on which so many workers fell silent may be what kills them: it runs in a process of its own from then on.
LOSSES_OF_A_SUSPECT = 2
#: A job on which so many whole workers fell silent is not tried any more. A suspect runs apart, so that a worker lost
#: around it proves little against it; but it may take the worker along all the same. `retry.after_loss` draws the
#: tries apart, to more than four minutes in all, so that no bad moment of the machines is taken for the job's doing.
MOST_LOSSES = 10


def losses_kept(losses: int) -> int:
    """What a review again keeps of a job's losses: a suspect goes on apart, the others begin anew."""
    return LOSSES_OF_A_SUSPECT if losses >= LOSSES_OF_A_SUSPECT else 0


#: The error code of a job that is not tried any more because of the processes that it cost.
WORKERS_LOST = "workers_lost"


def after_giving_up(job_type: JobType, error: AttemptError) -> Happening:
    """What giving up means: a creative that can be reviewed at all goes to a person, never away."""
    if job_type is JobType.CREATIVE_REVIEW and not isinstance(error, UnreviewableInput):
        return Happening.REFERRED
    return Happening.GAVE_UP


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What holds for the jobs of a type; all but the backoff unless the submission says otherwise."""

    max_attempts: int
    timeout_seconds: float  #: of one attempt
    deadline_seconds: float  #: from the run time, over all attempts
    backoff: Backoff  #: pauses between attempts


#: Every job type has one entry.
DEFAULTS: Mapping[JobType, Defaults] = {
    JobType.CREATIVE_REVIEW: Defaults(
        max_attempts=3,
        timeout_seconds=120.0,
        deadline_seconds=24 * 3600.0,
        backoff=Backoff(first_seconds=2.0, cap_seconds=60.0),
    ),
}


@dataclass(frozen=True, kw_only=True)
class JobError:
    """What went wrong, for a person to act on."""

    code: str
    message: str
    stage: str = ""
    retryable: bool = False

    @classmethod
    def of(cls, error: AttemptError) -> "JobError":
        """The part of an attempt's error that is kept and shown."""
        return cls(
            code=error.code,
            message=error.message,
            stage=error.stage,
            retryable=not isinstance(error, PermanentError),
        )


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try at a job by one worker."""

    claim_no: int
    worker: str
    started_at: datetime
    finished_at: datetime | None = None
    outcome: AttemptOutcome | None = None
    error: JobError | None = None
    engine: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int = 0
    reused_from: uuid.UUID | None = None  #: the job whose evidence it took, in place of an engine's look


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job about to be accepted. `input` and `content_hash` are the task's canonical bytes and their digest;
    `concurrency_key` is one of `imprimatur.keys`.

    `run_in_seconds` and `deadline_seconds` are counted from the database's clock, the latter from the run time.
    """

    id: uuid.UUID
    tenant_id: uuid.UUID
    type: JobType
    user_id: str
    priority: Priority
    request_id: str | None
    content_hash: bytes
    subject_id: str
    labels: Mapping[str, str]
    parameters: Mapping[str, str]
    input: bytes
    callback_url: str
    max_attempts: int
    timeout_seconds: float
    run_at: datetime | None
    deadline_seconds: float
    estimated_seconds: float | None = None
    retry_of: uuid.UUID | None = None
    traceparent: str | None = None  #: the span in which it is accepted
    concurrency_key: str | None = None
    when_busy: WhenBusy = WhenBusy.REFUSE
    revision: int | None = None
    asset_ids: Mapping[str, str] = field(default_factory=dict)  #: of images; with each the field that names it first
    fresh: bool = False  #: only evidence made after its acceptance will do
    appeal_of: uuid.UUID | None = None
    appeal: Mapping[str, Any] | None = None  #: of an appeal, `human.Appeal` as it is stored


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job as stored; field by field the columns that anyone outside storage may see."""

    id: uuid.UUID
    tenant_id: uuid.UUID
    type: JobType
    state: State
    user_id: str
    priority: Priority
    version: int
    request_id: str | None
    subject_id: str
    labels: Mapping[str, str]
    parameters: Mapping[str, str]
    callback_url: str
    max_attempts: int
    attempts: int
    timeout_seconds: float
    progress_percent: int
    progress_stage: str
    progress_message: str
    error: JobError | None
    decision: str
    policy_triggered: str
    result: bytes | None
    result_count: int
    retry_of: uuid.UUID | None
    appeal_of: uuid.UUID | None
    superseded_by: uuid.UUID | None
    supersedes: uuid.UUID | None
    concurrency_key: str | None
    revision: int | None
    estimated_seconds: float | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    run_at: datetime
    deadline_at: datetime
    appeal: Mapping[str, Any] | None = None  #: of an appeal, `human.Appeal` as it is stored


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """One line of a job's history."""

    version: int
    kind: str
    state: State
    at: datetime
    details: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a worker holds: a job, fenced by `claim_no`. Every write needs both and state RUNNING."""

    job_id: uuid.UUID
    claim_no: int
    tenant_id: uuid.UUID
    type: JobType
    input: bytes
    attempts: int
    max_attempts: int
    timeout_seconds: float
    remaining_seconds: float  #: until the job's deadline, when it was claimed
    priority: Priority = Priority.NORMAL
    first_wait_seconds: float | None = None  #: from when it was due until it was claimed; None but for the first claim
    first_due_at: datetime | None = None  #: when its present review could begin, its retries not counted
    losses: int = 0  #: workers that fell silent on it before
    traceparent: str | None = None  #: the span that accepted it
    appeal_of: uuid.UUID | None = None
    evidence_since: datetime | None = None  #: evidence that was begun before will not do

    @property
    def suspect(self) -> bool:
        """Whether the job may be what kills workers, and so must run apart."""
        return self.losses >= LOSSES_OF_A_SUSPECT
