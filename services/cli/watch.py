"""`imprimatur watch`: many jobs live, until all of them have come to rest."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live

from cli import tables
from cli.commands import Session, client_command
from cli.output import Output, note, one_line, plain
from imprimatur.client import Client, ClientError, is_settled, is_terminal
from imprimatur.v1.job_pb2 import Job, JobState

app = typer.Typer()

#: Streams open at once; the further jobs follow as the first come to rest.
_MOST_STREAMS = 100
_REFRESHES_PER_SECOND = 5

JobsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[JOB_ID…]", help="Default: all that are unfinished, and what comes meanwhile."),
]
TerminalOption = Annotated[bool, typer.Option("--until-terminal", help="Wait also for what a person has to decide.")]


@client_command(app, "watch")
async def watch(session: Session, *, job_ids: JobsArgument = None, until_terminal: TerminalOption = False) -> None:
    """Watch jobs live, until all are finished or wait for a person.

    On a terminal a table, else a line for each change; with --json a Job for each change.
    """
    if job_ids:
        jobs = [await session.client.get(job_id) for job_id in dict.fromkeys(job_ids)]
        await until_settled(session, jobs, until_terminal=until_terminal)
    else:
        await _until_all_settled(session, until_terminal=until_terminal)


async def until_settled(session: Session, jobs: Iterable[Job], *, until_terminal: bool) -> None:
    """Show these jobs until all of them have come to rest."""
    board = Board(session.output, until_terminal=until_terminal)
    streams = asyncio.Semaphore(_MOST_STREAMS)
    with board.shown():
        for job in jobs:
            board.put(job)
        try:
            async with asyncio.TaskGroup() as group:
                for job_id in board.restless():
                    group.create_task(_follow(session.client, job_id, board, streams))
        except* ClientError as errors:
            raise _first(errors) from None
    board.show_result()


async def _follow(client: Client, job_id: str, board: "Board", streams: asyncio.Semaphore) -> None:
    async with streams, aclosing(client.watch(job_id, board.version_of(job_id))) as versions:
        async for job in versions:
            board.put(job)
            if board.rests(job):
                return


async def _until_all_settled(session: Session, *, until_terminal: bool) -> None:
    board = Board(session.output, until_terminal=until_terminal)
    complete = False
    with board.shown():
        async with aclosing(session.client.watch_many()) as changes:
            async for change in changes:
                complete = complete or change.snapshot_complete
                if change.HasField("job"):
                    board.put(change.job)
                if complete and not board.restless():
                    break
    if board.empty:
        note("nothing is unfinished")
    else:
        board.show_result()


class Board:
    """The jobs watched, each at its newest version."""

    def __init__(self, output: Output, *, until_terminal: bool) -> None:
        self._output = output
        self._live = output.console.is_terminal and not output.as_json
        self.rests = is_terminal if until_terminal else is_settled
        self._jobs: dict[str, Job] = {}

    @property
    def empty(self) -> bool:
        """Whether there was never a job."""
        return not self._jobs

    def put(self, job: Job) -> None:
        """A newer version of a job."""
        job.ClearField("attempt_history")
        self._jobs[job.id] = job
        if self._output.as_json:
            self._output.line(job)
        elif not self._live:
            self._output.write(_as_line(job))

    def version_of(self, job_id: str) -> int:
        """The newest version seen."""
        return self._jobs[job_id].version

    def restless(self) -> list[str]:
        """The jobs that have not come to rest."""
        return [job_id for job_id, job in self._jobs.items() if not self.rests(job)]

    def shown(self) -> AbstractContextManager[Any]:
        """The board is on the terminal inside the block."""
        if not self._live:
            return nullcontext()
        return Live(
            get_renderable=self._rendered,
            console=self._output.console,
            refresh_per_second=_REFRESHES_PER_SECOND,
            transient=True,
        )

    def show_result(self) -> None:
        """What a terminal keeps."""
        if self._live:
            self._output.console.print(self._rendered())

    def _rendered(self) -> RenderableType:
        counts = Counter(tables.word(JobState, job.state) for job in self._jobs.values())
        told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        ordered = sorted(self._jobs.values(), key=self.rests)  # what moves stays in sight
        return Group(plain(f"{len(self._jobs)} in all: {told}"), tables.board(ordered))


def _as_line(job: Job) -> str:
    decision = tables.decision_of(job)
    words = (job.id, f"v{job.version}", tables.word(JobState, job.state), decision, job.subject_id)
    told = tables.progress_of(job) or (tables.why(job) if is_settled(job) else "")
    return one_line(" ".join(filter(None, (*words, told))))


def _first(errors: BaseExceptionGroup[ClientError]) -> ClientError:
    error = errors.exceptions[0]
    return error if isinstance(error, ClientError) else _first(error)
