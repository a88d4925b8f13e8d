"""Who of the waiting jobs is next: by priority with its share, by turns among the tenants of one, oldest first.

A tenant's turn comes the later the more of its jobs are under way, and among those with as many, the later it was
served last: so each of those who wait is served once before any is served twice, and a long queue keeps nobody else
waiting. None has more under way than its limit allows, and who has nothing that may start now takes no room from the
others. What a look costs grows with the number of queues and with the room, and not with how many jobs wait.
"""

import random
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass

from sqlalchemy import Executable, Float, Integer, Uuid, bindparam, select, text, true
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

from imprimatur.job import Priority
from imprimatur.storage import clock, schema
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.inserts import insert_into
from imprimatur.storage.many import Each, Many
from imprimatur.turns import SHARES, first_place

#: Jobs of a queue that are passed over because their deadline has passed; they are given up soon.
_PASSED_OVER = 100

#: `heads`: of every (priority, tenant) with something due the job that is next. Queues that could not come to their
#: turn within the room even with that one are left aside. Of the others as many jobs are looked at, `depth`, as it
#: takes to fill the room if all queues are long: it is poured like water over what each tenant has under way. Nothing
#: is joined to `heads`: by old statistics the planner would compare each row with each.
_CHOOSE = """
WITH RECURSIVE heads AS ({heads}),
counted AS (
  SELECT *, CAST(sum(one) OVER (PARTITION BY tenant_id) AS integer) AS jobs FROM (
    SELECT id, run_at, priority, tenant_id, 0 AS one FROM heads
    UNION ALL
    SELECT NULL, NULL, NULL, tenant_id, 1 FROM jobs WHERE state = 'queued' AND released_at IS NOT NULL
    UNION ALL
    SELECT NULL, NULL, NULL, tenant_id, 1 FROM jobs WHERE state = 'running'
  ) AS heads_and_jobs_under_way
),
queues AS (
  SELECT id, run_at, priority, tenant_id, jobs,
    (SELECT served_at FROM turns WHERE turns.tenant_id = counted.tenant_id) AS served_at,
    nullif(coalesce(
      (SELECT running_jobs FROM tenants WHERE tenants.id = counted.tenant_id), :most_of_a_tenant
    ), 0) - jobs AS room
  FROM counted WHERE id IS NOT NULL
),
in_line AS (
  SELECT *, row_number() OVER line AS place, sum(jobs) OVER line AS jobs_so_far FROM queues
  WHERE room IS NULL OR room > 0
  WINDOW line AS (PARTITION BY priority ORDER BY jobs, served_at NULLS FIRST, run_at, id ROWS UNBOUNDED PRECEDING)
),
levelled AS (
  SELECT *, min((:room + jobs_so_far + place - 1) / place) OVER (PARTITION BY priority) - jobs AS depth
  FROM in_line WHERE place <= :room
),
looked_at AS (
  SELECT id, run_at, priority, tenant_id, served_at, jobs, room,
    CASE WHEN room < depth THEN room ELSE depth END AS depth
  FROM levelled WHERE depth > 0
),
due AS ({due}),
in_order AS (
  SELECT id, tenant_id, room, number = depth AND depth < coalesce(room, depth + 1) AS is_last,
    CASE priority {first_places} END
      + (row_number() OVER (PARTITION BY priority ORDER BY jobs + number, served_at NULLS FIRST, run_at, id) - 1)
      * CASE priority {steps} END AS place
  FROM due
),
within_limits AS (
  SELECT id, is_last, place, room, row_number() OVER (PARTITION BY tenant_id ORDER BY place) AS of_tenant FROM in_order
)
SELECT id, is_last FROM within_limits WHERE room IS NULL OR of_tenant <= room ORDER BY place, id LIMIT :room
"""

#: PostgreSQL goes through `ix_jobs_in_line` by single steps, each to the first entry behind a place: to the next job,
#: or beyond all jobs of the queue. Whatever it believes to know of the table, no other index serves that: the condition
#: is spelt as those of others are not.
_STEP = """
  CROSS JOIN LATERAL (
    SELECT id, run_at, deadline_at, priority, tenant_id FROM jobs
    WHERE coalesce(state, '') = 'queued' AND released_at IS NULL
      AND (priority, tenant_id, run_at, id) > ({place}) {condition}
    ORDER BY priority, tenant_id, run_at, id LIMIT 1
  ) AS following
"""
_HEADS_POSTGRESQL = """
SELECT id, run_at, priority, tenant_id FROM (
  WITH RECURSIVE visited AS (
    (
      SELECT id, run_at, deadline_at, priority, tenant_id, 0 AS passed_over FROM jobs
      WHERE coalesce(state, '') = 'queued' AND released_at IS NULL
      ORDER BY priority, tenant_id, run_at, id LIMIT 1
    )
    UNION ALL
    SELECT following.*, CASE WHEN following.tenant_id = visited.tenant_id THEN visited.passed_over + 1 ELSE 0 END
    FROM visited {step}
  )
  SELECT * FROM visited WHERE run_at <= {now} AND deadline_at > {now}
) AS found
"""
_BEYOND = "visited.deadline_at > {now} OR visited.run_at > {now} OR visited.passed_over >= {most}"
_NEXT_HEAD = """
  visited.priority, visited.tenant_id, CASE WHEN {beyond} THEN 'infinity' ELSE visited.run_at END, visited.id
"""
_DUE_POSTGRESQL = """
SELECT * FROM (
  WITH RECURSIVE visited AS (
    SELECT *, 1 AS number, 0 AS passed_over, true AS is_due FROM looked_at
    UNION ALL
    SELECT following.id, following.run_at, visited.priority, visited.tenant_id, visited.served_at, visited.jobs,
      visited.room, visited.depth, visited.number + CAST(following.deadline_at > {now} AS integer),
      visited.passed_over + CAST(following.deadline_at <= {now} AS integer), following.deadline_at > {now}
    FROM visited {step}
    WHERE following.priority = visited.priority AND following.tenant_id = visited.tenant_id
      AND following.run_at <= {now}
  )
  SELECT * FROM visited WHERE is_due
) AS found
"""

#: SQLite has no such steps. It looks for every tenant, and at as many jobs of each as there is room for.
_FIRST_SQLITE = """
  SELECT id FROM (
    SELECT id, deadline_at FROM jobs AS waiting
    WHERE coalesce(state, '') = 'queued' AND released_at IS NULL AND run_at <= {now}
      AND priority = queue.priority AND tenant_id = queue.tenant_id
    ORDER BY run_at, id LIMIT {most} + {limit}
  ) WHERE deadline_at > {now} LIMIT {limit}
"""
_HEADS_SQLITE = """
SELECT jobs.id, jobs.run_at, queue.priority, queue.tenant_id
FROM (SELECT tenants.id AS tenant_id, priorities.priority FROM tenants CROSS JOIN ({priorities}) AS priorities) AS queue
JOIN jobs ON jobs.id IN ({first})
"""
_DUE_SQLITE = """
SELECT * FROM (
  SELECT jobs.id, jobs.run_at, queue.priority, queue.tenant_id, served_at, jobs, room, depth,
    row_number() OVER (PARTITION BY queue.priority, queue.tenant_id ORDER BY jobs.run_at, jobs.id) AS number
  FROM looked_at AS queue JOIN jobs ON jobs.id IN ({first})
) WHERE number <= depth
"""


def _on_postgresql(now: str) -> Executable:
    beyond = _BEYOND.format(now=now, most=_PASSED_OVER)
    to_head = _STEP.format(place=_NEXT_HEAD.format(beyond=beyond), condition="")
    to_next = _STEP.format(
        place="visited.priority, visited.tenant_id, visited.run_at, visited.id",
        condition=f"AND visited.number < visited.depth AND visited.passed_over < {_PASSED_OVER}",
    )
    return _statement(
        heads=_HEADS_POSTGRESQL.format(step=to_head, now=now), due=_DUE_POSTGRESQL.format(step=to_next, now=now)
    )


def _on_sqlite(now: str) -> Executable:
    one, many = (_FIRST_SQLITE.format(now=now, most=_PASSED_OVER, limit=limit) for limit in ("1", ":room"))
    priorities = " UNION ALL ".join(f"SELECT {int(one)} AS priority" for one in Priority)
    return _statement(heads=_HEADS_SQLITE.format(priorities=priorities, first=one), due=_DUE_SQLITE.format(first=many))


def _statement(*, heads: str, due: str) -> Executable:
    chosen = _CHOOSE.format(
        heads=heads,
        due=due,
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
    True: _on_postgresql(str(clock.now().compile(dialect=PGDialect()))),  # type: ignore[no-untyped-call]  # SQLAlchemy says nothing of it
    False: _on_sqlite(str(clock.now().compile(dialect=SQLiteDialect()))),
}


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Jobs in the order in which they are to start; `more`: others may start too, if there is room left when these
    have been put up."""

    ids: list[uuid.UUID]
    more: bool


async def next_ones(
    reader: Reader,
    *,
    room: int,
    most_of_a_tenant: int = 0,
    chances: Callable[[Priority], float] = lambda _: random.random(),  # noqa: S311
) -> Chosen:
    """Up to `room` jobs that may start now. No more of a tenant than its share if all queues were long, so that fewer
    than `room` may come although there are `more`.

    Args:
        most_of_a_tenant: may be under way, of one that has no limit of its own; 0: no limit.
        chances: draws uniformly from [0, 1): what gives the priorities their shares.
    """
    places = {_parameter(one): first_place(one, chances(one)) for one in Priority}
    found = await reader.connection.execute(
        _NEXT[reader.on_postgresql], {"room": room, "most_of_a_tenant": most_of_a_tenant, **places}
    )
    rows = found.all()
    return Chosen(ids=[row.id for row in rows], more=len(rows) < room and any(row.is_last for row in rows))


async def served(tx: Transaction, tenants: Collection[uuid.UUID]) -> None:
    """Note that these tenants have had their turn."""
    await _SERVED.execute(tx, [{"tenant_id": one} for one in sorted(tenants)])


def _serving(each: Each) -> Executable:
    inserting = insert_into(schema.turns, on_postgresql=each.on_postgresql)
    given = select(each["tenant_id"], clock.now()).where(true())  # SQLite takes ON for that of a join otherwise
    statement: Executable = inserting.from_select(["tenant_id", "served_at"], given).on_conflict_do_update(
        index_elements=["tenant_id"], set_={"served_at": clock.now()}
    )
    return statement


_SERVED = Many({"tenant_id": Uuid()}, _serving)
