"""Webhooks in the database: endpoints, secrets, messages, deliveries and attempts. On SQLite and PostgreSQL."""

import asyncio
import uuid
from collections.abc import Sequence

import pytest
from sqlalchemy import func, select, update

from imprimatur.errors import NotFound, ResourceExhausted
from imprimatur.identity import new_id
from imprimatur.job import Job
from imprimatur.storage import announcements, clock, deliveries, jobs, webhooks
from imprimatur.storage.announcements import NewMessage
from imprimatur.storage.database import Database
from imprimatur.storage.deliveries import AttemptRecord, DeliveryState, Lease
from imprimatur.storage.jobs import Owner
from imprimatur.storage.schema import (
    job_events,
    webhook_attempts,
    webhook_deliveries,
    webhook_messages,
    webhook_secrets,
)
from imprimatur.storage.webhooks import MAX_ENDPOINTS, Endpoint, SealedSecret
from tests import makers

LEASE_SECONDS = 30.0


def sealed(tenant_id: uuid.UUID, ciphertext: bytes = b"sealed") -> SealedSecret:
    return SealedSecret(id=new_id(), tenant_id=tenant_id, ciphertext=ciphertext)


async def endpoint(
    database: Database, tenant_id: uuid.UUID, *, url: str = "https://a.example/hook", event_types: Sequence[str] = ()
) -> Endpoint:
    async with database.begin() as tx:
        return await webhooks.create_endpoint(
            tx, tenant_id, url=url, description="ours", event_types=event_types, secret=sealed(tenant_id)
        )


async def cancelled(database: Database, tenant_id: uuid.UUID, *, callback_url: str = "") -> Job:
    """A job with one outcome: it was cancelled."""
    [job] = await makers.submit(database, makers.new_job(tenant_id, callback_url=callback_url))
    async with database.begin() as tx:
        ended = await jobs.cancel(tx, Owner(tenant_id=tenant_id), job.id, reason="")
    assert ended is not None
    return ended


def message(job: Job, *, kind: str = "job.cancelled") -> NewMessage:
    return NewMessage(
        job_id=job.id,
        version=job.version,
        tenant_id=job.tenant_id,
        type=kind,
        body=b"{}",
        callback_url=job.callback_url,
    )


async def announce(database: Database, *told: Job, lease_seconds: float | None = LEASE_SECONDS) -> list[Lease]:
    async with database.begin() as tx:
        return await announcements.store_messages(tx, [message(job) for job in told], lease_seconds=lease_seconds)


async def lease(database: Database, lane: str, *, most: int = 100, lease_seconds: float = LEASE_SECONDS) -> list[Lease]:
    async with database.begin() as tx:
        return await deliveries.lease_due(tx, {lane: most}, lease_seconds=lease_seconds)


async def record(
    database: Database, held: Lease, state: DeliveryState, *, status: int | None = 500, delay_seconds: float = 0.0
) -> None:
    entry = AttemptRecord(
        lease=held, status_code=status, error="", duration_ms=12, state=state, delay_seconds=delay_seconds
    )
    async with database.begin() as tx:
        await deliveries.record_attempts(tx, [entry])


async def due_lanes(database: Database, *, after: str = "", limit: int = 100) -> list[str]:
    async with database.read() as reader:
        return await deliveries.due_lanes(reader, after=after, limit=limit)


async def states(database: Database) -> list[str]:
    async with database.read() as reader:
        rows = await reader.connection.execute(select(webhook_deliveries.c.state).order_by(webhook_deliveries.c.id))
        return list(rows.scalars())


async def count(database: Database, table: object) -> int:
    async with database.read() as reader:
        return (await reader.connection.execute(select(func.count()).select_from(table))).scalar_one()  # type: ignore[arg-type]  # a table


# --- endpoints -------------------------------------------------------------------------------------------


async def test_endpoints_are_listed_oldest_first_and_for_their_tenant_alone(database: Database) -> None:
    ours, theirs = await makers.make_tenant(database), await makers.make_tenant(database)
    first = await endpoint(database, ours, event_types=["job.succeeded"])
    second = await endpoint(database, ours, url="https://b.example/")
    await endpoint(database, theirs)

    async with database.read() as reader:
        assert await webhooks.list_endpoints(reader, ours) == [first, second]


async def test_a_deleted_endpoint_is_gone_with_its_secrets_and_only_its_tenant_can_delete_it(
    database: Database,
) -> None:
    ours, theirs = await makers.make_tenant(database), await makers.make_tenant(database)
    made = await endpoint(database, ours)

    async with database.begin() as tx:
        with pytest.raises(NotFound):
            await webhooks.delete_endpoint(tx, theirs, made.id)
        await webhooks.delete_endpoint(tx, ours, made.id)
        with pytest.raises(NotFound):
            await webhooks.delete_endpoint(tx, ours, made.id)
        assert await webhooks.list_endpoints(tx, ours) == []
    assert await count(database, webhook_secrets) == 0


async def test_a_tenant_has_fifty_endpoints_at_most_also_when_they_are_added_at_once(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    made = [await endpoint(database, tenant_id) for _ in range(MAX_ENDPOINTS - 2)]

    results = await asyncio.gather(*(endpoint(database, tenant_id) for _ in range(6)), return_exceptions=True)

    assert sum(isinstance(result, Endpoint) for result in results) == 2
    assert sum(isinstance(result, ResourceExhausted) for result in results) == 4
    async with database.begin() as tx:
        await webhooks.delete_endpoint(tx, tenant_id, made[0].id)
    await endpoint(database, tenant_id)


# --- secrets ---------------------------------------------------------------------------------------------


async def test_the_default_secret_is_made_once_by_whoever_comes_first(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)

    async def ensure(number: int) -> None:
        async with database.begin() as tx:
            await webhooks.ensure_default_secrets(tx, [sealed(tenant_id, b"sealed %d" % number)])

    await asyncio.gather(*(ensure(number) for number in range(8)))

    async with database.read() as reader:
        [only] = await webhooks.live_secrets(reader, tenant_id, None)
    await ensure(9)
    async with database.read() as reader:
        assert await webhooks.live_secrets(reader, tenant_id, None) == [only]


@pytest.mark.parametrize("default", [True, False])
async def test_a_rotation_leaves_two_live_secrets_the_new_one_first(database: Database, default: bool) -> None:
    tenant_id = await makers.make_tenant(database)
    owner = None if default else (await endpoint(database, tenant_id)).id
    async with database.begin() as tx:
        await webhooks.ensure_default_secrets(tx, [sealed(tenant_id)])

    async def rotate(ciphertext: bytes, overlap_seconds: float) -> list[bytes]:
        async with database.begin() as tx:
            await webhooks.rotate_secret(
                tx, tenant_id, owner, secret=sealed(tenant_id, ciphertext), overlap_seconds=overlap_seconds
            )
        async with database.read() as reader:
            return [item.ciphertext for item in await webhooks.live_secrets(reader, tenant_id, owner)]

    assert await rotate(b"second", 3600.0) == [b"second", b"sealed"]
    assert await rotate(b"third", 3600.0) == [b"third", b"second"]
    assert await rotate(b"fourth", -1.0) == [b"fourth"]


async def test_the_secret_of_an_endpoint_of_another_tenant_cannot_be_rotated(database: Database) -> None:
    ours, theirs = await makers.make_tenant(database), await makers.make_tenant(database)
    made = await endpoint(database, ours)

    with pytest.raises(NotFound):
        async with database.begin() as tx:
            await webhooks.rotate_secret(tx, theirs, made.id, secret=sealed(theirs), overlap_seconds=0)


# --- messages --------------------------------------------------------------------------------------------


async def test_an_outcome_is_pending_until_its_message_is_stored(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    await endpoint(database, tenant_id)
    job = await cancelled(database, tenant_id)
    async with database.read() as reader:
        assert await announcements.pending_keys(reader, older_than_seconds=-1, limit=10) == [(job.id, job.version)]
        assert await announcements.pending_keys(reader, older_than_seconds=60, limit=10) == []
        [pending] = await announcements.pending_events(reader, [(job.id, job.version), (job.id, 1), (new_id(), 1)])
    assert (pending.job.id, pending.event.kind, pending.input) == (job.id, "cancelled", b"a creative")

    await announce(database, job)

    async with database.read() as reader:
        assert await announcements.pending_keys(reader, older_than_seconds=-1, limit=10) == []
        assert await announcements.pending_events(reader, [(job.id, job.version)]) == []


async def test_a_large_input_is_read_whole(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    content = bytes(range(256)) * 1024
    [job] = await makers.submit(database, makers.new_job(tenant_id, content=content, callback_url="https://a.example/"))
    async with database.begin() as tx:
        ended = await jobs.cancel(tx, Owner(tenant_id=tenant_id), job.id, reason="")
    assert ended is not None

    async with database.read() as reader:
        [pending] = await announcements.pending_events(reader, [(ended.id, ended.version)])

    assert pending.input == content


async def test_a_message_goes_to_each_endpoint_that_hears_of_it_and_to_the_callback(database: Database) -> None:
    ours, theirs = await makers.make_tenant(database), await makers.make_tenant(database)
    all_events = await endpoint(database, ours, url="https://all.example/")
    fitting = await endpoint(database, ours, url="https://fitting.example/", event_types=["job.cancelled"])
    await endpoint(database, ours, url="https://other.example/", event_types=["job.succeeded"])
    gone = await endpoint(database, ours, url="https://gone.example/")
    await endpoint(database, theirs, url="https://theirs.example/")
    async with database.begin() as tx:
        await webhooks.delete_endpoint(tx, ours, gone.id)
    job = await cancelled(database, ours, callback_url="https://callback.example/")

    leases = await announce(database, job)

    assert [(item.endpoint_id, item.url) for item in leases] == [
        (all_events.id, "https://all.example/"),
        (fitting.id, "https://fitting.example/"),
        (None, "https://callback.example/"),
    ]
    assert len({item.message_id for item in leases}) == 1
    assert {item.body for item in leases} == {b"{}"}


async def test_an_outcome_that_nobody_hears_of_is_ticked_off_without_a_message(database: Database) -> None:
    job = await cancelled(database, await makers.make_tenant(database))

    assert await announce(database, job) == []

    assert await count(database, webhook_messages) == 0
    async with database.read() as reader:
        assert await announcements.pending_keys(reader, older_than_seconds=-1, limit=10) == []


async def test_storing_a_message_again_or_at_the_same_time_stores_it_once(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    await endpoint(database, tenant_id)
    told = [await cancelled(database, tenant_id) for _ in range(5)]

    results = await asyncio.gather(*(announce(database, *order) for order in (told, told[::-1], told, told[::-1])))

    assert sorted(len(result) for result in results) == [0, 0, 0, 5]
    assert await announce(database, *told) == []
    assert await count(database, webhook_messages) == 5
    assert await count(database, webhook_deliveries) == 5


async def test_a_transaction_that_fails_leaves_the_outcome_pending(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    await endpoint(database, tenant_id)
    job = await cancelled(database, tenant_id)

    async def store_and_fail() -> None:
        async with database.begin() as tx:
            await announcements.store_messages(tx, [message(job)], lease_seconds=None)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store_and_fail()

    assert await count(database, webhook_messages) == 0
    assert len(await announce(database, job)) == 1


# --- deliveries ------------------------------------------------------------------------------------------


async def test_what_is_leased_is_nobody_elses_until_the_lease_ends(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    await endpoint(database, tenant_id)
    [held] = await announce(database, await cancelled(database, tenant_id), lease_seconds=-1.0)

    assert await due_lanes(database) == [held.lane]
    [again] = await lease(database, held.lane)

    assert again.delivery_id == held.delivery_id
    assert await due_lanes(database) == []
    assert await lease(database, held.lane) == []


async def test_a_message_stored_without_a_lease_is_due_at_once(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    await endpoint(database, tenant_id)
    assert await announce(database, await cancelled(database, tenant_id), lease_seconds=None) == []

    [lane] = await due_lanes(database)

    assert lane == deliveries.lane_of(tenant_id, "https://a.example/hook")
    assert len(await lease(database, lane)) == 1


async def test_several_leasers_at_once_share_what_is_due(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    await endpoint(database, tenant_id)
    told = [await cancelled(database, tenant_id) for _ in range(20)]
    await announce(database, *told, lease_seconds=None)
    [lane] = await due_lanes(database)

    shares = await asyncio.gather(*(lease(database, lane, most=7) for _ in range(4)))

    taken = [item.delivery_id for share in shares for item in share]
    assert len(taken) == len(set(taken))
    assert all(len(share) <= 7 for share in shares)
    rest = await lease(database, lane)
    assert len(taken) + len(rest) == 20


async def test_lanes_are_found_page_by_page(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    for number in range(5):
        await endpoint(database, tenant_id, url=f"https://host-{number}.example/")
    await announce(database, await cancelled(database, tenant_id), lease_seconds=None)

    first = await due_lanes(database, limit=3)
    second = await due_lanes(database, after=first[-1], limit=3)

    assert [deliveries.tenant_and_host(lane) for lane in first + second] == [
        (tenant_id.hex, f"host-{number}.example") for number in range(5)
    ]


async def test_a_success_ends_the_delivery_and_is_on_record(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    await endpoint(database, tenant_id)
    [held] = await announce(database, await cancelled(database, tenant_id))

    await record(database, held, DeliveryState.DELIVERED, status=204)

    assert await states(database) == ["delivered"]
    async with database.read() as reader:
        row = (await reader.connection.execute(select(webhook_attempts))).one()
        open_ones = await deliveries.counts(reader)
    assert (row.delivery_id, row.status_code, row.duration_ms) == (held.delivery_id, 204, 12)
    assert (open_ones.events, open_ones.deliveries) == (0, 0)


async def test_a_failure_is_due_again_after_its_pause(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    await endpoint(database, tenant_id)
    held_now, held_later = await announce(
        database, await cancelled(database, tenant_id), await cancelled(database, tenant_id)
    )

    await record(database, held_now, DeliveryState.PENDING, delay_seconds=-1.0)
    await record(database, held_later, DeliveryState.PENDING, delay_seconds=60.0)

    [again] = await lease(database, held_now.lane)
    assert (again.delivery_id, again.attempts) == (held_now.delivery_id, 1)


async def test_giving_up_ends_the_delivery(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    await endpoint(database, tenant_id)
    [held] = await announce(database, await cancelled(database, tenant_id))

    await record(database, held, DeliveryState.ABANDONED, status=410)

    assert await states(database) == ["abandoned"]
    assert await due_lanes(database) == []


async def test_a_failure_reported_after_the_lease_was_lost_changes_nothing(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    await endpoint(database, tenant_id)
    [late] = await announce(database, await cancelled(database, tenant_id), lease_seconds=-1.0)
    [holder] = await lease(database, late.lane)

    await record(database, late, DeliveryState.PENDING, delay_seconds=-1.0)
    await record(database, late, DeliveryState.ABANDONED)

    assert await states(database) == ["pending"]
    assert await lease(database, late.lane) == []
    assert await count(database, webhook_attempts) == 2
    await record(database, holder, DeliveryState.DELIVERED, status=200)
    assert await states(database) == ["delivered"]


async def test_a_success_counts_even_after_the_lease_was_lost(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    await endpoint(database, tenant_id)
    [late] = await announce(database, await cancelled(database, tenant_id), lease_seconds=-1.0)
    [holder] = await lease(database, late.lane)

    await record(database, late, DeliveryState.DELIVERED, status=200)
    await record(database, holder, DeliveryState.PENDING)

    assert await states(database) == ["delivered"]


async def test_a_lease_given_back_is_due_again_without_an_attempt(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    await endpoint(database, tenant_id)
    held, other = await announce(database, await cancelled(database, tenant_id), await cancelled(database, tenant_id))

    async with database.begin() as tx:
        await deliveries.give_back(tx, [held])
        await deliveries.give_back(tx, [other], delay_seconds=60.0)

    [again] = await lease(database, held.lane)
    assert (again.delivery_id, again.attempts) == (held.delivery_id, 0)


async def test_deleting_an_endpoint_gives_up_what_is_open_to_it_and_nothing_else(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    going = await endpoint(database, tenant_id, url="https://going.example/")
    await endpoint(database, tenant_id, url="https://staying.example/")
    done = await announce(database, await cancelled(database, tenant_id))
    for held in done:
        await record(database, held, DeliveryState.DELIVERED, status=200)
    await announce(database, await cancelled(database, tenant_id))

    async with database.begin() as tx:
        await webhooks.delete_endpoint(tx, tenant_id, going.id)

    assert await states(database) == ["delivered", "delivered", "abandoned", "pending"]


async def test_counts_tell_what_is_not_done_yet(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    await endpoint(database, tenant_id)
    await announce(database, await cancelled(database, tenant_id))
    await cancelled(database, tenant_id)

    async with database.read() as reader:
        found = await deliveries.counts(reader)
        pending = (
            await reader.connection.execute(
                select(func.count()).select_from(job_events).where(job_events.c.webhook_pending)
            )
        ).scalar_one()

    assert (found.events, found.deliveries) == (1, 1)
    assert pending == 1


async def test_the_oldest_delivery_without_an_attempt_is_told(database: Database) -> None:
    tenant_id = await makers.make_tenant(database)
    await endpoint(database, tenant_id)
    first, second = await cancelled(database, tenant_id), await cancelled(database, tenant_id)
    [oldest] = await announce(database, first)
    [younger] = await announce(database, second)
    hours = {oldest.message_id: 2, younger.message_id: 1}
    async with database.begin() as tx:
        for message_id, age in hours.items():
            stored = update(webhook_messages).where(webhook_messages.c.id == message_id)
            await tx.connection.execute(stored.values(created_at=clock.after(-3600.0 * age)))

    assert round(await oldest_untried_seconds(database) / 3600) == 2
    async with database.begin() as tx:
        await deliveries.give_back(tx, [oldest])
    assert round(await oldest_untried_seconds(database) / 3600) == 2, "no attempt was made"
    [again] = await lease(database, oldest.lane, most=1)
    await record(database, again, DeliveryState.PENDING)
    assert round(await oldest_untried_seconds(database) / 3600) == 1
    await record(database, younger, DeliveryState.DELIVERED, status=204)
    assert await oldest_untried_seconds(database) == 0


async def oldest_untried_seconds(database: Database) -> float:
    async with database.read() as reader:
        return (await deliveries.counts(reader)).oldest_untried_seconds
