"""From passages to probabilities: per category, and that the ad may be approved without a person.

Each passage gets a logit per category, and per group of categories, from its meaning and its terms (logistic
regressions), and its nearest neighbours among the training passages. A creative's category score is that of its worst
passage, calibrated. For P(may be approved) each passage's `signs` are weighed together, and the passages' sums are
pooled so that the worst counts most. That is fitted on scores of examples not trained on, short ones and long ones:
more passages, a higher worst. The numbers come from weights.npz, which `train` writes. What a score leads to is the
business of `examiner` and the policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from imprimatur.evidence import FORBIDDEN, SENSITIVE, Category
from reviewer.engines.builtin.embeddings import DIMENSIONS, Encoder
from reviewer.engines.builtin.lexicon import Find, Lexicon

CATEGORIES = tuple(Category)
GROUPS = (SENSITIVE, FORBIDDEN)  #: "touches something sensitive", "contains something forbidden": heads of their own
MEMBERS = tuple(np.array([category in group for category in CATEGORIES]) for group in GROUPS)
HEADS = len(CATEGORIES) + len(GROUPS)
SENTENCE_MARGIN = 1.0  #: log odds that a sentence torn from its context loses, unless it says it outright
TERM_FEATURES = 3  #: strongest term, all terms, harmless uses; each in [0, 1]
NEAREST = 3  #: neighbours whose mean cosine counts, beside the very nearest
FARTHEST = 12.0  #: log odds beyond which there is nothing more to tell
MEASURES, MARKS = 9, 4  #: of a passage, see `measures` and `marks`
CROSSED = (0, 1, 4, 5, 7)  #: measures that are multiplied with each other and with two marks
SIGNS = MEASURES + MARKS + len(CROSSED) * (len(CROSSED) + 1) // 2 + 2 * len(CROSSED)

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Places = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Features:
    """What is known of n passages: meaning, shape (n, 384), and terms, shape (n, HEADS, 3)."""

    meaning: Array
    terms: Array
    finds: tuple[tuple[Find, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """P(category) for each of CATEGORIES, P(may be approved), and the passages' logits (n, HEADS)."""

    categories: Array
    approvable: float
    logits: Array


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Passages of the training data, as unit vectors: those that speak against an ad, and harmless ones."""

    telling: NDArray[np.float32]  #: (passages, 384)
    harmless: NDArray[np.float32]  #: (passages, 384)

    def near(self, meaning: Array) -> Array:
        """How near each of n passages is to telling and to harmless ones, shape (n, 4): the mean cosine of the NEAREST
        of either side, then that of the very nearest."""
        sides = [_nearest(meaning.astype(np.float32) @ side.T) for side in (self.telling, self.harmless)]
        return np.column_stack([side.mean(axis=1) for side in sides] + [side.max(axis=1) for side in sides])


def _nearest(cosines: NDArray[np.float32]) -> Array:
    return np.partition(cosines, -NEAREST, axis=1)[:, -NEAREST:].astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Approval:
    """Weights for P(may be approved)."""

    middle: Array  #: (MEASURES,)
    spread: Array  #: (MEASURES,)
    signs: Array  #: (SIGNS,)
    whole: Array  #: (3,): of the pooled passages, of the log of their number, and the constant

    def chance(self, logits: Array, features: Features, stretch: Mask, *, calibration: Array, near: Array) -> float:
        """P(may be approved) of one creative."""
        measured = measures(logits, calibration, near)
        weighed = signs(measured, marks(features, stretch), self.middle, self.spread) @ self.signs
        against = self.whole @ [pooled(weighed, np.zeros(1, dtype=np.intp))[0], np.log(len(weighed)), 1.0]
        return float(probability(-against))


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """Weights of the heads, CATEGORIES in order, then GROUPS; calibration; neighbours; approval."""

    meaning: Array  #: (HEADS, 384)
    terms: Array  #: (HEADS, 3)
    bias: Array  #: (HEADS,)
    calibration: Array  #: (2,): slope and shift, of all heads
    neighbours: Neighbours
    approval: Approval

    def judge(self, features: Features, stretch: Mask) -> Judgement:
        """Judge a creative by its passages, of which there must be one at least; `stretch`, shape (n,), tells
        which of them are stretches of the whole."""
        logits = self.logits(features)
        decisive = (logits - handicap(features, stretch)).max(axis=0)[: len(CATEGORIES)]
        near = self.neighbours.near(features.meaning)
        return Judgement(
            categories=probability(self.calibration[0] * decisive + self.calibration[1]),
            approvable=self.approval.chance(logits, features, stretch, calibration=self.calibration, near=near),
            logits=logits,
        )

    def logits(self, features: Features) -> Array:
        """Shape (n, HEADS), before calibration."""
        by_terms = np.einsum("nhk,hk->nh", features.terms, self.terms)
        logits: Array = features.meaning @ self.meaning.T + by_terms + self.bias
        return logits


def measures(logits: Array, calibration: Array, near: Array) -> Array:
    """What is measured of each passage, shape (n, MEASURES): logits of the groups; for each group the log of the summed
    odds of its categories (a group is too motley for one line through the embeddings, its categories are not); the
    highest category; what is near, and how much nearer the telling is than the harmless."""
    scaled = calibration[0] * logits + calibration[1]
    categories = scaled[:, : len(CATEGORIES)]
    odds = np.exp(np.clip(categories, -30.0, 30.0))
    summed = np.stack([np.log(odds[:, member].sum(axis=1)) for member in MEMBERS], axis=1)
    of_heads = np.column_stack([scaled[:, len(CATEGORIES) :], summed, categories.max(axis=1)])
    return np.column_stack(
        [np.clip(of_heads, -FARTHEST, FARTHEST), near[:, :2], near[:, 0] - near[:, 1], near[:, 2] - near[:, 3]]
    )


def marks(features: Features, stretch: Mask) -> Array:
    """What marks each passage, shape (n, MARKS), in [0, 1]: that it is a stretch; its strongest term; that one says it
    outright; that there is a harmless use."""
    terms = features.terms[:, : len(CATEGORIES)]
    strongest = terms[:, :, 0].max(axis=1)
    return np.column_stack([stretch, strongest, strongest == 1.0, terms[:, :, 2].max(axis=1)]).astype(np.float64)


def signs(measured: Array, marked: Array, middle: Array, spread: Array) -> Array:
    """What speaks for and against approving, shape (n, SIGNS): measures on one scale, marks, and their products."""
    even = np.clip((measured - middle) / spread, -4.0, 4.0)
    crossed = [even[:, one] * even[:, other] for place, one in enumerate(CROSSED) for other in CROSSED[place:]]
    crossed += [even[:, one] * marked[:, mark] for mark in (0, 1) for one in CROSSED]
    return np.column_stack([even, marked, *crossed])


def pooled(weighed: Array, starts: Places) -> Array:
    """The log of the summed exponentials of each creative's passages: about the highest. `starts` is where each
    creative's passages, which stand together, begin."""
    high = np.maximum.reduceat(weighed, starts)
    lengths = np.diff(np.append(starts, len(weighed)))
    sums: Array = high + np.log(np.add.reduceat(np.exp(weighed - np.repeat(high, lengths)), starts))
    return sums


def handicap(features: Features, stretch: Mask) -> Array:
    """What is taken off the logits, shape (n, HEADS): for a single sentence without a term of weight 3."""
    outright = features.terms[:, :, 0] == 1.0
    return np.where(stretch[:, None] | outright, 0.0, SENTENCE_MARGIN)


def probability(logits: Array) -> Array:
    """The logistic function."""
    chances: Array = 1.0 / (1.0 + np.exp(-np.clip(logits, -30.0, 30.0)))
    return chances


def features(readings: Sequence[str], encoder: Encoder, lexicon: Lexicon) -> Features:
    """Look at texts that `text.readable` has written out. Equal texts are looked at once."""
    unique = list(dict.fromkeys(readings))
    places = {reading: index for index, reading in enumerate(unique)}
    order = [places[reading] for reading in readings]
    finds = [tuple(lexicon.finds(reading)) for reading in unique]
    meaning = encoder.encode(unique).astype(np.float64) if unique else np.zeros((0, DIMENSIONS))
    terms = np.array([_term_features(found) for found in finds]).reshape(-1, HEADS, TERM_FEATURES)
    return Features(meaning=meaning[order], terms=terms[order], finds=tuple(finds[index] for index in order))


def _term_features(finds: Sequence[Find]) -> Array:
    own = np.zeros((len(CATEGORIES), TERM_FEATURES))
    for row, category in enumerate(CATEGORIES):
        weights = {find.words: find.weight for find in finds if find.category is category}
        if weights:
            own[row, 0] = max(weights.values()) / 3.0
            own[row, 1] = min(sum(weights.values()), 8) / 8.0
            own[row, 2] = float(0 in weights.values())
    of_groups = [own[member].max(axis=0) for member in MEMBERS]
    return np.vstack([own, *of_groups])


WEIGHTS = files(__package__) / "data" / "weights.npz"
_STEP = np.float32(0.002)  #: of a coordinate of a neighbour: they are kept in a byte; hardly one is beyond 0.25
_PLAIN = ("meaning", "terms", "bias", "calibration")
_SIDES = ("telling", "harmless")
_APPROVAL = ("middle", "spread", "signs", "whole")


@cache
def load() -> Classifier:
    """The trained classifier that comes with the engine."""
    with WEIGHTS.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        plain = {name: arrays[name].astype(np.float64) for name in _PLAIN}
        return Classifier(
            neighbours=Neighbours(**{name: arrays[name].astype(np.float32) * _STEP for name in _SIDES}),
            approval=Approval(**{name: arrays[f"approval_{name}"].astype(np.float64) for name in _APPROVAL}),
            **plain,
        )


def to_arrays(model: Classifier) -> dict[str, NDArray[np.generic]]:
    """As `load` reads it: rounded, so that the last bits of a processor's arithmetic do not show."""
    arrays: dict[str, NDArray[np.generic]] = {name: _rounded(getattr(model, name)) for name in _PLAIN}
    arrays |= {f"approval_{name}": _rounded(getattr(model.approval, name)) for name in _APPROVAL}
    for name in _SIDES:
        steps = np.round(getattr(model.neighbours, name) / _STEP)
        arrays[name] = np.clip(steps, -127, 127).astype(np.int8)
    return arrays


def _rounded(array: Array) -> NDArray[np.float32]:
    return np.round(array, 4).astype(np.float32)


@cache
def fingerprint() -> str:
    """Eight hex digits that change whenever the weights do."""
    return sha256(WEIGHTS.read_bytes()).hexdigest()[:8]
