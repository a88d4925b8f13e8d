"""The figures of an evaluation. Pure functions on numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

BINS = 10  #: of equal width, for the calibration error
NORMAL_95 = 1.959963984540054  #: the 97.5th percentile of the normal distribution: two-sided 95 %


@dataclass(frozen=True, kw_only=True)
class Share:
    """`count` of `total`, and the 95 % interval of the rate behind it. All None without a total."""

    count: int
    total: int

    @property
    def rate(self) -> float | None:
        """count / total."""
        return self.count / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's score interval."""
        return wilson(self.count, self.total) if self.total else None


def wilson(count: int, total: int) -> tuple[float, float]:
    """The score interval for a binomial proportion, 95 %: E. B. Wilson, "Probable Inference, the Law of Succession,
    and Statistical Inference", Journal of the American Statistical Association 22 (1927), pp. 209-212. It holds for
    small counts too, zero included. `total` must be positive."""
    rate, z2 = count / total, NORMAL_95**2
    middle = rate + z2 / (2 * total)
    spread = NORMAL_95 * sqrt(rate * (1 - rate) / total + z2 / (4 * total**2))
    low, high = (middle - spread) / (1 + z2 / total), (middle + spread) / (1 + z2 / total)
    return (0.0 if count == 0 else low), (1.0 if count == total else high)


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Scores in [low, high) (the last one's high included), and what was true of them."""

    low: float
    high: float
    count: int
    mean_score: float
    share_true: float


def reliability(scores: Sequence[float], truths: Sequence[bool]) -> list[Bin]:
    """The bins that hold something, lowest first."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for score, truth in zip(scores, truths, strict=True):
        members[min(int(score * BINS), BINS - 1)].append((score, truth))
    return [
        Bin(
            low=number / BINS,
            high=(number + 1) / BINS,
            count=len(held),
            mean_score=sum(score for score, _ in held) / len(held),
            share_true=sum(truth for _, truth in held) / len(held),
        )
        for number, held in enumerate(members)
        if held
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: the bins' |mean score - share true|, weighted by their counts (Naeini, Cooper and
    Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015)."""
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.mean_score - each.share_true) for each in bins) / total


@dataclass(frozen=True, kw_only=True)
class Hits:
    """How one category was detected, in counts."""

    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def precision(self) -> float | None:
        """Of those detected, how many were right."""
        found = self.true_positives + self.false_positives
        return self.true_positives / found if found else None

    @property
    def recall(self) -> float | None:
        """Of those that belong, how many were detected."""
        real = self.true_positives + self.false_negatives
        return self.true_positives / real if real else None


def hits(pairs: Sequence[tuple[bool, bool]]) -> Hits:
    """From (belongs, detected) for each ad."""
    return Hits(
        true_positives=pairs.count((True, True)),
        false_positives=pairs.count((False, True)),
        false_negatives=pairs.count((True, False)),
    )
