"""`imprimatur migrate`, `tenants` and `keys` as an operator runs them: processes of their own at a real database."""

import asyncio
import json
import os
import re
import uuid
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import structlog

from cli import main
from imprimatur.policy import Mode
from imprimatur.storage import tenants
from imprimatur.storage.database import Database
from imprimatur.tenancy import Role
from imprimatur.vault import Vault, new_key
from tests.conftest import MakePostgresURL
from tests.service.test_cli import Ran, run

Imprimatur = Callable[..., Awaitable[Ran]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder as `serve` leaves it, but that its database is without tables."""
    folder = tmp_path / "imprimatur-data"
    folder.mkdir(mode=0o700)
    Vault.from_file(folder / "vault.key", create=True)
    (folder / "imprimatur.db").touch()
    return folder


async def test_tenants_and_keys_are_made_and_ended_in_the_data_folder(data: Path, tmp_path: Path) -> None:
    imprimatur: Imprimatur = partial(run, cwd=tmp_path)
    assert (await imprimatur("migrate", "--json")).json == {"schema": "current"}
    made = await imprimatur("tenants", "create", "acme", "--json")
    assert "not shown again" in made.err
    words = ("acme", "--role", "reviewer", "--name", "night shift", "--user", "ada")
    created, switched = await asyncio.gather(
        imprimatur("keys", "create", *words, "--json"),
        imprimatur("tenants", "mode", "acme", "require-human", "--json"),
    )
    assert switched.json == {"tenant": "acme", "mode": "require-human", "policy_version": "2"}
    assert str(data / "imprimatur.db") in switched.err
    database = Database(f"sqlite:///{data / 'imprimatur.db'}")
    async with database.read() as reader:
        admin = await tenants.find_key(reader, made.json["api_key"])
        person = await tenants.find_key(reader, created.json["api_key"])
        assert admin is not None
        assert person is not None
        live = await tenants.live_policy(reader, admin.tenant_id)
    assert (admin.tenant_name, admin.role, admin.name) == ("acme", Role.ADMIN, "first")
    assert (person.tenant_name, person.role, person.user_id) == ("acme", Role.REVIEWER, "ada")
    assert (live.version, live.policy.mode) == (2, Mode.REQUIRE_HUMAN)
    assert (await imprimatur("keys", "revoke", str(person.id))).code == 0
    async with database.read() as reader:
        assert await tenants.find_key(reader, created.json["api_key"]) is None
    await database.close()


async def test_the_variable_leads_to_postgresql(postgresql_url: MakePostgresURL, tmp_path: Path) -> None:
    url = postgresql_url(migrated=False)
    imprimatur: Imprimatur = partial(run, cwd=tmp_path, IMPRIMATUR_DATABASE_URL=url, IMPRIMATUR_VAULT_KEY=new_key())
    at_once = await asyncio.gather(*(imprimatur("migrate", "--json") for _ in range(2)))
    assert [ran.json for ran in at_once] == [{"schema": "current"}] * 2
    made = (await imprimatur("tenants", "create", "acme", "--json")).json
    secret = (await imprimatur("tenants", "webhook-secret", "acme", "--json")).json["webhook_secret"]
    assert secret.startswith("whsec_")
    switched = await imprimatur("tenants", "mode", "acme", "require-human", "--json")
    assert url.rpartition("@")[2] in switched.err
    assert "postgres@" not in switched.err
    database = Database(url)
    async with database.read() as reader:
        assert await tenants.find_key(reader, made["api_key"]) is not None
    await database.close()
    assert not (tmp_path / "imprimatur-data").exists()


# --- in this process: each process takes its second, and many are needed --------------------------------------


@pytest.fixture
def folder(data: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The data folder with an empty database, found from the working directory."""
    (data / "imprimatur.db").write_bytes(sqlite_template.read_bytes())
    monkeypatch.chdir(data.parent)
    for variable in [name for name in os.environ if name.startswith("IMPRIMATUR_")]:
        monkeypatch.delenv(variable)
    before = structlog.get_config()
    yield data
    structlog.configure(**before)


@pytest.fixture
def done(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints."""

    def run_here(*words: str) -> str:
        assert main.run(list(words)) == 0
        return str(capsys.readouterr().out)

    return run_here


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that is all that a command says that fails."""

    def run_here(*words: str) -> str:
        code = main.run(list(words))
        out, err = capsys.readouterr()
        assert (code, out) == (1, ""), words
        [line] = err.splitlines()
        assert line.startswith("error: ")
        assert "unexpected" not in line
        return str(line)

    return run_here


def test_a_secret_stays_the_same_until_it_is_rotated(done: Callable[..., str]) -> None:
    done("tenants", "create", "acme")
    show = ("tenants", "webhook-secret", "acme", "--json")
    first, again, rotated, after = (done(*show, *words) for words in ([], [], ["--rotate"], []))
    assert first == again != rotated == after


def test_tenants_and_keys_are_listed_with_their_ids_and_without_the_keys(done: Callable[..., str]) -> None:
    made = json.loads(done("tenants", "create", "acme", "--json"))
    [tenant] = json.loads(done("tenants", "list", "--json"))["items"]
    assert (tenant["name"], tenant["id"], tenant["mode"]) == ("acme", made["id"], "ai-powered")
    done("tenants", "mode", "acme", "require-human")
    shown = done("tenants", "list").splitlines()[1]
    assert shown.split()[:3] == ["acme", made["id"], "require-human"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", " ".join(shown.split()[3:]))  # as in every table
    assert datetime.fromisoformat(tenant["created"]).tzinfo is UTC
    assert tenant["created"].endswith("Z")  # as protobuf's JSON
    person = json.loads(done("keys", "create", "acme", "--role", "reviewer", "--user", "ada", "--json"))
    assert (person["tenant"], person["role"], person["user"]) == ("acme", "reviewer", "ada")
    first, second = json.loads(done("keys", "list", "acme", "--json"))["items"]
    assert (first["name"], first["role"], first["revoked"]) == ("first", "admin", "")
    assert (second["role"], second["user"]) == ("reviewer", "ada")
    assert json.loads(done("keys", "revoke", first["id"], "--json")) == {"id": first["id"], "revoked": "true"}
    [revoked, _] = json.loads(done("keys", "list", "acme", "--json"))["items"]
    assert revoked["revoked"] >= first["created"]
    for shown in (done("keys", "list", "acme"), done("tenants", "list"), done("keys", "list", "acme", "--json")):
        assert made["api_key"] not in shown
        assert person["api_key"] not in shown


def test_a_tenants_limits_are_shown_and_changed_one_by_one(
    done: Callable[..., str], refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    done("tenants", "create", "acme")
    show = ("tenants", "limits", "acme", "--json")
    changes = (
        *("--submits-per-second", "2.5", "--open-jobs", "none"),
        *("--running-jobs", "7", "--streams", "1000000", "--asset-bytes", "5000000"),
    )
    limits = {
        "tenant": "acme",
        "submits_per_second": "2.5",
        "open_jobs": "none",
        "running_jobs": "7",
        "streams": "1000000",
        "asset_bytes": "5000000",
    }
    assert json.loads(done(*show, *changes)) == limits
    assert main.run(["tenants", "limits", "acme", "--open-jobs", "0"]) == 2
    assert "'none' or 'default'" in " ".join(capsys.readouterr().err.split())
    assert "there is no tenant 'initech'" in refused("tenants", "limits", "initech")
    assert json.loads(done(*show, "--streams", "default")) == {**limits, "streams": "default"}
    assert json.loads(done(*show)) == {**limits, "streams": "default"}


def test_a_tenants_budget_is_shown_and_changed_part_by_part(done: Callable[..., str]) -> None:
    def budget(*words: str) -> list[str]:
        shown: dict[str, str] = json.loads(done("tenants", "budget", "acme", *words, "--json"))
        assert list(shown) == [
            *("tenant", "daily_tokens", "daily_cost_dollars", "used_tokens", "used_cost_dollars"),
        ]
        return list(shown.values())[1:]

    done("tenants", "create", "acme")
    assert budget() == ["default", "default", "0", "0.000000"]
    assert budget("--daily-tokens", "2000000") == ["2000000", "default", "0", "0.000000"]
    assert budget("--daily-cost-dollars", "12.5") == ["2000000", "12.5", "0", "0.000000"]
    assert budget("--daily-tokens", "none") == ["none", "12.5", "0", "0.000000"]
    assert budget("--daily-tokens", "default", "--daily-cost-dollars", "0.0000001")[:2] == ["default", "1e-06"]
    assert budget() == ["default", "1e-06", "0", "0.000000"]


def test_a_budget_that_cannot_be_is_refused(done: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    done("tenants", "create", "acme")
    for words in (["--daily-tokens", "1.5"], ["--daily-cost-dollars", "0"], ["--daily-cost-dollars", "nan"]):
        assert main.run(["tenants", "budget", "acme", *words]) == 2
        assert "'none' or 'default'" in " ".join(capsys.readouterr().err.split())


def test_a_tenants_model_is_a_new_version_of_its_policy(done: Callable[..., str]) -> None:
    done("tenants", "create", "acme")
    named = json.loads(done("tenants", "model", "acme", "openai:gpt-5", "--json"))
    assert named == {"tenant": "acme", "model": "openai:gpt-5", "policy_version": "2"}
    done("tenants", "mode", "acme", "require-human")
    assert json.loads(done("tenants", "model", "acme", "default", "--json"))["policy_version"] == "4"


def test_reuse_is_switched_by_a_new_version_of_the_policy(done: Callable[..., str], folder: Path) -> None:
    done("tenants", "create", "acme")
    switched = json.loads(done("tenants", "reuse", "acme", "off", "--json"))
    assert switched == {"tenant": "acme", "reuse_evidence": "off", "policy_version": "2"}
    assert asyncio.run(reuses(folder)) is False
    done("tenants", "mode", "acme", "require-human")
    assert asyncio.run(reuses(folder)) is False
    assert json.loads(done("tenants", "reuse", "acme", "on", "--json"))["policy_version"] == "4"
    assert asyncio.run(reuses(folder)) is True


async def reuses(folder: Path) -> bool:
    database = Database(f"sqlite:///{folder / 'imprimatur.db'}")
    try:
        async with database.read() as reader:
            tenant_id = await tenants.find_tenant(reader, "acme")
            assert tenant_id is not None
            return (await tenants.live_policy(reader, tenant_id)).policy.reuse_evidence
    finally:
        await database.close()


def test_a_database_without_the_schema_leads_to_migrate(refused: Callable[..., str], folder: Path) -> None:
    (folder / "imprimatur.db").write_bytes(b"")
    for words in (("tenants", "list"), ("keys", "list", "acme")):
        assert "run `imprimatur migrate`" in refused(*words)


def test_a_folder_without_a_database_is_not_given_one(refused: Callable[..., str], folder: Path) -> None:
    (folder / "imprimatur.db").unlink()
    for words in (("migrate",), ("tenants", "list")):
        assert "there is no database in imprimatur-data" in refused(*words)
    assert not (folder / "imprimatur.db").exists()


def test_what_does_not_exist_is_one_clear_line(refused: Callable[..., str]) -> None:
    nothing = str(uuid.uuid4())
    for words in (
        ("tenants", "mode", "nobody", "require-human"),
        ("tenants", "webhook-secret", "nobody"),
        ("tenants", "budget", "nobody"),
        ("tenants", "budget", "nobody", "--daily-tokens", "5"),
        ("tenants", "model", "nobody", "default"),
        ("tenants", "reuse", "nobody", "off"),
        ("keys", "create", "nobody"),
        ("keys", "list", "nobody"),
    ):
        assert "there is no tenant 'nobody'" in refused(*words), words
    assert nothing in refused("keys", "revoke", nothing)


def test_a_tenants_name_is_given_once(done: Callable[..., str], refused: Callable[..., str]) -> None:
    done("tenants", "create", "acme")
    assert "'acme'" in refused("tenants", "create", "acme")


def test_a_secret_cannot_be_shown_without_the_vault(refused: Callable[..., str], folder: Path, sqlite_url: str) -> None:
    words = ("tenants", "webhook-secret", "acme")
    assert "IMPRIMATUR_VAULT_KEY" in refused(*words, "--database-url", sqlite_url)
    (folder / "vault.key").unlink()
    assert "vault.key" in refused(*words)


def test_a_database_that_does_not_answer_is_one_clear_line(refused: Callable[..., str]) -> None:
    nowhere = "postgresql://somebody:a-password@127.0.0.1:1/nothing"
    for words in (("migrate",), ("tenants", "list")):
        line = refused(*words, "--database-url", nowhere)
        assert "the database is out of reach" in line
        assert "a-password" not in line


# --- keys of the vault -----------------------------------------------------------------------------------


async def test_a_new_key_for_the_vault_opens_one(tmp_path: Path) -> None:
    first, second = await asyncio.gather(*(run("keys", "vault", *words, cwd=tmp_path) for words in (["--json"], [])))
    for key in (first.json["vault_key"], second.out.strip()):
        Vault.from_text(key)
    assert first.json["vault_key"] != second.out.strip()
