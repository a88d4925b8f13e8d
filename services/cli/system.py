"""Commands about the whole: status, stats and cleanup."""

from typing import Annotated

import typer
from rich.console import RenderableType

from cli import tables
from cli.arguments import SinceOption, UntilOption
from cli.commands import Session, client_command
from cli.output import note, plain
from imprimatur.budgets import MICROS
from imprimatur.v1.admin_service_pb2 import CleanUpResponse
from imprimatur.v1.job_pb2 import JobType, Priority
from imprimatur.v1.job_service_pb2 import DependencyStatus, GetStatsResponse, GetSystemStatusResponse

app = typer.Typer()


@client_command(app, "status")
async def status(session: Session) -> None:
    """Show whether the system can do its work now, and how much is waiting."""
    answer = await session.client.status()
    session.output.show(answer, lambda: _status(answer))


@client_command(app, "stats")
async def stats(session: Session, *, since: SinceOption = None, until: UntilOption = None) -> None:
    """Show what was created and finished; without --since, in 24 hours."""
    answer = await session.client.stats(since, until)
    session.output.show(answer, lambda: _stats(answer))


@client_command(app, "cleanup")
async def cleanup(
    session: Session,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would go.")] = False,
    job_days: Annotated[
        int, typer.Option("--job-days", min=0, help="Finished jobs go after so many days; 0: as the server is set.")
    ] = 0,
) -> None:
    """Remove finished jobs that were kept for their days, with all that belongs to them but people's decisions.

    The server does so by itself every hour. Needs a key of the role admin.
    """
    answer = await session.client.clean_up(job_days=job_days, dry_run=dry_run)
    session.output.show(answer, lambda: _cleaned_up(answer, dry_run=dry_run))
    days = answer.job_days
    note(f"finished jobs are kept for {days} days" if days else "finished jobs are kept for ever")


def _cleaned_up(answer: CleanUpResponse, *, dry_run: bool) -> RenderableType:
    shown = tables.table("KIND", "WOULD GO" if dry_run else "REMOVED")
    for one in answer.cleaned_up:
        shown.add_row(plain(one.kind.replace("_", " ")), str(one.rows))
    return shown if answer.cleaned_up else plain("nothing to remove" if dry_run else "nothing was to be removed")


def _status(answer: GetSystemStatusResponse) -> RenderableType:
    queues = tables.table("PRIORITY", "DUE", "SCHEDULED", "OLDEST", "EXPECTED WAIT")
    for queue in answer.queues:
        queues.add_row(
            plain(tables.word(Priority, queue.priority)),
            str(queue.due),
            str(queue.scheduled),
            tables.seconds(queue, "oldest_age"),
            tables.seconds(queue, "estimated_wait"),
        )
    facts = tables.facts(
        [
            ("database", _dependency(answer.database)),
            ("broker", _dependency(answer.broker)),
            ("workers", f"{answer.workers} with {answer.slots} slots"),
            ("running", answer.running),
            ("awaiting review", answer.awaiting_review),
            ("server version", answer.server_version),
        ]
    )
    return tables.sections(facts, queues)


def _dependency(found: DependencyStatus) -> str:
    if not found.up:
        return "down"
    if not found.HasField("latency"):
        return "up"
    latency = found.latency.seconds + found.latency.nanos / 1e9
    return f"up, answers in {latency * 1000:.1f} ms"


def _stats(answer: GetStatsResponse) -> RenderableType:
    types = tables.table(
        "TYPE",
        "CREATED",
        "SUCCEEDED",
        "APPROVED",
        "REJECTED",
        "WAITING",
        "FAILED",
        "CANCELLED",
        "SUCCESS",
        "MEAN",
        "P95",
        "TOKENS",
        "COST",
    )
    for kind in answer.types:
        counts = (kind.created, kind.succeeded, kind.approved, kind.rejected, kind.awaiting_review)
        types.add_row(
            plain(tables.word(JobType, kind.type)),
            *map(str, (*counts, kind.failed, kind.cancelled)),
            f"{kind.success_rate:.1%}",
            tables.seconds(kind, "mean_duration"),
            tables.seconds(kind, "p95_duration"),
            str(kind.input_tokens + kind.output_tokens),
            f"${kind.cost_micros / MICROS:.2f}",
        )
    hours = tables.table("HOUR", "CREATED", "FINISHED")
    for hour in answer.hours:
        hours.add_row(tables.when(hour.hour), str(hour.created), str(hour.finished))
    errors = tables.table("ATTEMPTS", "ERROR")
    for error in answer.errors:
        errors.add_row(str(error.attempts), plain(error.code))
    window = tables.facts([("from", tables.when(answer.since)), ("until", tables.when(answer.until))])
    return tables.sections(window, types, *([hours] if answer.hours else []), *([errors] if answer.errors else []))
