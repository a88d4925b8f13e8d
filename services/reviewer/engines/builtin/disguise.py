"""Words that are not, but may be meant to be taken for, one that says something telling outright.

What `text` cannot write out for certain is only noticed here: what the word stands for is a person's to say.
"""

import re
from collections.abc import Callable, Iterable

_SHORTEST = 5  #: letters of a telling word; shorter ones are too near to too many others
_SHORTEST_MISSPELT = 6
_VOWELS = re.compile("[aeiou]")
_REPEATED = re.compile(r"(.)\1+")
_STARRED_OUT = re.compile(r"[^\W\d_]\*+[^\W\d_]")


class Disguises:
    """Disguises of the telling words: misspelt by a letter or two, backwards, letters repeated, vowels left out."""

    def __init__(self, telling: Iterable[str]) -> None:
        words = [word for word in telling if len(word) >= _SHORTEST]
        self._backwards = {word[::-1] for word in words}
        self._unrepeated = {_unrepeated(word) for word in words}
        self._without_vowels = {_VOWELS.sub("", word) for word in words}
        self._misspelt = {form for word in words if len(word) >= _SHORTEST_MISSPELT for form in _shortened(word)}

    def in_passage(self, passage: str, known: Callable[[str], bool]) -> bool:
        """Whether a word of the passage that is not `known` looks like one of them, or is starred out."""
        tokens = ("".join(filter(str.isalpha, token)) for token in passage.lower().split())
        return _STARRED_OUT.search(passage) is not None or any(
            self._is_one(word) for word in tokens if word and not known(word)
        )

    def _is_one(self, word: str) -> bool:
        return (
            word in self._backwards
            or (len(word) >= _SHORTEST and _unrepeated(word) in self._unrepeated)
            or (len(word) >= _SHORTEST - 1 and word in self._without_vowels)
            or (len(word) >= _SHORTEST_MISSPELT and not _shortened(word).isdisjoint(self._misspelt))
        )


def _unrepeated(word: str) -> str:
    return _REPEATED.sub(r"\1", word)


def _shortened(word: str) -> set[str]:
    """The word, and it without each of its letters. Two words with one of these in common are a letter apart: left
    out, put in, exchanged or moved."""
    return {word, *(word[:place] + word[place + 1 :] for place in range(len(word)))}
