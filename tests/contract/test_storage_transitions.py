"""`move` follows the transition table in each database: every happening in every state."""

import uuid
from typing import Any

import pytest
from sqlalchemy import Row, select, update

from imprimatur.broker import EVENTS
from imprimatur.identity import new_id
from imprimatur.job import TERMINAL, TRANSITIONS, Happening, State
from imprimatur.storage import clock, schema
from imprimatur.storage.database import Database, OutboxRow
from imprimatur.storage.transitions import is_job, move
from imprimatur.wire.messages import JobChange, JobsChanged
from tests import makers


async def put_into(database: Database, job_id: uuid.UUID, state: State) -> None:
    """What only a test may do: write a state, with all that a job could have in any."""
    async with database.begin() as tx:
        await tx.connection.execute(
            update(schema.jobs)
            .where(schema.jobs.c.id == job_id)
            .values(
                state=state,
                claim_id=new_id(),
                worker_id=new_id(),
                lease_until=clock.after(30.0),
                held_by="ada",
                held_until=clock.after(30.0),
                progress_percent=40,
                progress_stage="half-way",
                awaiting_since=clock.now(),
            )
        )


async def row_of(database: Database, job_id: uuid.UUID) -> Row[Any]:
    async with database.read() as reader:
        return (await reader.connection.execute(select(*schema.jobs.c).where(schema.jobs.c.id == job_id))).one()


async def events_of(database: Database, job_id: uuid.UUID) -> list[Row[Any]]:
    query = select(schema.job_events).where(schema.job_events.c.job_id == job_id).order_by("version")
    async with database.read() as reader:
        return list((await reader.connection.execute(query)).all())


@pytest.mark.parametrize("state", list(State))
async def test_every_happening_follows_the_table_and_leaves_one_event_and_one_message(
    database: Database, state: State
) -> None:
    tenant = await makers.make_tenant(database)
    happenings = list(Happening)
    heard = "https://ads.example/hook"
    submitted = await makers.submit(database, *(makers.new_job(tenant, callback_url=heard) for _ in happenings))
    for happening, job in zip(happenings, submitted, strict=True):
        await put_into(database, job.id, state)
        before = await row_of(database, job.id)
        written: list[OutboxRow] = []
        database.on_commit = written.extend
        async with database.begin() as tx:
            rows = await move(tx, happening, is_job(job.id), details={"why": "a test"})
        after = await row_of(database, job.id)
        transition = TRANSITIONS[happening]
        if state not in transition.sources:
            assert (rows, after, written) == ([], before, [])
            assert len(await events_of(database, job.id)) == 1
            continue
        assert rows == [after]
        assert (after.state, after.version) == (transition.target, before.version + 1)
        assert after.updated_at >= before.updated_at
        _, event = await events_of(database, job.id)
        assert (event.version, event.kind, event.state) == (after.version, happening, transition.target)
        assert event.details == {"why": "a test"}
        assert event.webhook_pending == bool(transition.notifies)
        [message] = written
        prefix = "outcome" if transition.notifies else "state"
        assert (message.exchange, message.routing_key) == (EVENTS, f"{prefix}.{happening}")
        assert message.stored == bool(transition.notifies)
        assert JobsChanged.decode(message.body).changes == [
            JobChange(job_id=job.id, tenant_id=tenant, version=after.version, state=transition.target)
        ]


@pytest.mark.parametrize("happening", list(Happening))
async def test_a_state_is_entered_with_what_belongs_to_it(database: Database, happening: Happening) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    transition = TRANSITIONS[happening]
    await put_into(database, job.id, min(transition.sources))
    async with database.begin() as tx:
        [row] = await move(tx, happening, is_job(job.id))
    assert (row.finished_at is not None) == (transition.target in TERMINAL)
    if transition.target is not State.RUNNING:
        assert (row.claim_id, row.worker_id, row.lease_until) == (None, None, None)
    if transition.target is State.QUEUED:
        assert (row.released_at, row.awaiting_since) == (None, None)
    if transition.target in TERMINAL:
        assert (row.held_by, row.held_until) == ("", None)
    assert (row.progress_percent, row.progress_stage) == (100 if transition.target is State.SUCCEEDED else 0, "")


async def test_the_first_event_is_the_submission(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    written: list[OutboxRow] = []
    database.on_commit = written.extend
    [job] = await makers.submit(database, makers.new_job(tenant), release_at_once=0)
    [event] = await events_of(database, job.id)
    assert (event.version, event.kind, event.state, event.webhook_pending) == (1, "submitted", State.QUEUED, False)
    [message] = written
    assert (message.routing_key, message.stored) == ("state.submitted", False)


async def test_many_jobs_move_at_once_each_with_its_own_event_told_in_one_message(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    submitted = await makers.submit(database, *(makers.new_job(tenant) for _ in range(5)))
    written: list[OutboxRow] = []
    database.on_commit = written.extend
    async with database.begin() as tx:
        rows = await move(tx, Happening.CANCELLED, schema.jobs.c.tenant_id == tenant)
    assert {row.id for row in rows} == {job.id for job in submitted}
    [message] = written
    told = {change.job_id for change in JobsChanged.decode(message.body).changes}
    assert told == {job.id for job in submitted}
    for job in submitted:
        assert [event.kind for event in await events_of(database, job.id)] == ["submitted", "cancelled"]
