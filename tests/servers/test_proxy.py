"""The proxy of the fault tests does each thing it promises, on real sockets, and leaves nothing behind."""

import asyncio
import hashlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import asyncpg  # type: ignore[import-untyped]  # ships no types
import pytest

from deploy.local.ports import free_port
from deploy.local.postgres import PrivatePostgres
from tests.contract.polling import eventually
from tests.faults.proxy import RESET_ON_CLOSE, Direction, Proxy, proxying
from tests.patience import PATIENCE_SECONDS

SECONDS = PATIENCE_SECONDS
HOUR = 3600.0
MEBIBYTE = 1 << 20


class Lines:
    """A server that answers each line with "re: " and the line. It keeps what it heard, and how each client left."""

    def __init__(self) -> None:
        self.port = 0
        self.heard: list[bytes] = []
        self.ends: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.heard.append(line)
                writer.write(b"re: " + line)
                await writer.drain()
            self.ends.append("closed")
        except ConnectionError:
            self.ends.append("reset")
        finally:
            writer.close()


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[int]:
    """A server of one's own; its port."""
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port: int = server.sockets[0].getsockname()[1]
        yield port


@asynccontextmanager
async def lines() -> AsyncIterator[Lines]:
    made = Lines()
    async with serving(made.serve) as port:
        made.port = port
        yield made


class Talk:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, port: int) -> "Talk":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def say(self, line: bytes) -> None:
        self.writer.write(line + b"\n")

    async def hear(self) -> bytes:
        async with asyncio.timeout(SECONDS):
            return (await self.reader.readline()).rstrip()

    async def ask(self, line: bytes) -> bytes:
        self.say(line)
        return await self.hear()

    async def is_reset(self) -> bool:
        with suppress(ConnectionResetError):
            assert await self.hear() == b"", "neither reset nor answered"
            return False
        return True

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


async def all_gone(proxy: Proxy) -> None:
    await eventually(lambda: proxy.open_now == 0, "no connection is open")


async def test_bytes_go_both_ways_and_are_counted() -> None:
    async with lines() as server, proxying("127.0.0.1", server.port) as proxy:
        ada, bob = await Talk.to(proxy.port), await Talk.to(proxy.port)
        assert await ada.ask(b"one") == b"re: one"
        assert await bob.ask(b"two") == b"re: two"
        assert (proxy.connections, proxy.open_now) == (2, 2)
        assert proxy.passed_bytes == {Direction.TO_SERVER: 8, Direction.TO_CLIENT: 16}
        await ada.close()
        await bob.close()
        await all_gone(proxy)
        assert (proxy.connections, proxy.struck) == (2, 0)
        assert server.ends == ["closed", "closed"]


async def test_one_side_may_end_while_the_other_goes_on() -> None:
    async with lines() as server, proxying("127.0.0.1", server.port) as proxy:
        client = await Talk.to(proxy.port)
        client.say(b"last words")
        client.writer.write_eof()
        assert await client.hear() == b"re: last words"
        assert not await client.is_reset()
        await client.close()
        await all_gone(proxy)


async def test_a_large_answer_arrives_whole() -> None:
    content = os.urandom(MEBIBYTE) * 64

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()
        writer.close()

    async with serving(serve) as port, proxying("127.0.0.1", port) as proxy:
        client = await Talk.to(proxy.port)
        found = hashlib.sha256()
        async with asyncio.timeout(SECONDS):
            while part := await client.reader.read(MEBIBYTE):
                found.update(part)
        assert found.digest() == hashlib.sha256(content).digest()
        assert proxy.passed_bytes[Direction.TO_CLIENT] == len(content)
        await client.close()


async def test_a_client_that_does_not_read_makes_the_server_wait() -> None:
    sent = 0
    part, parts = bytes(MEBIBYTE), 128

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with suppress(ConnectionError):
            for _ in range(parts):
                writer.write(part)
                await writer.drain()
                sent += 1
        writer.close()

    async with serving(serve) as port, proxying("127.0.0.1", port) as proxy:
        client = await Talk.to(proxy.port)
        await eventually(lambda: sent > 0)
        unchanged, before = 0, sent
        while unchanged < 50 and sent < parts:
            await asyncio.sleep(0.005)
            unchanged, before = (unchanged + 1 if sent == before else 0), sent
        assert sent < parts
        proxy.cut()
        await client.close()
        await all_gone(proxy)


async def test_delayed_bytes_arrive_later_and_at_once_when_the_delay_ends() -> None:
    async with lines() as server, proxying("127.0.0.1", server.port) as proxy:
        client, direct = await Talk.to(proxy.port), await Talk.to(server.port)
        assert await client.ask(b"quick") == b"re: quick"
        proxy.delay(HOUR)
        client.say(b"slow")
        late = await Talk.to(proxy.port)
        late.say(b"late")
        assert await direct.ask(b"overtakes") == b"re: overtakes"
        await eventually(lambda: proxy.open_now == 2)
        assert server.heard == [b"quick\n", b"overtakes\n"]
        proxy.pass_on()
        assert await client.hear() == b"re: slow"
        assert await late.ask(b"after") in (b"re: late", b"re: after")
        for talk in (client, direct, late):
            await talk.close()


async def test_a_delay_keeps_the_order_and_does_not_add_up() -> None:
    async with lines() as server, proxying("127.0.0.1", server.port) as proxy:
        client = await Talk.to(proxy.port)
        proxy.delay(0.1, jitter_seconds=0.1)
        numbers = [str(number).encode() for number in range(1000)]
        for number in numbers:  # one pause for each would take minutes
            client.say(number)
            await asyncio.sleep(0)
        assert [await client.hear() for _ in numbers] == [b"re: " + number for number in numbers]
        client.writer.write_eof()
        assert not await client.is_reset()
        await client.close()


async def test_a_cut_resets_both_sides_and_leaves_the_way_open() -> None:
    async with lines() as server, proxying("127.0.0.1", server.port) as proxy:
        client = await Talk.to(proxy.port)
        assert await client.ask(b"before") == b"re: before"
        proxy.cut()
        assert await client.is_reset()
        await eventually(lambda: server.ends == ["reset"])
        again = await Talk.to(proxy.port)
        assert await again.ask(b"after") == b"re: after"
        for talk in (client, again):
            await talk.close()


async def test_what_is_being_connected_is_cut_too() -> None:
    async with lines() as server, proxying("127.0.0.1", server.port) as proxy:
        for _ in range(20):
            client = await Talk.to(proxy.port)
            proxy.cut()
            client.say(b"anybody?")
            if not await client.is_reset():
                pytest.fail("closed in an orderly way")
            await client.close()
        await all_gone(proxy)


async def test_who_is_refused_is_let_in_again_at_the_same_port() -> None:
    async with lines() as server, proxying("127.0.0.1", server.port) as proxy:
        client, port = await Talk.to(proxy.port), proxy.port
        assert await client.ask(b"before") == b"re: before"
        for _ in range(3):
            proxy.refuse()
            proxy.refuse()
            assert await client.is_reset()
            with pytest.raises(ConnectionRefusedError):
                await Talk.to(port)
            proxy.pass_on()
            await client.close()
            client = await Talk.to(port)
            assert await client.ask(b"after") == b"re: after"
        await client.close()


@pytest.mark.parametrize(
    "directions", [(), (Direction.TO_SERVER,), (Direction.TO_CLIENT,)], ids=["both", "to_server", "to_client"]
)
async def test_swallowed_bytes_vanish_without_a_word_and_their_connections_are_cut_afterwards(
    directions: tuple[Direction, ...],
) -> None:
    async with lines() as server, proxying("127.0.0.1", server.port) as proxy:
        present, unharmed = await Talk.to(proxy.port), await Talk.to(proxy.port)
        assert await present.ask(b"before") == b"re: before"
        assert await unharmed.ask(b"before") == b"re: before"
        proxy.swallow(*directions)
        present.say(b"vanishes")
        new = await Talk.to(proxy.port)
        new.say(b"vanishes")
        if directions == (Direction.TO_CLIENT,):
            await eventually(lambda: server.heard.count(b"vanishes\n") == 2)
        direct = await Talk.to(server.port)
        assert await direct.ask(b"sentinel") == b"re: sentinel"
        assert (b"vanishes\n" in server.heard) == (directions == (Direction.TO_CLIENT,))
        assert server.ends == []
        await eventually(lambda: proxy.open_now == 3)
        proxy.pass_on()
        assert await present.is_reset()
        assert await new.is_reset()
        assert await unharmed.ask(b"still here") == b"re: still here"
        again = await Talk.to(proxy.port)
        assert await again.ask(b"after") == b"re: after"
        for talk in (present, new, direct, unharmed, again):
            await talk.close()


async def test_a_half_open_connection_does_not_tell_that_its_client_is_gone() -> None:
    async with lines() as server, proxying("127.0.0.1", server.port) as proxy:
        polite, crashed = await Talk.to(proxy.port), await Talk.to(proxy.port)
        assert await polite.ask(b"here") == await crashed.ask(b"here") == b"re: here"
        proxy.swallow()
        await polite.close()
        crashed.writer.transport.abort()
        direct = await Talk.to(server.port)
        assert await direct.ask(b"sentinel") == b"re: sentinel"
        assert server.ends == []
        proxy.pass_on()
        await eventually(lambda: server.ends == ["reset", "reset"])
        await all_gone(proxy)
        await direct.close()


async def pass_alone(part: bytes, client: Talk, proxy: Proxy) -> None:
    """Send it, and wait until it went on, so that it is a chunk of its own."""
    passed = proxy.passed_bytes[Direction.TO_SERVER]
    client.writer.write(part)
    await eventually(lambda: proxy.passed_bytes[Direction.TO_SERVER] == passed + len(part))


@pytest.mark.parametrize(
    "parts",
    [[b"please COMMIT now\n"], [b"please COM", b"MIT now\n"], [b"please ", *(b"C-O-M-M-I-T".split(b"-")), b"\n"]],
)
async def test_the_reply_to_a_pattern_is_lost_after_the_server_has_heard_it(parts: list[bytes]) -> None:
    async with lines() as server, proxying("127.0.0.1", server.port) as proxy:
        client = await Talk.to(proxy.port)
        proxy.cut_after(b"COMMIT", 1)
        assert await client.ask(b"begin") == b"re: begin"
        for part in parts:
            await pass_alone(part, client, proxy)
        assert await client.is_reset()
        assert server.heard == [b"begin\n", b"".join(parts)]
        assert proxy.passed_bytes[Direction.TO_CLIENT] == len(b"re: begin\n")
        assert proxy.struck == 1
        await client.close()


async def test_a_pattern_strikes_as_often_as_told() -> None:
    async with lines() as server, proxying("127.0.0.1", server.port) as proxy:
        proxy.cut_after(b"COMMIT", times=2)
        for struck in (1, 2):
            client = await Talk.to(proxy.port)
            client.say(b"COMMIT")
            assert await client.is_reset()
            assert proxy.struck == struck
            await client.close()
        client = await Talk.to(proxy.port)
        assert await client.ask(b"COMMIT") == b"re: COMMIT"
        proxy.cut_after(b"COMMIT", times=2)
        proxy.pass_on()
        assert await client.ask(b"COMMIT") == b"re: COMMIT"
        assert proxy.struck == 2
        await client.close()


async def test_a_delayed_pattern_strikes_when_it_has_arrived() -> None:
    async with lines() as server, proxying("127.0.0.1", server.port) as proxy:
        client = await Talk.to(proxy.port)
        proxy.delay(0.05)
        proxy.cut_after(b"COMMIT", times=1)
        assert await client.ask(b"begin") == b"re: begin"
        client.say(b"COMMIT")
        assert await client.is_reset()
        assert server.heard == [b"begin\n", b"COMMIT\n"]
        assert proxy.struck == 1
        await client.close()


async def test_a_client_is_reset_when_the_server_is_away() -> None:
    async with proxying("127.0.0.1", free_port()) as proxy:
        client = await Talk.to(proxy.port)
        assert await client.is_reset()
        await client.close()
        await all_gone(proxy)


async def test_nothing_is_left_behind() -> None:
    async with lines() as server:

        def open_files() -> int:
            return len(os.listdir("/proc/self/fd"))

        tasks, files = asyncio.all_tasks(), open_files()
        clients: list[Talk] = []
        async with proxying("127.0.0.1", server.port) as proxy:
            for tell in (proxy.pass_on, lambda: proxy.delay(HOUR), proxy.swallow, proxy.refuse, proxy.pass_on):
                tell()
                with suppress(ConnectionRefusedError):
                    clients.append(await Talk.to(proxy.port))
                    clients[-1].say(b"hello")
            clients.append(await Talk.to(proxy.port))
        assert proxy.open_now == 0
        for client in clients:
            await client.close()
        await eventually(lambda: asyncio.all_tasks() == tasks, "no task is left")
        await eventually(lambda: open_files() == files, "no socket is left")


CLIENT = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    connection.sendall(b"from afar\\n")
    print(connection.recv(100))
"""


async def test_another_process_may_use_it() -> None:
    async with lines() as server, proxying("127.0.0.1", server.port) as proxy:
        command = [sys.executable, "-c", CLIENT, str(proxy.port)]
        client = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        answer, _ = await client.communicate()
        assert answer.strip() == b"b're: from afar\\n'"


async def test_an_end_that_comes_late_to_a_client_that_has_reset_does_no_harm() -> None:
    async with serving(_leave) as port, proxying("127.0.0.1", port) as proxy:
        proxy.delay(HOUR)
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            await eventually(
                lambda: any(link.server._delayed for link in proxy._links), "the server's end is on its way"
            )
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        proxy.pass_on()  # before the loop can read the reset
        await all_gone(proxy)


async def _leave(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


# --- with PostgreSQL -------------------------------------------------------------------------------------------


async def connect(proxy: Proxy) -> asyncpg.Connection:
    return await asyncpg.connect(
        f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres", timeout=SECONDS, command_timeout=SECONDS
    )


@pytest.fixture
async def through(postgresql: PrivatePostgres) -> AsyncIterator[Proxy]:
    """A proxy before PostgreSQL, with an empty table `said (word text)` behind it."""
    direct = await asyncpg.connect(postgresql.dsn)
    await direct.execute("CREATE TABLE said (word text)")
    try:
        async with proxying("127.0.0.1", postgresql.port) as proxy:
            yield proxy
    finally:
        await direct.execute("DROP TABLE said")
        await direct.close()


async def test_a_commit_whose_reply_was_lost_is_committed(through: Proxy) -> None:
    connection = await connect(through)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("INSERT INTO said VALUES ('kept')")
    through.cut_after(b"COMMIT")
    with pytest.raises((ConnectionError, asyncpg.PostgresConnectionError)):
        await transaction.commit()
    assert through.struck == 1
    again = await connect(through)
    assert await again.fetchval("SELECT word FROM said") == "kept"
    await again.close()
    connection.terminate()


async def test_a_transaction_that_was_cut_before_its_commit_is_not(through: Proxy) -> None:
    connection = await connect(through)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("INSERT INTO said VALUES ('lost')")
    through.cut()
    with pytest.raises((ConnectionError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError)):
        await transaction.commit()
    again = await connect(through)
    assert await again.fetchval("SELECT count(*) FROM said") == 0
    await again.close()
    connection.terminate()


async def test_a_statement_that_is_swallowed_times_out(through: Proxy) -> None:
    connection = await connect(through)
    through.swallow(Direction.TO_SERVER)
    with pytest.raises(TimeoutError):
        await connection.execute("INSERT INTO said VALUES ('vanished')", timeout=0.1)
    through.pass_on()
    again = await connect(through)
    assert await again.fetchval("SELECT count(*) FROM said") == 0
    await again.close()
    connection.terminate()


async def test_large_reads_pass_whole_even_when_delayed(through: Proxy) -> None:
    connection = await connect(through)
    through.delay(0.01, jitter_seconds=0.01)
    rows = await connection.fetch("SELECT n, repeat('x', 1000) AS filler FROM generate_series(1, 20000) AS n")
    assert [row["n"] for row in rows] == list(range(1, 20_001))
    assert through.passed_bytes[Direction.TO_CLIENT] > 20_000_000
    await connection.close()
