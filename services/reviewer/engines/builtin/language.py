"""The language gate: is a text English, which this engine reads, or something it must own up to not reading?

By script, by function words, by the share of unknown words and by letters that make no word: deterministic, no
model, no download. It does not name the language. When in doubt about a whole sentence it says unread, so that a
person looks.
"""

import re
from collections.abc import Collection, Sequence
from functools import cache
from importlib.resources import files

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")

_ENDINGS = ("", "s", "es", "ed", "d", "ing", "ly", "er", "r", "y", "ies", "est", "ness", "less", "able")
UNKNOWN_SHARE = 0.5  #: of a passage's words; more than this and it is not English
_SPELT_OUT = re.compile(r"(?:(?<![^\W_])[^\W\d_](?![^\W_])[\W_]*){8,}")  #: single letters that no word came of


@cache
def _function_words(section: str) -> frozenset[str]:
    """The words of one section of data/function_words.txt."""
    text = (files(__package__) / "data" / "function_words.txt").read_text(encoding="utf-8")
    return frozenset(text.split(f"[{section}]")[1].split("[")[0].split())


def unread(passages: Sequence[str], vocabulary: Collection[str]) -> bool:
    """Whether any of the passages (sentences, made `text.visible`) is not English.

    `vocabulary` holds known lower-case English words. Names and numbers are no evidence either way.
    """
    if any(_foreign_script(passage) or _foreign_sentence(passage, vocabulary) for passage in passages):
        return True
    if _SPELT_OUT.search(" ".join(passages)):
        return True
    words = [word for passage in passages for word in _words(passage)]
    return len(words) >= 2 and _unknown_share(words, vocabulary) > UNKNOWN_SHARE


def _foreign_script(passage: str) -> bool:
    """A word of two letters or more, or any East Asian character, outside the Latin script."""
    return any(
        not char.isascii() and char.isalpha() and (len(word) > 1 or ord(char) > 0x2E7F) and ord(char) > 0x024F
        for word in _WORD.findall(passage)
        for char in word
    )


def _foreign_sentence(passage: str, vocabulary: Collection[str]) -> bool:
    words = _words(passage)
    english = sum(word in _function_words("english") for word in words)
    foreign = sum(word in _function_words("foreign") for word in words)
    if foreign >= 2 and foreign > english:
        return True
    if foreign == 1 and english == 0 and len(words) >= 2:
        return _unknown_share(words, vocabulary) >= 0.3
    return len(words) >= 4 and english == 0 and _unknown_share(words, vocabulary) > UNKNOWN_SHARE


def _words(passage: str) -> list[str]:
    return [word.lower().replace("’", "'") for word in _WORD.findall(passage)]


def _unknown_share(words: Sequence[str], vocabulary: Collection[str]) -> float:
    unknown = [word for word in words if not _known(word, vocabulary)]
    return len(unknown) / len(words)


def _known(word: str, vocabulary: Collection[str]) -> bool:
    """A word of the vocabulary, as it stands or without an ending; foreign function words are not known."""
    if word in _function_words("foreign"):
        return False
    bare = word.split("'", maxsplit=1)[0]
    stems = (bare.removesuffix(ending) for ending in _ENDINGS if bare.endswith(ending))
    return any(stem in vocabulary or stem + "e" in vocabulary for stem in stems if stem)


def unread_names(names: Sequence[str], vocabulary: Collection[str]) -> bool:
    """The same for names of creatives and advertisers, which are often made-up or foreign words: only another
    script, or a sentence that is plainly foreign, counts."""
    return any(
        _foreign_script(name) or (len(_words(name)) >= 5 and _foreign_sentence(name, vocabulary)) for name in names
    )
