"""The language gate: is a text English, which this engine reads, or something it must own up to not reading?

Sentence by sentence, so that benign copy around one waters nothing down: by script, by function words, by the share
of unknown words, by letters that make no word, and by pictures in place of words. Deterministic, no model, no
download. It does not name the language. When in doubt about a whole sentence it says unread, so that a person looks.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")

_ENDINGS = ("s", "es", "ed", "d", "ing", "ly", "er", "r", "y", "ies", "est", "ness", "less", "able")
_SHORTEST_STEM = 3  #: letters; a shorter one is known only as it stands
_SHORTEST_FREQUENT = 4  #: letters; what is shorter in a frequency list is for a good part pieces and other languages
_SPELT_OUT = re.compile(r"(?:(?<![^\W_])[^\W\d_](?![^\W_])[\W_]*){8,}")  #: single letters that no word came of
_MOODS = frozenset(
    "☀☺☹★☆☎☑☛☞☝♥♡⚡⚠⭐✅✆✉✊✋✌✍✓✔✕✖✦✧✨✩✪✭✮✯✰❌❎❓❔❕❗❣❤➔➕➖➜➝➞➡➤"
    "🌞🌟🎀🎁🎈🎉🎊🏆👀👆👇👈👉👊👋👌👍👎👏👐💋💎💐💓💔💕💖💗💘💙💚💛💜💝💞💟💡💥💪💫💬💯📅📆📍📞📢📣📧📩📱"
    "🔔🔖🔗🔜🔝🔥🖐🖤🗓🚀🚨🛍🛒🟢🟠🟡🔴🔵🤍🤎🤗🤔🤝🤞🤩🤯🥰🥳🥹🧡🩷🩵🩶🫶"
)  #: emoji that only set a mood or point somewhere, beside the faces


def vocabulary(frequent: Iterable[str], certain: Iterable[str]) -> frozenset[str]:
    """The English that is read: lower-case words of a frequency list, and words that are English for certain."""
    return frozenset(word for word in frequent if len(word) >= _SHORTEST_FREQUENT) | frozenset(certain)


@cache
def function_words(section: str) -> frozenset[str]:
    """The words of one section of data/function_words.txt."""
    text = (files(__package__) / "data" / "function_words.txt").read_text(encoding="utf-8")
    return frozenset(text.split(f"[{section}]")[1].split("[")[0].split())


def unread(passages: Sequence[str], english: Collection[str]) -> bool:
    """Whether any of the passages (sentences, made `text.visible`) is not English, or none of them has a word.

    `english` is a `vocabulary`. Numbers are no evidence either way.
    """
    if any(_foreign_script(one) or _foreign_sentence(one, english) or _pictures(one) for one in passages):
        return True
    whole = " ".join(passages)
    return _SPELT_OUT.search(whole) is not None or (whole != "" and not _WORD.search(whole))


def unread_names(names: Sequence[str], english: Collection[str]) -> bool:
    """The same for names of creatives and advertisers, which are often made-up or foreign words: only another
    script, pictures, three words and more none of which is known, and a sentence that is plainly foreign count."""
    return any(_foreign_script(one) or _pictures(one) or _foreign_name(one, english) for one in names)


def known(word: str, english: Collection[str]) -> bool:
    """A lower-case word of the vocabulary, as it stands or without an ending; foreign function words are not known."""
    if word in function_words("foreign"):
        return False
    bare = word.split("'", maxsplit=1)[0]
    return bare in english or any(stem in english for stem in _stems(bare))


def _stems(word: str) -> Iterator[str]:
    """What the word may be a form of: `plans`, `planned`, `making`, `cosier`."""
    for ending in _ENDINGS:
        stem = word.removesuffix(ending)
        if _SHORTEST_STEM <= len(stem) < len(word):
            yield from (stem, stem + "e", stem + "y")
            if stem[-1] == stem[-2]:
                yield stem[:-1]


def _foreign_script(passage: str) -> bool:
    """A word of two letters or more, or any East Asian character, outside the Latin script."""
    return any(
        not char.isascii() and char.isalpha() and (len(word) > 1 or ord(char) > 0x2E7F) and ord(char) > 0x024F
        for word in _WORD.findall(passage)
        for char in word
    )


def _foreign_sentence(passage: str, english: Collection[str]) -> bool:
    """Foreign function words prevail, or more than half of the words are unknown."""
    found = words(passage)
    own = sum(word in function_words("english") for word in found)
    foreign = sum(word in function_words("foreign") for word in found)
    unknown = sum(not known(word, english) for word in found)
    return (foreign >= 2 and foreign > own) or 2 * unknown > len(found)


def _foreign_name(name: str, english: Collection[str]) -> bool:
    found = words(name)
    if len(found) >= 5:
        return _foreign_sentence(name, english)
    return len(found) >= 3 and not any(known(word, english) for word in found)


def words(passage: str) -> list[str]:
    """The words of a passage in lower case."""
    return [word.lower().replace("’", "'") for word in _WORD.findall(passage)]


def _pictures(passage: str) -> bool:
    """Two emoji or more that show things, and no more words than these: they may be what it says."""
    shown = sum(_shows_a_thing(char) for char in passage)
    return shown >= 2 and shown >= len(_WORD.findall(passage))


def _shows_a_thing(char: str) -> bool:
    code = ord(char)
    emoji = 0x2600 <= code <= 0x27BF or 0x1F300 <= code <= 0x1FAFF
    return emoji and char not in _MOODS and not 0x1F3FB <= code <= 0x1F3FF and not 0x1F600 <= code <= 0x1F64F
