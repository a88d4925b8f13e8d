"""Evidence that is kept for equal creatives: what it was good for, and how it is forgotten. How it is made and found is
in `flights` and `landings`."""

import uuid
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    and_,
    delete,
    func,
    select,
)

from imprimatur.evidence import EngineIdentity
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.landings import wake_all
from imprimatur.storage.locks import in_locked
from imprimatur.storage.schema import evidence


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Which evidence of a tenant; an empty field means all."""

    policy_version: int | None = None
    engine: str = ""
    engine_version: str = ""
    model: str = ""
    job_id: uuid.UUID | None = None

    def condition(self, tenant_id: uuid.UUID) -> ColumnElement[bool]:
        """As a condition on evidence."""
        wanted = [evidence.c.tenant_id == tenant_id]
        if self.policy_version is not None:
            wanted.append(evidence.c.policy_version == self.policy_version)
        for name in ("engine", "engine_version", "model"):
            if value := getattr(self, name):
                wanted.append(evidence.c[name] == value)
        if self.job_id is not None:
            wanted.append(evidence.c.job_id == self.job_id)
        return and_(*wanted)


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """How many pieces of evidence went, and whether more may be left."""

    number: int
    more: bool


async def forget(tx: Transaction, tenant_id: uuid.UUID, scope: Scope, *, limit: int) -> Forgotten:
    """Remove evidence, so that it is made anew: what is being made just now is not kept, and who waits for it looks
    again."""
    chosen = select(evidence.c.key).where(scope.condition(tenant_id)).order_by(evidence.c.key).limit(limit)
    removed = delete(evidence).where(in_locked(evidence.c.key, chosen.with_for_update()))
    told = (evidence.c.key, func.length(evidence.c.content).label("size"), evidence.c.awaited)
    rows = (await tx.connection.execute(removed.returning(*told))).all()
    await wake_all(tx, [row.key for row in rows if row.awaited and row.size is None])
    return Forgotten(number=sum(row.size is not None for row in rows), more=len(rows) == limit)


@dataclass(frozen=True, kw_only=True)
class Use:
    """What the evidence of one engine, as far as it is kept, was good for. `looks`: what it took to make it;
    tokens in and out together, cost in millionths of a US dollar, as what was saved."""

    engine: EngineIdentity
    looks: int
    hits: int
    tokens: int
    cost_micros: int


async def use_of(reader: Reader, tenant_id: uuid.UUID) -> list[Use]:
    """What a tenant's evidence was good for, by engine."""
    named = (evidence.c.engine, evidence.c.engine_version, evidence.c.model)
    tokens = evidence.c.hits * (evidence.c.input_tokens + evidence.c.output_tokens)
    rows = await reader.connection.execute(
        select(
            *named,
            func.count().label("looks"),
            func.sum(evidence.c.hits).label("hits"),
            func.sum(tokens).label("tokens"),
            func.sum(evidence.c.hits * evidence.c.cost_micros).label("cost"),
        )
        .where(evidence.c.tenant_id == tenant_id, evidence.c.content.is_not(None))
        .group_by(*named)
        .order_by(*named)
    )
    return [
        Use(
            engine=EngineIdentity(name=row.engine, version=row.engine_version, model=row.model),
            looks=row.looks,
            hits=int(row.hits),
            tokens=int(row.tokens),
            cost_micros=int(row.cost),
        )
        for row in rows
    ]
