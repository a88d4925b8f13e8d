"""What the demo shows: progress while jobs run, the table of decisions, one webhook. Nothing is decided here."""

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from cli import tables
from cli.output import one_line, plain
from examples.demo.material import Item
from imprimatur.client import is_settled
from imprimatur.v1.creative_pb2 import Confidence, Decision, PolicyTrigger
from imprimatur.v1.job_pb2 import Job, JobState

_REFRESHES_PER_SECOND = 10
_WIDTH_OF_A_PIPE = 200
_MOVING_SHOWN = 8
_LONGEST_TEXT = 160
_LINES_OF_A_WEBHOOK = 60


class Screen:
    """A terminal, or a file that gets plain lines."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console = Console(highlight=False, width=_WIDTH_OF_A_PIPE)
        self._jobs: dict[str, Job] = {}
        self._items: Mapping[str, Item] = {}

    def say(self, sentence: str) -> None:
        """One line."""
        self.console.print(plain(sentence))

    def progress(self, items: Mapping[str, Item]) -> AbstractContextManager[Any]:
        """Shows, inside the block, what `put` is given of these, which are named by their jobs' ids."""
        self._items = items
        if not self.console.is_terminal:
            return nullcontext()
        return Live(
            get_renderable=self._moving, console=self.console, refresh_per_second=_REFRESHES_PER_SECOND, transient=True
        )

    def put(self, job: Job) -> None:
        """A newer version of a job."""
        self._jobs[job.id] = job
        if not self.console.is_terminal and is_settled(job):
            done = sum(map(is_settled, self._jobs.values()))
            state, decision = tables.word(JobState, job.state), tables.decision_of(job)
            self.say(f"  {done:2}/{len(self._items)}  {self._name(job)}: {decision} ({state})")

    def decisions(self) -> None:
        """The table of what became of each, in the order of the files."""
        table = Table(box=None, pad_edge=False)
        for column in ("No.", "Creative", "Decision", "Policy", "Confidence"):
            table.add_column(column, no_wrap=column != "Creative")
        table.add_column("Reason", ratio=1)
        table.add_column("ms", no_wrap=True, justify="right")
        for job_id, item in self._items.items():
            table.add_row(*_row(item, self._jobs[job_id]))
        self.console.print(table)

    def webhook(self, message: Mapping[str, Any]) -> None:
        """One verified webhook, shortened."""
        for name, value in message["headers"].items():
            self.say(f"  {name}: {value}")
        lines = json.dumps(_shortened(message["body"]), indent=2, ensure_ascii=False).splitlines()
        for line in lines[:_LINES_OF_A_WEBHOOK]:
            self.say(f"  {line}")
        if len(lines) > _LINES_OF_A_WEBHOOK:
            self.say(f"  … {len(lines) - _LINES_OF_A_WEBHOOK} lines more")

    def _moving(self) -> RenderableType:
        states = Counter(tables.word(JobState, job.state) for job in self._jobs.values())
        done = sum(map(is_settled, self._jobs.values()))
        moving = [job for job in self._jobs.values() if not is_settled(job) and job.progress.stage][:_MOVING_SHOWN]
        lines = [f"  {self._name(job)}: {job.progress.percent} % {job.progress.message}" for job in moving]
        told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        bar = ProgressBar(total=len(self._items), completed=done, width=60)
        return Group(plain(f"{done} of {len(self._items)} reviewed: {told}"), bar, *map(plain, map(one_line, lines)))

    def _name(self, job: Job) -> str:
        return self._items[job.id].creative.name


def _row(item: Item, job: Job) -> tuple[RenderableType, ...]:
    review = job.creative_review.ai_review
    confidence = tables.word(Confidence, review.confidence)
    took = job.update_time.ToDatetime() - job.start_time.ToDatetime()
    return (
        plain(item.number, "dim"),
        plain(item.creative.name),
        tables.coloured(tables.word(Decision, review.decision)),
        plain(tables.word(PolicyTrigger, review.policy_triggered)),
        plain(f"{review.confidence_score:.2f} {confidence}"),
        plain(one_line(review.reason)),
        plain(f"{took.total_seconds() * 1000:.0f}", "dim"),
    )


def _shortened(value: Any) -> Any:
    """The same with long texts cut."""
    if isinstance(value, dict):
        return {name: _shortened(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shortened(inner) for inner in value]
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return value[:_LONGEST_TEXT] + " …"
    return value
