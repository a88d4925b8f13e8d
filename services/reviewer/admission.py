"""What must hold before a provider is asked: the tenant's budget has room, and its turn has come.

What does not hold costs the job no attempt but the one that a used-up budget ends.
"""

import asyncio

from imprimatur.budgets import shortage
from imprimatur.errors import BudgetExhausted, NotBegun
from imprimatur.job import Claim
from imprimatur.storage import provider_turns, spending
from imprimatur.storage.database import Database
from imprimatur.storage.provider_turns import Lane
from reviewer.tasks import Waiting
from reviewer.terms import Terms

_STAGE = "admission"
#: The longest that a job keeps its slot for its turn. The dispatcher, which brings back those who wait longer, needs
#: some tenths of a second.
HOLD_SECONDS = 0.5


class Admission:
    """Lets attempts through to providers."""

    def __init__(self, database: Database, terms: Terms) -> None:
        self._database = database
        self._terms = terms

    async def admit(self, claim: Claim, provider: str, waiting: Waiting) -> None:
        """Return when the provider may be asked.

        Raises:
            BudgetExhausted: not today.
            NotBegun: not yet.
        """
        await self._require_budget(claim)
        if interval_seconds := self._terms.interval_seconds.get(claim.type):
            await self._take_turn(claim, provider, interval_seconds, waiting)

    async def _require_budget(self, claim: Claim) -> None:
        async with self._database.read() as reader:
            own, used = await spending.of_tenant(reader, claim.tenant_id)
        if short := shortage(own.or_else(self._terms.budget), used):
            raise BudgetExhausted(f"{short}; it begins anew at midnight UTC", stage=_STAGE)

    async def _take_turn(self, claim: Claim, provider: str, interval_seconds: float, waiting: Waiting) -> None:
        async with self._database.begin() as tx:
            turn = await provider_turns.take(
                tx,
                Lane(provider=provider, tenant_id=claim.tenant_id, type=claim.type),
                interval_seconds=interval_seconds,
                hold_seconds=HOLD_SECONDS,
                was_here=claim.claim_no > 1,
            )
        if not turn.taken:
            raise NotBegun(
                "the job waits for its turn at the AI provider",
                retry_after_seconds=turn.wait_seconds,
                code="turn_awaited",
                stage=_STAGE,
            )
        with waiting():
            await asyncio.sleep(turn.wait_seconds)
