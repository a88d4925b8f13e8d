"""Which jobs: the options that commands about many jobs share, and the filter that they make."""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated

import typer

from cli.arguments import labels_of
from imprimatur.client.times import timestamp
from imprimatur.job import State
from imprimatur.policy import Decision as DecisionWord
from imprimatur.policy import Trigger
from imprimatur.v1.creative_pb2 import Decision, PolicyTrigger
from imprimatur.v1.job_pb2 import JobState
from imprimatur.v1.job_service_pb2 import JobFilter

StateOption = Annotated[list[State] | None, typer.Option("--state", help="May be given often.")]
DecisionOption = Annotated[list[DecisionWord] | None, typer.Option("--decision", help="May be given often.")]
TriggerOption = Annotated[list[Trigger] | None, typer.Option("--trigger", help="Row of the decision table.")]
UserOption = Annotated[str, typer.Option("--user", help="Of this user.")]
SubjectOption = Annotated[str, typer.Option("--subject", help="About this, such as a creative id.")]
AllOption = Annotated[bool, typer.Option("--all", help="All that match the filter, in place of a JOB_ID.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say how many there are.")]

FreshOption = Annotated[
    bool, typer.Option("--fresh", help="The engine looks anew, whatever it found in equal creatives.")
]


def job_filter(
    *,
    state: Iterable[State] | None = None,
    decision: Iterable[DecisionWord] | None = None,
    trigger: Iterable[Trigger] | None = None,
    label: Iterable[str] | None = None,
    user: str = "",
    subject: str = "",
    since: datetime | None = None,
    until: datetime | None = None,
) -> JobFilter:
    """The options as the contract's filter."""
    return JobFilter(
        states=[JobState.Value(f"JOB_STATE_{item.name}") for item in state or ()],
        decisions=[Decision.Value(f"DECISION_{item.name}") for item in decision or ()],
        policy_triggered=[PolicyTrigger.Value(f"POLICY_TRIGGER_{item.name}") for item in trigger or ()],
        labels=labels_of(label or ()),
        user_id=user,
        subject_id=subject,
        created_from=timestamp(since),
        created_before=timestamp(until),
    )


def require_one_way(named: bool, wanted_all: bool, wanted: JobFilter, example: str) -> None:
    """Either jobs are named, or `--all` of a filter is asked for; raises BadParameter."""
    if named == wanted_all:
        raise typer.BadParameter(f"give either a JOB_ID, or --all with a filter such as {example}")
    if named and wanted.ListFields():
        raise typer.BadParameter("a JOB_ID needs no filter; with --all, leave the JOB_ID out")
    if wanted_all and not wanted.ListFields():
        raise typer.BadParameter(f"--all needs a filter, such as {example}")
