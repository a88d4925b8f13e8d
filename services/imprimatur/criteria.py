"""A tenant's own rules in free text, which a language model examines beside the categories. Pure values.

A criterion is a rule that creatives keep, such as "Prices name their currency". Engines give the probability that a
creative breaks it; what follows from that is `policy`.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from imprimatur.errors import InvalidRequest

MOST_CRITERIA = 20
LONGEST_NAME = 60
LONGEST_TEXT = 1000
_NAME = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)*")
#: Neither control characters, which PostgreSQL and terminals do not take, nor halves of surrogate pairs.
_NOT_TEXT = frozenset({"Cc", "Cs"})


class Effect(StrEnum):
    """What follows where a criterion is broken for sure."""

    BLOCKS = "blocks"  #: the creative is rejected
    TO_PERSON = "to_person"  #: a person decides


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One rule. `name` is for lists and reasons, `text` is what the model is asked about."""

    name: str
    text: str
    effect: Effect = Effect.TO_PERSON

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and len(self.name) <= LONGEST_NAME and _NAME.fullmatch(self.name)):
            allowed = f"must be of lower-case letters and digits, joined by - or _, at most {LONGEST_NAME} characters"
            raise InvalidRequest("name", allowed)
        if not (isinstance(self.text, str) and self.text.strip() and len(self.text) <= LONGEST_TEXT):
            raise InvalidRequest("text", f"must be a text of 1 to {LONGEST_TEXT:,} characters")
        if any(unicodedata.category(sign) in _NOT_TEXT and sign not in "\n\t" for sign in self.text):
            raise InvalidRequest("text", "holds a control character")

    @property
    def fingerprint(self) -> str:
        """Names what is asked: evidence about another wording says nothing about this one."""
        return hashlib.sha256(f"{self.name}\n{self.text}".encode()).hexdigest()[:16]

    def document(self) -> dict[str, str]:
        """As plain JSON values."""
        return {"name": self.name, "text": self.text, "effect": str(self.effect)}


#: What a policy has of them, in its order.
Criteria = tuple[Criterion, ...]


def checked(criteria: object) -> Criteria:
    """The criteria of a policy.

    Raises:
        InvalidRequest: too many, or two of one name.
    """
    if not (isinstance(criteria, tuple) and all(isinstance(one, Criterion) for one in criteria)):
        raise InvalidRequest("criteria", "must be a list of criteria")
    if len(criteria) > MOST_CRITERIA:
        raise InvalidRequest("criteria", f"has {len(criteria)} entries, at most {MOST_CRITERIA} are allowed")
    names = [one.name for one in criteria]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InvalidRequest(f"criteria[{place}].name", f"{name} is the name of another criterion")
    return criteria


def from_documents(documents: object) -> Criteria:
    """Criteria as they are stored or submitted.

    Raises:
        InvalidRequest: an unknown key, or a value that is not allowed.
    """
    if not isinstance(documents, list | tuple):
        raise InvalidRequest("criteria", "must be a list of criteria")
    return tuple(_from_document(item, f"criteria[{place}]") for place, item in enumerate(documents))


def _from_document(document: object, field: str) -> Criterion:
    if not isinstance(document, dict):
        raise InvalidRequest(field, "must have name, text and effect")
    if unknown := {str(name) for name in document} - {"name", "text", "effect"}:
        raise InvalidRequest(f"{field}.{min(unknown)}", "is nothing that a criterion has")
    try:
        effect = Effect(str(document.get("effect", Effect.TO_PERSON)))
    except ValueError:
        raise InvalidRequest(f"{field}.effect", f"must be one of {', '.join(Effect)}") from None
    try:
        return Criterion(name=document.get("name", ""), text=document.get("text", ""), effect=effect)
    except InvalidRequest as flaw:
        raise flaw.within(f"{field}.") from None
