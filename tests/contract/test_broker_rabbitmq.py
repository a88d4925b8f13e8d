"""What only a real broker can suffer: crashes, freezes, alarms, deleted queues. The node is hurt and healed."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine

import aio_pika
import pytest

from deploy.local.rabbitmq import PrivateRabbitMQ
from imprimatur.broker import EVENTS, Delivery, Message, Queue
from imprimatur.broker.rabbitmq import SECOND_LOOK_SECONDS
from imprimatur.errors import BrokerError, Unroutable
from tests.contract.conftest import ConnectRabbitMQ
from tests.contract.polling import eventually
from tests.patience import PATIENCE_SECONDS

#: A queue declared later than this before a SIGKILL is lost with its node (measured: 0.5 s).
SETTLED_SECONDS = 1.0

#: Waits and checks short enough for a test.
IMPATIENT = {"confirm_timeout_seconds": 1.0, "call_timeout_seconds": 1.0, "check_seconds": 0.5}

#: Waits that no test lives to see the end of: what returns has not waited for them.
ENDLESS = {
    "confirm_timeout_seconds": 3600.0,
    "call_timeout_seconds": 3600.0,
    "check_seconds": 3600.0,
    "heartbeat_seconds": 3600,
}

#: Removes every consumer of a quorum queue inside the broker, and tells nobody. `Prefetch` set to a number spares
#: those with another.
FORGET_CONSUMERS = """
{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"review.low">>)),
[{ok, _, _} = ra:process_command(amqqueue:get_pid(Q), rabbit_fifo:make_checkout({Tag, Pid}, cancel, #{}))
 || {Pid, Tag, _, Prefetch, _, _, _, _} <- rabbit_amqqueue:consumers(Q)].
"""


@pytest.fixture
async def node(rabbitmq: PrivateRabbitMQ) -> AsyncIterator[PrivateRabbitMQ]:
    """The shared node, running again when the test is over."""
    yield rabbitmq
    rabbitmq.resume()
    if not rabbitmq.alive():
        await asyncio.to_thread(rabbitmq.restart)


def review(number: int = 0, queue: Queue = Queue.REVIEW_NORMAL) -> Message:
    return Message(routing_key=queue.value, body=b"job", message_id=f"id-{number}")


def progress(number: int = 0) -> Message:
    return Message(exchange=EVENTS, routing_key="progress", body=b"", message_id=f"p-{number}", mandatory=False)


async def is_older_than(began: float, seconds: float) -> None:
    await eventually(lambda: time.monotonic() - began > seconds)


def fails_at_once(asked: Coroutine[object, object, object]) -> None:
    """Before it has waited for anything."""
    with pytest.raises(BrokerError):
        asked.send(None)


async def delete_queue(url: str, queue: Queue) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        await channel.queue_delete(queue.value)


class TestLosingTheBroker:
    async def test_consumers_and_listeners_come_back_after_the_broker_was_killed(
        self, node: PrivateRabbitMQ, connect: ConnectRabbitMQ
    ) -> None:
        inbox: list[Delivery] = []
        heard: list[Message] = []
        gaps: list[float] = []
        broker = await connect()
        consumer = await broker.consume(Queue.REVIEW_NORMAL, inbox.append, prefetch=5)
        await broker.listen(("progress",), heard.append, lambda: gaps.append(time.monotonic()))
        await eventually(lambda: consumer.active and gaps)
        await is_older_than(gaps[0], SETTLED_SECONDS)
        await broker.publish(review(1))
        await eventually(lambda: inbox)

        await asyncio.to_thread(node.kill)
        await eventually(lambda: not consumer.active and not broker.connected)
        await inbox[0].ack()  # of a connection that is gone: it comes again
        await asyncio.to_thread(node.restart)
        await eventually(lambda: broker.connected and consumer.active and len(gaps) == 2)

        await eventually(lambda: len(inbox) == 2)
        assert inbox[1].message == review(1)
        assert inbox[1].redelivered
        await broker.publish(progress())
        await eventually(lambda: heard)

    async def test_work_begun_by_a_delivery_is_not_cancelled_with_the_connection(
        self, node: PrivateRabbitMQ, connect: ConnectRabbitMQ
    ) -> None:
        finish = asyncio.Event()
        work: list[asyncio.Task[None]] = []

        async def job(delivery: Delivery) -> None:
            await finish.wait()
            await delivery.ack()

        broker = await connect()
        await broker.consume(Queue.REVIEW_NORMAL, lambda d: work.append(asyncio.create_task(job(d))), prefetch=1)
        await broker.publish(review())
        await eventually(lambda: work)
        await asyncio.to_thread(node.ctl, "close_all_connections", "test")
        await eventually(lambda: len(work) == 2)  # delivered again, on the next connection
        assert not work[0].done()
        finish.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*work)

    async def test_nothing_waits_for_a_broker_that_is_down_and_one_that_comes_up_is_found(
        self, node: PrivateRabbitMQ, connect: ConnectRabbitMQ
    ) -> None:
        broker, leaving = await connect(**ENDLESS), await connect()
        await leaving.consume(Queue.REVIEW_NORMAL, lambda _: None, prefetch=1)
        node.suspend()
        in_flight = [asyncio.create_task(broker.publish(review(number))) for number in range(200)]
        await asyncio.sleep(0)
        await asyncio.to_thread(node.kill)
        async with asyncio.timeout(PATIENCE_SECONDS):
            outcomes = await asyncio.gather(*in_flight, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {BrokerError}

        await eventually(lambda: not broker.connected)
        fails_at_once(broker.publish(review()))
        fails_at_once(broker.depth(Queue.REVIEW_NORMAL))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await leaving.close()

        inbox: list[Delivery] = []
        gaps: list[None] = []
        late = await connect(wait=False)
        consumer = await late.consume(Queue.REVIEW_NORMAL, inbox.append, prefetch=5)
        await late.listen(("#",), lambda _: None, lambda: gaps.append(None))
        assert not late.connected
        assert not consumer.active
        await asyncio.to_thread(node.restart)
        await eventually(lambda: late.connected and consumer.active and gaps)
        await late.publish(review(1))
        await eventually(lambda: inbox)


class TestAFrozenBroker:
    async def test_publishing_fails_within_its_bound(self, node: PrivateRabbitMQ, connect: ConnectRabbitMQ) -> None:
        broker = await connect(**ENDLESS | {"confirm_timeout_seconds": 1.0})
        node.suspend()
        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(BrokerError):
                await broker.publish(review())

    async def test_closing_returns_with_consumers_and_publishes_in_flight(
        self, node: PrivateRabbitMQ, connect: ConnectRabbitMQ
    ) -> None:
        inbox: list[Delivery] = []
        broker = await connect(**ENDLESS)
        await broker.consume(Queue.REVIEW_NORMAL, inbox.append, prefetch=5)
        await broker.publish(review())
        await eventually(lambda: inbox)
        node.suspend()
        large = Message(routing_key="review.low", body=bytes(2**20), message_id="")
        stuck = [asyncio.create_task(broker.publish(large)) for _ in range(30)]  # more than the socket holds
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await inbox[0].ack()
            await broker.close()
        outcomes = await asyncio.gather(*stuck, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {BrokerError}

    async def test_it_is_noticed_and_the_consumers_come_back_when_it_thaws(
        self, node: PrivateRabbitMQ, connect: ConnectRabbitMQ
    ) -> None:
        broker = await connect(**IMPATIENT)
        consumer = await broker.consume(Queue.REVIEW_NORMAL, lambda _: None, prefetch=5)
        await eventually(lambda: consumer.active)
        node.suspend()
        await eventually(lambda: not consumer.active and not broker.connected)
        node.resume()
        await eventually(lambda: consumer.active and broker.connected)
        await broker.publish(review())


class TestLosingAQueue:
    async def test_a_queue_deleted_under_its_consumer_comes_back_with_the_consumer(
        self, node: PrivateRabbitMQ, connect: ConnectRabbitMQ
    ) -> None:
        inbox: list[Delivery] = []
        broker = await connect()
        consumer = await broker.consume(Queue.NOTIFIER_EVENTS, inbox.append, prefetch=5)
        await eventually(lambda: consumer.active)
        await delete_queue(node.url, Queue.NOTIFIER_EVENTS)
        await eventually(lambda: not consumer.active)
        await eventually(lambda: consumer.active)
        await broker.publish(Message(exchange=EVENTS, routing_key="outcome.failed", body=b"", message_id="after"))
        await eventually(lambda: inbox)

    async def test_an_unroutable_publish_brings_the_queue_back(
        self, node: PrivateRabbitMQ, connect: ConnectRabbitMQ
    ) -> None:
        broker = await connect()
        await delete_queue(node.url, Queue.REVIEW_HIGH)
        with pytest.raises(Unroutable):
            await broker.publish(review(1, Queue.REVIEW_HIGH))
        await broker.publish(review(1, Queue.REVIEW_HIGH))

    async def test_a_deleted_exchange_comes_back(self, node: PrivateRabbitMQ, connect: ConnectRabbitMQ) -> None:
        broker = await connect()
        async with await aio_pika.connect(node.url) as connection, connection.channel() as channel:
            await channel.exchange_delete(EVENTS)
        with pytest.raises(BrokerError):
            await broker.publish(progress())
        await eventually(lambda: broker.connected)
        await broker.publish(progress())

    async def test_a_deleted_listeners_queue_is_replaced_and_the_gap_is_told(
        self, node: PrivateRabbitMQ, connect: ConnectRabbitMQ
    ) -> None:
        heard: list[Message] = []
        gaps: list[None] = []
        broker = await connect()
        await broker.listen(("progress",), heard.append, lambda: gaps.append(None))
        await eventually(lambda: gaps)
        names = await asyncio.to_thread(node.ctl, "list_queues", "name", "--no-table-headers")
        [listener] = [name for name in names.split() if name.startswith("test.")]
        # Only its own connection may delete an exclusive queue by AMQP.
        await asyncio.to_thread(
            node.ctl,
            "eval",
            f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{listener}">>)),'
            ' rabbit_amqqueue:delete(Q, false, false, <<"test">>).',
        )
        await eventually(lambda: len(gaps) == 2)
        await broker.publish(progress())
        await eventually(lambda: heard)

    async def test_a_consumer_that_the_broker_forgot_is_found_and_brought_back(
        self, node: PrivateRabbitMQ, connect: ConnectRabbitMQ
    ) -> None:
        inbox: list[Delivery] = []
        broker = await connect(check_seconds=0.5)
        consumer = await broker.consume(Queue.REVIEW_LOW, inbox.append, prefetch=5)
        await eventually(lambda: consumer.active)
        await asyncio.to_thread(node.ctl, "eval", FORGET_CONSUMERS)
        await broker.publish(review(1, Queue.REVIEW_LOW))
        await eventually(lambda: inbox)
        await eventually(lambda: consumer.active)

    async def test_a_forgotten_consumer_is_found_beside_one_of_another_process(
        self, node: PrivateRabbitMQ, connect: ConnectRabbitMQ
    ) -> None:
        inbox: list[Delivery] = []
        kept: list[Delivery] = []
        broker, other = await connect(check_seconds=0.5), await connect()
        consumer = await broker.consume(Queue.REVIEW_LOW, inbox.append, prefetch=5)
        busy = await other.consume(Queue.REVIEW_LOW, kept.append, prefetch=1)
        await eventually(lambda: consumer.active and busy.active)
        await asyncio.to_thread(node.ctl, "eval", FORGET_CONSUMERS.replace("Prefetch", "5"))
        for number in range(2):
            await broker.publish(review(number, Queue.REVIEW_LOW))
        await eventually(lambda: kept and inbox)
        await eventually(lambda: consumer.active)

    async def test_a_consumer_that_has_enough_in_hand_is_left_alone(self, connect: ConnectRabbitMQ) -> None:
        inbox: list[Delivery] = []
        broker = await connect(check_seconds=0.1)
        await broker.consume(Queue.REVIEW_LOW, inbox.append, prefetch=1)
        for number in range(2):
            await broker.publish(review(number, Queue.REVIEW_LOW))
        await eventually(lambda: inbox)
        await asyncio.sleep(2 * SECOND_LOOK_SECONDS)  # nothing to wait for: that nothing happens is the point
        assert [delivery.redelivered for delivery in inbox] == [False]

    async def test_a_queue_with_other_arguments_spares_the_others_and_is_not_ready(
        self, node: PrivateRabbitMQ, connect: ConnectRabbitMQ
    ) -> None:
        await delete_queue(node.url, Queue.REVIEW_LOW)
        async with await aio_pika.connect(node.url) as connection, connection.channel() as channel:
            await channel.declare_queue(Queue.REVIEW_LOW.value, durable=True)
        broker = await connect(wait=False, check_seconds=0.5)
        inbox: list[Delivery] = []
        await broker.consume(Queue.REVIEW_NORMAL, inbox.append, prefetch=5)

        async def publish_when_possible() -> None:
            while True:
                try:
                    return await broker.publish(review())
                except BrokerError:
                    await asyncio.sleep(0.02)

        async with asyncio.timeout(PATIENCE_SECONDS):
            await publish_when_possible()
        await eventually(lambda: inbox)
        assert not broker.connected
        await delete_queue(node.url, Queue.REVIEW_LOW)
        await eventually(lambda: broker.connected)

    async def test_many_processes_may_declare_at_once(self, node: PrivateRabbitMQ, connect: ConnectRabbitMQ) -> None:
        for queue in Queue:
            await delete_queue(node.url, queue)
        brokers = await asyncio.gather(*(connect(wait=False) for _ in range(8)))
        await eventually(lambda: all(broker.connected for broker in brokers))
        await asyncio.gather(*(broker.publish(review(number)) for number, broker in enumerate(brokers)))


class TestABlockedBroker:
    """A memory alarm blocks every connection that publishes."""

    async def test_publishing_fails_in_time_consuming_goes_on_and_closing_returns(
        self, node: PrivateRabbitMQ, connect: ConnectRabbitMQ
    ) -> None:
        broker, leaving = await connect(**IMPATIENT), await connect(**IMPATIENT)
        await broker.publish(review(1))
        await leaving.publish(review(2))
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.000001")
        try:
            for blocked in (broker, leaving):
                with pytest.raises(BrokerError):
                    await blocked.publish(review(3))
            async with asyncio.timeout(PATIENCE_SECONDS):
                await leaving.close()
            await eventually(lambda: not broker.connected)
            fails_at_once(broker.publish(review(4)))
            inbox: list[Delivery] = []
            await broker.consume(Queue.REVIEW_NORMAL, inbox.append, prefetch=5)
            await eventually(lambda: len(inbox) >= 2)
        finally:
            await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.4")
        await eventually(lambda: broker.connected)
        await broker.publish(review(5))
