"""From passages to probabilities: one logistic regression per category, and one per group of categories.

A creative's score is that of its worst passage, calibrated on scores of examples not trained on, short ones and
whole ones: more passages, a higher worst. The group's score adds up what its categories say. The numbers come
from weights.npz, which `train` writes. What a score leads to is the business of `examiner` and the policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from imprimatur.evidence import Category
from reviewer.engines.builtin.embeddings import DIMENSIONS, Encoder
from reviewer.engines.builtin.lexicon import Find, Lexicon

CATEGORIES = tuple(Category)
BLOCKED = frozenset(
    {
        Category.HATE,
        Category.HARASSMENT,
        Category.VIOLENCE,
        Category.SELF_HARM,
        Category.ILLICIT,
        Category.SCAM,
    }
)
SENSITIVE = frozenset(Category) - BLOCKED
GROUPS = (SENSITIVE, BLOCKED)  #: "touches something sensitive", "contains something blocked": heads of their own
HEADS = len(CATEGORIES) + len(GROUPS)
SENTENCE_MARGIN = 1.0  #: log odds that a sentence torn from its context loses, unless it says it outright
TERM_FEATURES = 3  #: strongest term, all terms, harmless uses; each in [0, 1]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Features:
    """What is known of n passages: meaning, shape (n, 384), and terms, shape (n, HEADS, 3)."""

    meaning: Array
    terms: Array
    finds: tuple[tuple[Find, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """P(category) for each of CATEGORIES, P(anything) of the two groups, and the passages' logits (n, HEADS)."""

    categories: Array
    sensitive: float
    blocked: float
    logits: Array


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """Weights of the heads, CATEGORIES in order, then GROUPS."""

    meaning: Array  #: (HEADS, 384)
    terms: Array  #: (HEADS, 3)
    bias: Array  #: (HEADS,)
    slope: Array  #: (CATEGORIES,), of the calibration
    shift: Array  #: (CATEGORIES,)
    groups: Array  #: (GROUPS, 3), of their calibration: own logit, `gathered` categories, shift

    def judge(self, features: Features, stretch: Mask) -> Judgement:
        """Judge a creative by its passages, of which there must be one at least; `stretch`, shape (n,), tells
        which of them are stretches of the whole."""
        logits = self.logits(features)
        worst = (logits - handicap(features, stretch)).max(axis=0)
        categories = self.slope * worst[: len(CATEGORIES)] + self.shift
        inputs = np.stack([worst[len(CATEGORIES) :], gathered(categories), np.ones(len(GROUPS))], axis=1)
        sensitive, blocked = probability((self.groups * inputs).sum(axis=1))
        return Judgement(
            categories=probability(categories), sensitive=float(sensitive), blocked=float(blocked), logits=logits
        )

    def logits(self, features: Features) -> Array:
        """Shape (n, HEADS), before calibration."""
        by_terms = np.einsum("nhk,hk->nh", features.terms, self.terms)
        logits: Array = features.meaning @ self.meaning.T + by_terms + self.bias
        return logits


def gathered(categories: Array) -> Array:
    """For each of GROUPS, the log of the summed odds of its categories; `categories` are calibrated logits, shape
    (..., CATEGORIES). A group is too motley for one line through the embeddings; its categories are not."""
    members = [[category in group for category in CATEGORIES] for group in GROUPS]
    odds = np.exp(np.clip(categories, -30.0, 30.0))
    sums: Array = np.stack([np.log(odds[..., member].sum(axis=-1)) for member in members], axis=-1)
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
    of_groups = [own[[category in group for category in CATEGORIES]].max(axis=0) for group in GROUPS]
    return np.vstack([own, *of_groups])


WEIGHTS = files(__package__) / "data" / "weights.npz"


@cache
def load() -> Classifier:
    """The trained classifier that comes with the engine."""
    with WEIGHTS.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return Classifier(**{name: arrays[name].astype(np.float64) for name in Classifier.__dataclass_fields__})


@cache
def fingerprint() -> str:
    """Eight hex digits that change whenever the weights do."""
    return sha256(WEIGHTS.read_bytes()).hexdigest()[:8]
