"""Training: from the examples to weights.npz. Run `python -m reviewer.engines.builtin.train`.

NumPy only, no randomness; about three minutes. It runs in a child process as the engine does, on one thread, so
that the same examples give the same file. Using the weights is `classifier`'s business.
"""

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imprimatur.evidence import Category, Creative
from reviewer.children import ChildPool
from reviewer.engines.builtin import classifier, lexicon, passages, text
from reviewer.engines.builtin.classifier import CATEGORIES, GROUPS, HEADS, TERM_FEATURES, Array, Classifier, Mask
from reviewer.engines.builtin.embeddings import DIMENSIONS, Encoder, model_directory

FOLDS = 5
MEANING_PENALTY = 0.3  #: of the squared weights of the embedding
TERM_PENALTY = 0.5  #: of the squared distance of the term weights from what we expect of them
EXPECTED_TERM_WEIGHTS = (4.0, 2.0, -1.0)  #: strongest term, all terms, harmless uses: before any example is seen
POSITIVE_WEIGHT = 6.0  #: one example of a category counts as this many that are not: they are rarer by far
BENIGN_WEIGHT = 1.0  # 3 approves a quarter more benign ads, and three times as many sensitive ones: not worth it
TELLING = 0.6  #: a term of weight 2 or 3
LONG_SENTENCES = 3  #: in the body of an example that others can hide in
NEWTON_STEPS = 30
SMALL_ENOUGH = 1e-4  #: expected gain of a step at which to stop


@dataclass(frozen=True, kw_only=True)
class Example:
    """One labelled ad."""

    id: str
    creative: Creative
    labels: frozenset[Category]


@dataclass(frozen=True, kw_only=True)
class Material:
    """All passages of all examples as numbers."""

    inputs: classifier.Features
    owner: NDArray[np.intp]  #: (passages,), the example's index
    stretch: Mask  #: (passages,), whether the passage is a stretch of the whole
    truth: Array  #: (examples, HEADS), 0 or 1
    fold: NDArray[np.intp]  #: (examples,), below FOLDS
    hidden: Mask  #: (examples,), whether it only calibrates


def examples(directory: Path | None = None) -> list[Example]:
    """The training examples, or those of another directory, in the order of their files and lines."""
    folder = directory or Path(str(files(__package__) / "data" / "examples"))
    return [example for path in sorted(folder.glob("*.jsonl")) for example in examples_of(path)]


def examples_of(path: Path) -> list[Example]:
    """The examples of one file, in the order of its lines."""
    return [_example(json.loads(line)) for line in _lines(path)]


def digest() -> str:
    """Of everything the weights are made from, this module's constants apart."""
    folder = Path(str(files(__package__) / "data"))
    paths = [*sorted((folder / "examples").glob("*.jsonl")), folder / "lexicon.txt"]
    return sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def hidden(items: Sequence[Example]) -> list[tuple[int, Example]]:
    """Each short example once more with its fold, its words among those of a long benign one of that fold.

    They only calibrate: the worst of many passages lies higher than the worst of few, in benign ads too.
    """
    long = [[item for item in items[number::FOLDS] if _is_long(item)] for number in range(FOLDS)]
    return [
        (index % FOLDS, _inside(item, long[index % FOLDS][index // FOLDS % len(long[index % FOLDS])], index))
        for index, item in enumerate(items)
        if not _is_long(item)
    ]


def _is_long(item: Example) -> bool:
    return not item.labels and len(list(text.sentences(item.creative.body))) >= LONG_SENTENCES


def _inside(item: Example, host: Example, place: int) -> Example:
    sentences = list(text.sentences(host.creative.body))
    place %= len(sentences) + 1
    told = [part for part in (item.creative.headline, item.creative.body) if part]
    body = " ".join([*sentences[:place], *(_ended(part) for part in told), *sentences[place:]])
    creative = replace(host.creative, creative_id=f"{item.id}-in-{host.id}", body=body)
    return Example(id=creative.creative_id, creative=creative, labels=item.labels)


def _ended(sentence: str) -> str:
    return sentence if sentence[-1] in ".!?" else sentence + "."


def prepared(items: Sequence[Example]) -> Material:
    """Cut into passages, embedded, looked up; the hidden ones behind the others."""
    encoder, terms = Encoder(model_directory()), lexicon.load()
    vocabulary = encoder.words | terms.words
    folded = [*((index % FOLDS, item) for index, item in enumerate(items)), *hidden(items)]
    cut = [passages.of(item.creative, vocabulary).items for _, item in folded]
    readings = [passage.reading for found in cut for passage in found]
    return Material(
        inputs=classifier.features(readings, encoder, terms),
        owner=np.repeat(np.arange(len(folded)), [len(found) for found in cut]),
        stretch=np.array([passage.stretch for found in cut for passage in found]),
        truth=np.array([_truth(item.labels) for _, item in folded]),
        fold=np.array([fold for fold, _ in folded]),
        hidden=np.arange(len(folded)) >= len(items),
    )


def trained(material: Material) -> Classifier:
    """Fitted on the examples, calibrated on scores out of fold, the hidden ones included.

    The lexicon was written with the examples in sight, so its terms look more reliable here than in ads unseen.
    Therefore every passage teaches twice, with and without its terms, and both ways count in the calibration: two
    to one, as if the lexicon missed every third ad.
    """
    models = [_fitted(material, (material.fold != number) & ~material.hidden) for number in range(FOLDS)]
    blind = replace(material, inputs=replace(material.inputs, terms=np.zeros_like(material.inputs.terms)))
    logits = np.vstack([_out_of_fold(models, seen) for seen in (material, material, blind)])
    return _calibrated(_fitted(material, ~material.hidden), logits, np.vstack([material.truth] * 3))


def _out_of_fold(models: Sequence[Classifier], material: Material) -> Array:
    """The decisive logit of each example, shape (examples, HEADS), by the model not trained on it."""
    logits = np.zeros_like(material.truth)
    for number, model in enumerate(models):
        logits[material.fold == number] = decisive(material, model)[material.fold == number]
    return logits


def decisive(material: Material, model: Classifier) -> Array:
    """What `Classifier.judge` goes by, for all examples at once, not calibrated."""
    logits = np.full_like(material.truth, -np.inf)
    handicap = classifier.handicap(material.inputs, material.stretch)
    np.maximum.at(logits, material.owner, model.logits(material.inputs) - handicap)
    return logits


def _fitted(material: Material, used: Mask) -> Classifier:
    heads = np.array([_head(material, head, used[material.owner]) for head in range(HEADS)])
    return Classifier(
        meaning=heads[:, :DIMENSIONS],
        terms=heads[:, DIMENSIONS:-1],
        bias=heads[:, -1],
        slope=np.ones(len(CATEGORIES)),
        shift=np.zeros(len(CATEGORIES)),
        groups=np.tile([1.0, 0.0, 0.0], (len(GROUPS), 1)),
    )


def _head(material: Material, head: int, used: Mask) -> Array:
    """One logistic regression. Of an example that belongs, the whole teaches, and each sentence with a telling
    term: its other sentences may be harmless. Of one that does not belong, every passage teaches."""
    belongs = material.truth[material.owner, head] == 1
    terms = material.inputs.terms[:, head, :]
    teaches = used & (~belongs | material.stretch | (terms[:, 0] >= TELLING))
    meaning, one, truth = material.inputs.meaning[teaches], np.ones((teaches.sum(), 1)), belongs[teaches]
    seeing = np.hstack([meaning, terms[teaches], one])
    blind = np.hstack([meaning, np.zeros((len(meaning), TERM_FEATURES)), one])
    weights = np.where(truth, POSITIVE_WEIGHT, 1.0) / 2
    expected = np.concatenate([np.zeros(DIMENSIONS), EXPECTED_TERM_WEIGHTS, [0.0]])
    penalty = np.concatenate([np.full(DIMENSIONS, MEANING_PENALTY), np.full(TERM_FEATURES, TERM_PENALTY), [1e-3]])
    return logistic(
        np.vstack([seeing, blind]),
        np.concatenate([truth, truth]).astype(float),
        weights=np.concatenate([weights, weights]),
        expected=expected,
        penalty=penalty,
    )


def logistic(inputs: Array, truth: Array, *, weights: Array, expected: Array, penalty: Array) -> Array:
    """Logistic regression, drawn by `penalty` towards `expected`, by Newton's method with step halving.

    Args:
        inputs: shape (n, k); a constant, if wanted, is one of the columns.
        truth: shape (n,), in [0, 1].
    """

    def loss(line: Array) -> float:
        logits = inputs @ line
        misses = weights @ (np.logaddexp(0.0, logits) - truth * logits)
        return float(misses + 0.5 * penalty @ (line - expected) ** 2)

    line = expected.copy()
    for _ in range(NEWTON_STEPS):
        chance = classifier.probability(inputs @ line)
        slope = inputs.T @ (weights * (chance - truth)) + penalty * (line - expected)
        bend = (inputs * (weights * chance * (1 - chance))[:, None]).T @ inputs + np.diag(penalty)
        step = np.linalg.solve(bend, slope)
        if slope @ step < SMALL_ENOUGH:
            break
        while loss(line - step) > loss(line) and np.abs(step).max() > SMALL_ENOUGH:
            step = step / 2
        line = line - step
    return line


def _calibrated(model: Classifier, logits: Array, truth: Array) -> Classifier:
    """One slope and shift for all categories together, since each has few examples, and one line for each group."""
    count = len(CATEGORIES)
    slope, shift = _platt(logits[:, :count].ravel(), truth[:, :count].ravel())
    together = classifier.gathered(slope * logits[:, :count] + shift)
    benign = ~truth[:, :count].any(axis=1)
    lines = [
        logistic(
            np.stack([logits[:, count + group], together[:, group], np.ones(len(logits))], axis=1),
            truth[:, count + group],
            weights=np.where(benign, BENIGN_WEIGHT, 1.0),
            expected=np.zeros(3),
            penalty=np.full(3, 1e-3),
        )
        for group in range(len(GROUPS))
    ]
    return replace(model, slope=np.full(count, slope), shift=np.full(count, shift), groups=np.array(lines))


def _platt(logits: Array, truth: Array) -> Array:
    """Slope and shift after Platt (1999), with his smoothed targets."""
    positive = truth.sum()
    return logistic(
        np.stack([logits, np.ones_like(logits)], axis=1),
        np.where(truth == 1, (positive + 1) / (positive + 2), 1 / (len(truth) - positive + 2)),
        weights=np.ones(len(truth)),
        expected=np.array([1.0, 0.0]),
        penalty=np.full(2, 1e-6),
    )


def _truth(labels: frozenset[Category]) -> list[float]:
    own = [float(category in labels) for category in CATEGORIES]
    return own + [float(bool(labels & group)) for group in GROUPS]


def _example(row: dict[str, object]) -> Example:
    labels = row["labels"]
    assert isinstance(labels, list)
    creative = Creative(
        creative_id=str(row["id"]),
        headline=str(row["headline"]),
        body=str(row["body"]),
        call_to_action=str(row["cta"]),
        name=str(row.get("name", "")),
        advertiser=str(row.get("advertiser", "")),
    )
    return Example(id=str(row["id"]), creative=creative, labels=frozenset(map(Category, labels)))


def _lines(path: Path) -> Iterator[str]:
    return filter(str.strip, path.read_text(encoding="utf-8").splitlines())


def write_weights(path: str) -> int:
    """Train and write; the number of examples. Figures are rounded, so that the last bits of a processor's
    arithmetic do not show."""
    items = examples()
    model = trained(prepared(items))
    arrays = {name: np.round(getattr(model, name), 4) for name in Classifier.__dataclass_fields__}
    with Path(path).open("wb") as file:
        np.savez(file, digest=np.array(digest()), **{name: a.astype(np.float32) for name, a in arrays.items()})
    return len(items)


async def main() -> None:
    """Train in a child process and say what was done."""
    pool = ChildPool(1)
    try:
        count = await pool.run(write_weights, str(classifier.WEIGHTS))
    finally:
        await pool.close()
    sys.stdout.write(f"{classifier.WEIGHTS.name}: trained on {count} examples\n")


if __name__ == "__main__":
    from reviewer.engines.builtin import train  # noqa: PLW0406 (by its own name: a child process can import that)

    asyncio.run(train.main())
