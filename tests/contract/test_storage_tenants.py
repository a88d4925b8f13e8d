"""Tenants, their keys and their policies."""

import asyncio
import uuid

import pytest
from sqlalchemy import select

from imprimatur.errors import AlreadyExists, NotFound
from imprimatur.evidence import Category
from imprimatur.identity import new_id
from imprimatur.policy import LivePolicy, Mode, Policy
from imprimatur.storage import schema, tenants
from imprimatur.storage.database import Database
from imprimatur.tenancy import Limits, Role
from tests import makers
from tests.contract.polling import lock_waiters


def version_and_policy(live: LivePolicy) -> tuple[int, Policy]:
    return live.version, live.policy


async def test_tenants_are_found_by_name_and_listed_oldest_first(database: Database) -> None:
    acme, globex = await makers.make_tenant(database, "acme"), await makers.make_tenant(database, "globex")
    async with database.read() as reader:
        assert await tenants.find_tenant(reader, "globex") == globex
        assert await tenants.find_tenant(reader, "initech") is None
        assert [tenant.id for tenant in await tenants.list_tenants(reader)] == [acme, globex]


async def test_a_name_is_taken_once(database: Database) -> None:
    await makers.make_tenant(database, "acme")
    with pytest.raises(AlreadyExists, match="acme"):
        await makers.make_tenant(database, "acme")


async def test_of_many_who_take_a_name_at_once_one_does(database: Database) -> None:
    answers = await asyncio.gather(*(makers.make_tenant(database, "acme") for _ in range(5)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(refused) == 4
    assert all(isinstance(answer, AlreadyExists) for answer in refused), refused


async def test_a_tenants_own_limits_come_with_its_keys_and_can_be_taken_back(database: Database) -> None:
    tenant = await makers.make_tenant(database, "acme")
    async with database.begin() as tx:
        key = await tenants.create_key(tx, tenant, name="ci", role=Role.SUBMITTER)
    for limits in (Limits(submits_per_second=0.5, open_jobs=0, streams=7), Limits(open_jobs=3), Limits()):
        async with database.begin() as tx:
            await tenants.put_limits(tx, "acme", limits)
        async with database.read() as reader:
            assert await tenants.limits_of(reader, "acme") == limits
            found = await tenants.find_key(reader, key)
        assert found is not None
        assert found.limits == limits


async def test_only_a_tenant_that_is_there_has_limits(database: Database) -> None:
    async with database.begin() as tx:
        with pytest.raises(NotFound, match="initech"):
            await tenants.limits_of(tx, "initech")
        with pytest.raises(NotFound, match="initech"):
            await tenants.put_limits(tx, "initech", Limits(open_jobs=1))


async def test_a_key_opens_its_tenant_until_it_is_revoked(database: Database) -> None:
    tenant = await makers.make_tenant(database, "acme")
    async with database.begin() as tx:
        key = await tenants.create_key(tx, tenant, name="ci", role=Role.SUBMITTER, user_id="ada")
        other = await tenants.create_key(tx, tenant, name="ops", role=Role.ADMIN)
    assert key.startswith(tenants.KEY_PREFIX)
    async with database.read() as reader:
        found = await tenants.find_key(reader, key)
        assert await tenants.find_key(reader, key + "x") is None
        assert await tenants.find_key(reader, "") is None
    assert found is not None
    assert (found.tenant_id, found.tenant_name, found.name) == (tenant, "acme", "ci")
    assert (found.role, found.user_id) == (Role.SUBMITTER, "ada")
    async with database.begin() as tx:
        await tenants.revoke_key(tx, found.id)
    async with database.read() as reader:
        assert await tenants.find_key(reader, key) is None
        assert await tenants.find_key(reader, other) is not None
        listed = await tenants.list_keys(reader, tenant)
    assert [(item.name, item.revoked_at is not None) for item in listed] == [("ci", True), ("ops", False)]


async def test_the_key_itself_is_not_kept(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    async with database.begin() as tx:
        key = await tenants.create_key(tx, tenant, name="ci", role=Role.ADMIN)
    async with database.read() as reader:
        row = (await reader.connection.execute(select(schema.api_keys))).one()
    assert key not in str(row)
    assert key.removeprefix(tenants.KEY_PREFIX).encode() not in row.key_hash


async def test_a_key_that_does_not_exist_cannot_be_revoked(database: Database) -> None:
    with pytest.raises(NotFound):
        async with database.begin() as tx:
            await tenants.revoke_key(tx, new_id())


async def test_a_new_tenant_has_the_default_policy(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    async with database.read() as reader:
        assert version_and_policy(await tenants.live_policy(reader, tenant)) == (1, Policy())


async def test_a_policy_that_is_put_is_the_live_one_at_once_for_its_tenant_only(database: Database) -> None:
    acme, globex = await makers.make_tenant(database), await makers.make_tenant(database)
    strict = Policy(
        mode=Mode.REQUIRE_HUMAN, auto_approve_threshold=0.99, blocked=frozenset({Category.SCAM, Category.HATE})
    )
    async with database.begin() as tx:
        assert await tenants.put_policy(tx, acme, strict) == 2
        kept = await tenants.keep_policies(tx, [acme, globex])
    assert {tenant: version_and_policy(live) for tenant, live in kept.items()} == {
        acme: (2, strict),
        globex: (1, Policy()),
    }
    async with database.read() as reader:
        assert version_and_policy(await tenants.live_policy(reader, acme)) == (2, strict)
        assert version_and_policy(await tenants.live_policy(reader, globex)) == (1, Policy())


async def test_policies_put_at_once_get_versions_of_their_own(database: Database) -> None:
    tenant = await makers.make_tenant(database)

    async def put(threshold: float) -> int:
        async with database.begin() as tx:
            return await tenants.put_policy(tx, tenant, Policy(auto_approve_threshold=threshold))

    versions = await asyncio.gather(*(put(0.5 + number / 100) for number in range(8)))
    assert sorted(versions) == [2, 3, 4, 5, 6, 7, 8, 9]
    async with database.read() as reader:
        live = await tenants.live_policy(reader, tenant)
    assert live.version == 9
    assert live.policy.auto_approve_threshold == 0.5 + versions.index(9) / 100


async def test_kept_policies_stay_in_force_until_the_transaction_ends(database: Database) -> None:
    """The roll-back switch waits for the results that are being written, and holds for all later ones."""
    acme, globex = await makers.make_tenant(database), await makers.make_tenant(database)
    order: list[str] = []

    async def switch(tenant: uuid.UUID) -> None:
        async with database.begin() as tx:
            await tenants.put_policy(tx, tenant, Policy(mode=Mode.REQUIRE_HUMAN))
        order.append("switched")

    async with database.begin() as tx:
        assert {live.version for live in (await tenants.keep_policies(tx, [acme, globex])).values()} == {1}
        switching = [asyncio.create_task(switch(tenant)) for tenant in (globex, acme)]
        await lock_waiters(database, 2)
        async with database.read() as reader:
            assert (await tenants.live_policy(reader, acme)).version == 1
        order.append("written")
    await asyncio.gather(*switching)
    assert order == ["written", "switched", "switched"]


async def test_kept_policies_keep_no_one_from_submitting_or_from_keeping_them_too(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    async with database.begin() as tx:
        await tenants.keep_policies(tx, [tenant])
        others = asyncio.gather(makers.submit(database, makers.new_job(tenant)), kept(database, tenant))
        if database.on_postgresql:  # SQLite has one writer
            await others
    await others


async def kept(database: Database, tenant: uuid.UUID) -> LivePolicy:
    async with database.begin() as tx:
        return (await tenants.keep_policies(tx, [tenant]))[tenant]


async def test_a_policy_that_was_waited_for_is_the_one_that_is_kept(database: Database) -> None:
    acme, globex = await makers.make_tenant(database), await makers.make_tenant(database)
    strict = Policy(mode=Mode.REQUIRE_HUMAN)
    async with database.begin() as tx:
        await tenants.put_policy(tx, acme, strict)
        keeping = asyncio.create_task(kept(database, acme))
        await lock_waiters(database, 1)
        if database.on_postgresql:  # nor is another tenant's held up
            assert version_and_policy(await kept(database, globex)) == (1, Policy())
    assert version_and_policy(await keeping) == (2, strict)


async def test_to_keep_no_policy_is_no_fault(database: Database) -> None:
    async with database.begin() as tx:
        assert await tenants.keep_policies(tx, []) == {}
