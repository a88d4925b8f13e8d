"""Commands about the whole: status and stats."""

import typer
from rich.console import RenderableType

from cli import tables
from cli.arguments import SinceOption, UntilOption
from cli.commands import Session, client_command
from cli.output import plain
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
    )
    for kind in answer.types:
        counts = (kind.created, kind.succeeded, kind.approved, kind.rejected, kind.awaiting_review)
        types.add_row(
            plain(tables.word(JobType, kind.type)),
            *map(str, (*counts, kind.failed, kind.cancelled)),
            f"{kind.success_rate:.1%}",
            tables.seconds(kind, "mean_duration"),
            tables.seconds(kind, "p95_duration"),
        )
    hours = tables.table("HOUR", "CREATED", "FINISHED")
    for hour in answer.hours:
        hours.add_row(tables.when(hour.hour), str(hour.created), str(hour.finished))
    errors = tables.table("ATTEMPTS", "ERROR")
    for error in answer.errors:
        errors.add_row(str(error.attempts), plain(error.code))
    window = tables.facts([("from", tables.when(answer.since)), ("until", tables.when(answer.until))])
    return tables.sections(window, types, *([hours] if answer.hours else []), *([errors] if answer.errors else []))
