"""A private PostgreSQL starts, survives what it should, and leaves nothing behind."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]  # asyncpg ships no types
import pytest

from deploy.local.postgres import PrivatePostgres
from deploy.local.process import wait_until
from deploy.local.server import NothingStarted, PortTaken, ServerDidNotStart
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
SECONDS = PATIENCE_SECONDS


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivatePostgres]:
    with PrivatePostgres.start(tmp_path_factory.mktemp("postgres"), fsync=False, max_connections=30) as server:
        yield server


async def ask(url: str, query: str) -> object:
    connection = await asyncpg.connect(url, timeout=SECONDS)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def is_there(path: str) -> bool:
    return Path(path).exists()


def gone(pids: list[int]) -> bool:
    return wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), SECONDS)


async def test_it_serves_utf8_with_the_settings_asked_for(postgres: PrivatePostgres) -> None:
    assert await ask(postgres.dsn, "show server_encoding") == "UTF8"
    assert await ask(postgres.dsn, "show lc_collate") == "C"
    assert await ask(postgres.dsn, "show fsync") == "off"
    assert await ask(postgres.dsn, "show max_connections") == "30"
    assert await ask(postgres.dsn, "show listen_addresses") == "127.0.0.1"


async def test_a_database_can_be_created_once_and_dropped(postgres: PrivatePostgres) -> None:
    url = postgres.create_database("Some-thing")
    assert await ask(url, "select current_database()") == "Some-thing"

    with pytest.raises(RuntimeError, match="already exists"):
        postgres.create_database("Some-thing")
    postgres.drop_database("Some-thing")
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await ask(url, "select 1")


async def test_committed_rows_survive_a_restart_and_a_kill(postgres: PrivatePostgres) -> None:
    url = postgres.create_database("durable")
    await ask(url, "create table kept (x int)")
    await ask(url, "insert into kept values (1)")
    postgres.restart()
    assert await ask(url, "select count(*) from kept") == 1

    await ask(url, "insert into kept values (2)")
    pids = postgres.pids()
    postgres.kill()
    assert gone(pids)
    assert not postgres.alive()
    with pytest.raises(OSError):
        await ask(url, "select 1")
    postgres.restart()
    assert await ask(url, "select count(*) from kept") == 2


async def test_a_suspended_server_keeps_its_connections_and_answers_when_resumed(
    postgres: PrivatePostgres,
) -> None:
    connection = await asyncpg.connect(postgres.dsn, timeout=SECONDS)
    postgres.suspend()
    answer = asyncio.create_task(connection.fetchval("select 7"))
    done, _ = await asyncio.wait({answer}, timeout=0.3)
    assert not done

    postgres.resume()
    assert await asyncio.wait_for(answer, SECONDS) == 7
    await connection.close()


async def test_two_servers_run_side_by_side_and_leave_nothing(postgres: PrivatePostgres, tmp_path: Path) -> None:
    with PrivatePostgres.start(tmp_path, fsync=False) as other:
        assert other.port != postgres.port
        await ask(other.dsn, "create table mine ()")
        assert await ask(postgres.dsn, "select to_regclass('mine')") is None
        pids = other.pids()
        assert is_there(other.settings.data)

    assert gone(pids)
    assert not is_there(other.settings.data)
    assert postgres.alive()


async def test_another_process_attaches_to_it_and_stops_it(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from deploy.local.postgres import PrivatePostgres\n"
        "PrivatePostgres.start(Path(sys.argv[1]), fsync=False, die_with_parent=False)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    await asyncio.to_thread(subprocess.run, command, cwd=ROOT, timeout=SECONDS, check=True)

    server = PrivatePostgres.attach(tmp_path)
    try:
        assert await ask(server.dsn, "create table kept ()") is None
        with pytest.raises(ServerDidNotStart, match="already"):
            PrivatePostgres.start(tmp_path)
        pids = server.pids()
        server.stop()
        assert gone(pids)
        assert not PrivatePostgres.attach(tmp_path).alive()

        with PrivatePostgres.start(tmp_path, fsync=False) as again:
            assert await ask(again.dsn, "select to_regclass('kept')::text") == "kept"
            assert again.dsn == server.dsn
    finally:
        server.discard()


async def test_it_has_another_port_when_somebody_has_taken_its_earlier_one(tmp_path: Path) -> None:
    server = PrivatePostgres.start(tmp_path, fsync=False)
    server.stop()
    with socket.create_server(("127.0.0.1", server.port)), PrivatePostgres.start(tmp_path, fsync=False) as again:
        assert again.port != server.port
        assert await ask(again.dsn, "select 1") == 1


def test_a_start_that_fails_says_why_and_leaves_nothing(postgres: PrivatePostgres, tmp_path: Path) -> None:
    with pytest.raises(PortTaken, match=str(postgres.port)):
        PrivatePostgres.start(tmp_path / "port", port=postgres.port)

    with pytest.raises(ServerDidNotStart, match="no_such_setting"):
        PrivatePostgres.start(tmp_path / "setting", fsync=False, options={"no_such_setting": "1"})
    failed = PrivatePostgres.attach(tmp_path / "setting")
    assert not failed.alive()
    failed.discard()
    with pytest.raises(NothingStarted):
        PrivatePostgres.attach(tmp_path / "setting")
