"""A private postgres_exporter tells of its PostgreSQL, also when that was away, and leaves nothing behind."""

import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.local import programs
from deploy.local.postgres import PrivatePostgres
from deploy.local.postgres_exporter import PrivatePostgresExporter
from deploy.local.process import wait_until
from deploy.local.programs import ProgramMissing
from deploy.local.server import NothingStarted, ServerDidNotStart

SECONDS = 30.0


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivatePostgres]:
    with PrivatePostgres.start(tmp_path_factory.mktemp("postgres"), fsync=False, max_connections=30) as server:
        yield server


def told(exporter: PrivatePostgresExporter, name: str) -> dict[str, float]:
    """What it says, by the database's name."""
    with urllib.request.urlopen(exporter.url, timeout=SECONDS) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        one.labels.get("datname", ""): one.value
        for family in families
        if family.name == name  # by the family: the parser gives a counter's samples the ending that they lack
        for one in family.samples
    }


def tells_of_both(exporter: PrivatePostgresExporter, name: str) -> bool:
    return {"orchard", "postgres"} <= set(told(exporter, name))


def test_it_tells_of_every_database_of_the_server(postgres: PrivatePostgres, tmp_path: Path) -> None:
    url = postgres.create_database("orchard")
    with PrivatePostgresExporter.start(tmp_path, url) as exporter:
        assert wait_until(lambda: told(exporter, "pg_up") == {"": 1}, SECONDS)
        for name in ("pg_database_size_bytes", "pg_stat_database_xact_commit", "pg_stat_activity_count"):
            assert wait_until(partial(tells_of_both, exporter, name), SECONDS), name
        pids = exporter.pids()
        with pytest.raises(ServerDidNotStart, match="already"):
            PrivatePostgresExporter.start(tmp_path, url)
    assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), SECONDS)
    with pytest.raises(NothingStarted):
        PrivatePostgresExporter.attach(tmp_path)


def test_it_outlives_its_server_and_has_the_same_address_again(postgres: PrivatePostgres, tmp_path: Path) -> None:
    exporter = PrivatePostgresExporter.start(tmp_path, postgres.dsn)
    try:
        postgres.kill()
        assert wait_until(lambda: told(exporter, "pg_up") == {"": 0}, SECONDS)
        postgres.restart()
        assert wait_until(lambda: told(exporter, "pg_up") == {"": 1}, SECONDS)
        exporter.stop()
        again = PrivatePostgresExporter.start(tmp_path, postgres.dsn)
        assert again.address == exporter.address
        assert PrivatePostgresExporter.attach(tmp_path).alive()
        again.discard()
    finally:
        exporter.discard()


def test_where_it_is_missing_a_line_says_how_to_get_it(
    postgres: PrivatePostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "find_postgres_exporter", lambda: None)
    monkeypatch.setattr(programs, "_may_install", lambda: False)
    programs.postgres_exporter.cache_clear()
    with pytest.raises(ProgramMissing, match=r"apt-get install .* prometheus-postgres-exporter"):
        PrivatePostgresExporter.start(tmp_path / "none", postgres.dsn)
    assert not (tmp_path / "none").exists()
