"""An engine that does what the headline of a creative says: it looks at nothing, and counts how it was called."""

import asyncio
from collections import Counter, defaultdict
from dataclasses import replace

from imprimatur.criteria import Criteria
from imprimatur.errors import PermanentError, RateLimited, TransientError, UnreviewableInput
from imprimatur.evidence import Category, Creative, EngineIdentity, Evidence, Part, Recommendation
from reviewer.engines import Judging
from tests import makers

#: What must never reach a client.
SECRET = "sk-a-provider-key-that-nobody-may-see"

APPROVE = "approve"
REJECT = "reject"
HUMAN = "human"  #: asks for a person
UNSURE = "unsure"  #: a score between the thresholds
UNSEEN = "unseen"  #: leaves a part unexamined
TRUNCATED = "truncated"  #: leaves the end unexamined
NONSENSE = "nonsense"  #: a score that is none
SLOW = "slow"  #: "slow 0.3": takes so many seconds, then approves
GATE = "gate"  #: waits until `open`, then approves
GATE_THEN_REFUSE = "gate-then-refuse"  #: waits until `open`, then raises a permanent error
FAIL = "fail"  #: "fail 2": fails so often, then approves
LIMITED = "limited"  #: "limited 2": is rate limited so often, then approves
BREAK = "break"  #: raises what an engine must not raise
REFUSE = "refuse"  #: a permanent error
UNREADABLE = "unreadable"  #: an input that cannot be reviewed


class ScriptedEngine:
    """An `Engine`. Every call costs 1,000 tokens in, 100 out and 7 millionths of a dollar."""

    def __init__(self, name: str = "scripted") -> None:
        self.identity = EngineIdentity(name=name, version="1")
        self.seen: list[str] = []  #: creative ids, in the order in which they were begun
        self.aborted: Counter[str] = Counter()  #: calls that were cancelled, by creative id
        self.running = 0
        self.closed = False
        self._gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def open(self, creative_id: str) -> None:
        """Let the call about this creative go on, now or when it comes."""
        self._gates[creative_id].set()

    async def examine(self, creative: Creative) -> Evidence:
        """Do what the headline says."""
        self.seen.append(creative.creative_id)
        self.running += 1
        try:
            found = await self._play(creative)
        except asyncio.CancelledError:
            self.aborted[creative.creative_id] += 1
            raise
        finally:
            self.running -= 1
        return replace(found, engine=self.identity, input_tokens=1000, output_tokens=100, cost_micros=7)

    async def close(self) -> None:
        """Remember it."""
        self.closed = True

    async def _play(self, creative: Creative) -> Evidence:
        script, _, argument = creative.headline.partition(" ")
        match script:
            case "slow":
                await asyncio.sleep(float(argument))
            case "gate":
                await self._gates[creative.creative_id].wait()
            case "gate-then-refuse":
                await self._gates[creative.creative_id].wait()
                raise PermanentError("the model refuses to look at this", code="refused", stage="examining")
            case "fail" if self.seen.count(creative.creative_id) <= int(argument):
                raise TransientError("the provider answered 503", code="provider_error", stage="examining")
            case "limited" if self.seen.count(creative.creative_id) <= int(argument):
                raise RateLimited("the provider asks to wait", retry_after_seconds=0.1)
            case "break":
                raise RuntimeError(f"cannot reach https://user:{SECRET}@provider.example/")
            case "refuse":
                raise PermanentError("the model refuses to look at this", code="refused", stage="examining")
            case "unreadable":
                raise UnreviewableInput("images[0]: is not an image", stage="reading")
        return _EVIDENCE.get(script, _EVIDENCE[APPROVE])


_EVIDENCE = {
    APPROVE: makers.evidence(0.97),
    REJECT: makers.evidence(0.02, recommendation=Recommendation.REJECT, detected={Category.SCAM: 0.99}),
    HUMAN: makers.evidence(0.6, recommendation=Recommendation.HUMAN),
    UNSURE: makers.evidence(0.6),
    UNSEEN: makers.evidence(0.97, unexamined=frozenset({Part.IMAGE})),
    TRUNCATED: makers.evidence(0.97, truncated=True),
    NONSENSE: makers.evidence(float("nan")),
}


class JudgingEngine(ScriptedEngine, Judging):
    """Says of every criterion that it is kept, but of those that the headline names."""

    def with_criteria(self, criteria: Criteria) -> "_Judge":
        """This engine, asked about them too."""
        return _Judge(self, criteria)


class _Judge:
    """An `Engine`."""

    def __init__(self, engine: ScriptedEngine, criteria: Criteria) -> None:
        self.identity = engine.identity
        self._engine, self._criteria = engine, criteria

    async def examine(self, asked: Creative) -> Evidence:
        """Do what the headline says, and look for the criteria's names in it."""
        found = await self._engine.examine(asked)
        broken = {one: 0.95 if one.name in asked.headline else 0.0 for one in self._criteria}
        return replace(found, criteria=makers.evidence(broken=broken).criteria)

    async def close(self) -> None:
        """The other's."""
