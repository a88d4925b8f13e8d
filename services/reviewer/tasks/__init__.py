"""Job types, one module each: what the work is, and what its end makes of the job.

A task works outside any transaction and may take minutes. What its end makes of the job is decided inside one, by
the tenant's policy that is live at that moment.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from imprimatur.errors import AttemptError
from imprimatur.job import Claim
from imprimatur.policy import LivePolicy
from imprimatur.storage.attempts import Spent
from imprimatur.storage.conclusions import Conclusion

#: report(percent, stage, message): shows how far the job is.
Report = Callable[[int, str, str], Awaitable[None]]

#: `with waiting(): ...`: inside the block the attempt's time-out does not run. For what the job is not to blame for.
Waiting = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an attempt produced, for the same task's `conclude`."""

    product: Any
    spent: Spent = field(default_factory=Spent)


class NotEnough(Exception):  # not an error: the surroundings have changed
    """What was produced is not enough any more: do the work again, in full."""


class HandedBack(Exception):  # not an error: somebody else does the work
    """The attempt is over: its end is written already."""

    def __init__(self, conclusion: Conclusion) -> None:
        super().__init__(str(conclusion.happening))
        self.conclusion = conclusion


class Task(Protocol):
    """One job type."""

    async def run(self, claim: Claim, report: Report, waiting: Waiting, *, in_full: bool) -> Work:
        """Do the work, by the policy of about now. With `in_full`, by that of this moment, and leave nothing out.

        Raises:
            AttemptError: the attempt failed; its class says whether it may be retried.
            HandedBack: it is over already.
        """
        ...

    def conclude(self, claim: Claim, work: Work, live: LivePolicy) -> Conclusion:
        """What the finished work makes of the job.

        Raises:
            NotEnough: run it again with `in_full`.
        """
        ...

    def give_up(self, claim: Claim, error: AttemptError, live: LivePolicy) -> Conclusion:
        """What it makes of the job that no attempt is left."""
        ...
