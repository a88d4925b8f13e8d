"""Commands about jobs that exist: get, list, events, cancel, appeal, retry."""

from typing import Annotated

import typer

from cli import tables
from cli.arguments import JobIdArgument, LabelOption, SinceOption, UntilOption
from cli.commands import Session, client_command
from cli.filters import (
    AllOption,
    DecisionOption,
    DryRunOption,
    FreshOption,
    StateOption,
    SubjectOption,
    TriggerOption,
    UserOption,
    job_filter,
    require_one_way,
)
from cli.output import note
from imprimatur.v1.job_pb2 import Job
from imprimatur.v1.job_service_pb2 import ListJobEventsResponse, ListJobsResponse

app = typer.Typer()

_LARGEST_PAGE = 500


@client_command(app, "get")
async def get(session: Session, *, job_id: JobIdArgument) -> None:
    """Show one job with its attempts and its result."""
    job = await session.client.get(job_id)
    session.output.show(job, lambda: tables.job_in_full(job))


@client_command(app, "list")
async def list_jobs(
    session: Session,
    *,
    state: StateOption = None,
    decision: DecisionOption = None,
    trigger: TriggerOption = None,
    label: LabelOption = None,
    user: UserOption = "",
    subject: SubjectOption = "",
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0: all.")] = 50,
) -> None:
    """List jobs, newest first."""
    wanted = job_filter(
        state=state,
        decision=decision,
        trigger=trigger,
        label=label,
        user=user,
        subject=subject,
        since=since,
        until=until,
    )
    found: list[Job] = []
    async for job in session.client.list(wanted, page_size=min(limit or _LARGEST_PAGE, _LARGEST_PAGE)):
        found.append(job)
        if len(found) == limit:
            break
    session.output.show(ListJobsResponse(jobs=found), lambda: tables.jobs(found))


@client_command(app, "events")
async def events(session: Session, *, job_id: JobIdArgument) -> None:
    """Show a job's whole history."""
    found = [event async for event in session.client.events(job_id)]
    session.output.show(ListJobEventsResponse(events=found), lambda: tables.events(found))


@client_command(app, "cancel")
async def cancel(
    session: Session,
    *,
    job_id: JobIdArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the history.")] = "",
) -> None:
    """Cancel a job that is not finished."""
    job = await session.client.cancel(job_id, reason)
    session.output.show(job, lambda: tables.jobs([job]))


@client_command(app, "appeal")
async def appeal(
    session: Session,
    *,
    job_id: JobIdArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why the decision is wrong, for who decides now.")],
    request_id: Annotated[str, typer.Option("--request-id", help="The same id is the same appeal.")] = "",
) -> None:
    """Appeal against the decision on a creative: a new job, which another person decides."""
    job = await session.client.appeal(job_id, reason, request_id)
    session.output.show(job, lambda: tables.jobs([job]))


@client_command(app, "retry")
async def retry(
    session: Session,
    *,
    job_id: Annotated[str | None, typer.Argument(metavar="JOB_ID", help="A job's id.")] = None,
    all_of_them: AllOption = False,
    state: StateOption = None,
    label: LabelOption = None,
    user: UserOption = "",
    subject: SubjectOption = "",
    since: SinceOption = None,
    until: UntilOption = None,
    dry_run: DryRunOption = False,
    fresh: FreshOption = False,
) -> None:
    """Submit the task of a failed or cancelled job again, as a new job; with --all, of every one that matches and was
    not retried yet."""
    wanted = job_filter(state=state, label=label, user=user, subject=subject, since=since, until=until)
    require_one_way(job_id is not None, all_of_them, wanted, "--state failed")
    if job_id is None:
        answer = await session.client.retry_many(wanted, dry_run=dry_run, fresh=fresh)
        session.output.show(answer, lambda: tables.retried(answer))
        note(f"{answer.left} to retry" if dry_run else f"{len(answer.retried)} retried")
        return
    if dry_run:
        raise typer.BadParameter("--dry-run goes with --all")
    job = await session.client.retry(job_id, fresh=fresh)
    session.output.show(job, lambda: tables.jobs([job]))
