"""Commands of `imprimatur review` that look at the queue as a whole: live, its figures, and the record."""

from contextlib import aclosing
from typing import Annotated

import typer
from rich.console import RenderableType

from cli import tables
from cli.arguments import SinceOption, UntilOption
from cli.commands import Session, client_command
from cli.output import one_line, plain
from cli.review_filters import filtered
from imprimatur.human import AuditAction as ActionWord
from imprimatur.v1.creative_pb2 import Category, PolicyTrigger
from imprimatur.v1.job_pb2 import JobState, Priority
from imprimatur.v1.review_service_pb2 import (
    AuditAction,
    AuditEntry,
    DeciderStats,
    GetReviewStatsResponse,
    ListAuditEntriesResponse,
    OverrideStats,
    ReviewFilter,
    WatchReviewQueueResponse,
)

app = typer.Typer()

_LARGEST_PAGE = 500


@client_command(app, "watch")
@filtered
async def watch(session: Session, *, wanted: ReviewFilter) -> None:
    """Watch the queue: what waits, then a line for each review that enters, changes or leaves. Ctrl-C ends it."""
    async with aclosing(session.client.watch_reviews(wanted)) as news:
        async for one in news:
            if session.output.as_json:
                session.output.line(one)
            else:
                session.output.write(_as_line(one))


def _as_line(one: WatchReviewQueueResponse) -> str:
    if one.HasField("left"):
        state = tables.word(JobState, one.left.state)
        return one_line(f"{one.left.job_id} left {state}".strip())
    if not one.HasField("review"):
        return "-- that is what waits; from here on, what is new"
    review = one.review
    words = [review.job.id, "waits", tables.word(Priority, review.job.priority), review.job.subject_id]
    words += ["overdue" if review.overdue else "", f"held by {review.claimed_by}" if review.claimed_by else ""]
    return one_line(" ".join(filter(None, words)))


@client_command(app, "audit")
async def audit(
    session: Session,
    *,
    job_id: Annotated[str, typer.Option("--job", metavar="JOB_ID", help="About this job.")] = "",
    person: Annotated[str, typer.Option("--person", help="By this person.")] = "",
    action: Annotated[list[ActionWord] | None, typer.Option("--action", help="May be given often.")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0: all.")] = 50,
) -> None:
    """Show who did what in the queue, newest first: claims, releases, decisions, appeals, claims that ran out, and what
    a changed policy decided."""
    page_size = min(limit or _LARGEST_PAGE, _LARGEST_PAGE)
    actions = [AuditAction.Value(f"AUDIT_ACTION_{word.name}") for word in action or ()]
    found: list[AuditEntry] = []
    async for entry in session.client.audit_entries(
        job_id=job_id, person=person, actions=actions, since=since, until=until, page_size=page_size
    ):
        found.append(entry)
        if len(found) == limit:
            break
    session.output.show(ListAuditEntriesResponse(entries=found), lambda: _entries(found))


def _entries(found: list[AuditEntry]) -> RenderableType:
    made = tables.table("TIME", "ACTION", "PERSON", "KEY", "JOB", "WHAT")
    for entry in found:
        details = ", ".join(f"{key}={value}" for key, value in sorted(entry.details.items()))
        made.add_row(
            tables.when(entry.time),
            plain(tables.word(AuditAction, entry.action)),
            plain(entry.person),
            plain(entry.key_name),
            plain(entry.job_id),
            plain(" ".join(filter(None, (entry.reason, f"({details})" if details else "")))),
        )
    return made


@client_command(app, "stats")
async def stats(session: Session, *, since: SinceOption = None, until: UntilOption = None) -> None:
    """Show what waits now, and what people decided in the last 24 hours or a window of at most 31 days."""
    answer = await session.client.review_stats(since, until)
    session.output.show(answer, lambda: _stats(answer))


def _stats(answer: GetReviewStatsResponse) -> RenderableType:
    waiting = tables.table("PRIORITY", "WAITING", "CLAIMED", "OVERDUE", "OLDEST")
    for line in answer.waiting:
        numbers = (line.waiting, line.claimed, line.overdue)
        waiting.add_row(tables.word(Priority, line.priority), *map(str, numbers), tables.seconds(line, "oldest_age"))
    people = tables.table("WHO", "DECIDED", "APPROVED", "AGREED", "OVERRODE", "PER HOUR", "MEDIAN TIME")
    for who in (*answer.reviewers, answer.everybody):
        people.add_row(*_decider(who))
    kinds = tables.table("OVERRIDES OF", "DECIDED", "ADVISED", "OVERRODE", "RATE")
    for of_category in answer.categories:
        kinds.add_row(tables.word(Category, of_category.category), *_overrides(of_category.overrides))
    for of_trigger in answer.triggers:
        kinds.add_row(tables.word(PolicyTrigger, of_trigger.policy_triggered), *_overrides(of_trigger.overrides))
    window = plain(f"from {tables.when(answer.since)} until {tables.when(answer.until)}")
    return tables.sections(waiting, window, people, *([kinds] if kinds.row_count else []))


def _decider(who: DeciderStats) -> list[RenderableType]:
    numbers = (who.decisions, who.approved, who.agreed, who.overrode)
    rate = f"{who.decisions_per_hour:.1f}"
    return [plain(who.reviewer or "everybody"), *map(str, numbers), rate, tables.seconds(who, "median_time")]


def _overrides(one: OverrideStats) -> list[str]:
    return [*map(str, (one.decisions, one.advised, one.overrode)), f"{one.override_rate:.0%}" if one.advised else ""]
