"""Labelled ads in a file of JSON lines: `{"id", "headline", "body", "cta", "label", "must_not_approve"}` each.

docs/evaluation.md explains the fields to people who bring a set of their own. Other fields are left unread.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any

from imprimatur.errors import ImprimaturError
from imprimatur.evidence import FORBIDDEN, Category, Creative

TEXTS = ("headline", "body", "cta")
FIELDS = ("id", *TEXTS, "label", "must_not_approve")


class Kind(StrEnum):
    """What a label says about an ad, apart from its categories."""

    BENIGN = "benign"  #: plainly harmless
    BENIGN_HARD = "benign_hard"  #: harmless, in words that look bad
    SENSITIVE = "sensitive"  #: lawful, for a person to decide
    FORBIDDEN = "forbidden"  #: no publisher would run it
    OTHER = "other"  #: something the engine cannot read, such as another language


_KINDS = {
    **{kind.value: kind for kind in Kind},
    **dict.fromkeys(("safe", "clean", "ok", "none", "harmless", "plain", "plain_benign", "benign_plain"), Kind.BENIGN),
    **dict.fromkeys(
        ("hard", "hard_benign", "hard_negative", "benign_hard_negative", "benign_tricky", "tricky"), Kind.BENIGN_HARD
    ),
    **dict.fromkeys(("blocked", "prohibited", "unsafe", "injection", "prompt_injection"), Kind.FORBIDDEN),
    **dict.fromkeys(("restricted", "hidden", "hidden_sentence", "obfuscated"), Kind.SENSITIVE),
    **dict.fromkeys(("language", "other_language", "foreign", "foreign_language", "non_english"), Kind.OTHER),
}
_CATEGORIES = {
    **{category.value: category for category in Category},
    **dict.fromkeys(("politics",), Category.POLITICAL),
    **dict.fromkeys(("health", "medical"), Category.HEALTHCARE),
    **dict.fromkeys(("pharma", "medicine"), Category.PHARMACEUTICAL),
    **dict.fromkeys(("finance",), Category.FINANCIAL),
    **dict.fromkeys(("guns", "weapon"), Category.WEAPONS),
    **dict.fromkeys(("sexual", "dating"), Category.ADULT),
    **dict.fromkeys(("diet", "weight_loss"), Category.DIETING),
    **dict.fromkeys(("cryptocurrency",), Category.CRYPTO),
    **dict.fromkeys(("social_issue", "sensitive_social_issues", "social_issues"), Category.SENSITIVE_SOCIAL_ISSUE),
    **dict.fromkeys(("selfharm", "suicide"), Category.SELF_HARM),
    **dict.fromkeys(("illegal", "drugs"), Category.ILLICIT),
    **dict.fromkeys(("fraud", "phishing"), Category.SCAM),
}
ALLOWED = f"one or several of {', '.join((*Kind, *Category))}"


class BadLabelledFile(ImprimaturError):
    """A file of labelled ads cannot be read; the message names file, line and field, and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class LabelledAd:
    """One ad and the truth about it.

    `categories` is None where the label does not tell: "sensitive" alone, say, or a word of the house's own.
    """

    creative: Creative
    kind: Kind
    categories: frozenset[Category] | None
    must_not_approve: bool
    own_label: str = ""  #: one that is not known here; then `must_not_approve` alone gives the kind

    @property
    def id(self) -> str:
        """Unique within its file."""
        return self.creative.creative_id


def read(path: Path) -> list[LabelledAd]:
    """All ads of a file, in its order; blank lines are skipped.

    Raises:
        BadLabelledFile: it cannot be read, holds no ad, or a line is not as it should be.
    """
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise BadLabelledFile(f"{path}: {error.strerror}") from error
    ads: list[LabelledAd] = []
    places: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            ad = _ad(line)
        except _Flaw as flaw:
            raise BadLabelledFile(f"{path}: line {number}: {flaw}") from None
        if ad.id in places:
            taken = _Flaw(
                "id", f"{ad.id!r} stands in line {places[ad.id]} already; allowed: one that no other line has"
            )
            raise BadLabelledFile(f"{path}: line {number}: {taken}")
        places[ad.id] = number
        ads.append(ad)
    if not ads:
        raise BadLabelledFile(f"{path}: holds no ad; each line must be a JSON object with {', '.join(FIELDS)}")
    return ads


class _Flaw(Exception):
    """What is wrong with a line."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"field '{field}': {message}" if field else message)


def _ad(line: bytes) -> LabelledAd:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise _Flaw("", "is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise _Flaw("", f"is not JSON: {error}; allowed: one JSON object a line") from None
    if not isinstance(row, dict):
        raise _Flaw("", f"is no JSON object; allowed: an object with {', '.join(FIELDS)}")
    _check_names(row)
    _check_characters(row)
    headline, body, call_to_action = (_text(row, field) for field in TEXTS)
    if not (headline + body + call_to_action).strip():
        raise _Flaw("headline", f"is empty, and so are the others; one of {', '.join(TEXTS)} must hold text")
    words, bad = _label(_required(row, "label")), _truth(_required(row, "must_not_approve"))
    own = next((word for word in words if word not in _KINDS and word not in _CATEGORIES), "")
    kind, categories = (Kind.SENSITIVE if bad else Kind.OTHER, None) if own else _meaning(words)
    return LabelledAd(
        creative=Creative(
            creative_id=_id(_required(row, "id")), headline=headline, body=body, call_to_action=call_to_action
        ),
        kind=kind,
        categories=categories,
        must_not_approve=bad,
        own_label=own,
    )


def _check_names(row: Mapping[str, Any]) -> None:
    """A field that is nearly called like one that is missing was meant to be that."""
    for field in FIELDS:
        if field not in row and (near := get_close_matches(field, set(row) - set(FIELDS), n=1, cutoff=0.8)):
            raise _Flaw(near[0], f"is unknown; did you mean '{field}'? allowed: {', '.join(FIELDS)}")


def _check_characters(row: Mapping[str, Any]) -> None:
    """JSON can spell half a character; no creative that is submitted holds one."""
    for field in FIELDS:
        if re.search(r"[\ud800-\udfff]", json.dumps(row.get(field), ensure_ascii=False)):
            raise _Flaw(field, f"is {_shown(row[field])}: half of a surrogate pair; allowed: whole characters")


def _required(row: Mapping[str, Any], field: str) -> object:
    if field not in row:
        raise _Flaw(field, f"is missing; each line needs {', '.join(FIELDS)}")
    return row[field]


def _id(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise _Flaw("id", f"is {_shown(value)}; allowed: a text that no other line has")
    return str(value)


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Flaw(field, f"is {_shown(value)}; allowed: a text, which may be empty")
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Flaw("must_not_approve", f"is {_shown(value)}; allowed: true or false, without quotation marks")
    return value


def _label(value: object) -> list[str]:
    """Its words. Case, blanks and hyphens do not matter; several in one text are parted by commas or the like."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise _Flaw("label", f"is {_shown(value)}; allowed: a text or a list of texts: {ALLOWED}")
    words = [word for part in parts for word in _words(part)]
    if not words:
        raise _Flaw("label", f"is empty; allowed: {ALLOWED}")
    known = (*_KINDS, *_CATEGORIES)
    for word in words:
        if word not in known and (near := get_close_matches(word, known, n=1, cutoff=0.85)):
            raise _Flaw("label", f"is {_shown(word)}; did you mean '{near[0]}'? allowed: {ALLOWED}")
    return words


def _meaning(words: Sequence[str]) -> tuple[Kind, frozenset[Category] | None]:
    kinds = {_KINDS[word] for word in words if word in _KINDS}
    categories = frozenset(_CATEGORIES[word] for word in words if word in _CATEGORIES)
    if kinds & {Kind.BENIGN, Kind.BENIGN_HARD}:
        # A category beside "benign" tells whose look-alike it is.
        return (Kind.BENIGN if kinds == {Kind.BENIGN} and not categories else Kind.BENIGN_HARD), frozenset()
    if categories:
        return Kind.OTHER if kinds == {Kind.OTHER} else _kind_of(categories), categories
    return (Kind.FORBIDDEN if Kind.FORBIDDEN in kinds else min(kinds, key=list(Kind).index)), None


def _words(part: str) -> list[str]:
    return [re.sub(r"[\s\-_]+", "_", word.strip().lower()) for word in re.split(r"[,;+|/&:()]", part) if word.strip()]


def _kind_of(categories: frozenset[Category]) -> Kind:
    return Kind.FORBIDDEN if categories & FORBIDDEN else Kind.SENSITIVE


def _shown(value: object) -> str:
    shown = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    return shown if len(shown) <= 60 else shown[:59] + "…"
