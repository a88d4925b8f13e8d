"""Equal creatives: which attempt looks, and which wait for what it finds.

What equal means is `imprimatur.reuse`; who is first is settled in the database, over all reviewers. Nobody reuses the
evidence of an appeal or of a suspect, and these reuse nobody's: an appeal is a new look by its nature, and a suspect
must not keep others waiting for what may kill a worker.
"""

import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from imprimatur import metrics
from imprimatur.evidence import EngineIdentity, Evidence
from imprimatur.gathering import LINGER_SECONDS, Gathering
from imprimatur.job import AttemptOutcome, Claim, Happening
from imprimatur.reuse import Source, may_be_kept
from imprimatur.storage import conclusions, flights, landings
from imprimatur.storage.attempts import Spent
from imprimatur.storage.conclusions import Conclusion, Ending
from imprimatur.storage.database import Database
from imprimatur.storage.flights import Answer, Asked, Found, Standing
from imprimatur.storage.landings import Made
from imprimatur.wire.creatives import evidence_of, kept_evidence
from reviewer.tasks import HandedBack

#: Who waits is woken by the end of the attempt that it waits for; and looks again after this, should that be missed.
_LOOK_AGAIN_SECONDS = 30.0

#: A job, and the number of its claim.
_Attempt: TypeAlias = tuple[uuid.UUID, int]


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What an equal creative was found to be."""

    evidence: Evidence
    source: Source


class Twins:
    """Asks for the evidence of equal creatives.

    Args:
        keep_seconds: for how long evidence is reused; 0: nothing is.
    """

    def __init__(self, database: Database, *, keep_seconds: float) -> None:
        self._database = database
        self._keep_seconds = keep_seconds
        self._questions: Gathering[Asked, Answer] = Gathering("evidence", self._ask_all, linger_seconds=LINGER_SECONDS)
        self._waits: Gathering[Ending, None] = Gathering("twins", self._wait_all, linger_seconds=LINGER_SECONDS)
        self._leads: dict[_Attempt, bytes] = {}
        self._made: dict[_Attempt, Made | None] = {}

    def shares(self, claim: Claim) -> bool:
        """Whether the attempt may reuse evidence, and have its own reused. Not any more once it has looked: a second
        look, for a changed policy, it takes alone."""
        may = self._keep_seconds > 0 and not claim.suspect and claim.appeal_of is None
        return may and _attempt(claim) not in self._made

    async def earlier(self, claim: Claim, key: bytes, *, engine: EngineIdentity, policy_version: int) -> Earlier | None:
        """Evidence for this key; None: there is none, and it is this attempt that looks.

        Raises:
            HandedBack: somebody else looks just now. The job waits for it, in the queue.
            Unavailable: the database is out of reach.
        """
        asked = Asked(
            key=key,
            tenant_id=claim.tenant_id,
            job_type=claim.type,
            engine=engine,
            policy_version=policy_version,
            job_id=claim.job_id,
            claim_no=claim.claim_no,
            keep_seconds=self._keep_seconds,
            since=claim.evidence_since,
        )
        answer = await self._questions.add(asked)
        if isinstance(answer, Found) and (found := evidence_of(answer.content)) is not None:
            metrics.evidence_lookups.labels("hit").inc()
            source = Source(job_id=answer.job_id, made_at=answer.made_at, shown=answer.shown)
            return Earlier(evidence=found, source=source)
        if answer is Standing.FOLLOWS:
            metrics.evidence_lookups.labels("wait").inc()
            waiting = _waiting_for(key)
            await self._waits.add(Ending(claim=claim, conclusion=waiting, spent=Spent()))
            raise HandedBack(waiting)
        metrics.evidence_lookups.labels("miss").inc()
        if answer is Standing.LEADS:
            self._leads[_attempt(claim)] = key
        return None

    def made(self, claim: Claim, found: Evidence) -> Made | None:
        """What an attempt that leads brought for equal creatives to come, and that is what its first look found. A
        second one, for a changed policy, is asked something else, and what it finds is not for the key of the first."""
        attempt = _attempt(claim)
        if attempt not in self._made:
            self._made[attempt] = self._worth_of(found) if attempt in self._leads else None
        return self._made[attempt]

    def _worth_of(self, found: Evidence) -> Made:
        return Made(
            content=kept_evidence(found) if may_be_kept(found) else None,
            keep_seconds=self._keep_seconds,
            input_tokens=found.input_tokens,
            output_tokens=found.output_tokens,
            cost_micros=found.cost_micros,
        )

    def led_by(self, claim: Claim) -> bytes | None:
        """The key of the evidence that this attempt is to make for others, too."""
        return self._leads.get(_attempt(claim))

    @contextmanager
    def known(self, claim: Claim) -> Iterator[None]:
        """Around an attempt: what is remembered of it is forgotten at the end."""
        try:
            yield
        finally:
            self._leads.pop(_attempt(claim), None)
            self._made.pop(_attempt(claim), None)

    async def _ask_all(self, questions: Sequence[Asked], lock_seconds: float | None) -> Sequence[Answer]:
        async with self._database.begin(lock_seconds=lock_seconds) as tx:
            return await flights.ask(tx, questions)

    async def _wait_all(self, ends: Sequence[Ending], lock_seconds: float | None) -> Sequence[None]:
        """Hand the jobs back, and have those wake them for whom they wait; in one transaction, jobs first."""
        by_key: defaultdict[bytes, list[uuid.UUID]] = defaultdict(list)
        for end in ends:
            if end.conclusion.waits_for is not None:
                by_key[end.conclusion.waits_for].append(end.claim.job_id)
        async with self._database.begin(lock_seconds=lock_seconds) as tx:
            await conclusions.conclude(tx, ends)
            await landings.wait(tx, by_key)
        return [None] * len(ends)


def _attempt(claim: Claim) -> _Attempt:
    return claim.job_id, claim.claim_no


def _waiting_for(key: bytes) -> Conclusion:
    return Conclusion(
        happening=Happening.WAITING_FOR_TWIN,
        outcome=AttemptOutcome.WAITING_FOR_TWIN,
        spends_attempt=False,
        delay_seconds=_LOOK_AGAIN_SECONDS,
        waits_for=key,
        details={"reason": "an equal creative is being examined"},
    )
