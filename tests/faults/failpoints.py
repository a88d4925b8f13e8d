"""Named places in the services where a fault can strike exactly: between a commit and what follows it.

A service of the fault suite is its production entry point (`python -m tests.faults.failpoints gateway`), with these
places wrapped. A place does nothing until a test arms it for that process; it then strikes once, and proves by a
file that it was reached. The product itself knows nothing of all this.
"""

import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from imprimatur.broker import EVENTS
from imprimatur.errors import Unavailable
from imprimatur.job import SUBMITTED
from imprimatur.outbox import Outbox
from imprimatur.process import run_service
from imprimatur.storage import acceptance, claims, conclusions, deliveries
from imprimatur.storage.acceptance import Submitted
from imprimatur.storage.database import Database, OutboxRow, Transaction
from notifier.post import Answer, Poster
from tests.faults.engine import FOLDER_VARIABLE, open_engine

SERVICES = {
    "gateway": "GatewaySettings",
    "reviewer": "ReviewerSettings",
    "notifier": "NotifierSettings",
}


class Point(StrEnum):
    """Where a service can be struck, and with what."""

    SUBMIT_COMMITTED = "submit-committed"  #: killed after a submit's commit, before its message is published
    SUBMIT_WRITTEN = "submit-written"  #: frozen before a submit's commit, until somebody continues the process
    CLAIM_COMMITTED = "claim-committed"  #: the reply to a claim's commit is lost; the process lives
    CONCLUSION_COMMITTED = "conclusion-committed"  #: the reply to a conclusion's commit is lost; the process lives
    WEBHOOK_UNSENT = "webhook-unsent"  #: killed with a delivery leased, before the post
    WEBHOOK_SENT = "webhook-sent"  #: killed after the receiver's answer, before anything is written
    WEBHOOK_RECORDED = "webhook-recorded"  #: killed after the attempt is written, before the commit


def arm(folder: Path, pid: int, point: Point) -> None:
    """Let `point` strike when process `pid` next comes by."""
    draft = folder / "armed" / f"{pid}.new"
    draft.write_text(point)
    draft.rename(folder / "armed" / str(pid))


def reached(folder: Path, point: Point) -> int:
    """How often `point` was reached and struck."""
    return len(list((folder / "reached").glob(f"{point}.*")))


def _strikes(point: Point) -> bool:
    """Whether the place is armed in this process; it is not, afterwards."""
    folder = Path(os.environ[FOLDER_VARIABLE])
    armed = folder / "armed" / str(os.getpid())
    with contextlib.suppress(FileNotFoundError):
        if armed.read_text() == point:
            armed.unlink()
            (folder / "reached" / f"{point}.{os.getpid()}.{time.time_ns()}").touch()
            return True
    return False


def _kill_at(point: Point) -> None:
    if _strikes(point):
        _die()


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def install() -> None:
    """Wrap the places."""
    _wrap_submits()
    _wrap_commits()
    _wrap_posts()
    _wrap_records()


def asks_for_a_submitted_job(rows: Sequence[OutboxRow]) -> bool:
    """Whether one commit both submitted and asks for a review; a dispatcher's release only asks."""
    submits = any(row.exchange == EVENTS and row.routing_key == f"state.{SUBMITTED}" for row in rows)
    return submits and any(row.exchange != EVENTS for row in rows)


def _wrap_submits() -> None:
    offer = Outbox._offer

    def offered(self: Outbox, rows: Sequence[OutboxRow]) -> None:
        if asks_for_a_submitted_job(rows):
            _kill_at(Point.SUBMIT_COMMITTED)
        offer(self, rows)

    Outbox._offer = offered  # type: ignore[method-assign]  # the wrapping is the point

    submit = acceptance.submit

    @functools.wraps(submit)
    async def submitted(*args: Any, **options: Any) -> list[Submitted]:
        answers = await submit(*args, **options)
        if _strikes(Point.SUBMIT_WRITTEN):
            os.kill(os.getpid(), signal.SIGSTOP)
        return answers

    acceptance.submit = submitted


def _wrap_commits() -> None:
    begin = Database.begin

    @asynccontextmanager
    async def begun(self: Database, *, lock_seconds: float | None = None) -> AsyncIterator[Transaction]:
        async with begin(self, lock_seconds=lock_seconds) as tx:
            yield tx
        if (point := getattr(tx, "loses_reply_at", None)) and _strikes(point):
            raise Unavailable("the reply to a commit was lost")

    Database.begin = begun  # type: ignore[method-assign]  # the wrapping is the point
    claims.claim = _marking(claims.claim, Point.CLAIM_COMMITTED)
    conclusions.conclude = _marking(conclusions.conclude, Point.CONCLUSION_COMMITTED)


def _marking(write: Callable[..., Any], point: Point) -> Callable[..., Any]:
    @functools.wraps(write)
    async def marked(tx: Transaction, *args: object, **options: object) -> object:
        result = await write(tx, *args, **options)
        if result is not None:
            tx.loses_reply_at = point  # type: ignore[attr-defined]  # read where the commit has ended
        return result

    return marked


def _wrap_posts() -> None:
    post = Poster.post

    async def posted(self: Poster, *args: Any) -> Answer:
        _kill_at(Point.WEBHOOK_UNSENT)
        answer = await post(self, *args)
        _kill_at(Point.WEBHOOK_SENT)
        return answer

    Poster.post = posted  # type: ignore[method-assign,assignment]  # the wrapping is the point


def _wrap_records() -> None:
    record = deliveries.record_attempts

    async def recorded(*args: Any) -> None:
        await record(*args)
        _kill_at(Point.WEBHOOK_RECORDED)

    deliveries.record_attempts = recorded  # type: ignore[assignment]  # of any arguments


def main() -> None:
    """Run the service that the command line names."""
    name = sys.argv[1]
    install()
    service = import_module(f"{name}.__main__")
    if name == "reviewer":
        service.open_engine = open_engine  # type: ignore[attr-defined]  # by that name the entry point looks it up
    run_service(getattr(service, SERVICES[name]), service.run)


if __name__ == "__main__":
    main()
