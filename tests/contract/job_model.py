"""What is expected of stored jobs, as a model of a few lines; and what is stored of them."""

import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from hypothesis import note
from sqlalchemy import select

from imprimatur.job import SUBMITTED, TERMINAL, TRANSITIONS, AttemptOutcome, Claim, Happening, State
from imprimatur.storage import schema
from imprimatur.storage.claims import Wanted
from imprimatur.storage.database import Database
from imprimatur.wire.messages import JobsChanged

#: What a webhook tells of.
TOLD = {happening for happening, step in TRANSITIONS.items() if step.notifies}


@dataclass(eq=False)
class Model:
    """What is expected of one job."""

    id: uuid.UUID
    name: str
    max_attempts: int
    released: bool
    release_no: int
    heard: bool  #: by a webhook
    state: State = State.QUEUED
    version: int = 1
    claim_no: int = 0
    attempts: int = 0
    losses: int = 0
    progress: int = 0
    due: bool = True
    overdue: bool = False
    lease_over: bool = False
    returned: bool = False  #: a worker that was given up as lost came back
    held_by: str = ""
    token: uuid.UUID | None = None  #: of who holds it, or held it last
    trigger: str = ""
    key: str = ""
    content: str = ""
    supersedes: uuid.UUID | None = None
    superseded_by: uuid.UUID | None = None
    events: list[tuple[int, str, State]] = field(default_factory=lambda: [(1, SUBMITTED, State.QUEUED)])
    outcomes: dict[int, AttemptOutcome | None] = field(default_factory=dict)  #: by claim_no
    ended: State | None = None

    def move(self, happening: Happening) -> bool:
        step = TRANSITIONS[happening]
        if self.state not in step.sources:
            return False
        note(f"  {self.name}: {self.state} -{happening}-> {step.target}")
        self.state = step.target
        self.version += 1
        self.events.append((self.version, happening, self.state))
        self.progress = 100 if self.state is State.SUCCEEDED else 0
        self.released = self.released and self.state is not State.QUEUED
        if self.state in TERMINAL:
            self.held_by = ""
        return True

    def end_attempt(self, claim_no: int, outcome: AttemptOutcome) -> None:
        self.outcomes[claim_no] = self.outcomes[claim_no] or outcome

    def free_for(self, person: str) -> bool:
        return self.state is State.AWAITING_REVIEW and self.held_by in ("", person)

    @property
    def claimable(self) -> bool:
        return self.state is State.QUEUED and self.released and not self.overdue


@dataclass(frozen=True, eq=False)
class Held:
    """A worker's claim, and what it sent to get it."""

    job: Model
    claim: Claim
    wanted: Wanted

    @property
    def holds(self) -> bool:
        return self.job.state is State.RUNNING and self.job.claim_no == self.claim.claim_no


# --- what is stored ------------------------------------------------------------------------------------------

ByJob = dict[uuid.UUID, list[Any]]
_SEEN = (
    *("id", "state", "version", "attempts", "claim_no", "release_no", "losses", "progress_percent"),
    *("policy_triggered", "released_at", "finished_at", "claim_id", "lease_until"),
    *("supersedes", "superseded_by"),
)
_JOBS = select(*(schema.jobs.c[name] for name in _SEEN))
_EVENTS = select(schema.job_events).order_by(schema.job_events.c.job_id, schema.job_events.c.version)
_ATTEMPTS = select(schema.attempts).order_by(schema.attempts.c.job_id, schema.attempts.c.claim_no)
_OUTCOMES = select(schema.outbox.c.routing_key, schema.outbox.c.body).where(
    schema.outbox.c.routing_key.like("outcome.%")
)


async def stored_jobs(database: Database) -> dict[uuid.UUID, Any]:
    """Every job's row."""
    async with database.read() as reader:
        return {row.id: row for row in await reader.connection.execute(_JOBS)}


async def stored_histories(database: Database) -> tuple[ByJob, ByJob, Counter[tuple[uuid.UUID, int, str]]]:
    """The events and the attempts of each job, in order; and how often the outbox tells of which outcome, by job,
    version and kind."""
    found: tuple[ByJob, ByJob] = (defaultdict(list), defaultdict(list))
    async with database.read() as reader:
        for rows, query in zip(found, (_EVENTS, _ATTEMPTS), strict=True):
            for row in await reader.connection.execute(query):
                rows[row.job_id].append(row)
        told = Counter(
            (change.job_id, change.version, row.routing_key.removeprefix("outcome."))
            for row in await reader.connection.execute(_OUTCOMES)
            for change in JobsChanged.decode(row.body).changes
        )
    return *found, told
