"""What the creatives of the fault suite ask of its engine, and how their jobs must end whatever strikes."""

import random
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What the engine does with a creative after its time."""

    APPROVE = "approve"
    REJECT = "reject"
    HUMAN = "human"  #: leaves it to a person, who approves it
    FAIL = "fail"  #: fails the first time it is looked at, then approves
    LIMITED = "limited"  #: is rate limited the first time, then approves
    CANCEL = "cancel"  #: approves; the caller cancels the job at some moment
    POISON = "poison"  #: kills the process that looks at it


#: The drawn kinds, and how often each is drawn.
_SHARES = {Kind.APPROVE: 60, Kind.REJECT: 10, Kind.HUMAN: 8, Kind.FAIL: 8, Kind.LIMITED: 6, Kind.CANCEL: 8}
_MEAN_SECONDS = 0.8
_MOST_SECONDS = 4.0


@dataclass(frozen=True, kw_only=True)
class Script:
    """One creative's part: what becomes of it, and after how long."""

    kind: Kind
    seconds: float

    @classmethod
    def drawn(cls, rng: random.Random) -> "Script":
        """By chance: mostly short, some long enough to be struck in the middle."""
        (kind,) = rng.choices(list(_SHARES), weights=list(_SHARES.values()))
        return cls(kind=kind, seconds=min(_MOST_SECONDS, rng.expovariate(1 / _MEAN_SECONDS)))

    @classmethod
    def of(cls, headline: str) -> "Script":
        """The script that a creative's headline names."""
        kind, seconds = headline.split()
        return cls(kind=Kind(kind), seconds=float(seconds))

    @property
    def headline(self) -> str:
        """The creative's headline."""
        return f"{self.kind} {self.seconds:.3f}"

    @property
    def most_attempts(self) -> int:
        """Attempts that the job may be charged; what struck it from outside is never among them."""
        return 2 if self.kind is Kind.FAIL else 1

    @property
    def endings(self) -> frozenset[tuple[str, str]]:
        """(state, decision) in which the job may end."""
        match self.kind:
            case Kind.REJECT:
                return frozenset({("succeeded", "rejected")})
            case Kind.CANCEL:
                return frozenset({("succeeded", "approved"), ("cancelled", "")})
            case Kind.POISON:
                return frozenset({("awaiting_review", "pending")})
            case _:
                return frozenset({("succeeded", "approved")})
