"""Training: from the examples to weights.npz. Run `python -m reviewer.engines.builtin.train`; with --check, it
trains anew and says whether the weights come out as they are kept.

NumPy only, no randomness; minutes, most of them for the embeddings. It runs in a child process as the engine does,
on one thread, so that the same examples give the same file. Using the weights is `classifier`'s business.
"""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imprimatur.evidence import Category
from reviewer.children import ChildPool
from reviewer.engines.builtin import classifier, lexicon, passages
from reviewer.engines.builtin.classifier import (
    CATEGORIES,
    GROUPS,
    HEADS,
    Approval,
    Array,
    Classifier,
    Mask,
    Neighbours,
    Places,
)
from reviewer.engines.builtin.embeddings import Encoder, model_directory
from reviewer.engines.builtin.examples import FOLDS, Example, digest, examples, folds, hidden
from reviewer.engines.builtin.regression import bags, heads, platt, selected

MEANING_PENALTY = 0.3  #: of the squared weights of the embedding
TERM_PENALTY = 0.5  #: of the squared distance of the term weights from what we expect of them
EXPECTED_TERM_WEIGHTS = (4.0, 2.0, -1.0)  #: strongest term, all terms, harmless uses: before any example is seen
POSITIVE_WEIGHT = 6.0  #: one example of a category counts as this many that are not: they are rarer by far
SIGN_PENALTY = 3.0  #: of the squared weights of the signs
BLIND_SHARE = 0.5  #: what an example counts without its terms, in the last regression
HIDDEN_WEIGHT = 0.75  #: what a hidden one counts there: half of these are bad, of long ads by far fewer
CAUTION = 1.1  #: how many approvable ads one that must not be approved counts as
TELLING = 0.6  #: a term of weight 2 or 3
NOT_YET = Approval(middle=np.zeros(0), spread=np.zeros(0), signs=np.zeros(0), whole=np.zeros(0))


@dataclass(frozen=True, kw_only=True)
class Material:
    """All passages of all examples as numbers."""

    inputs: classifier.Features
    owner: Places  #: (passages,), the example's index
    stretch: Mask  #: (passages,), whether the passage is a stretch of the whole
    truth: Array  #: (examples, HEADS), 0 or 1
    fold: NDArray[np.intp]  #: (examples,), below FOLDS
    hidden: Mask  #: (examples,), whether it only calibrates

    @property
    def benign(self) -> Mask:
        """(examples,), whether it belongs to no category."""
        return np.asarray(self.truth[:, : len(CATEGORIES)].max(axis=1) == 0)

    def blind(self) -> "Material":
        """The same, as if no term were in the lexicon."""
        return replace(self, inputs=replace(self.inputs, terms=np.zeros_like(self.inputs.terms)))


def prepared(items: Sequence[Example]) -> Material:
    """Cut into passages, embedded, looked up; the hidden ones behind the others."""
    encoder, terms = Encoder(model_directory()), lexicon.load()
    plain = _passages(items, encoder, terms)
    fold = folds(items, plain.inputs.meaning[_first_stretches(plain)])
    inside = hidden(items, fold)
    more = _passages([item for _, item in inside], encoder, terms)
    return Material(
        inputs=classifier.Features(
            meaning=np.vstack([plain.inputs.meaning, more.inputs.meaning]),
            terms=np.vstack([plain.inputs.terms, more.inputs.terms]),
            finds=(),
        ),
        owner=np.concatenate([plain.owner, more.owner + len(items)]),
        stretch=np.concatenate([plain.stretch, more.stretch]),
        truth=np.array([_truth(item.labels) for item in (*items, *(item for _, item in inside))]),
        fold=np.array([*fold, *(number for number, _ in inside)], dtype=np.intp),
        hidden=np.arange(len(items) + len(inside)) >= len(items),
    )


@dataclass(frozen=True, kw_only=True)
class _Passages:
    inputs: classifier.Features
    owner: Places
    stretch: Mask


def _passages(items: Sequence[Example], encoder: Encoder, terms: lexicon.Lexicon) -> _Passages:
    vocabulary = encoder.words | terms.words
    cut = [passages.of(item.creative, vocabulary).items for item in items]
    return _Passages(
        inputs=classifier.features([passage.reading for found in cut for passage in found], encoder, terms),
        owner=np.repeat(np.arange(len(items)), [len(found) for found in cut]),
        stretch=np.array([passage.stretch for found in cut for passage in found], dtype=bool),
    )


def _first_stretches(found: _Passages) -> Places:
    """Where the first stretch of each example stands: what it says as a whole."""
    places = np.flatnonzero(found.stretch)
    _, first = np.unique(found.owner[places], return_index=True)
    return places[first]


def _truth(labels: frozenset[Category]) -> list[float]:
    own = [float(category in labels) for category in CATEGORIES]
    return own + [float(bool(labels & group)) for group in GROUPS]


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """What models say about examples that they were not trained on."""

    logits: Array  #: (passages, HEADS)
    blind: Array  #: (passages, HEADS), without the terms
    near: Array  #: (passages, 4), as `Neighbours.near`


def trained(material: Material) -> Classifier:
    """Fitted on the examples, calibrated on scores out of fold, the hidden ones included."""
    return calibrated(_fitted(material, ~material.hidden), material, out_of_fold(material))


def out_of_fold(material: Material) -> OutOfFold:
    """By the models of the other folds; near-duplicates share a fold."""
    count = len(material.owner)
    found = OutOfFold(logits=np.zeros((count, HEADS)), blind=np.zeros((count, HEADS)), near=np.zeros((count, 4)))
    for number in range(FOLDS):
        model = _fitted(material, (material.fold != number) & ~material.hidden)
        rows = (material.fold == number)[material.owner]
        found.logits[rows] = model.logits(material.inputs)[rows]
        found.blind[rows] = model.logits(material.blind().inputs)[rows]
        found.near[rows] = model.neighbours.near(material.inputs.meaning[rows])
    return found


def _fitted(material: Material, used: Mask) -> Classifier:
    """Heads and neighbours; nothing calibrated yet.

    Of an example that belongs, the whole teaches, and each sentence with a telling term: its other sentences may be
    harmless. Of one that does not belong, every passage teaches. Each does so twice, with and without its terms: the
    lexicon was written with the examples in sight, and would look more reliable here than in ads unseen.
    """
    rows = used[material.owner]
    belongs = material.truth[material.owner[rows]] == 1
    terms = material.inputs.terms[rows]
    teaches = ~belongs | material.stretch[rows][:, None] | (terms[:, :, 0] >= TELLING)
    line, own = heads(
        selected(material.inputs.meaning, rows),
        terms,
        belongs.astype(float),
        np.where(belongs, POSITIVE_WEIGHT, 1.0) * teaches,
        penalties=(MEANING_PENALTY, TERM_PENALTY),
        expected=EXPECTED_TERM_WEIGHTS,
    )
    return Classifier(
        meaning=line[:-1].T,
        terms=own,
        bias=line[-1],
        calibration=np.array([1.0, 0.0]),
        neighbours=_neighbours(material, rows),
        approval=NOT_YET,
    )


def _neighbours(material: Material, rows: Mask) -> Neighbours:
    """Of an ad that is not benign, only the passages that make it so: the whole, a sentence with a telling term, or
    its only sentence."""
    meaning = material.inputs.meaning.astype(np.float32)
    benign = material.benign[material.owner]
    only = np.bincount(material.owner[~material.stretch], minlength=len(material.truth))[material.owner] == 1
    tells = material.stretch | only | (material.inputs.terms[:, : len(CATEGORIES), 0].max(axis=1) >= TELLING)
    return Neighbours(telling=meaning[rows & ~benign & tells], harmless=meaning[rows & benign])


def calibrated(model: Classifier, material: Material, seen: OutOfFold) -> Classifier:
    """One slope and shift for all categories together, since each has few examples; then the weights for approval.
    Both ways of looking count, with and without terms: as if the lexicon missed every third ad."""
    count = len(CATEGORIES)
    decisive = np.vstack([_decisive(material, seen.logits)] * 2 + [_decisive(material.blind(), seen.blind)])
    calibration = platt(decisive[:, :count].ravel(), np.vstack([material.truth] * 3)[:, :count].ravel())
    return replace(model, calibration=calibration, approval=approval(material, seen, calibration))


def _decisive(material: Material, logits: Array) -> Array:
    """The highest logit of each example, shape (examples, HEADS), as `Classifier.judge` takes it."""
    highest = np.full_like(material.truth, -np.inf)
    np.maximum.at(highest, material.owner, logits - classifier.handicap(material.inputs, material.stretch))
    return highest


def approval(material: Material, seen: OutOfFold, calibration: Array, used: Mask | None = None) -> Approval:
    """The weights for P(may be approved), fitted on the `used` examples, or all."""
    rows = np.ones(len(material.owner), dtype=bool) if used is None else used[material.owner]
    against = (~material.benign if used is None else ~material.benign[used]).astype(float)
    told = [classifier.measures(logits, calibration, seen.near)[rows] for logits in (seen.logits, seen.blind)]
    middle, spread = told[0].mean(axis=0), told[0].std(axis=0)
    inputs = [
        classifier.signs(one, classifier.marks(way.inputs, way.stretch)[rows], middle, spread)
        for one, way in zip(told, (material, material.blind()), strict=True)
    ]
    starts = np.flatnonzero(np.diff(material.owner[rows], prepend=-1))
    concealed = material.hidden if used is None else material.hidden[used]
    weights = np.where(against == 1, CAUTION, 1.0) * np.where(concealed, HIDDEN_WEIGHT, 1.0)
    weighed, whole = bags(
        np.vstack(inputs),
        np.concatenate([starts, starts + len(inputs[0])]),
        np.tile(against, 2),
        np.concatenate([weights, BLIND_SHARE * weights]),
        penalty=SIGN_PENALTY,
    )
    return Approval(middle=middle, spread=spread, signs=weighed, whole=whole)


def write_weights(path: str) -> int:
    """Train and write; the number of examples."""
    items = examples()
    arrays = classifier.to_arrays(trained(prepared(items)))
    with Path(path).open("wb") as file:
        np.savez_compressed(file, digest=np.array(digest()), **arrays)  # type: ignore[arg-type]  # any array will do
    return len(items)


def differences(path: str) -> dict[str, float]:
    """Train anew; the largest difference of each array from the one kept at `path`."""
    arrays = classifier.to_arrays(trained(prepared(examples())))
    with np.load(path, allow_pickle=False) as kept:
        return {
            name: float(np.abs(kept[name].astype(float) - array.astype(float)).max())
            if kept[name].shape == array.shape
            else float("inf")
            for name, array in arrays.items()
        }


async def main() -> int:
    """Train in a child process and say what was done."""
    pool = ChildPool(1)
    try:
        if "--check" in sys.argv:
            off = await pool.run(differences, str(classifier.WEIGHTS))
            sys.stdout.write("".join(f"{name}: differs by at most {off[name]:g}\n" for name in off))
            return int(max(off.values()) > 0)
        count = await pool.run(write_weights, str(classifier.WEIGHTS))
    finally:
        await pool.close()
    sys.stdout.write(f"{classifier.WEIGHTS.name}: trained on {count} examples\n")
    return 0


if __name__ == "__main__":
    from reviewer.engines.builtin import train  # noqa: PLW0406 (by its own name: a child process can import that)

    sys.exit(asyncio.run(train.main()))
