"""A private RabbitMQ starts, survives what it should, and leaves nothing behind."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aio_pika
import aiohttp
import pytest
from aio_pika.abc import AbstractChannel

from deploy.local.process import wait_until
from deploy.local.rabbitmq import PROMETHEUS, PrivateRabbitMQ
from deploy.local.rabbitmq_cluster import PrivateRabbitMQCluster
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
SECONDS = PATIENCE_SECONDS


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRabbitMQ]:
    with PrivateRabbitMQ.start(tmp_path_factory.mktemp("rabbitmq"), plugins=[PROMETHEUS]) as server:
        yield server


@asynccontextmanager
async def channel(url: str) -> AsyncIterator[AbstractChannel]:
    connection = await aio_pika.connect(url, timeout=SECONDS)
    async with connection:
        yield await connection.channel()


async def put(url: str, queue: str, body: bytes, arguments: dict[str, str] | None = None) -> None:
    """Publish one persistent message, confirmed, to a durable queue."""
    async with channel(url) as open_channel:
        await open_channel.declare_queue(queue, durable=True, arguments=dict(arguments or {}))
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await open_channel.default_exchange.publish(message, routing_key=queue, timeout=SECONDS)


async def take(url: str, queue: str, arguments: dict[str, str] | None = None) -> bytes:
    """The next message of a durable queue, acknowledged."""
    async with channel(url) as open_channel:
        await open_channel.set_qos(prefetch_count=1)
        declared = await open_channel.declare_queue(queue, durable=True, arguments=dict(arguments or {}))
        async with declared.iterator(timeout=SECONDS) as messages:
            message = await anext(messages)
            await message.ack()
            return message.body


def gone(pids: list[int]) -> bool:
    return wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), SECONDS)


async def test_it_serves_amqp_and_rabbitmqctl(broker: PrivateRabbitMQ) -> None:
    await put(broker.url, "first", b"hello")

    assert "first\t1" in broker.ctl("list_queues", "name", "messages")
    assert await take(broker.url, "first") == b"hello"
    async with aiohttp.ClientSession() as session, session.get(broker.metrics_url) as answer:
        assert "rabbitmq_build_info" in await answer.text()
    with pytest.raises(RuntimeError, match="no_such_command"):
        broker.ctl("no_such_command")


async def test_a_suspended_broker_keeps_its_connections_and_answers_when_resumed(
    broker: PrivateRabbitMQ,
) -> None:
    async with channel(broker.url) as open_channel:
        broker.suspend()
        answer = asyncio.create_task(open_channel.declare_queue("frozen", exclusive=True))
        done, _ = await asyncio.wait({answer}, timeout=0.3)
        assert not done

        broker.resume()
        assert (await asyncio.wait_for(answer, SECONDS)).name == "frozen"


async def test_confirmed_messages_survive_a_kill(broker: PrivateRabbitMQ) -> None:
    await put(broker.url, "durable", b"kept")
    # Within its first second a declared queue is lost with the killed node, whatever was confirmed.
    broker.ctl("eval", "mnesia:sync_log().")
    *server, epmd = broker.pids()
    broker.kill()
    assert gone(server)
    assert not broker.alive()
    assert broker.pids() == [epmd]
    with pytest.raises(OSError):
        await put(broker.url, "durable", b"lost")

    broker.restart()
    assert await take(broker.url, "durable") == b"kept"


async def test_another_process_attaches_to_it_restarts_it_and_stops_it(broker: PrivateRabbitMQ, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from deploy.local.rabbitmq import PrivateRabbitMQ\n"
        "PrivateRabbitMQ.start(Path(sys.argv[1]), die_with_parent=False)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    await asyncio.to_thread(subprocess.run, command, cwd=ROOT, timeout=SECONDS, check=True)

    other = PrivateRabbitMQ.attach(tmp_path)
    try:
        assert other.port != broker.port
        await put(other.url, "elsewhere", b"kept")
        assert "elsewhere" not in broker.ctl("list_queues", "name")

        before = other.pids()
        other.restart()
        assert gone(before)
        assert await take(PrivateRabbitMQ.attach(tmp_path).url, "elsewhere") == b"kept"
        after = other.pids()
    finally:
        other.discard()
    assert gone(after)
    assert "data" not in os.listdir(tmp_path)
    assert broker.alive()


@pytest.mark.soak
async def test_a_cluster_serves_a_quorum_queue_while_one_node_is_dead(tmp_path: Path) -> None:
    quorum = {"x-queue-type": "quorum"}

    async def try_to_take(url: str) -> bytes:
        """While the queue elects a leader it refuses: ask again, a bounded number of seconds."""
        async with asyncio.timeout(SECONDS):
            while True:
                with suppress(aio_pika.exceptions.AMQPError, TimeoutError):
                    return await take(url, "shared", quorum)

    with PrivateRabbitMQCluster.start(tmp_path) as cluster:
        pids = cluster.pids()
        await put(cluster.urls[0], "shared", b"kept", quorum)
        assert await try_to_take(cluster.urls[2]) == b"kept"
        await put(cluster.urls[0], "shared", b"kept too", quorum)
        cluster.nodes[0].kill()
        assert await try_to_take(cluster.urls[1]) == b"kept too"

        await put(cluster.urls[2], "shared", b"meanwhile", quorum)
        cluster.nodes[0].restart()
        assert await try_to_take(cluster.urls[0]) == b"meanwhile"

        cluster.restart()
        assert PrivateRabbitMQCluster.attach(tmp_path).pids() == cluster.pids()
        pids += cluster.pids()
    assert gone(pids)
