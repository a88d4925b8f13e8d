"""What every broker adapter promises. Run on each of them; the real one is a real RabbitMQ."""

import asyncio

import pytest

from imprimatur.broker import EVENTS, Broker, Delivery, Message, Queue
from imprimatur.errors import BrokerError, Unroutable
from tests import makers
from tests.contract.polling import eventually


def review(number: int = 0, queue: Queue = Queue.REVIEW_NORMAL, **fields: object) -> Message:
    return Message(routing_key=queue.value, body=b"job %d" % number, message_id=f"id-{number}", **fields)  # type: ignore[arg-type]  # fields are the message's


def event(key: str, number: int = 0, *, mandatory: bool = False) -> Message:
    return Message(exchange=EVENTS, routing_key=key, body=b"event", message_id=f"ev-{number}", mandatory=mandatory)


async def listening(broker: Broker, *keys: str) -> list[Message]:
    """The messages a new listener receives, once it listens."""
    received: list[Message] = []
    gaps: list[None] = []
    subscription = await broker.listen(keys, received.append, lambda: gaps.append(None))
    await eventually(lambda: gaps and subscription.active, "listening")
    return received


async def depth_becomes(broker: Broker, queue: Queue, expected: int) -> None:
    async def has_depth() -> bool:
        return await broker.depth(queue) == expected

    await makers.until(has_depth)


class TestPublishing:
    async def test_a_message_arrives_as_it_was_published(self, broker: Broker) -> None:
        inbox: list[Delivery] = []
        await broker.consume(Queue.REVIEW_HIGH, inbox.append, prefetch=10)
        sent = review(7, Queue.REVIEW_HIGH, headers={"traceparent": "00-ab-cd-01", "tenant": "äöü"})
        await broker.publish(sent)
        await eventually(lambda: inbox)
        assert inbox[0].message == sent
        assert not inbox[0].redelivered
        await inbox[0].ack()

    async def test_an_empty_body_and_a_large_one_arrive_intact(self, broker: Broker) -> None:
        inbox: list[Delivery] = []
        await broker.consume(Queue.REVIEW_LOW, inbox.append, prefetch=10)
        bodies = [b"", bytes(range(256)) * 2048]
        for number, body in enumerate(bodies):
            await broker.publish(Message(routing_key=Queue.REVIEW_LOW.value, body=body, message_id=f"b{number}"))
        await eventually(lambda: len(inbox) == 2)
        assert [delivery.message.body for delivery in inbox] == bodies

    async def test_messages_of_one_queue_arrive_in_the_order_they_were_published(self, broker: Broker) -> None:
        inbox: list[Delivery] = []
        for number in range(20):
            await broker.publish(review(number))
        await broker.consume(Queue.REVIEW_NORMAL, inbox.append, prefetch=50)
        await eventually(lambda: len(inbox) == 20)
        assert [delivery.message.message_id for delivery in inbox] == [f"id-{n}" for n in range(20)]

    async def test_a_thousand_publishes_at_once_are_all_confirmed(self, broker: Broker) -> None:
        await asyncio.gather(*(broker.publish(review(number)) for number in range(1000)))
        await depth_becomes(broker, Queue.REVIEW_NORMAL, 1000)

    async def test_the_same_message_id_may_be_in_flight_twice(self, broker: Broker) -> None:
        await asyncio.gather(*(broker.publish(review(1)) for _ in range(5)))
        await depth_becomes(broker, Queue.REVIEW_NORMAL, 5)

    async def test_a_mandatory_message_that_no_queue_takes_is_unroutable(self, broker: Broker) -> None:
        with pytest.raises(Unroutable):
            await broker.publish(Message(routing_key="no.such.queue", body=b"", message_id="lost"))
        with pytest.raises(Unroutable):
            await broker.publish(event("nobody.listens", mandatory=True))

    async def test_of_two_with_one_id_each_is_told_that_it_is_unroutable(self, broker: Broker) -> None:
        lost = Message(routing_key="no.such.queue", body=b"", message_id="twice")
        outcomes = await asyncio.gather(broker.publish(lost), broker.publish(lost), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Unroutable, Unroutable]

    async def test_a_message_that_is_not_mandatory_may_reach_nobody(self, broker: Broker) -> None:
        await broker.publish(Message(routing_key="no.such.queue", body=b"", message_id="lost", mandatory=False))
        await broker.publish(event("nobody.listens"))
        await broker.publish(review(1))

    async def test_an_exchange_that_does_not_exist_is_unroutable(self, broker: Broker) -> None:
        with pytest.raises(Unroutable):
            await broker.publish(Message(exchange="elsewhere", routing_key="x", body=b"", message_id="e"))
        await broker.publish(review(1))

    async def test_after_close_it_is_not_connected_and_refuses_to_publish(self, broker: Broker) -> None:
        await broker.close()
        assert not broker.connected
        with pytest.raises(BrokerError):
            await broker.publish(review(1))
        with pytest.raises(BrokerError):
            await broker.depth(Queue.PARKED)


class TestConsuming:
    async def test_an_acked_message_is_gone(self, broker: Broker) -> None:
        inbox: list[Delivery] = []
        subscription = await broker.consume(Queue.REVIEW_NORMAL, inbox.append, prefetch=1)
        await broker.publish(review(1))
        await eventually(lambda: inbox)
        await inbox[0].ack()
        await subscription.close()
        await depth_becomes(broker, Queue.REVIEW_NORMAL, 0)

    async def test_a_subscription_is_active_until_it_is_closed(self, broker: Broker) -> None:
        subscription = await broker.consume(Queue.REVIEW_NORMAL, lambda _: None, prefetch=1)
        await eventually(lambda: subscription.active, "active")
        await subscription.close()
        assert not subscription.active
        await subscription.close()

    async def test_unsettled_messages_go_back_on_close_and_are_marked_redelivered(self, broker: Broker) -> None:
        first: list[Delivery] = []
        second: list[Delivery] = []
        subscription = await broker.consume(Queue.REVIEW_NORMAL, first.append, prefetch=10)
        for number in range(3):
            await broker.publish(review(number))
        await eventually(lambda: len(first) == 3)
        await first[1].ack()
        await subscription.close()
        await broker.consume(Queue.REVIEW_NORMAL, second.append, prefetch=10)
        await eventually(lambda: len(second) == 2)
        assert {delivery.message.message_id for delivery in second} == {"id-0", "id-2"}
        assert all(delivery.redelivered for delivery in second)

    async def test_no_more_than_the_prefetch_is_in_hand(self, broker: Broker) -> None:
        inbox: list[Delivery] = []
        await broker.consume(Queue.REVIEW_NORMAL, inbox.append, prefetch=3)
        for number in range(10):
            await broker.publish(review(number))
        await depth_becomes(broker, Queue.REVIEW_NORMAL, 7)
        assert len(inbox) == 3
        await inbox[1].ack()
        await depth_becomes(broker, Queue.REVIEW_NORMAL, 6)
        await eventually(lambda: len(inbox) == 4)

    async def test_a_message_given_back_reaches_another_consumer(self, broker: Broker) -> None:
        busy: list[Delivery] = []
        idle: list[Delivery] = []
        await broker.consume(Queue.REVIEW_NORMAL, busy.append, prefetch=1)
        await broker.publish(review(1))
        await eventually(lambda: busy)
        second = await broker.consume(Queue.REVIEW_NORMAL, idle.append, prefetch=1)
        await eventually(lambda: second.active)
        await busy[0].give_back()
        await eventually(lambda: idle)
        assert idle[0].message == review(1)
        assert idle[0].redelivered

    async def test_consumers_share_what_arrives(self, broker: Broker) -> None:
        one: list[Delivery] = []
        other: list[Delivery] = []
        subscriptions = [await broker.consume(Queue.REVIEW_NORMAL, inbox.append, prefetch=5) for inbox in (one, other)]
        await eventually(lambda: all(s.active for s in subscriptions))
        for number in range(10):
            await broker.publish(review(number))
        await eventually(lambda: len(one) + len(other) == 10)
        assert len(one) == len(other) == 5

    async def test_a_message_set_aside_lands_in_parked_with_its_body_and_headers(self, broker: Broker) -> None:
        inbox: list[Delivery] = []
        parked: list[Delivery] = []
        await broker.consume(Queue.REVIEW_NORMAL, inbox.append, prefetch=1)
        await broker.publish(review(5, headers={"traceparent": "t"}))
        await eventually(lambda: inbox)
        await inbox[0].set_aside()
        await depth_becomes(broker, Queue.PARKED, 1)
        await broker.consume(Queue.PARKED, parked.append, prefetch=1)
        await eventually(lambda: parked)
        assert parked[0].message == Message(
            routing_key="parked", body=b"job 5", message_id="id-5", headers={"traceparent": "t"}
        )

    async def test_what_is_parked_stays_parked_when_set_aside_again(self, broker: Broker) -> None:
        parked: list[Delivery] = []
        await broker.publish(review(1, Queue.PARKED))
        subscription = await broker.consume(Queue.PARKED, parked.append, prefetch=1)
        await eventually(lambda: parked)
        await parked[0].set_aside()
        await subscription.close()
        await depth_becomes(broker, Queue.PARKED, 1)

    async def test_settling_after_close_does_not_raise(self, broker: Broker) -> None:
        inbox: list[Delivery] = []
        subscription = await broker.consume(Queue.REVIEW_NORMAL, inbox.append, prefetch=10)
        for number in range(4):
            await broker.publish(review(number))
        await eventually(lambda: len(inbox) == 4)
        await subscription.close()
        await inbox[0].ack()
        await depth_becomes(broker, Queue.REVIEW_NORMAL, 4)
        await broker.close()
        await inbox[1].ack()
        await inbox[2].give_back()
        await inbox[3].set_aside()

    async def test_a_receiver_that_raises_does_not_stop_the_consumer(self, broker: Broker) -> None:
        inbox: list[Delivery] = []

        def receive(delivery: Delivery) -> None:
            inbox.append(delivery)
            if len(inbox) == 1:
                raise ValueError("a bug of the receiver")

        await broker.consume(Queue.REVIEW_NORMAL, receive, prefetch=10)
        await broker.publish(review(1))
        await broker.publish(review(2))
        await eventually(lambda: len(inbox) == 2)


class TestListening:
    async def test_a_listener_gets_the_keys_it_asked_for_and_no_others(self, broker: Broker) -> None:
        states = await listening(broker, "state.#")
        progress = await listening(broker, "progress")
        for number, key in enumerate(["state.succeeded", "progress", "other", "state", "state.a.b"]):
            await broker.publish(event(key, number))
        await eventually(lambda: len(states) == 3 and len(progress) == 1)
        assert [message.routing_key for message in states] == ["state.succeeded", "state", "state.a.b"]
        assert progress == [Message(exchange=EVENTS, routing_key="progress", body=b"event", message_id="ev-1")]

    async def test_patterns_follow_the_rules_of_amqp_topics(self, broker: Broker) -> None:
        patterns = ("state.*", "#", "*.running", "state.#.end", "#.end")
        heard = {pattern: await listening(broker, pattern) for pattern in patterns}
        keys = ["state", "state.running", "state.a.b.end", "state.end", "end", "a.running.b"]
        for number, key in enumerate(keys):
            await broker.publish(event(key, number))
        await eventually(lambda: len(heard["#"]) == len(keys))
        await eventually(lambda: len(heard["#.end"]) == 3)
        assert {pattern: [m.routing_key for m in messages] for pattern, messages in heard.items()} == {
            "state.*": ["state.running", "state.end"],
            "#": keys,
            "*.running": ["state.running"],
            "state.#.end": ["state.a.b.end", "state.end"],
            "#.end": ["state.a.b.end", "state.end", "end"],
        }

    async def test_a_message_that_matches_two_keys_is_heard_once(self, broker: Broker) -> None:
        heard = await listening(broker, "state.#", "*.running")
        await broker.publish(event("state.running", 1))
        await broker.publish(event("state.queued", 2))
        await eventually(lambda: len(heard) == 2)
        assert [message.message_id for message in heard] == ["ev-1", "ev-2"]

    async def test_every_listener_gets_a_copy(self, broker: Broker) -> None:
        copies = [await listening(broker, "progress") for _ in range(3)]
        await broker.publish(event("progress"))
        await eventually(lambda: all(len(copy) == 1 for copy in copies))

    async def test_a_listener_makes_an_event_routable(self, broker: Broker) -> None:
        heard = await listening(broker, "progress")
        await broker.publish(event("progress", mandatory=True))
        await eventually(lambda: heard)

    async def test_a_closed_listener_hears_nothing_more(self, broker: Broker) -> None:
        heard: list[Message] = []
        gaps: list[None] = []
        subscription = await broker.listen(("#",), heard.append, lambda: gaps.append(None))
        await eventually(lambda: gaps)
        await subscription.close()
        assert not subscription.active
        witness = await listening(broker, "#")
        await broker.publish(event("progress"))
        await eventually(lambda: witness)
        assert not heard
        assert len(gaps) == 1

    async def test_the_notifiers_queue_takes_outcomes_and_nothing_else(self, broker: Broker) -> None:
        inbox: list[Delivery] = []
        await broker.publish(event("progress", 1))
        await broker.publish(event("state.running", 2))
        await broker.publish(event("outcome.succeeded", 3, mandatory=True))
        await depth_becomes(broker, Queue.NOTIFIER_EVENTS, 1)
        await broker.consume(Queue.NOTIFIER_EVENTS, inbox.append, prefetch=5)
        await eventually(lambda: inbox)
        assert inbox[0].message.routing_key == "outcome.succeeded"
        assert inbox[0].message.exchange == EVENTS


async def test_depth_counts_what_is_ready_and_not_what_is_in_hand(broker: Broker) -> None:
    inbox: list[Delivery] = []
    assert await broker.depth(Queue.REVIEW_LOW) == 0
    for number in range(5):
        await broker.publish(review(number, Queue.REVIEW_LOW))
    await depth_becomes(broker, Queue.REVIEW_LOW, 5)
    await broker.consume(Queue.REVIEW_LOW, inbox.append, prefetch=2)
    await depth_becomes(broker, Queue.REVIEW_LOW, 3)
