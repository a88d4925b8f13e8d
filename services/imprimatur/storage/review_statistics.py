"""Counts about the people: what waits for them now, and what they decided in a window of time.

Windows are half open: `since` belongs to them, `until` does not. What was decided is read from the record of decisions,
which outlives the jobs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    and_,
    case,
    func,
    literal,
    or_,
    select,
    type_coerce,
)

from imprimatur.human import Agreement, DueHours
from imprimatur.job import Priority
from imprimatur.storage import clock
from imprimatur.storage.clock import Instant
from imprimatur.storage.database import Reader
from imprimatur.storage.jobs import Owner
from imprimatur.storage.review_queue import IS_HELD, WAITS
from imprimatur.storage.schema import human_decisions, jobs

MOST_DECIDERS = 500
MOST_HOURS = 5000
_HOUR_MICROSECONDS = 3_600_000_000


@dataclass(frozen=True, kw_only=True)
class WaitingStats:
    """What waits now at one priority."""

    priority: Priority
    waiting: int = 0
    claimed: int = 0
    overdue: int = 0
    oldest_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class DeciderStats:
    """What one person, or everybody (no name), decided. Times run from when people were asked; None: not known."""

    reviewer: str = ""
    decisions: int = 0
    approved: int = 0
    agreed: int = 0
    overrode: int = 0
    active_hours: int = 0
    median_seconds: float | None = None

    @property
    def decisions_per_hour(self) -> float:
        """Over the hours in which there was a decision."""
        return self.decisions / self.active_hours if self.active_hours else 0.0


@dataclass(frozen=True, kw_only=True)
class OverrideStats:
    """How often people decided against the AI, of what has `name`: a category, or a row of the decision table."""

    name: str
    decisions: int
    agreed: int
    overrode: int

    @property
    def advised(self) -> int:
        """Decisions on which the AI had advised."""
        return self.agreed + self.overrode

    @property
    def override_rate(self) -> float:
        """0 when there was no advice."""
        return self.overrode / self.advised if self.advised else 0.0


@dataclass(frozen=True, kw_only=True)
class DeciderHour:
    """What one person decided in the hour that begins at `hour` (UTC)."""

    hour: datetime
    reviewer: str
    decisions: int


# --- now -------------------------------------------------------------------------------------------------


async def waiting(reader: Reader, owner: Owner, due: DueHours) -> list[WaitingStats]:
    """One line for each priority, HIGH first."""
    found = await _waiting_by_priority(reader, due, owner.condition())
    return [WaitingStats(**{**found.get(priority, {}), "priority": priority}) for priority in sorted(Priority)]


async def waiting_everywhere(reader: Reader, due: DueHours) -> Mapping[Priority, WaitingStats]:
    """The same over all tenants, for gauges; priorities at which nothing waits are left out."""
    found = await _waiting_by_priority(reader, due)
    return {priority: WaitingStats(**{**line, "priority": priority}) for priority, line in found.items()}


async def _waiting_by_priority(
    reader: Reader, due: DueHours, *conditions: ColumnElement[bool]
) -> dict[Priority, dict[str, Any]]:
    now = await clock.present(reader)
    oldest = func.min(jobs.c.awaiting_since)
    rows = await reader.connection.execute(
        select(
            jobs.c.priority,
            func.count().label("waiting"),
            func.count().filter(IS_HELD).label("claimed"),
            func.count().filter(_is_overdue(due, now)).label("overdue"),
            clock.seconds_between(literal(now, Instant()), oldest).label("oldest_seconds"),
        )
        .where(WAITS, *conditions)
        .group_by(jobs.c.priority)
    )
    return {Priority(row.priority): dict(row._mapping) for row in rows}


def _is_overdue(due: DueHours, now: datetime) -> ColumnElement[bool]:
    timed = [priority for priority in Priority if due.of(priority)]
    late = (
        and_(
            jobs.c.priority == priority,
            jobs.c.awaiting_since <= literal(now - timedelta(hours=due.of(priority)), Instant()),
        )
        for priority in timed
    )
    return or_(literal(False), *late)  # of SQL


# --- a window of time ------------------------------------------------------------------------------------

_d = human_decisions.c
_AGREED, _OVERRODE = _d.agreement == Agreement.AGREED, _d.agreement == Agreement.OVERRODE


def _during(owner: Owner, since: datetime, until: datetime) -> ColumnElement[bool]:
    mine = and_(_d.tenant_id == owner.tenant_id, _d.decided_at >= since, _d.decided_at < until)
    return and_(mine, _d.submitted_by == owner.user_id) if owner.user_id else mine


def _counts() -> tuple[ColumnElement[Any], ...]:
    return (
        func.count().label("decisions"),
        func.count().filter(_AGREED).label("agreed"),
        func.count().filter(_OVERRODE).label("overrode"),
    )


async def deciders(reader: Reader, owner: Owner, since: datetime, until: datetime) -> tuple[DeciderStats, ...]:
    """Everybody together, then one line for each person, most decisions first."""
    found = _during(owner, since, until)
    lines: list[DeciderStats] = []
    for by_person in (False, True):
        rows = await reader.connection.execute(_medians(found, by_person=by_person))
        medians = {row.who: row.seconds for row in rows}
        for row in await reader.connection.execute(_numbers(reader, found, by_person=by_person)):
            numbers = dict(row._mapping)
            who = numbers.pop("who")
            lines.append(DeciderStats(**numbers, reviewer=who, median_seconds=medians.get(who)))
    return tuple(lines)


def _who(*, by_person: bool) -> ColumnElement[str]:
    return (_d.reviewer if by_person else literal("")).label("who")


def _numbers(reader: Reader, found: ColumnElement[bool], *, by_person: bool) -> Select[Any]:
    hours = func.count(func.distinct(_hour_of(reader)))
    approved = func.count().filter(_d.decision == "approved")
    numbers = (*_counts(), approved.label("approved"), hours.label("active_hours"))
    counted = select(_who(by_person=by_person), *numbers).where(found)
    if not by_person:
        return counted
    return counted.group_by(_d.reviewer).order_by(func.count().desc(), _d.reviewer).limit(MOST_DECIDERS)


def _medians(found: ColumnElement[bool], *, by_person: bool) -> Select[Any]:
    """Nearest rank: of n times in order, the one at ceil(n / 2)."""
    seconds = clock.seconds_between(_d.decided_at, _d.awaiting_since)
    among = [_d.reviewer] if by_person else None
    ranked = (
        select(
            _who(by_person=by_person),
            seconds.label("seconds"),
            func.row_number().over(partition_by=among, order_by=seconds).label("rank"),
            func.count().over(partition_by=among).label("number"),
        )
        .where(found, _d.awaiting_since.is_not(None))
        .subquery()
    )
    return select(ranked.c.who, ranked.c.seconds).where(ranked.c.rank == (ranked.c.number + 1) // 2)


async def by_trigger(reader: Reader, owner: Owner, since: datetime, until: datetime) -> Sequence[OverrideStats]:
    """By the row of the decision table that gave it to people, most decisions first."""
    name = func.coalesce(_d.policy_triggered, "").label("name")
    counted = select(name, *_counts()).where(_during(owner, since, until))
    rows = await reader.connection.execute(counted.group_by(name).order_by(func.count().desc(), name))
    return [OverrideStats(**row._mapping) for row in rows]


async def by_category(reader: Reader, owner: Owner, since: datetime, until: datetime) -> Sequence[OverrideStats]:
    """By category, most decisions first; a decision on a creative of several counts for each."""
    each: Any
    if reader.on_postgresql:
        # What is NULL is left out by the condition; the function would not have it.
        listed = case((func.jsonb_typeof(_d.categories) == "array", _d.categories))
        each = func.jsonb_array_elements_text(listed).table_valued("value", name="each")
    else:
        each = func.json_each(_d.categories).table_valued("value", name="each")
    name = each.c.value.label("name")
    counted = select(name, *_counts()).select_from(human_decisions.join(each, literal(True)))  # of SQL
    found = counted.where(_during(owner, since, until), _d.categories.is_not(None))
    rows = await reader.connection.execute(found.group_by(each.c.value).order_by(func.count().desc(), each.c.value))
    return [OverrideStats(**row._mapping) for row in rows]


async def hours(reader: Reader, owner: Owner, since: datetime, until: datetime) -> list[DeciderHour]:
    """By hour and person, oldest first; the newest of them where there are too many."""
    hour = _hour_of(reader).label("hour")
    rows = await reader.connection.execute(
        select(hour, _d.reviewer, func.count().label("decisions"))
        .where(_during(owner, since, until))
        .group_by(hour, _d.reviewer)
        .order_by(hour.desc(), _d.reviewer)
        .limit(MOST_HOURS)
    )
    return [DeciderHour(**row._mapping) for row in rows][::-1]


def _hour_of(reader: Reader) -> ColumnElement[datetime]:
    if reader.on_postgresql:
        return func.date_trunc("hour", _d.decided_at, "UTC", type_=Instant())
    microseconds = type_coerce(_d.decided_at, BigInteger)
    return type_coerce(microseconds - microseconds % _HOUR_MICROSECONDS, Instant())
