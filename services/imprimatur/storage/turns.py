"""Who of the waiting jobs is next: by priority with its share, by turns among the tenants of one, oldest first.

A tenant's turn comes the later the more of its jobs are under way, so that one with a long queue does not keep
another waiting, and none has more under way than its limit allows. However many wait, only the first few of each
tenant are looked at.
"""

import random
import uuid
from collections.abc import Callable

from sqlalchemy import Dialect, Executable, Float, Integer, Uuid, bindparam, text
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

from imprimatur.job import Priority
from imprimatur.storage import clock
from imprimatur.storage.database import Reader
from imprimatur.turns import SHARES, first_place

_CHOOSE = """
WITH RECURSIVE queues AS ({queues}),
under_way AS (
  SELECT tenant_id, count(*) AS jobs FROM (
    SELECT tenant_id FROM jobs WHERE state = 'queued' AND released_at IS NOT NULL
    UNION ALL
    SELECT tenant_id FROM jobs WHERE state = 'running'
  ) AS one_by_one GROUP BY tenant_id
),
by_turns AS (
  SELECT due.id, due.run_at, queues.priority, queues.tenant_id,
    nullif(coalesce(tenants.running_jobs, :most_of_a_tenant), 0) - coalesce(under_way.jobs, 0) AS room,
    coalesce(under_way.jobs, 0) + row_number() OVER (
      PARTITION BY queues.priority, queues.tenant_id ORDER BY due.run_at, due.id
    ) AS turn
  FROM queues
  JOIN tenants ON tenants.id = queues.tenant_id
  LEFT JOIN under_way ON under_way.tenant_id = queues.tenant_id
  {due}
  WHERE due.run_at <= {now} AND due.deadline_at > {now}
),
in_order AS (
  SELECT id, tenant_id, room,
    CASE priority {first_places} END
      + (row_number() OVER (PARTITION BY priority ORDER BY turn, run_at, id) - 1) * CASE priority {steps} END AS place
  FROM by_turns
),
within_limits AS (
  SELECT id, place, room, row_number() OVER (PARTITION BY tenant_id ORDER BY place) AS of_tenant FROM in_order
)
SELECT id FROM within_limits WHERE room IS NULL OR of_tenant <= room ORDER BY place, id LIMIT :room
"""

#: Every (priority, tenant) with something waiting. PostgreSQL finds each by one look into the index, whose other
#: entries it passes over; SQLite reads them all.
_QUEUES_POSTGRESQL = """
  (
    SELECT priority, tenant_id FROM jobs
    WHERE state = 'queued' AND released_at IS NULL
    ORDER BY priority, tenant_id LIMIT 1
  )
  UNION ALL
  SELECT following.priority, following.tenant_id FROM queues CROSS JOIN LATERAL (
    SELECT priority, tenant_id FROM jobs
    WHERE state = 'queued' AND released_at IS NULL AND (priority, tenant_id) > (queues.priority, queues.tenant_id)
    ORDER BY priority, tenant_id LIMIT 1
  ) AS following
"""
_QUEUES_SQLITE = "SELECT DISTINCT priority, tenant_id FROM jobs WHERE state = 'queued' AND released_at IS NULL"

#: The first of each.
_FIRST = """
  SELECT first.id, first.run_at, first.deadline_at FROM jobs AS first
  WHERE first.state = 'queued' AND first.released_at IS NULL
    AND first.priority = queues.priority AND first.tenant_id = queues.tenant_id
  ORDER BY first.run_at, first.id LIMIT {depth}
"""
#: How many of each: as many as fill the room twice, with what the others of the same priority have. SQLite cannot
#: count them at this place, and has few tenants.
_DEPTH_POSTGRESQL = """
  2 + 2 * :room / (SELECT count(*) FROM queues AS alike WHERE alike.priority = queues.priority)
"""
_DEPTH_SQLITE = ":room"
_DUE_POSTGRESQL = "CROSS JOIN LATERAL ({first}) AS due"
_DUE_SQLITE = "JOIN jobs AS due ON due.id IN (SELECT id FROM ({first}))"


def _statement(queues: str, due: str, depth: str, dialect: Dialect) -> Executable:
    now = str(clock.now().compile(dialect=dialect))
    chosen = _CHOOSE.format(
        queues=queues,
        due=due.format(first=_FIRST.format(depth=depth)),
        now=now,
        first_places=" ".join(f"WHEN {int(one)} THEN :{_parameter(one)}" for one in Priority),
        steps=" ".join(f"WHEN {int(one)} THEN {1 / share}" for one, share in SHARES.items()),
    )
    places = [bindparam(_parameter(one), type_=Float()) for one in Priority]
    return (
        text(chosen)
        .bindparams(*(bindparam(one, type_=Integer()) for one in ("room", "most_of_a_tenant")), *places)
        .columns(id=Uuid())
    )


def _parameter(priority: Priority) -> str:
    return f"first_{priority.name.lower()}"


_NEXT = {
    True: _statement(_QUEUES_POSTGRESQL, _DUE_POSTGRESQL, _DEPTH_POSTGRESQL, PGDialect()),  # type: ignore[no-untyped-call]  # SQLAlchemy says nothing of it
    False: _statement(_QUEUES_SQLITE, _DUE_SQLITE, _DEPTH_SQLITE, SQLiteDialect()),
}


async def next_ones(
    reader: Reader,
    *,
    room: int,
    most_of_a_tenant: int = 0,
    chances: Callable[[Priority], float] = lambda _: random.random(),  # noqa: S311
) -> list[uuid.UUID]:
    """Up to `room` due jobs, in the order in which they are to start. Without more than a few of one tenant while
    others wait too, so that fewer than `room` may come although more are due.

    Args:
        most_of_a_tenant: may be under way, of one that has no limit of its own; 0: no limit.
        chances: draws uniformly from [0, 1): what gives the priorities their shares.
    """
    places = {_parameter(one): first_place(one, chances(one)) for one in Priority}
    found = await reader.connection.execute(
        _NEXT[reader.on_postgresql], {"room": room, "most_of_a_tenant": most_of_a_tenant, **places}
    )
    return list(found.scalars())
