"""Text as a reader's eye takes it: look-alike letters, leet-speak, invisible characters and split words undone.

Also sentences. Pure functions on strings; what a text means, and its language, are found elsewhere.
"""

import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise, product

_CYRILLIC = dict(zip("авсԁеԍнһіјкӏмոорԛѕтуѵԝхүАВСЕНІЈКМОРЅТУХ", "abcdeghhijklmnopqstuvwxyABCEHIJKMOPSTYX", strict=True))
_GREEK = dict(zip("αβεηικνορτυχωΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "abeniknoptuxwABEZHIKMNOPTYX", strict=True))
LOOKALIKES = _CYRILLIC | _GREEK
_SMALL_CAPITALS = dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz", strict=True))
_BOXED = {chr(start + i): chr(97 + i) for start in (0x1F130, 0x1F150, 0x1F170) for i in range(26)}
_INVISIBLE = dict.fromkeys("\u115f\u1160\u3164\uffa0\u2800", "")
_MEANINGFUL_EMOJI = {
    "🍺": "beer", "🍻": "beer", "🍷": "wine", "🍸": "cocktail", "🍹": "cocktail", "🥃": "whisky", "🍾": "champagne",
    "🎰": "slot machine casino", "🚬": "cigarette", "💊": "pills", "💉": "syringe", "🔫": "gun", "💣": "bomb",
    "🗳": "vote", "🔞": "adults only", "₿": "bitcoin",
}  # fmt: skip
_DRAWN = str.maketrans(
    {**_SMALL_CAPITALS, **_BOXED, **_INVISIBLE, **{sign: f" {word} " for sign, word in _MEANINGFUL_EMOJI.items()}}
)

_LEET = {
    "0": "o", "1": "il", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "9": "g",
    "@": "a", "$": "s", "!": "i", "|": "li", "€": "e", "£": "l", "+": "t", "¡": "i",
}  # fmt: skip
_EDGES = re.compile(r"^([\"'(\[{<#“‘«*_~]*)(.*?)([\"')\]}>.,;:!?”’»*_~…]*)$", re.DOTALL)
_INNER_MARKS = re.compile(r"[.\-_*·•/\\|~+=]+")
_SPELT_OUT = re.compile(r"(?<![^\s\"'(])(?:[\w@$!|][\s.\-_*·•/|~]{1,3}){3,}[\w@$](?![\w@$])")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SHORT_WORDS = re.compile("a|i|am|an|as|at|be|by|do|go|he|if|in|is|it|me|my|no|of|on|or|so|to|up|us|we")
_SENTENCE_END = re.compile(r"(?<=[.!?…．！？。‼⁉])(?<!\b[A-Z]\.)[\"')\]”’]*\s+|[\r\n\u2028\u2029]+|\s+[|•·►▶✓✔★–—]\s+")
_MARKUP = re.compile(r"(</?[a-zA-Z!][^<>]{0,200}>|\{[^{}]{0,400}\}|\[/?[a-zA-Z][a-zA-Z ]{1,20}\])")
_CLAUSE_END = re.compile(r"(?<=[,;:])\s+|\s+[-–—]\s+")

LONGEST_SENTENCE = 30  #: words; longer ones are read clause by clause


def visible(raw: str) -> str:
    """The text without what cannot be seen: compatibility forms folded, accents and format characters dropped."""
    folded = unicodedata.normalize("NFKD", raw.translate(_DRAWN))
    kept = (char for char in folded if unicodedata.category(char) not in ("Cf", "Mn", "Me", "Co", "Cn"))
    return unicodedata.normalize("NFKC", "".join(kept).translate(_DRAWN))


def readable(raw: str, vocabulary: frozenset[str]) -> str:
    """The text with disguised words written out. `vocabulary` holds the lower-case words that may come out."""
    text = _SPELT_OUT.sub(lambda match: _spelt(match.group(), vocabulary), visible(raw))
    words = [_plain(word, vocabulary) for word in text.split()]
    return " ".join(_rejoined(words, vocabulary))


def sentences(raw: str) -> Iterator[str]:
    """The sentences of a text as they stand; very long ones in pieces of at most LONGEST_SENTENCE words. Markup stands
    for itself: put into a sentence, it does not water it down."""
    for sentence in (sentence for part in _MARKUP.split(raw) for sentence in _SENTENCE_END.split(part)):
        stripped = sentence.strip()
        if len(stripped.split()) <= LONGEST_SENTENCE:
            if stripped:
                yield stripped
        else:
            yield from _gathered(_CLAUSE_END.split(stripped))


def _gathered(clauses: list[str]) -> Iterator[str]:
    """Clauses put together, or cut, to pieces of at most LONGEST_SENTENCE words."""
    piece: list[str] = []
    for clause in clauses:
        words = clause.split()
        if piece and len(piece) + len(words) > LONGEST_SENTENCE:
            yield " ".join(piece)
            piece = []
        piece += words
        while len(piece) > LONGEST_SENTENCE:
            yield " ".join(piece[:LONGEST_SENTENCE])
            piece = piece[LONGEST_SENTENCE:]
    if piece:
        yield " ".join(piece)


def _spelt(run: str, vocabulary: frozenset[str]) -> str:
    """`c o c a i n e` -> `cocaine`, `b.u.y c.o.k.e` -> `buy coke`; left alone if no words come out."""
    letters = re.sub(r"[\s.\-_*·•/|~]", "", run)
    for candidate in _decoded(letters.lower()):
        if words := _segmented(candidate, vocabulary):
            return " ".join(words)
    return run


def _plain(word: str, vocabulary: frozenset[str]) -> str:
    """One blank-delimited word with look-alikes, leet digits and inner marks undone."""
    match = _EDGES.match(_latin(word, vocabulary))
    if match is None:
        return word
    before, core, after = match.groups()
    if "#" in before:
        core = _CAMEL.sub(" ", core)
    lower = core.lower()
    if len(lower) < 4 or lower in vocabulary or not any(char.isalpha() for char in lower):
        return before + core + after
    joined = _INNER_MARKS.sub("", lower)
    fragments = _INNER_MARKS.split(lower)
    bits = len(fragments) > 2 and max(map(len, fragments)) <= 2
    halves = len(fragments) == 2 and (min(map(len, fragments)) < 4 or not vocabulary.issuperset(fragments))
    for candidate in _decoded(joined if bits or halves else lower):
        if candidate != lower and len(candidate) >= 4 and candidate in vocabulary:
            return before + candidate + after
    if joined == lower and lower.isalpha() and len(lower) >= 10 and (words := _segmented(lower, vocabulary)):
        return before + " ".join(words) + after
    return before + core + after


def _latin(word: str, vocabulary: frozenset[str]) -> str:
    """Cyrillic and Greek look-alikes as Latin letters, if Latin letters stand beside them or a word comes out."""
    if word.isascii() or not any(char in LOOKALIKES for char in word):
        return word
    swapped = "".join(LOOKALIKES.get(char, char) for char in word)
    letters = [char for char in swapped if char.isalpha()]
    mixed = any(char.isascii() and char.isalpha() for char in word)
    return swapped if all(map(str.isascii, letters)) and (mixed or "".join(letters).lower() in vocabulary) else word


def _decoded(word: str) -> Iterator[str]:
    """The words that leet-speak may mean by this one: all letters, few readings."""
    if sum(char.isalpha() for char in word) * 3 < len(word) or len(word) > 40:
        return
    choices = [char if char.isalpha() else _LEET.get(char, "") for char in word]
    if all(choices) and sum(len(choice) > 1 for choice in choices) <= 4:
        yield from ("".join(letters) for letters in product(*choices))


def _segmented(letters: str, vocabulary: frozenset[str]) -> list[str]:
    """The fewest words that make up the letters, or none."""
    best: list[list[str] | None] = [[]] + [None] * len(letters)
    for end in range(1, len(letters) + 1):
        for start in range(max(0, end - 16), end):
            head, word = best[start], letters[start:end]
            known = word in vocabulary if len(word) > 2 else _SHORT_WORDS.fullmatch(word) is not None
            shorter = head is not None and (best[end] is None or len(head) + 1 < len(best[end] or ()))
            if known and shorter and head is not None:
                best[end] = [*head, word]
    return best[-1] or []


def _rejoined(words: list[str], vocabulary: frozenset[str]) -> Iterator[str]:
    """`coca ine` and `co- caine` as one word: where one half is no word but the whole is."""
    skip = False
    for first, second in pairwise([*words, ""]):
        if skip:
            skip = False
            continue
        bare, rest = first.lower().rstrip("-"), second.lower().rstrip(".,;:!?")
        whole = bare + rest
        broken = bare.isalpha() and rest.isalpha() and (bare not in vocabulary or rest not in vocabulary)
        skip = broken and len(whole) >= 6 and min(len(bare), len(rest)) >= 2 and whole in vocabulary
        yield whole + second[len(rest) :] if skip else first
