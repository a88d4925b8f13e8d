"""Brokers for the contract tests."""

from collections.abc import AsyncIterator, Awaitable, Callable

import aio_pika
import pytest
from aio_pika.exceptions import ChannelClosed

from deploy.local.rabbitmq import PrivateRabbitMQ
from imprimatur.broker import Broker, Queue
from imprimatur.broker.memory import MemoryBroker
from imprimatur.broker.rabbitmq import RabbitMQBroker
from tests.contract.polling import eventually

ConnectRabbitMQ = Callable[..., Awaitable[RabbitMQBroker]]


@pytest.fixture
async def connect(rabbitmq: PrivateRabbitMQ) -> AsyncIterator[ConnectRabbitMQ]:
    """Makes started brokers on the node, with empty queues, and closes them at the end."""
    await _empty_queues(rabbitmq.url)
    brokers: list[RabbitMQBroker] = []

    async def make(*, wait: bool = True, **settings: float) -> RabbitMQBroker:
        broker = RabbitMQBroker(rabbitmq.url, name="test", reconnect_max_seconds=1.0, **settings)  # type: ignore[arg-type]  # mixed int and float
        brokers.append(broker)
        await broker.start()
        if wait:
            await eventually(lambda: broker.connected, "connected")
        return broker

    yield make
    for broker in brokers:
        await broker.close()


@pytest.fixture(params=["memory", "rabbitmq"])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    """Each adapter, started and empty."""
    made = await _broker(request)
    await made.start()
    await eventually(lambda: made.connected, "connected")
    yield made
    await made.close()


async def _broker(request: pytest.FixtureRequest) -> Broker:
    if request.param == "memory":
        return MemoryBroker()
    server: PrivateRabbitMQ = request.getfixturevalue("rabbitmq")
    await _empty_queues(server.url)
    return RabbitMQBroker(server.url, name="contract")


async def _empty_queues(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        for queue in Queue:
            try:
                async with connection.channel() as channel:
                    await (await channel.get_queue(queue.value, ensure=False)).purge()
            except ChannelClosed:
                continue  # not declared yet
