"""Commands about jobs that exist: get, list, events, cancel, retry."""

from typing import Annotated

import typer

from cli import tables
from cli.arguments import JobIdArgument, LabelOption, SinceOption, UntilOption, labels_of
from cli.commands import Session, client_command
from imprimatur.client.times import timestamp
from imprimatur.job import State
from imprimatur.policy import Decision as DecisionWord
from imprimatur.policy import Trigger
from imprimatur.v1.creative_pb2 import Decision, PolicyTrigger
from imprimatur.v1.job_pb2 import Job, JobState
from imprimatur.v1.job_service_pb2 import JobFilter, ListJobEventsResponse, ListJobsResponse

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
    state: Annotated[list[State] | None, typer.Option("--state", help="May be given often.")] = None,
    decision: Annotated[list[DecisionWord] | None, typer.Option("--decision", help="May be given often.")] = None,
    trigger: Annotated[list[Trigger] | None, typer.Option("--trigger", help="Row of the decision table.")] = None,
    label: LabelOption = None,
    user: Annotated[str, typer.Option("--user", help="Of this user.")] = "",
    subject: Annotated[str, typer.Option("--subject", help="About this, such as a creative id.")] = "",
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0: all.")] = 50,
) -> None:
    """List jobs, newest first."""
    wanted = JobFilter(
        states=[JobState.Value(f"JOB_STATE_{item.name}") for item in state or ()],
        decisions=[Decision.Value(f"DECISION_{item.name}") for item in decision or ()],
        policy_triggered=[PolicyTrigger.Value(f"POLICY_TRIGGER_{item.name}") for item in trigger or ()],
        labels=labels_of(label or ()),
        user_id=user,
        subject_id=subject,
        created_from=timestamp(since),
        created_before=timestamp(until),
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


@client_command(app, "retry")
async def retry(session: Session, *, job_id: JobIdArgument) -> None:
    """Submit a failed or cancelled job's task again, as a new job."""
    job = await session.client.retry(job_id)
    session.output.show(job, lambda: tables.jobs([job]))
