"""The decision table as cases: for each row what it is for, each boundary of each threshold, and what it precedes.

`test_policy` has the code decide them all; `test_docs` holds their rows against those of docs/decision-table.md.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial

from imprimatur.criteria import Criterion, Effect
from imprimatur.evidence import Category, Declared, Evidence, Part, Recommendation, UnknownCategory
from imprimatur.policy import Decision, EngineFailure, Mode, Policy, Trigger
from tests import makers

APPROVE, REJECT, HUMAN = Recommendation.APPROVE, Recommendation.REJECT, Recommendation.HUMAN
APPROVED, REJECTED, PENDING = Decision.APPROVED, Decision.REJECTED, Decision.PENDING
ALCOHOL, HATE, SCAM, ADULT = Category.ALCOHOL, Category.HATE, Category.SCAM, Category.ADULT
LATER = UnknownCategory("unknown category 20")

BROKEN = EngineFailure(message="the engine timed out")
BROKE = EngineFailure(message="the day's budget is used up", budget_exhausted=True)

DEFAULT = Policy()
#: Every threshold elsewhere, so that none can be a constant of the code.
OTHER = Policy(auto_approve_threshold=0.75, auto_reject_threshold=0.25, detect_min=0.4, block_min=0.8)
LENIENT = Policy(always_human=frozenset(), blocked=frozenset())
#: Thresholds on the wrong side of a half, where the engine's advice and they contradict each other.
ODD = Policy(auto_approve_threshold=0.3, auto_reject_threshold=0.2)
HARSH = Policy(auto_approve_threshold=0.9, auto_reject_threshold=0.7)

PRICES = Criterion(name="prices", text="Prices name their currency.", effect=Effect.BLOCKS)
RIVALS = Criterion(name="rivals", text="No rival is named.", effect=Effect.TO_PERSON)
REWORDED = Criterion(name="rivals", text="No rival is named or shown.", effect=Effect.TO_PERSON)
STRICTER = Criterion(name="rivals", text="No rival is named.", effect=Effect.BLOCKS)
RULES = Policy(criteria=(PRICES, RIVALS))


class Side(StrEnum):
    """Where a number lies: the next one below a threshold, the threshold itself, the next one above it."""

    BELOW = "just below"
    AT = "exactly at"
    ABOVE = "just above"

    def of(self, threshold: float) -> float:
        """That number."""
        towards = {Side.BELOW: -math.inf, Side.AT: threshold, Side.ABOVE: math.inf}[self]
        return math.nextafter(threshold, towards)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Under `policy`, `found` in a creative of the `declared` categories is decided so by the row of that number.

    `edge`: the setting of the policy on whose boundary the case lies, and where.
    """

    row: int
    is_: tuple[Decision, Trigger]
    found: Evidence | EngineFailure | None = field(default_factory=makers.evidence)
    policy: Policy = DEFAULT
    declared: tuple[Declared, ...] = ()
    edge: tuple[str, Side] | None = None


def clean(score: float, **more: object) -> Evidence:
    """Evidence whose recommendation fits its score."""
    return makers.evidence(score, recommendation=APPROVE if score >= 0.5 else REJECT, **more)  # type: ignore[arg-type]  # passed on


def touches(category: Category, score: float, *, approval: float = 0.95) -> Evidence:
    """Evidence of one category, which is clean otherwise."""
    return clean(approval, detected={category: score})


def breaks(*, prices: float = 0.0, rivals: float = 0.0, approval: float = 0.95, **more: object) -> Evidence:
    """Evidence of a creative that is clean otherwise, in which both criteria were examined."""
    return clean(approval, broken={PRICES: prices, RIVALS: rivals}, **more)


#: Whatever an engine may come with, by name.
FOUND: Mapping[str, Evidence | EngineFailure | None] = {
    "clean": makers.evidence(),
    "no engine ran": None,
    "engine failed": BROKEN,
    "budget": BROKE,
    "blocked": touches(HATE, 1.0),
    "sensitive": touches(ALCOHOL, 1.0),
    "criteria broken": breaks(prices=1.0, rivals=1.0),
    "asks for a person": makers.evidence(recommendation=HUMAN),
    "contradictory": makers.evidence(0.05),
    "bad": clean(0.0),
    "between": clean(0.6),
    "not examined": clean(1.0, unexamined=frozenset(Part)),
    "truncated": clean(1.0, truncated=True),
    "not a number": makers.evidence(math.nan),
}

# --- what the rows decide --------------------------------------------------------------------------------

_1 = (APPROVED, Trigger.AUTO_APPROVE_MODE)
_2 = (PENDING, Trigger.HUMAN_REQUIRED)
_3 = (PENDING, Trigger.ENGINE_ERROR)
_3_BUDGET = (PENDING, Trigger.BUDGET_EXHAUSTED)
_4 = (PENDING, Trigger.SENSITIVE_CATEGORY)
_4_CRITERION = (PENDING, Trigger.SENSITIVE_CRITERION)
_5 = (REJECTED, Trigger.BLOCKED_CATEGORY)
_5_CRITERION = (REJECTED, Trigger.BLOCKED_CRITERION)
_6 = (PENDING, Trigger.POSSIBLE_BLOCKED)
_7 = (PENDING, Trigger.UNCERTAIN)
_8 = (REJECTED, Trigger.AUTO_REJECT)
_9 = (PENDING, Trigger.NOT_FULLY_EXAMINED)
_10 = (APPROVED, Trigger.AUTO_APPROVE)
_11 = (PENDING, Trigger.LOW_CONFIDENCE)


def _modes() -> Iterator[tuple[str, Case]]:
    """Rows 1 and 2: the mode alone decides, whatever was found, declared and asked for."""
    for row, mode, is_ in ((1, Mode.AUTO_APPROVE, _1), (2, Mode.REQUIRE_HUMAN, _2)):
        policy = Policy(mode=mode)
        for name, found in FOUND.items():
            yield f"{row} {name}", Case(row=row, policy=policy, found=found, is_=is_)
        yield f"{row} declared", Case(row=row, policy=policy, declared=(ALCOHOL, HATE), is_=is_)
        yield f"{row} criteria not examined", Case(row=row, policy=replace(RULES, mode=mode), is_=is_)


_PLAIN = {
    # 3: no usable evidence
    "3 failed": Case(row=3, found=BROKEN, is_=_3),
    "3 no engine ran": Case(row=3, found=None, is_=_3),
    "3 budget": Case(row=3, found=BROKE, is_=_3_BUDGET),
    "3 not a number": Case(row=3, found=makers.evidence(math.nan), is_=_3),
    "3 infinite": Case(row=3, found=makers.evidence(math.inf), is_=_3),
    "3 endlessly bad": Case(row=3, found=clean(-math.inf), is_=_3),
    "3 just above 1": Case(row=3, found=makers.evidence(Side.ABOVE.of(1.0)), is_=_3),
    "3 just below 0": Case(row=3, found=clean(Side.BELOW.of(0.0)), is_=_3),
    "3 category not a number": Case(row=3, found=touches(ALCOHOL, math.nan), is_=_3),
    "3 category just above 1": Case(row=3, found=touches(HATE, Side.ABOVE.of(1.0)), is_=_3),
    "3 category just below 0": Case(row=3, found=touches(HATE, Side.BELOW.of(0.0)), is_=_3),
    "3 category of no interest not a number": Case(row=3, policy=LENIENT, found=touches(HATE, math.nan), is_=_3),
    "3 criterion not a number": Case(row=3, policy=RULES, found=breaks(prices=math.nan), is_=_3),
    "3 criterion just above 1": Case(row=3, policy=RULES, found=breaks(rivals=Side.ABOVE.of(1.0)), is_=_3),
    "3 criterion just below 0": Case(row=3, policy=RULES, found=breaks(rivals=Side.BELOW.of(0.0)), is_=_3),
    "3 criterion of no interest just above 1": Case(row=3, found=breaks(prices=Side.ABOVE.of(1.0)), is_=_3),
    "3 failed under criteria": Case(row=3, policy=RULES, found=BROKEN, is_=_3),
    "3 before 4": Case(row=3, found=BROKEN, declared=(ALCOHOL,), is_=_3),
    "3 budget, before 4": Case(row=3, found=BROKE, declared=(ALCOHOL,), is_=_3_BUDGET),
    # 4: sensitive, declared or detected
    "4 declared sensitive": Case(row=4, declared=(ALCOHOL,), is_=_4),
    "4 declared blocked": Case(row=4, declared=(HATE,), is_=_4),
    "4 not declared in the policy": Case(row=10, declared=(ALCOHOL,), policy=LENIENT, is_=_10),
    "4 declared, of a later version": Case(row=4, declared=(LATER,), policy=LENIENT, is_=_4),
    "4 declared, of a later version, before 5": Case(row=4, declared=(LATER,), found=touches(HATE, 1.0), is_=_4),
    "4 certain": Case(row=4, found=touches(ALCOHOL, 1.0), is_=_4),
    "4 not detected in the policy": Case(row=10, found=touches(ALCOHOL, 1.0), policy=LENIENT, is_=_10),
    "4 before 5": Case(row=4, found=clean(0.95, detected={ALCOHOL: 0.5, HATE: 0.99}), is_=_4),
    "4 declared, before 5": Case(row=4, declared=(HATE,), found=touches(HATE, 1.0), is_=_4),
    "4 before 8": Case(row=4, found=touches(ADULT, 0.9, approval=0.01), is_=_4),
    "4 criterion certain": Case(row=4, policy=RULES, found=breaks(rivals=1.0), is_=_4_CRITERION),
    "4 criterion not in the policy": Case(row=10, found=breaks(rivals=1.0, prices=1.0), is_=_10),
    "4 criterion, before 5": Case(row=4, policy=RULES, found=breaks(rivals=0.5, prices=0.95), is_=_4_CRITERION),
    "4 criterion, before 5 of a category": Case(
        row=4, policy=RULES, found=breaks(rivals=0.5, detected={HATE: 1.0}), is_=_4_CRITERION
    ),
    "4 criterion, before 8": Case(row=4, policy=RULES, found=breaks(rivals=0.5, approval=0.01), is_=_4_CRITERION),
    "4 category before criterion": Case(row=4, policy=RULES, found=breaks(rivals=1.0, detected={ALCOHOL: 0.5}), is_=_4),
    "4 declared, before criterion": Case(row=4, policy=RULES, declared=(HATE,), found=breaks(rivals=1.0), is_=_4),
    # 5: blocked for sure
    "5 certain": Case(row=5, found=touches(HATE, 1.0), is_=_5),
    "5 of several": Case(row=5, found=clean(0.95, detected={HATE: 0.4, SCAM: 0.95}), is_=_5),
    "5 before 7": Case(row=5, found=makers.evidence(0.2, recommendation=HUMAN, detected={HATE: 0.95}), is_=_5),
    "5 before 9": Case(row=5, found=clean(1.0, detected={HATE: 0.95}, unexamined=frozenset(Part)), is_=_5),
    "5 criterion certain": Case(row=5, policy=RULES, found=breaks(prices=1.0), is_=_5_CRITERION),
    "5 criterion by its effect of today": Case(
        row=5, policy=Policy(criteria=(STRICTER,)), found=breaks(rivals=1.0), is_=_5_CRITERION
    ),
    "5 category before criterion": Case(row=5, policy=RULES, found=breaks(prices=1.0, detected={HATE: 0.95}), is_=_5),
    "5 criterion, before 6 of a category": Case(
        row=5, policy=RULES, found=breaks(prices=1.0, detected={HATE: 0.5}), is_=_5_CRITERION
    ),
    "5 criterion, before 9": Case(
        row=5, policy=RULES, found=clean(1.0, broken={PRICES: 1.0}, truncated=True), is_=_5_CRITERION
    ),
    # 6: perhaps blocked
    "6 in the middle": Case(row=6, found=touches(HATE, 0.5), is_=_6),
    "6 before 7": Case(row=6, found=makers.evidence(recommendation=HUMAN, detected={HATE: 0.5}), is_=_6),
    "6 before 8": Case(row=6, found=touches(HATE, 0.5, approval=0.01), is_=_6),
    "6 criterion in the middle": Case(row=6, policy=RULES, found=breaks(prices=0.5), is_=_6),
    "6 criterion, before 8": Case(row=6, policy=RULES, found=breaks(prices=0.5, approval=0.01), is_=_6),
    # 7: contradictory, or a person is asked for
    "7 asks for a person": Case(row=7, found=makers.evidence(0.99, recommendation=HUMAN), is_=_7),
    "7 asks for a person at a low score": Case(row=7, found=makers.evidence(0.01, recommendation=HUMAN), is_=_7),
    "7 approve at a low score, before 8": Case(row=7, found=makers.evidence(0.05), is_=_7),
    "7 reject at a high score, before 10": Case(row=7, found=makers.evidence(0.95, recommendation=REJECT), is_=_7),
    "7 before 9": Case(row=7, found=makers.evidence(recommendation=HUMAN, truncated=True), is_=_7),
    # 8: bad enough
    "8 zero": Case(row=8, found=clean(0.0), is_=_8),
    "8 before 9": Case(row=8, found=clean(0.05, unexamined=frozenset({Part.VIDEO}), truncated=True), is_=_8),
    # 9: something was not looked at
    **{f"9 {part} not examined": Case(row=9, found=clean(1.0, unexamined=frozenset({part})), is_=_9) for part in Part},
    **{
        f"9 {category} not examined": Case(row=9, found=clean(1.0, examined=frozenset(Category) - {category}), is_=_9)
        for category in Category
    },
    "9 no criterion examined": Case(row=9, policy=RULES, found=clean(1.0), is_=_9),
    "9 one criterion not examined": Case(row=9, policy=RULES, found=clean(1.0, broken={PRICES: 0.0}), is_=_9),
    "9 criterion examined as it was worded before": Case(
        row=9, policy=Policy(criteria=(REWORDED,)), found=breaks(rivals=1.0), is_=_9
    ),
    "9 truncated": Case(row=9, found=clean(1.0, truncated=True), is_=_9),
    "9 before 11": Case(row=9, found=clean(0.6, truncated=True), is_=_9),
    "9 of no interest": Case(row=10, found=clean(1.0, examined=frozenset()), policy=LENIENT, is_=_10),
    # 10: good enough
    "10 one": Case(row=10, found=clean(1.0), is_=_10),
    "10 every criterion kept": Case(row=10, policy=RULES, found=breaks(), is_=_10),
    # 11: neither
    "11 in the middle": Case(row=11, found=clean(0.6), is_=_11),
}

# --- boundaries ------------------------------------------------------------------------------------------

_Decided = tuple[int, tuple[Decision, Trigger]]


def _boundary(
    name: str, setting: str, policy: Policy, show: Callable[[float], Evidence], rows: Sequence[_Decided]
) -> Iterator[tuple[str, Case]]:
    """Three cases around one setting of the policy, where `show` makes evidence of the number."""
    threshold: float = getattr(policy, setting)
    for side, (row, is_) in zip(Side, rows, strict=True):
        found = show(side.of(threshold))
        yield (
            f"{row} {side} {name} of {threshold}",
            Case(row=row, is_=is_, policy=policy, found=found, edge=(setting, side)),
        )


def _from(before: _Decided, then: _Decided) -> Sequence[_Decided]:
    """The boundary itself belongs to what is above it."""
    return before, then, then


def _until(before: _Decided, then: _Decided) -> Sequence[_Decided]:
    """The boundary itself belongs to what is below it."""
    return before, before, then


def _boundaries() -> Iterator[tuple[str, Case]]:
    sensitive, blocked = partial(touches, ALCOHOL), partial(touches, HATE)
    for policy in (DEFAULT, OTHER):
        approve, reject = "auto_approve_threshold", "auto_reject_threshold"
        yield from _boundary(approve, approve, policy, clean, _from((11, _11), (10, _10)))
        yield from _boundary(reject, reject, policy, clean, _until((8, _8), (11, _11)))
        yield from _boundary("sensitive detect_min", "detect_min", policy, sensitive, _from((10, _10), (4, _4)))
        yield from _boundary("blocked detect_min", "detect_min", policy, blocked, _from((10, _10), (6, _6)))
        yield from _boundary("block_min", "block_min", policy, blocked, _from((6, _6), (5, _5)))
        ruled = replace(policy, criteria=RULES.criteria)
        to_person, blocking = (lambda score: breaks(rivals=score)), (lambda score: breaks(prices=score))
        for_people, refused = _from((10, _10), (4, _4_CRITERION)), _from((6, _6), (5, _5_CRITERION))
        yield from _boundary("criterion for people detect_min", "detect_min", ruled, to_person, for_people)
        yield from _boundary(
            "criterion that blocks detect_min", "detect_min", ruled, blocking, _from((10, _10), (6, _6))
        )
        yield from _boundary("criterion that blocks block_min", "block_min", ruled, blocking, refused)
    approving, rejecting = (partial(makers.evidence, recommendation=advice) for advice in (APPROVE, REJECT))
    rejected, approved = _until((7, _7), (11, _11)), _from((11, _11), (7, _7))
    yield from _boundary("rejecting against advice", "auto_reject_threshold", HARSH, approving, rejected)
    yield from _boundary("approving against advice", "auto_approve_threshold", ODD, rejecting, approved)
    for name, show, rows in (
        ("advice to approve", approving, _from((7, _7), (11, _11))),
        ("advice to reject", rejecting, _until((11, _11), (7, _7))),
    ):
        for side, (row, is_) in zip(Side, rows, strict=True):
            yield f"{row} {name}, {side} half", Case(row=row, is_=is_, found=show(side.of(0.5)))


TABLE: Mapping[str, Case] = {**dict(_modes()), **_PLAIN, **dict(_boundaries())}
