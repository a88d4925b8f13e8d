"""`imprimatur review`: a desk for who has many creatives to decide. Keys in, creatives out; one after the other.

A decision is held back for a few seconds, or until the next one, so that it can be taken back. What is on the desk is
claimed, and stays so while somebody looks at it.
"""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli import tables
from cli.commands import CommandFailed, Session, client_default
from cli.desk_calls import DeskCalls, Fate, Verdict
from cli.desk_screen import Screen, tell, write
from cli.keyboard import Keyboard, keyboard
from cli.output import one_line
from cli.review_filters import taking, typed_filter
from cli.reviews import LeaseOption, ReviewerOption, save_all_images
from imprimatur.client import ClientError
from imprimatur.v1.creative_pb2 import DECISION_APPROVED, DECISION_REJECTED, Decision
from imprimatur.v1.review_service_pb2 import PendingReview, ReviewFilter

_LEASE = timedelta(minutes=15)
_MOST_PASSED_OVER = 500
_MOST_UNSENT = 5
_LONGEST_REASON = 5000
_TOLD_TO_LEAVE = (signal.SIGHUP, signal.SIGTERM)
_REASONS: dict[str, list[str]] = {
    "approve": [
        "Complies with the policy.",
        "The AI's concern does not apply to this creative.",
        "Sensitive, but within what the policy allows.",
    ],
    "reject": [
        "Misleading or unproven claim.",
        "Content that is not allowed.",
        "Sensitive category without what the policy asks for.",
        "Image or text of poor quality, or unreadable.",
        "The landing page does not fit the creative.",
    ],
}
_HELP = (
    "a approve  r reject  s skip (later)  l release (not for me)  u undo  v show again  h history  "
    "i save images  f filter  q quit"
)

UndoOption = Annotated[
    float, typer.Option("--undo-seconds", min=0, max=60, help="For so long a decision can be taken back; 0: not.")
]
ReasonsOption = Annotated[
    Path | None,
    typer.Option("--reasons", metavar="FILE", help='JSON: {"approve": ["…"], "reject": ["…"]}, at most nine each.'),
]


def add_to(app: typer.Typer) -> None:
    """Have `app` without a command open the desk."""
    client_default(app)(review)


@taking
async def review(
    session: Session,
    *,
    wanted: ReviewFilter,
    lease: LeaseOption = None,
    reviewer: ReviewerOption = "",
    undo_seconds: UndoOption = 5.0,
    reasons: ReasonsOption = None,
) -> None:
    """What the AI may not decide. Without a command: review one creative after the other, at a terminal."""
    async with keyboard(write) as keys:
        desk = Desk(
            session,
            keys,
            wanted,
            lease=lease or _LEASE,
            reviewer=reviewer,
            undo_seconds=undo_seconds,
            reasons=reasons_in(reasons) if reasons is not None else _REASONS,
        )
        with _left_when_told():
            await desk.work()


@contextmanager
def _left_when_told() -> Iterator[None]:
    """A closed terminal, and whoever ends the process, is obeyed as Ctrl-C is: what was claimed is given back."""
    loop, task, told = asyncio.get_running_loop(), asyncio.current_task(), list[int]()
    assert task is not None

    def leave(number: int) -> None:
        told.append(number)
        task.cancel()

    for number in _TOLD_TO_LEAVE:
        loop.add_signal_handler(number, leave, number)
    try:
        yield
    except asyncio.CancelledError:
        if told:
            raise typer.Exit(128 + told[0]) from None
        raise
    finally:
        for number in _TOLD_TO_LEAVE:
            loop.remove_signal_handler(number)


def reasons_in(file: Path) -> dict[str, list[str]]:
    """Ready-made reasons from a file; raises CommandFailed."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{file}: {error}") from error
    for word in ("approve", "reject"):
        listed = found.get(word) if isinstance(found, dict) else None
        good = isinstance(listed, list) and len(listed) <= 9 and all(isinstance(one, str) and one for one in listed)
        if not good:
            raise CommandFailed(f'{file}: must be {{"approve": ["…"], "reject": ["…"]}} with at most nine texts each')
    return {word: found[word] for word in ("approve", "reject")}


@dataclass(kw_only=True)
class _Tally:
    """How it goes."""

    began: float = field(default_factory=time.monotonic)
    decided: int = 0
    left: int = 0  #: more that wait, beside what is on the desk

    def told(self) -> str:
        hours = max(time.monotonic() - self.began, 1.0) / 3600
        return f"{self.decided} of {self.decided + self.left + 1}, {self.decided / hours:.0f} an hour"


class Desk:
    """One person's work at the queue."""

    def __init__(
        self,
        session: Session,
        keys: Keyboard,
        wanted: ReviewFilter,
        *,
        lease: timedelta,
        reviewer: str,
        undo_seconds: float,
        reasons: dict[str, list[str]],
    ) -> None:
        self._session = session
        self._keys = keys
        self._wanted = wanted
        self._lease = lease
        self._undo_seconds = undo_seconds
        self._reasons = reasons
        self._screen = Screen(session.client, session.output)
        self._calls = DeskCalls(session.client, reviewer, lease, tell)
        self._hand: list[PendingReview] = []  # claimed; the last one is on the desk
        self._held_back: Verdict | None = None  # decided, and not sent yet
        self._timer: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._unsent: list[Verdict] = []
        self._passed_over: dict[str, None] = {}
        self._lost: set[str] = set()
        self._tally = _Tally()

    async def work(self) -> None:
        """Until there is enough."""
        renewing = asyncio.create_task(self._keep_claims(), name="desk-claims")
        try:
            while await self._take() and await self._treat():
                pass
            self._send_held_back()
            await self._all_sent()
        finally:
            renewing.cancel()
            if self._timer is not None:
                self._timer.cancel()
            await self._leave()

    async def _leave(self) -> None:
        for task in self._sending:
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                for held in self._hand:
                    await self._calls.release(held)
        self._hand.clear()
        # After that: the terminal may be gone.
        for unsent in [*self._unsent, *([self._held_back] if self._held_back else [])]:
            self._tally.decided -= 1
            tell(f"NOT sent: {unsent.review.job.id} {_word(unsent.decision)}; it waits on, and is not decided")
        tell(f"{self._tally.decided} decided")

    # --- one after the other -----------------------------------------------------------------------------

    async def _take(self) -> bool:
        """Have a review on the desk; False: that is all."""
        while not self._hand:
            answer = await self._calls.take_next(self._wanted, self._not_now())
            if answer.HasField("review"):
                self._hand.append(answer.review)
                self._tally.left = answer.left
            elif not await self._go_on_without():
                return False
        return True

    def _not_now(self) -> list[str]:
        return [*list(self._passed_over)[-_MOST_PASSED_OVER:]]

    async def _go_on_without(self) -> bool:
        """Nothing waits: what then? False: leave."""
        if self._passed_over:
            write(f"{len(self._passed_over)} passed over, nothing else waits. b begin with them again, ")
        write("Nothing that matches waits. w wait for more, f filter, u undo, q quit\n")
        while True:
            match await self._keys.key():
                case "b" if self._passed_over:
                    self._passed_over.clear()
                    return True
                case "w":
                    return await self._wait_for_more()
                case "f":
                    return await self._choose_filter()
                case "u":
                    if self._take_back():
                        return True
                case "q" | "\x04":
                    return False

    async def _wait_for_more(self) -> bool:
        """Until something enters the queue, or a key is pressed."""
        tell("waiting; any key ends it")
        entered = asyncio.create_task(self._entered())
        key = asyncio.create_task(self._keys.key())
        try:
            await asyncio.wait({entered, key}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            entered.cancel()
            key.cancel()
        if entered.done() and not entered.cancelled():
            with suppress(ClientError):  # whoever takes the next one is told again, or waits until that passes
                entered.result()
        return True

    async def _entered(self) -> None:
        async with aclosing(self._session.client.watch_reviews(self._wanted)) as news:
            async for one in news:
                free = one.HasField("review") and not one.review.claimed_by
                if free and one.review.job.id not in self._passed_over:
                    return

    async def _treat(self) -> bool:
        """Show what is on the desk, and do what is asked until it is off it; False: leave."""
        review = self._hand[-1]
        await self._screen.show(review, self._tally.told())
        self._keys.forget()  # nobody decides what they have not seen
        while self._hand and self._hand[-1] is review:
            if review.job.id in self._lost:
                self._hand.pop()
                return True
            write("[a]pprove [r]eject [s]kip re[l]ease [u]ndo [v]iew [h]istory [i]mages [f]ilter [q]uit ? ")
            key = await self._keys.key()
            write(f"{one_line(key) if key.isprintable() else ''}\n")
            if review.job.id in self._lost:
                continue
            if key in ("q", "\x04"):
                return False
            await self._do(key, review)
        return True

    async def _do(self, key: str, review: PendingReview) -> None:
        match key:
            case "a":
                await self._decide(review, DECISION_APPROVED)
            case "r":
                await self._decide(review, DECISION_REJECTED)
            case "s" | "l":
                self._pass_over(review)
                await self._calls.release(review)
            case "u":
                if not self._take_back():
                    tell("there is nothing to take back: it was sent")
            case "v":
                await self._screen.show(review, self._tally.told())
            case "h":
                await self._screen.show_history(review)
            case "i":
                await self._save_images(review)
            case "f":
                if await self._choose_filter():
                    self._hand.remove(review)
                    await self._calls.release(review)
            case _:
                tell(_HELP)

    def _pass_over(self, review: PendingReview) -> None:
        self._passed_over[review.job.id] = None
        self._hand.remove(review)

    # --- deciding ----------------------------------------------------------------------------------------

    async def _decide(self, review: PendingReview, decision: Decision.ValueType) -> None:
        reason = await self._ask_reason("approve" if decision == DECISION_APPROVED else "reject")
        if not reason:
            tell("not decided")
            return
        if review.job.id in self._lost:
            return
        while len(self._sending) >= _MOST_UNSENT:
            tell("waiting for the decisions before to be sent")
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
        self._send_held_back()
        self._hand.remove(review)
        self._tally.decided += 1
        self._held_back = Verdict(review=review, decision=decision, reason=reason)
        if not self._undo_seconds:
            self._send_held_back()
            return
        self._timer = asyncio.create_task(self._send_later(), name="desk-undo")
        tell(f"{_word(decision)}: {reason} (u takes it back, for {self._undo_seconds:g} s)")

    async def _ask_reason(self, verb: str) -> str:
        listed = self._reasons[verb]
        for number, reason in enumerate(listed, start=1):
            write(f"  {number} {one_line(reason)}\n")
        write("  t type a reason   Esc do not\nwhy? ")
        key = await self._keys.key()
        write("\n")
        if key.isdigit() and 0 < int(key) <= len(listed):
            return listed[int(key) - 1]
        if key != "t":
            return ""
        return ((await self._keys.line(f"{verb}, because: ")) or "").strip()[:_LONGEST_REASON]

    async def _send_later(self) -> None:
        await asyncio.sleep(self._undo_seconds)
        self._timer = None
        self._send_held_back()

    def _send_held_back(self) -> None:
        """Send the decision that could still be taken back; others may be on their way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (verdict := self._held_back) is None:
            return
        self._held_back = None
        self._unsent.append(verdict)
        task = asyncio.create_task(self._send(verdict), name="desk-send")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, verdict: Verdict) -> None:
        sent = await self._calls.send(verdict)
        self._unsent.remove(verdict)
        if sent.fate is Fate.LOST:
            self._tally.decided -= 1
            name = verdict.review.job.subject_id or verdict.review.job.id
            tell(f"{name} was NOT {_word(verdict.decision)}: {sent.message}")

    async def _all_sent(self) -> None:
        if self._sending:
            await asyncio.gather(*self._sending)

    def _take_back(self) -> bool:
        """The decision before is none, and its creative is on the desk again."""
        if (verdict := self._held_back) is None:
            return False
        self._held_back = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tally.decided -= 1
        self._hand.append(verdict.review)
        tell("taken back")
        return True

    # --- claims ------------------------------------------------------------------------------------------

    async def _keep_claims(self) -> None:
        """Prolong whatever somebody looks at, or may still take back, or is on its way."""
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            waiting = [verdict.review for verdict in (self._held_back, *self._unsent) if verdict is not None]
            for held in [*self._hand, *waiting]:
                if (fault := await self._calls.renew(held)) and held in self._hand:
                    self._lost.add(held.job.id)
                    tell(f"{held.job.subject_id}: {fault}; any key goes on to the next")

    async def _save_images(self, review: PendingReview) -> None:
        if not review.creative.images:
            tell("it has no images")
            return
        folder = await self._keys.line("folder for the images: ")
        if folder is None or not folder.strip():
            return
        try:
            await save_all_images(self._session.client, review.creative, Path(folder.strip()))
        except (ClientError, CommandFailed) as error:
            tell(str(error))

    async def _choose_filter(self) -> bool:
        line = await self._keys.line("filter (empty: all; e.g. category=gambling priority=high overdue older=2h): ")
        if line is None:
            return False
        try:
            self._wanted = typed_filter(line)
        except ValueError as error:
            tell(str(error))
            return False
        return True


def _word(decision: Decision.ValueType) -> str:
    return tables.word(Decision, decision)
