"""`python -m examples.panels --folder .local` (`make panels`): work for what `make up` started, and then every
panel's question asked of its Prometheus. It shows that each dashboard has what it asks for, without a Grafana.

The exit code is 0 only if each question of every panel has an answer, but for those that need what is not there (an
alert; PostgreSQL's exporter, where it could not be had).
"""

import argparse
import asyncio
import contextlib
import json
import math
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aiohttp import web
from rich.console import Console
from rich.table import Table

from deploy.grafana.answers import ask
from deploy.grafana.catalogue import DASHBOARDS
from deploy.grafana.panels import Panel, Query
from deploy.local.prometheus import PrivatePrometheus
from deploy.local.stack import running
from examples.demo import material
from examples.webhook_receiver import Inbox
from imprimatur.client import Client, ClientError, submission
from imprimatur.v1.creative_pb2 import DECISION_APPROVED, Creative, CreativeImage
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW, Job
from imprimatur.v1.job_service_pb2 import JobFilter

#: Panels by dashboard and title, and what they lack.
_Lacking = Mapping[tuple[str, str], str]
_NO_ALERT: _Lacking = {("overview", "Firing now"): "no alert fires"}
_NO_EXPORTER: _Lacking = {
    ("infrastructure", title): "PostgreSQL's exporter is not there; `make up` tells why"
    for title in ("Connections", "Transactions", "Size")
}
_REVIEW_SECONDS = 300.0
_FILL_SECONDS = 60.0
_WINDOW_SECONDS = 120
_BROKEN = CreativeImage(name="broken.png", data=b"\x89PNG\r\n\x1a\n" + bytes(40))
_MOST_SERIES = 4


async def show(folder: Path, prometheus: PrivatePrometheus, lacking: _Lacking) -> bool:
    """Submit, decide, watch, ask; whether every panel is filled, but for those that lack what is not there."""
    console = Console(width=140)
    access = json.loads((folder / "client.json").read_text(encoding="utf-8"))
    await _until(partial(_scraped, prometheus, since=0.0))
    async with (
        _receiver(access["webhook_secret"], folder / "panels.jsonl") as callback_url,
        Client(access["target"], api_key=access["api_key"]) as client,
    ):
        console.print("Reviewing the example creatives, in two halves: the rate of what is new is unknown …")
        for half in (0, 1):
            await _work(client, callback_url, half)
            await _until(partial(_scraped, prometheus, since=time.time()))
        async with aclosing(client.watch_many(JobFilter())) as watched:
            await anext(watched)
            await _until(lambda: not _empty(prometheus, lacking))
            console.print(_table(prometheus, lacking))
    empty = _empty(prometheus, lacking)
    lacks = {place: reason for place, reason in lacking.items() if not _answers(prometheus, _panel(place))}
    total = sum(len(dashboard.panels) for dashboard in DASHBOARDS)
    console.print(f"{total - len(lacks) - len({one.place for one in empty})} of {total} panels filled.")
    for (dashboard, title), reason in lacks.items():
        console.print(f"Not filled here: {dashboard}, {title}: {reason}.")
    for one in empty:
        console.print(f"Empty: {one}")
    console.print(f"Prometheus: {prometheus.url}   dashboards: deploy/grafana/dashboards")
    return not empty


async def _work(client: Client, callback_url: str, half: int) -> None:
    """Every other example creative to its end, and one that nobody can review; a person approves one."""
    creatives = [item.creative for item in material.items()[half::2]]
    creatives.append(Creative(creative_id="broken", headline="Look", images=[_BROKEN]))
    answers = await client.submit_batch(submission(one, callback_url=callback_url) for one in creatives)
    for answer in answers:
        if isinstance(answer, ClientError):
            raise answer
    jobs = [answer for answer in answers if isinstance(answer, Job)]
    ended = await asyncio.gather(*(client.wait(job.id, _REVIEW_SECONDS, until_terminal=False) for job in jobs))
    waiting, *_ = [job for job in ended if job.state == JOB_STATE_AWAITING_REVIEW]
    await client.decide(waiting.id, DECISION_APPROVED, "An ordinary offer.", reviewer="ann")


@asynccontextmanager
async def _receiver(secret: str, kept: Path) -> AsyncIterator[str]:
    """Takes webhooks inside the block; its address."""
    app = web.Application()
    app.add_routes([web.post("/", Inbox(secret, kept).receive)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def _until(done: Callable[[], bool]) -> None:
    """Wait, but not for ever: what is missing then, the table shows."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FILL_SECONDS):
            while not await asyncio.to_thread(done):  # noqa: ASYNC110  # what another process does sets no event
                await asyncio.sleep(1.0)


def _scraped(prometheus: PrivatePrometheus, *, since: float) -> bool:
    """Whether each target was scraped, and the rules reckoned, after that time."""
    seen = ("min(timestamp(up == 1))", "min(timestamp(imprimatur:budget_burn:rate5m))")
    return all(prometheus.query(f"{one} > {since}") for one in seen)


def _panel(place: tuple[str, str]) -> Panel:
    name, title = place
    [panel] = [
        one for dashboard in DASHBOARDS if dashboard.name == name for one in dashboard.panels if one.title == title
    ]
    return panel


def _answers(prometheus: PrivatePrometheus, panel: Panel) -> dict[str, float]:
    """What the panel shows."""
    found: dict[str, float] = {}
    for query in panel.queries:
        found |= _finite(ask(prometheus, query, window_seconds=_WINDOW_SECONDS))
    return found


def _finite(found: dict[str, float]) -> dict[str, float]:
    """What is no number a panel does not show."""
    return {legend: value for legend, value in found.items() if math.isfinite(value)}


@dataclass(frozen=True, kw_only=True)
class _Blank:
    """A question of a panel that nothing answers."""

    dashboard: str
    panel: str
    query: Query

    @property
    def place(self) -> tuple[str, str]:
        """Of the panel."""
        return self.dashboard, self.panel

    def __str__(self) -> str:
        return f"{self.dashboard}, {self.panel}: {self.query.expr}"


def _empty(prometheus: PrivatePrometheus, lacking: _Lacking) -> list[_Blank]:
    """The questions that nothing answers, but for those that lack what is not here."""
    return [
        _Blank(dashboard=dashboard.name, panel=panel.title, query=query)
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        if (dashboard.name, panel.title) not in lacking
        for query in panel.queries
        if not _finite(ask(prometheus, query, window_seconds=_WINDOW_SECONDS))
    ]


def _table(prometheus: PrivatePrometheus, lacking: _Lacking) -> Table:
    table = Table("dashboard", "panel", "shows", box=None, pad_edge=False)
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            found = _answers(prometheus, panel)
            nothing = f"({lacking.get((dashboard.name, panel.title), 'nothing!')})"
            table.add_row(dashboard.name, panel.title, _shown(found, panel.unit) if found else nothing)
    return table


def _shown(found: dict[str, float], unit: str) -> str:
    """Its largest series."""
    largest = sorted(found.items(), key=lambda one: -one[1])[:_MOST_SERIES]
    words = [f"{legend} {_measured(value, unit)}".strip() for legend, value in largest]
    more = f", and {len(found) - len(words)} more" if len(found) > len(words) else ""
    return f"{', '.join(words)}{more}"


def _measured(value: float, unit: str) -> str:
    """A number with its unit, which Grafana has names of its own for."""
    match unit:
        case "percentunit":
            return f"{value:.1%}"
        case "bytes":
            return f"{value / 2**20:.1f} MiB"
        case "s":
            return f"{value:.3g} s"
        case "ops" | "reqps":
            return f"{value:.3g}/s"
        case _:
            return f"{value:.10g}" if value.is_integer() else f"{value:.3g}"


def main() -> int:
    """0 when every panel is filled."""
    parser = argparse.ArgumentParser(prog="python -m examples.panels", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of `make up`")
    folder = parser.parse_args().folder.resolve()
    alive = set(running(folder))
    if not {"gateway", "prometheus"} <= alive:
        print(
            f"error: no gateway or no Prometheus runs in {folder}; `make up` starts it, or tells why not",
            file=sys.stderr,
        )
        return 1
    lacking = {**_NO_ALERT, **({} if "postgresql-exporter" in alive else _NO_EXPORTER)}
    try:
        return 0 if asyncio.run(show(folder, PrivatePrometheus.attach(folder / "prometheus"), lacking)) else 1
    except TimeoutError:
        print(
            f"error: the reviews were not done within {_REVIEW_SECONDS:.0f} s: see the logs in {folder}",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
