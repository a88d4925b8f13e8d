"""Words and patterns that speak for a category, and harmless uses of the same words.

The terms stand in data/lexicon.txt, where the format is explained. This module reads them and finds them in
text that `text.readable` has written out. How much a find counts is learnt by `train`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from imprimatur.evidence import Category

LONGEST_TERM = 6  #: words
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
_SHORTEST_STEM = 4


@dataclass(frozen=True, kw_only=True)
class Find:
    """A term of one category in a text. `weight` 3 says it outright, 2 makes it likely, 1 hints; 0 is harmless."""

    category: Category
    words: str
    weight: int


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """All terms by their words, stems by their beginning, and patterns."""

    terms: Mapping[str, tuple[tuple[Category, int], ...]]
    stems: Mapping[str, tuple[tuple[Category, int], ...]]
    patterns: tuple[tuple[Category, int, re.Pattern[str]], ...]
    words: frozenset[str] = field(repr=False)  #: every single word of a weighty term: may come out of a disguise

    def outright(self) -> frozenset[str]:
        """The single words that say it outright, whatever the category."""
        marked = ((term, weight) for term, marks in self.terms.items() for _, weight in marks)
        return frozenset(term for term, weight in marked if weight == 3 and term.isalpha())

    def finds(self, reading: str) -> list[Find]:
        """The terms of a text, in no particular order; those inside a harmless use of its category left out."""
        text = reading.lower().replace("’", "'")
        spans = list(self._spans(text))
        harmless = [(category, start, end) for category, weight, start, end in spans if weight == 0]
        return [
            Find(category=category, words=text[start:end], weight=weight)
            for category, weight, start, end in spans
            if weight == 0
            or not any(category is other and first < end and start < last for other, first, last in harmless)
        ]

    def _spans(self, text: str) -> Iterator[tuple[Category, int, int, int]]:
        words = [(match.group(), match.start(), match.end()) for match in _WORD.finditer(text)]
        for index, (word, start, _) in enumerate(words):
            for length in range(1, min(LONGEST_TERM, len(words) - index) + 1):
                phrase = " ".join(part for part, _, _ in words[index : index + length])
                for category, weight in self.terms.get(phrase, ()):
                    yield category, weight, start, words[index + length - 1][2]
            for cut in range(_SHORTEST_STEM, len(word) + 1):
                for category, weight in self.stems.get(word[:cut], ()):
                    yield category, weight, start, start + len(word)
        for category, weight, pattern in self.patterns:
            for match in pattern.finditer(text):
                yield category, weight, match.start(), match.end()


@cache
def load() -> Lexicon:
    """The lexicon that comes with the engine."""
    return parsed((files(__package__) / "data" / "lexicon.txt").read_text(encoding="utf-8").splitlines())


def parsed(lines: Iterable[str]) -> Lexicon:
    """A lexicon from lines in the format of data/lexicon.txt.

    Raises:
        ValueError: an unknown category or a line that is none of the kinds allowed.
    """
    terms: dict[str, list[tuple[Category, int]]] = {}
    stems: dict[str, list[tuple[Category, int]]] = {}
    patterns: list[tuple[Category, int, re.Pattern[str]]] = []
    category = Category.POLITICAL
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("["):
            category = Category(line.strip("[] \n"))
            continue
        weight, kind, rest = int(line[0]), line[1], line[2:].strip()
        if kind == "/":
            patterns.append((category, weight, re.compile(rest)))
            continue
        for term in filter(None, (part.strip() for part in rest.split(","))):
            if term.endswith("*"):
                stems.setdefault(term[:-1], []).append((category, weight))
            else:
                for form in _forms(term):
                    terms.setdefault(form, []).append((category, weight))
    words = {word for term, marks in terms.items() if any(weight for _, weight in marks) for word in term.split()}
    return Lexicon(
        terms={term: tuple(marks) for term, marks in terms.items()},
        stems={stem: tuple(marks) for stem, marks in stems.items()},
        patterns=tuple(patterns),
        words=frozenset(word for word in words if len(word) >= 4 and word.isalpha()),
    )


def _forms(term: str) -> Iterator[str]:
    """The term's words as `_WORD` cuts them, and the plural of the last."""
    words = " ".join(_WORD.findall(term.lower()))
    yield words
    if words[-1] in "yY" and words[-2:-1] not in tuple("aeiou"):
        yield words[:-1] + "ies"
    elif words.endswith(("s", "x", "ch", "sh")):
        yield words + "es"
    elif words[-1].isalpha():
        yield words + "s"
