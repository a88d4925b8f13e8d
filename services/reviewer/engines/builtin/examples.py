"""The labelled ads that the classifier learns from: reading them, and which of them belong together.

They stand in data/examples/*.jsonl. What is learnt from them is the business of `train`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from imprimatur.evidence import Category, Creative
from reviewer.engines.builtin import language, text

FOLDS = 5
SAME_ORIGIN = 0.72  #: cosine from which on two examples are taken for variants of one
LONG_SENTENCES = 3  #: in the body of an example that others can hide in
HIDDEN_SHARE = 4  #: one in so many short examples is hidden in a long one as well


@dataclass(frozen=True, kw_only=True)
class Example:
    """One labelled ad."""

    id: str
    creative: Creative
    labels: frozenset[Category]


def examples(directory: Path | None = None) -> list[Example]:
    """The training examples, or those of another directory, in the order of their files and lines."""
    folder = directory or Path(str(files(__package__) / "data" / "examples"))
    return [example for path in sorted(folder.glob("*.jsonl")) for example in examples_of(path)]


def examples_of(path: Path) -> list[Example]:
    """The examples of one file, in the order of its lines."""
    lines = filter(str.strip, path.read_text(encoding="utf-8").splitlines())
    return [_example(json.loads(line)) for line in lines]


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


def benign_words() -> frozenset[str]:
    """The lower-case words of the texts of ads that belong to no category, names left out: plain English."""
    texts = (each.creative for each in examples() if not each.labels)
    return frozenset(
        word
        for creative in texts
        for word in language.words(text.visible(f"{creative.headline} {creative.body} {creative.call_to_action}"))
    )


def digest() -> str:
    """Of everything the weights are made from, the code apart."""
    folder = Path(str(files(__package__) / "data"))
    paths = [*sorted((folder / "examples").glob("*.jsonl")), folder / "lexicon.txt"]
    return sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def folds(items: Sequence[Example], meaning: NDArray[np.float64]) -> NDArray[np.intp]:
    """A fold for each example, the same for all that resemble each other; `meaning` is of each as a whole."""
    origin = list(range(len(items)))

    def first(index: int) -> int:
        while origin[index] != index:
            index = origin[index]
        return index

    for one, other in zip(*np.nonzero(np.triu(meaning @ meaning.T, 1) > SAME_ORIGIN), strict=True):
        low, high = sorted((first(int(one)), first(int(other))))
        origin[high] = low
    return np.array([crc32(items[first(index)].id.encode()) % FOLDS for index in range(len(items))])


def hidden(items: Sequence[Example], fold: NDArray[np.intp]) -> list[tuple[int, Example]]:
    """One in HIDDEN_SHARE of the short examples once more with its fold, its words among those of a long benign one
    of that fold.

    They only calibrate: the worst of many passages lies higher than the worst of few, in benign ads too.
    """
    folded = list(zip(items, fold, strict=True))
    hosts = [[item for item, own in folded if own == number and _is_long(item)] for number in range(FOLDS)]
    found = []
    for item, own in folded:
        mark = crc32(item.id.encode())
        if hosts[own] and mark % HIDDEN_SHARE == 0 and not _is_long(item):
            found.append((int(own), _inside(item, _host(item, hosts[own]), mark // HIDDEN_SHARE)))
    return found


def _host(item: Example, hosts: Sequence[Example]) -> Example:
    """By highest random weight (Thaler and Ravishankar): a new example moves few of the others."""
    return max(hosts, key=lambda host: crc32((item.id + host.id).encode()))


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
