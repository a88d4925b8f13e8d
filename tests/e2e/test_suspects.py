"""Suspects in the services as they are started: no shared child of the engine comes near them."""

import uuid
from datetime import UTC, datetime, timedelta

from sqlalchemy import update

from cli.operation import database_url_in
from imprimatur.client import Client
from imprimatur.job import LOSSES_OF_A_SUSPECT
from imprimatur.storage import clock, schema
from imprimatur.storage.database import Database
from imprimatur.v1.job_pb2 import ATTEMPT_OUTCOME_SUCCEEDED
from tests.e2e import jobs
from tests.e2e.conftest import Serve
from tests.e2e.processes import family


async def test_a_suspect_is_examined_apart_by_everything_in_one_process(serve: Serve) -> None:
    server = serve()
    async with server.client() as client:
        await examined_apart(client, database_url_in(server.data))
    # The engine's own children would stay: they are started when first needed, and wait for more.
    assert family(server.pid) == [server.pid]


async def examined_apart(client: Client, database_url: str) -> None:
    """Have a job reviewed that is a suspect before any reviewer can claim it."""
    job = await client.submit(creative=jobs.plain_creative(1), run_at=datetime.now(UTC) + timedelta(days=1))
    database = Database(database_url)
    try:
        async with database.begin() as tx:
            made_suspect = {"losses": LOSSES_OF_A_SUSPECT, "run_at": clock.now()}
            this = schema.jobs.c.id == uuid.UUID(job.id)
            await tx.connection.execute(update(schema.jobs).where(this).values(made_suspect))
    finally:
        await database.close()
    await client.wait(job.id, jobs.SETTLE_SECONDS, until_terminal=False)
    ended = await client.get(job.id)
    assert [one.outcome for one in ended.attempt_history] == [ATTEMPT_OUTCOME_SUCCEEDED]
    assert ended.creative_review.ai_review.evidence.engine.name == "builtin"
