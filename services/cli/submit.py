"""`imprimatur submit`: creatives from files into the queue."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich.table import Table

from cli import tables, watch
from cli.arguments import LabelOption, PriorityWord, WhenBusyWord, labels_of
from cli.commands import CommandFailed, Session, client_command
from cli.creatives import CreativeFile, read_all
from cli.filters import FreshOption
from cli.output import as_dict, complain, plain
from imprimatur.client import ClientError, submission
from imprimatur.v1.job_pb2 import Job
from imprimatur.v1.job_service_pb2 import WHEN_BUSY_UNSPECIFIED

app = typer.Typer()

#: These say nothing of an item, and would be said of every one.
_OF_THE_WHOLE_CALL = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)

FilesArgument = Annotated[
    list[Path], typer.Argument(metavar="FILE…", exists=True, help="Creatives as JSON, or folders of them.")
]
PriorityOption = Annotated[PriorityWord, typer.Option("--priority", help="Interactive before bulk.")]
CallbackOption = Annotated[str, typer.Option("--callback-url", metavar="URL", help="Where the webhook goes, too.")]
UserOption = Annotated[str, typer.Option("--user", help="On whose behalf.")]
PrefixOption = Annotated[
    str,
    typer.Option(
        "--request-id-prefix",
        metavar="TEXT",
        help="Makes the request id TEXT + creative id, so that running the command again makes no second job.",
    ),
]
KeyOption = Annotated[
    str,
    typer.Option(
        "--key",
        metavar="TEXT",
        help="Concurrency key: of its jobs at most one is unfinished. By default the creative id, whose newer content "
        "takes the place of the older.",
    ),
]
WhenBusyOption = Annotated[
    WhenBusyWord | None,
    typer.Option("--when-busy", help="With --key: what becomes of a job whose key is taken. Default: refuse."),
]
RevisionOption = Annotated[
    int | None, typer.Option("--revision", min=0, help="Refused after a higher one with the same key.")
]
WatchOption = Annotated[bool, typer.Option("--watch", help="Then watch the jobs, as 'imprimatur watch' does.")]


@client_command(app, "submit")
async def submit(
    session: Session,
    *,
    files: FilesArgument,
    priority: PriorityOption = PriorityWord.NORMAL,
    label: LabelOption = None,
    callback_url: CallbackOption = "",
    user: UserOption = "",
    request_id_prefix: PrefixOption = "",
    key: KeyOption = "",
    when_busy: WhenBusyOption = None,
    revision: RevisionOption = None,
    fresh: FreshOption = False,
    watch_jobs: WatchOption = False,
) -> None:
    """Submit creatives for review.

    A file is one creative in JSON, as in examples/creatives; images[].path is read relative to it, and uploaded first
    where it is too large for the request; images[].assetId and images[].url name others. Items are accepted one by
    one: those refused are named on standard error, and the exit code is then 1.
    """
    if when_busy is not None and not key:
        raise typer.BadParameter("--when-busy goes with --key")
    labels = labels_of(label or ())
    read = [await _with_uploads(session, file) for file in read_all(files)]
    requests = [
        submission(
            file.creative,
            priority=priority.value_in_contract,
            labels=labels,
            callback_url=callback_url,
            user_id=user,
            request_id=request_id_prefix and request_id_prefix + file.creative.creative_id,
            concurrency_key=key,
            when_busy=when_busy.value_in_contract if when_busy else WHEN_BUSY_UNSPECIFIED,
            revision=revision,
            fresh=fresh,
        )
        for file in read
    ]
    outcomes = list(zip(read, await session.client.submit_batch(requests), strict=True))
    _raise_what_struck_all([outcome for _, outcome in outcomes])
    accepted = [(file, outcome) for file, outcome in outcomes if isinstance(outcome, Job)]
    for file, outcome in outcomes:
        if isinstance(outcome, ClientError):
            complain(f"{file.path}: {outcome.message}")
    if watch_jobs:
        await watch.until_settled(session, [job for _, job in accepted], until_terminal=False)
    elif accepted or session.output.as_json:
        session.output.show({"results": [_result(*outcome) for outcome in outcomes]}, lambda: _accepted(accepted))
    if len(accepted) < len(outcomes):
        raise typer.Exit(1)


async def _with_uploads(session: Session, file: CreativeFile) -> CreativeFile:
    """Raises CommandFailed where an image is refused, before anything is submitted."""
    try:
        return replace(file, creative=await session.client.sendable(file.creative))
    except ClientError as error:
        if not error.field:
            raise
        raise CommandFailed(f"{file.path}: an image cannot be uploaded: {error.message}") from error


def _raise_what_struck_all(outcomes: list[Job | ClientError]) -> None:
    errors = [outcome for outcome in outcomes if isinstance(outcome, ClientError)]
    if len(errors) == len(outcomes) and {error.code for error in errors} <= _OF_THE_WHOLE_CALL:
        raise errors[0]


def _result(file: CreativeFile, outcome: Job | ClientError) -> dict[str, Any]:
    if isinstance(outcome, Job):
        return {"file": str(file.path), "job": as_dict(outcome)}
    told = {"code": outcome.code.name, "reason": outcome.reason, "field": outcome.field, "message": outcome.message}
    return {"file": str(file.path), "error": {name: value for name, value in told.items() if value}}


def _accepted(accepted: list[tuple[CreativeFile, Job]]) -> Table:
    made = tables.table("JOB", "STATE", "SUBJECT", "FILE")
    for file, job in accepted:
        made.add_row(plain(job.id), tables.state_text(job.state), plain(job.subject_id), plain(file.path))
    return made
