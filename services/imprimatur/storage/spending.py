"""What tenants have spent at AI providers today, and what they may.

One row a tenant, counted in the transaction that books an attempt: exactly once, whatever is repeated, and whichever
reviewer it was. Attempts that cost nothing, as all of the builtin engine, touch nothing here.
"""

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import case, select, tuple_, update

from imprimatur.budgets import Budget, Used
from imprimatur.storage import clock
from imprimatur.storage.attempts import Spent
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.inserts import insert_into
from imprimatur.storage.schema import attempts, spending, tenants
from imprimatur.storage.tenants import no_tenant

_BUDGET = (tenants.c.daily_tokens, tenants.c.daily_cost_micros)
_COST = (attempts.c.input_tokens, attempts.c.output_tokens, attempts.c.cost_micros)


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What one attempt has cost in all; `claim_no` tells the job's attempts apart."""

    tenant_id: uuid.UUID
    job_id: uuid.UUID
    claim_no: int
    spent: Spent


async def count(tx: Transaction, bills: Sequence[Bill]) -> None:
    """Add to the present day what these attempts cost beyond what is booked on them. Call it before they are booked."""
    costly = {(bill.job_id, bill.claim_no): bill for bill in bills if _tokens(bill.spent) or bill.spent.cost_micros}
    if not costly:
        return
    added: dict[uuid.UUID, Used] = defaultdict(Used)
    for key, booked in (await _booked(tx, list(costly))).items():
        bill = costly[key]
        before = added[bill.tenant_id]
        added[bill.tenant_id] = Used(
            tokens=before.tokens + max(0, _tokens(bill.spent) - booked.tokens),
            cost_micros=before.cost_micros + max(0, bill.spent.cost_micros - booked.cost_micros),
        )
    await _add(tx, added)


def _tokens(spent: Spent) -> int:
    return spent.input_tokens + spent.output_tokens


async def _booked(tx: Transaction, keys: Sequence[tuple[uuid.UUID, int]]) -> dict[tuple[uuid.UUID, int], Used]:
    """Locked: a repetition waits until the first try is committed, and then finds it."""
    rows = await tx.connection.execute(
        select(attempts.c.job_id, attempts.c.claim_no, *_COST)
        .where(
            attempts.c.job_id.in_({job_id for job_id, _ in keys}),  # SQLite finds pairs by no index
            tuple_(attempts.c.job_id, attempts.c.claim_no).in_(sorted(keys)),
        )
        .order_by(attempts.c.job_id, attempts.c.claim_no)
        .with_for_update()
    )
    return {
        (row.job_id, row.claim_no): Used(tokens=row.input_tokens + row.output_tokens, cost_micros=row.cost_micros)
        for row in rows
    }


async def _add(tx: Transaction, added: Mapping[uuid.UUID, Used]) -> None:
    rows = [
        {"tenant_id": tenant_id, "day": clock.today(), **asdict(used)}
        for tenant_id, used in sorted(added.items())  # in one order, so that two batches never wait in a circle
        if used != Used()
    ]
    if not rows:
        return
    given = insert_into(spending, on_postgresql=tx.on_postgresql).values(rows)
    same_day = spending.c.day == given.excluded.day
    await tx.connection.execute(
        given.on_conflict_do_update(
            index_elements=[spending.c.tenant_id],
            set_={
                "day": given.excluded.day,
                **{
                    name: case((same_day, spending.c[name] + given.excluded[name]), else_=given.excluded[name])
                    for name in ("tokens", "cost_micros")
                },
            },
        )
    )


async def of_tenant(reader: Reader, tenant_id: uuid.UUID) -> tuple[Budget, Used]:
    """A tenant's own budget, and what it has spent today."""
    row = (await reader.connection.execute(_found().where(tenants.c.id == tenant_id))).one()
    return _budget_of(row), _used_of(row)


async def by_name(reader: Reader, name: str) -> tuple[Budget, Used]:
    """The same, for an operator.

    Raises:
        NotFound: there is no such tenant.
    """
    row = (await reader.connection.execute(_found().where(tenants.c.name == name))).one_or_none()
    if row is None:
        raise no_tenant(name)
    return _budget_of(row), _used_of(row)


async def put_budget(tx: Transaction, name: str, budget: Budget) -> None:
    """Replace a tenant's own budget, for every attempt that begins from now on.

    Raises:
        NotFound: there is no such tenant.
    """
    changed = await tx.connection.execute(
        update(tenants).where(tenants.c.name == name).values(asdict(budget)).returning(tenants.c.id)
    )
    if changed.one_or_none() is None:
        raise no_tenant(name)


def _found() -> Any:
    is_today = (spending.c.tenant_id == tenants.c.id) & (spending.c.day == clock.today())
    return select(*_BUDGET, spending.c.tokens, spending.c.cost_micros).outerjoin_from(tenants, spending, is_today)


def _budget_of(row: Any) -> Budget:
    return Budget(daily_tokens=row.daily_tokens, daily_cost_micros=row.daily_cost_micros)


def _used_of(row: Any) -> Used:
    return Used(tokens=row.tokens or 0, cost_micros=row.cost_micros or 0)
