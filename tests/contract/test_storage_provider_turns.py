"""Turns at providers, over all reviewers."""

import asyncio
import uuid

from imprimatur.job import JobType
from imprimatur.pacing import Turn
from imprimatur.storage import provider_turns
from imprimatur.storage.database import Database
from imprimatur.storage.provider_turns import Lane
from tests import makers

INTERVAL = 60.0


def lane(tenant: uuid.UUID, provider: str = "openai") -> Lane:
    return Lane(provider=provider, tenant_id=tenant, type=JobType.CREATIVE_REVIEW)


async def take(database: Database, where: Lane, *, was_here: bool = False) -> Turn:
    async with database.begin() as tx:
        return await provider_turns.take(tx, where, interval_seconds=INTERVAL, hold_seconds=0.0, was_here=was_here)


async def test_of_many_reviewers_that_ask_at_once_one_has_the_turn_and_the_others_places_of_their_own(
    database: Database,
) -> None:
    where = lane(await makers.make_tenant(database))
    turns = await asyncio.gather(*(take(database, where) for _ in range(8)))
    assert sum(turn.taken for turn in turns) == 1
    waits = sorted(turn.wait_seconds for turn in turns if not turn.taken)
    # One interval apart, less the moments between the askers.
    assert [round(wait / INTERVAL) for wait in waits] == [1, 2, 3, 4, 5, 6, 7]


async def test_providers_and_tenants_do_not_wait_for_each_other(database: Database) -> None:
    acme, globex = await makers.make_tenant(database), await makers.make_tenant(database)
    for where in (lane(acme), lane(globex), lane(acme, "anthropic")):
        assert (await take(database, where)).taken
        assert not (await take(database, where)).taken
