"""The passages of a creative that are judged one by one: its sentences, and stretches of the whole.

The whole shows what only the context tells; the single sentence cannot be averaged away by harmless ones around
it. What a passage means is `classifier`'s business.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from imprimatur.evidence import Creative
from reviewer.engines.builtin import text

MAX_CHARACTERS = 20_000  #: of all fields together; what lies behind is not read, and said to be truncated
STRETCH_WORDS = 110  #: within the encoder's 256 tokens
_PITCH = ("headline", "body", "call_to_action")  #: these make one text; name and advertiser stand for themselves


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Words of one field: as they stand (`quote`) and as a reader's eye takes them (`reading`).

    A stretch spans fields and sentences; its `field` and `quote` are those of its first sentence.
    """

    field: str
    quote: str
    reading: str
    stretch: bool = False


@dataclass(frozen=True, kw_only=True)
class Passages:
    """Everything to be judged in one creative, and whether something was left out."""

    items: tuple[Passage, ...]
    truncated: bool


def of(creative: Creative, vocabulary: frozenset[str]) -> Passages:
    """Sentences first, then stretches. Empty if the creative has no text."""
    fields, truncated = _within_limit(creative.texts())
    single = [
        Passage(field=field, quote=sentence, reading=reading)
        for field, raw in fields
        for sentence in text.sentences(raw)
        if (reading := text.readable(sentence, vocabulary))
    ]
    pitch = [passage for passage in single if passage.field in _PITCH]
    return Passages(items=(*single, *_stretches(pitch, vocabulary)), truncated=truncated)


def _within_limit(fields: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], bool]:
    """The fields' text up to MAX_CHARACTERS, and whether some was cut. Short fields go first, so that a long
    body cannot push the call to action out of sight."""
    room, kept = MAX_CHARACTERS, dict.fromkeys((field for field, _ in fields), "")
    for field, raw in sorted(fields, key=lambda item: len(item[1])):
        kept[field] = raw[:room]
        room -= len(kept[field])
    return list(kept.items()), any(len(kept[field]) < len(raw) for field, raw in fields)


def _stretches(pitch: Sequence[Passage], vocabulary: frozenset[str]) -> Iterator[Passage]:
    """Runs of sentences of at most STRETCH_WORDS words, each run half over the next."""
    start = 0
    while start < len(pitch):
        end, words = start, 0
        while end < len(pitch) and (end == start or words + len(pitch[end].quote.split()) <= STRETCH_WORDS):
            words += len(pitch[end].quote.split())
            end += 1
        joined = " ".join(_ended(passage.quote) for passage in pitch[start:end])
        reading = text.readable(joined, vocabulary)
        yield Passage(field=pitch[start].field, quote=pitch[start].quote, reading=reading, stretch=True)
        if end == len(pitch):
            return
        start = max(start + 1, (start + end) // 2)


def _ended(sentence: str) -> str:
    """With a full stop if it has no end of its own, unless it is a single letter of a word spelt out."""
    return sentence if len(sentence) == 1 or not sentence[-1].isalnum() else sentence + "."
