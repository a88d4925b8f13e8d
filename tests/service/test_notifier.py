"""The notifier, whole: real receivers, a real database, the in-memory broker. On SQLite and PostgreSQL."""

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import delete, select, text

from imprimatur import metrics, webhooks
from imprimatur.broker import EVENTS, Message, Queue
from imprimatur.broker.memory import MemoryBroker
from imprimatur.evidence import Evidence
from imprimatur.guard import Guard
from imprimatur.job import AttemptOutcome, Claim, Happening, Job, WhenBusy
from imprimatur.outbox import Outbox
from imprimatur.policy import Decision, Policy, Trigger, Verdict, decide
from imprimatur.storage import clock, conclusions, jobs, repeats
from imprimatur.storage import webhooks as stored
from imprimatur.storage.attempts import Spent
from imprimatur.storage.conclusions import Conclusion, Ending
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Filter, Owner
from imprimatur.storage.repeats import Scope
from imprimatur.storage.schema import webhook_attempts, webhook_deliveries, webhook_secrets
from imprimatur.vault import Vault, new_key
from imprimatur.webhooks import NewEndpoint
from imprimatur.wire.creatives import ai_result
from imprimatur.wire.messages import JobChange, JobsChanged
from notifier.announcer import Sweep
from notifier.deliverer import Pace
from notifier.room import Limits
from notifier.service import Notifier, notifier
from tests import makers
from tests.contract.polling import eventually
from tests.service.receiver import Post, Receiver, never, receiving, with_status

OPEN_GUARD = Guard(allow_private=True, allow_http=True)
QUICK = Pace(lease_seconds=5.0, pauses_seconds=(0.05, 0.05, 0.05, 0.05), poll_seconds=0.02)
#: No sweep in the time that a test takes: what comes, came by the broker.
NO_SWEEP = Sweep(every_seconds=3600.0, older_than_seconds=3600.0)
QUICK_SWEEP = Sweep(every_seconds=0.05, older_than_seconds=-1.0)
LONG = (60.0,)


class World:
    """One tenant, its database, broker and vault, and what its notifiers are made of."""

    def __init__(self, database: Database, broker: MemoryBroker, key: str) -> None:
        self.database = database
        self.broker = broker
        self.key = key
        self.vault = Vault.from_text(key)
        self.tenant_id = uuid.UUID(int=0)

    def notifier(
        self, *, guard: Guard = OPEN_GUARD, pace: Pace = QUICK, sweep: Sweep = NO_SWEEP, **more: Any
    ) -> AbstractAsyncContextManager[Notifier]:
        """A notifier on this world."""
        more.setdefault("drain_seconds", 1.0)
        return notifier(self.database, self.broker, self.vault, guard, pace=pace, sweep=sweep, **more)

    async def endpoint(self, url: str) -> NewEndpoint:
        """An endpoint for everything."""
        async with self.database.begin() as tx:
            return await webhooks.create_endpoint(tx, self.vault, self.tenant_id, url=url)

    async def outcome(self, *, callback_url: str = "", tenant_id: uuid.UUID | None = None) -> Job:
        """A job that was cancelled."""
        tenant_id = tenant_id or self.tenant_id
        [job] = await makers.submit(self.database, makers.new_job(tenant_id, callback_url=callback_url))
        async with self.database.begin() as tx:
            ended = await jobs.cancel(tx, Owner(tenant_id=tenant_id), job.id, reason="")
        assert ended is not None
        return ended

    async def default_secret(self) -> str:
        """What signs callbacks."""
        async with self.database.begin() as tx:
            return await webhooks.default_secret(tx, self.vault, self.tenant_id)

    async def states(self) -> list[str]:
        """Of every delivery, oldest first."""
        async with self.database.read() as reader:
            rows = await reader.connection.execute(select(webhook_deliveries.c.state).order_by(webhook_deliveries.c.id))
            return list(rows.scalars())

    async def attempts(self) -> list[tuple[int | None, str]]:
        """(status, error) of every attempt on record, oldest first."""
        async with self.database.read() as reader:
            rows = await reader.connection.execute(
                select(webhook_attempts.c.status_code, webhook_attempts.c.error).order_by(webhook_attempts.c.id)
            )
            return [(row.status_code, row.error) for row in rows]

    async def until(self, *states: str) -> None:
        """Wait until the deliveries stand so."""
        await until(self.states, lambda found: found == list(states))


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    """With its outbox running: what is committed reaches the broker."""
    broker = MemoryBroker()
    await broker.start()
    outbox = Outbox(database, broker)
    outbox.start()
    made = World(database, broker, new_key())
    made.tenant_id = await makers.make_tenant(database)
    yield made
    await outbox.stop()
    await broker.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """One that answers 204."""
    async with receiving() as made:
        yield made


async def until(ask: Callable[[], Awaitable[Any]], condition: Callable[[Any], bool], *, seconds: float = 10.0) -> Any:
    """Wait until the answer fulfils the condition; give that answer."""
    answer: Any = None
    try:
        async with asyncio.timeout(seconds):
            while not condition(answer := await ask()):  # noqa: ASYNC110  # what changes is in a database
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s; last: {answer}") from None
    return answer


@asynccontextmanager
async def silent(broker: MemoryBroker) -> AsyncIterator[None]:
    """A broker that loses every outcome: what it holds for the notifier is taken away and thrown away."""
    thief = await broker.consume(
        Queue.NOTIFIER_EVENTS, lambda delivery: void(asyncio.ensure_future(delivery.ack())), prefetch=0
    )
    yield
    await thief.close()


def void(_value: object) -> None:
    """Nothing."""


# --- delivery --------------------------------------------------------------------------------------------


async def test_an_outcome_is_posted_signed_and_recorded(world: World, receiver: Receiver) -> None:
    made = await world.endpoint(receiver.url())
    async with world.notifier():
        job = await world.outcome()
        await world.until("delivered")

    [post] = receiver.posts
    content = post.verified(made.secret)
    assert content["type"] == "job.cancelled"
    assert content["data"]["job_id"] == str(job.id)
    assert content["data"]["job_state"] == "cancelled"
    assert post.headers["Content-Type"] == "application/json"
    assert await world.attempts() == [(204, "")]


async def test_a_superseded_job_is_told_of_with_what_took_its_place(world: World, receiver: Receiver) -> None:
    made = await world.endpoint(receiver.url())
    [old] = await makers.submit(world.database, makers.new_job(world.tenant_id, content=b"old", key="creative:cr-1"))
    async with world.notifier():
        wanted = makers.new_job(world.tenant_id, content=b"new", key="creative:cr-1", when_busy=WhenBusy.SUPERSEDE)
        [new] = await makers.submit(world.database, wanted)
        await world.until("delivered")
        await makers.cancel(world.database, new)
        await world.until("delivered", "delivered")

    of_old, of_new = (post.verified(made.secret) for post in receiver.posts)
    assert (of_old["type"], of_new["type"]) == ("job.cancelled", "job.cancelled")
    assert (of_old["data"]["job_id"], of_old["data"]["superseded_by"]) == (str(old.id), str(new.id))
    assert (of_new["data"]["job_id"], of_new["data"]["supersedes"]) == (str(new.id), str(old.id))
    assert "supersedes" not in of_old["data"]
    assert "superseded_by" not in of_new["data"]


async def test_a_callback_url_is_posted_to_as_well_signed_with_the_default_secret(
    world: World, receiver: Receiver
) -> None:
    made = await world.endpoint(receiver.url("/endpoint"))
    async with world.notifier():
        await world.outcome(callback_url=receiver.url("/callback"))
        await world.until("delivered", "delivered")

    [to_endpoint], [to_callback] = receiver.at("/endpoint"), receiver.at("/callback")
    to_endpoint.verified(made.secret)
    to_callback.verified(await world.default_secret())
    assert to_endpoint.id == to_callback.id
    assert to_endpoint.body == to_callback.body


async def test_during_a_rotation_both_secrets_verify(world: World, receiver: Receiver) -> None:
    made = await world.endpoint(receiver.url())
    async with world.database.begin() as tx:
        newer = await webhooks.rotate_secret(tx, world.vault, world.tenant_id, made.endpoint.id)
    async with world.notifier():
        await world.outcome()
        await world.until("delivered")

    for secret in (made.secret, newer):
        receiver.posts[0].verified(secret)


async def test_no_secret_stands_in_the_database_in_clear(world: World, receiver: Receiver) -> None:
    made = await world.endpoint(receiver.url())
    default = await world.default_secret()

    async with world.database.read() as reader:
        ciphertexts = (await reader.connection.execute(text("SELECT ciphertext FROM webhook_secrets"))).scalars().all()

    assert len(ciphertexts) == 2
    for ciphertext in ciphertexts:
        for secret in (made.secret, default):
            assert secret.encode() not in bytes(ciphertext)
            assert webhooks.key_of(secret) not in bytes(ciphertext)


async def test_an_outcome_of_another_tenant_is_not_told(world: World, receiver: Receiver) -> None:
    await world.endpoint(receiver.url())
    other = await makers.make_tenant(world.database)
    async with world.notifier():
        await world.outcome(tenant_id=other)
        await world.outcome()
        await world.until("delivered")

    assert len(receiver.posts) == 1


async def test_a_referral_told_after_the_review_was_repeated_tells_of_its_own_time(
    world: World, receiver: Receiver
) -> None:
    """The first outcome is not told before the second is there."""
    made = await world.endpoint(receiver.url())
    claim = await makers.running(world.database, world.tenant_id)
    failed = Verdict(
        decision=Decision.PENDING,
        trigger=Trigger.ENGINE_ERROR,
        reason="The provider is away.",
        confidence=None,
        confidence_score=0.0,
    )
    good = decide(Policy(), (), makers.evidence())
    await end(world, claim, Happening.REFERRED, failed)
    async with world.database.begin() as tx:
        scope = Scope(owner=Owner(tenant_id=world.tenant_id), wanted=Filter(), as_of=await clock.present(tx))
        assert await repeats.review_again(tx, scope, limit=1, asked_by="")
    await makers.release(world.database)
    again = await makers.claim(world.database, claim.job_id, release_no=2)
    assert again is not None
    await end(world, again, Happening.COMPLETED, good, makers.evidence())
    async with world.notifier(sweep=QUICK_SWEEP):
        await world.until("delivered", "delivered")

    first, second = sorted((post.verified(made.secret)["data"] for post in receiver.posts), key=itemgetter("version"))
    assert len({post.id for post in receiver.posts}) == 2
    assert (first["job_state"], first["status"]) == ("awaiting_review", "pending")
    assert first["creative_data"]["ai_review"] == {
        "decision": "pending",
        "reason": "The provider is away.",
        "confidence": None,
        "confidence_score": None,
        "policy_triggered": "engine_error",
        "reviewed_at": first["timestamp"],
        "engine": None,
    }
    assert (second["job_state"], second["status"]) == ("succeeded", "approved")
    assert second["creative_data"]["ai_review"]["policy_triggered"] == "auto_approve"
    assert second["version"] > first["version"]


async def end(
    world: World, claim: Claim, happening: Happening, verdict: Verdict, found: Evidence | None = None
) -> None:
    """End an attempt as a review does."""
    async with world.database.begin() as tx:
        reviewed_at = await clock.present(tx)
        conclusion = Conclusion(
            happening=happening,
            outcome=AttemptOutcome.SUCCEEDED,
            shown=makers.shown(
                verdict.decision,
                verdict.trigger,
                result=ai_result(verdict, found, policy_version=1, reviewed_at=reviewed_at),
            ),
            details={"decision": verdict.decision, "policy_triggered": verdict.trigger, "reason": verdict.reason},
        )
        [moved] = await conclusions.conclude(tx, [Ending(claim=claim, conclusion=conclusion, spent=Spent())])
        assert moved is not None


# --- retries ---------------------------------------------------------------------------------------------


async def test_a_failure_is_tried_again_with_the_same_id_and_the_same_bytes(world: World, receiver: Receiver) -> None:
    receiver.answer = with_status(500, 404, 200)
    made = await world.endpoint(receiver.url())
    async with world.notifier():
        await world.outcome()
        await world.until("delivered")

    assert len(receiver.posts) == 3
    assert len({post.id for post in receiver.posts}) == 1
    assert len({post.body for post in receiver.posts}) == 1
    for post in receiver.posts:
        post.verified(made.secret)
    assert await world.attempts() == [(500, "HTTP 500"), (404, "HTTP 404"), (200, "")]


async def test_after_the_last_pause_it_is_given_up(world: World, receiver: Receiver) -> None:
    before = metrics.webhooks_abandoned._value.get()
    receiver.answer = with_status(500)
    await world.endpoint(receiver.url())
    async with world.notifier():
        await world.outcome()
        await world.until("abandoned")

    assert len(receiver.posts) == len(QUICK.pauses_seconds) + 1
    assert metrics.webhooks_abandoned._value.get() == before + 1


async def test_gone_gives_up_at_once(world: World, receiver: Receiver) -> None:
    receiver.answer = with_status(410)
    await world.endpoint(receiver.url())
    async with world.notifier():
        await world.outcome()
        await world.until("abandoned")

    assert len(receiver.posts) == 1


async def test_a_busy_receiver_is_left_alone_for_as_long_as_it_asks(world: World, receiver: Receiver) -> None:
    receiver.answer = with_status(429, 204, Retry_After="1")
    await world.endpoint(receiver.url())
    async with world.notifier():
        await world.outcome()
        await world.until("delivered")

    first, second = receiver.posts
    assert second.at - first.at >= 0.9


async def test_a_redirect_is_not_followed(world: World, receiver: Receiver) -> None:
    receiver.answer = with_status(307, Location=receiver.url("/elsewhere"))
    await world.endpoint(receiver.url())
    async with world.notifier(pace=Pace(lease_seconds=5.0, pauses_seconds=LONG, poll_seconds=0.02)):
        await world.outcome()
        await until(world.attempts, bool)

    assert await world.attempts() == [(307, "HTTP 307: redirects are not followed")]
    assert receiver.at("/elsewhere") == []


async def test_a_receiver_that_is_down_is_tried_again(world: World, receiver: Receiver) -> None:
    async with receiving() as down:
        url = down.url()
    await world.endpoint(url)
    async with world.notifier():
        await world.outcome()
        await world.until("abandoned")

    assert {status for status, _ in await world.attempts()} == {None}


async def test_an_answer_without_end_is_not_read_to_its_end(world: World) -> None:
    closed = asyncio.Event()

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        closed.set()
        writer.close()

    server = await asyncio.start_server(flood, "127.0.0.1", 0)
    await world.endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    async with server, world.notifier():
        await world.outcome()
        await world.until("delivered")
        async with asyncio.timeout(5.0):
            await closed.wait()


# --- isolation -------------------------------------------------------------------------------------------


async def test_a_slow_endpoint_times_out_and_does_not_hold_up_another(world: World, receiver: Receiver) -> None:
    async with receiving() as slow:
        slow.answer = never()
        await world.endpoint(slow.url())
        await world.endpoint(receiver.url())
        limits = Limits(total=4, per_host=2, per_tenant=4)
        pace = Pace(lease_seconds=30.0, pauses_seconds=LONG, poll_seconds=0.02)
        async with world.notifier(limits=limits, pace=pace, timeout_seconds=600.0, drain_seconds=0.0):
            for _ in range(20):
                await world.outcome()
            await eventually(lambda: len(receiver.posts) == 20, "all told to the quick one", seconds=60.0)
            await eventually(lambda: len(slow.posts) == 2, "as many as a host may have")
        async with world.notifier(limits=limits, pace=pace, timeout_seconds=0.2, drain_seconds=0.0):
            attempts = await until(world.attempts, lambda found: any(status is None for status, _ in found))

    assert (None, "no answer within the time allowed") in attempts


async def test_a_tenant_whose_hosts_are_all_slow_does_not_hold_up_another_tenant(
    world: World, receiver: Receiver
) -> None:
    other = await makers.make_tenant(world.database)
    limits = Limits(total=4, per_host=2, per_tenant=2)
    async with receiving() as slow_one, receiving() as slow_two:
        slow_one.answer = slow_two.answer = never()
        await world.endpoint(slow_one.url())
        await world.endpoint(slow_two.url())
        async with world.notifier(limits=limits, drain_seconds=0.0):
            for _ in range(5):
                await world.outcome()
            await eventually(lambda: len(slow_one.posts) + len(slow_two.posts) == 2, "the tenant's room is full")
            await world.outcome(tenant_id=other, callback_url=receiver.url())
            await eventually(lambda: receiver.posts, "the other tenant's is delivered")
            assert len(slow_one.posts) + len(slow_two.posts) == 2


async def test_a_private_address_is_refused_without_a_connection(world: World) -> None:
    connections = 0

    def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await world.endpoint(f"http://127.0.0.1:{port}/")
    await world.endpoint(f"http://localhost:{port}/")
    async with server, world.notifier(guard=Guard(allow_private=False, allow_http=True)):
        await world.outcome()
        await world.until("abandoned", "abandoned")

    assert connections == 0
    assert all("loopback" in error for _, error in await world.attempts())


async def test_http_is_refused_where_it_is_not_allowed(world: World, receiver: Receiver) -> None:
    await world.endpoint(receiver.url())
    async with world.notifier(guard=Guard(allow_private=True, allow_http=False)):
        await world.outcome()
        await world.until("abandoned")

    assert receiver.posts == []


# --- what the broker does --------------------------------------------------------------------------------


async def test_what_a_wiped_broker_lost_is_delivered_by_the_sweep(world: World, receiver: Receiver) -> None:
    await world.endpoint(receiver.url())
    async with silent(world.broker):
        await world.outcome()
        await eventually_async(lambda: world.broker.depth(Queue.NOTIFIER_EVENTS), 0)

    async with world.notifier(sweep=QUICK_SWEEP):
        await world.until("delivered")

    assert len(receiver.posts) == 1


async def eventually_async(ask: Callable[[], Awaitable[object]], wanted: object) -> None:
    """Wait until the answer is the wanted one."""
    await until(ask, lambda found: bool(found == wanted))


@pytest.mark.parametrize("body", [b"", b"\xff\xfe garbage", b"\x08\x63"])
async def test_a_message_that_cannot_be_read_is_set_aside_and_counted(
    world: World, receiver: Receiver, body: bytes
) -> None:
    await world.endpoint(receiver.url())
    before = metrics.messages_set_aside.labels(Queue.NOTIFIER_EVENTS)._value.get()
    async with world.notifier():
        await world.broker.publish(
            Message(exchange=EVENTS, routing_key="outcome.cancelled", body=body, message_id="garbage")
        )
        await eventually_async(lambda: world.broker.depth(Queue.PARKED), 1)
        await world.outcome()
        await world.until("delivered")

    assert metrics.messages_set_aside.labels(Queue.NOTIFIER_EVENTS)._value.get() == before + 1


async def test_a_message_that_comes_twice_is_told_once(world: World, receiver: Receiver) -> None:
    await world.endpoint(receiver.url())
    async with world.notifier():
        job = await world.outcome()
        change = JobChange(job_id=job.id, tenant_id=job.tenant_id, version=job.version, state=job.state)
        told = JobsChanged(changes=[change])
        for number in range(5):
            await world.broker.publish(
                Message(exchange=EVENTS, routing_key="outcome.cancelled", body=told.encode(), message_id=str(number))
            )
        await world.outcome()
        await world.until("delivered", "delivered")

    assert len(receiver.posts) == 2


# --- processes that come and go --------------------------------------------------------------------------


async def test_two_notifiers_at_once_lose_nothing_and_double_nothing(world: World, receiver: Receiver) -> None:
    receiver.answer = with_status(500, 500, 500, 500, 500, 204)
    await world.endpoint(receiver.url())
    async with world.notifier(sweep=QUICK_SWEEP), world.notifier(sweep=QUICK_SWEEP):
        for _ in range(30):
            await world.outcome()
        await world.until(*["delivered"] * 30)

    assert len({post.id for post in receiver.posts}) == 30
    assert len(receiver.posts) == 30 + 5


async def test_an_endpoint_that_is_deleted_hears_no_more(world: World, receiver: Receiver) -> None:
    receiver.answer = with_status(500)
    made = await world.endpoint(receiver.url())
    async with world.notifier(pace=Pace(lease_seconds=5.0, pauses_seconds=(0.3,) * 100, poll_seconds=0.02)):
        await world.outcome()
        await until(world.attempts, bool)
        async with world.database.begin() as tx:
            await stored.delete_endpoint(tx, world.tenant_id, made.endpoint.id)
        heard = len(receiver.posts)
        await world.outcome()
        await world.until("abandoned")
        # A later outcome goes by another way, and by then the deleted one would have been tried again.
        await world.outcome(callback_url=receiver.url("/callback"))
        await eventually(lambda: len(receiver.at("/callback")) >= 2)

    assert len(receiver.at("/hook")) == heard
    assert (await world.states())[0] == "abandoned"


async def test_a_drain_finishes_the_posts_under_way(world: World, receiver: Receiver) -> None:
    go_on = asyncio.Event()

    async def slowly(post: Post) -> Any:
        await go_on.wait()
        return await with_status(204)(post)

    receiver.answer = slowly
    await world.endpoint(receiver.url())
    async with world.notifier(drain_seconds=10.0):
        await world.outcome()
        await eventually(lambda: receiver.posts)
        asyncio.get_running_loop().call_later(0.2, go_on.set)

    assert await world.states() == ["delivered"]


async def test_what_a_drain_cannot_finish_is_free_for_others_at_once(world: World, receiver: Receiver) -> None:
    receiver.answer = never()
    await world.endpoint(receiver.url())
    pace = Pace(lease_seconds=3600.0, pauses_seconds=LONG, poll_seconds=0.02)
    async with world.notifier(drain_seconds=0.0, pace=pace):
        await world.outcome()
        await eventually(lambda: receiver.posts)

    receiver.answer = with_status(204)
    async with world.notifier(pace=pace):
        await world.until("delivered")

    assert len({post.id for post in receiver.posts}) == 1


_UNSIGNED, _OLDEST_UNTRIED = "imprimatur_webhook_unsigned_total", "imprimatur_webhook_oldest_untried_age_seconds"


def sample(name: str) -> float:
    """What this process would tell of it."""
    return REGISTRY.get_sample_value(name) or 0.0


async def test_a_wrong_vault_key_spends_no_attempt(world: World, receiver: Receiver) -> None:
    await world.endpoint(receiver.url())
    right, world.vault = world.vault, Vault.from_text(new_key())
    counted = sample(_UNSIGNED)
    metrics.webhook_oldest_untried_seconds.show({})
    async with world.notifier(look_seconds=0.02):
        await world.outcome()
        await eventually(lambda: sample(_UNSIGNED) == counted + 1, "a try to sign")
        await eventually(lambda: sample(_OLDEST_UNTRIED) > 0, "a look at what waits")

    assert await world.attempts() == []
    assert receiver.posts == []
    assert right is not world.vault


async def test_after_a_rotation_the_new_secret_signs_though_the_old_one_cannot_be_opened(
    world: World, receiver: Receiver
) -> None:
    made = await world.endpoint(receiver.url())
    world.vault = Vault.from_text(new_key())
    async with world.database.begin() as tx:
        newer = await webhooks.rotate_secret(tx, world.vault, world.tenant_id, made.endpoint.id)
    async with world.notifier():
        await world.outcome()
        await world.until("delivered")

    receiver.posts[0].verified(newer)


async def test_without_its_secret_a_delivery_waits_and_is_counted(world: World, receiver: Receiver) -> None:
    await world.endpoint(receiver.url())
    async with world.database.begin() as tx:
        await tx.connection.execute(delete(webhook_secrets))
    counted = sample(_UNSIGNED)
    metrics.webhook_oldest_untried_seconds.show({})
    async with world.notifier(look_seconds=0.02):
        await world.outcome()
        await eventually(lambda: sample(_UNSIGNED) == counted + 1, "a try to sign")
        await eventually(lambda: sample(_OLDEST_UNTRIED) > 0, "a look at what waits")

    assert (await world.attempts(), receiver.posts) == ([], [])


async def test_killed_between_the_post_and_its_record_it_is_posted_again_with_the_same_id(
    world: World, receiver: Receiver, database_url: str, tmp_path: Path
) -> None:
    receiver.answer = never()
    made = await world.endpoint(receiver.url())
    await world.outcome()
    process = await _start_process(world, database_url, tmp_path)
    try:
        await eventually(lambda: receiver.posts, "posted by the process", seconds=30.0)
    finally:
        await _kill(process)
    assert await world.attempts() == []

    receiver.answer = with_status(204)
    async with world.notifier():
        await world.until("delivered")

    first, second = receiver.posts
    assert (first.id, first.body) == (second.id, second.body)
    second.verified(made.secret)


async def test_the_process_starts_without_a_broker_and_ends_on_sigterm(
    world: World, receiver: Receiver, database_url: str, tmp_path: Path
) -> None:
    await world.endpoint(receiver.url())
    await world.outcome()
    process = await _start_process(world, database_url, tmp_path)
    try:
        await until(world.states, lambda found: found == ["delivered"], seconds=60.0)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10.0):
            assert await process.wait() == 0
    finally:
        await _kill(process)


async def test_the_process_refuses_a_vault_key_that_does_not_open_what_is_stored(
    world: World, database_url: str, tmp_path: Path
) -> None:
    await world.endpoint("https://a.example/")
    world.key = new_key()
    process = await _start_process(world, database_url, tmp_path)
    try:
        async with asyncio.timeout(30.0):
            assert await process.wait() == 1
    finally:
        await _kill(process)

    assert "the vault does not open the stored webhook secrets" in (tmp_path / "notifier.log").read_text()


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


async def _start_process(world: World, database_url: str, tmp_path: Path) -> asyncio.subprocess.Process:
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": "services",
        "IMPRIMATUR_DATABASE_URL": database_url,
        "IMPRIMATUR_BROKER_URL": "amqp://127.0.0.1:1/",
        "IMPRIMATUR_VAULT_KEY": world.key,
        "IMPRIMATUR_HTTP_HOST": "127.0.0.1",
        "IMPRIMATUR_NOTIFIER_HTTP_PORT": "0",
        "IMPRIMATUR_ALLOW_PRIVATE_ADDRESSES": "true",
        "IMPRIMATUR_ALLOW_HTTP": "true",
        "IMPRIMATUR_WEBHOOK_TIMEOUT_SECONDS": "2",
        "IMPRIMATUR_WEBHOOK_LEASE_SECONDS": "3",
        "IMPRIMATUR_WEBHOOK_SWEEP_SECONDS": "0.1",
        "IMPRIMATUR_WEBHOOK_SWEEP_OLDER_THAN_SECONDS": "0",
    }
    with (tmp_path / "notifier.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(sys.executable, "-m", "notifier", env=environ, stderr=log)
