"""The structured answer that a model must give, and its conversion into evidence.

An answer that does not fit is sent back to the model with what is wrong; whatever gets past here is finite, in range
and complete. What it leads to is the policy's business.
"""

import re
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from imprimatur.criteria import Criteria, Criterion
from imprimatur.evidence import (
    Category,
    CategoryScore,
    Creative,
    CriterionScore,
    EngineIdentity,
    Evidence,
    Finding,
    Part,
    Recommendation,
)

#: Goes up whenever the meaning of a field changes.
SCHEMA = "answer-v1"
#: A model that writes more is cut: nobody reads it.
LONGEST_TEXT = 1000
MOST_FINDINGS = 50

Probability = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]

#: A required probability for each category, so that none can be left out.
_SCORES: dict[str, Any] = {category.value: (Probability, ...) for category in Category}
Scores = create_model("Scores", **_SCORES)


class Found(BaseModel):
    """One thing worth a person's look."""

    category: Category | None
    score: Probability
    field: str
    quote: str
    explanation: str


class Answer(BaseModel):
    """What the model found in the creative."""

    model_config = ConfigDict(title="Evidence")

    reason: str
    categories: Scores  # type: ignore[valid-type]  # made by create_model, so that it follows Category
    findings: list[Found]
    approval_score: Probability
    recommendation: Recommendation

    def evidence(self, creative: Creative, engine: EngineIdentity, *, unexamined: frozenset[Part]) -> Evidence:
        """The answer as evidence about `creative`, without what it cost."""
        scores: dict[str, float] = self.categories.model_dump()  # type: ignore[attr-defined]  # as above
        return Evidence(
            engine=engine,
            approval_score=self.approval_score,
            recommendation=self.recommendation,
            reason=readable(self.reason) or "The model gave no reason.",
            categories=tuple(CategoryScore(category=Category(name), score=score) for name, score in scores.items()),
            findings=tuple(_finding(found, creative) for found in self.findings[:MOST_FINDINGS]),
            unexamined=unexamined,
        )


class Judged(BaseModel):
    """What the model says of one criterion."""

    score: Probability
    explanation: str


class AnswerWithCriteria(Answer):
    """What the model found in the creative, and what it says of the tenant's criteria, by their ids."""

    criteria: BaseModel

    def about(self, criteria: Criteria) -> tuple[CriterionScore, ...]:
        """What it says of each of them."""
        return tuple(_judged(one, getattr(self.criteria, name)) for name, one in ids_of(criteria).items())


@lru_cache(maxsize=128)
def answer_about(criteria: Criteria) -> type[AnswerWithCriteria]:
    """The form of an answer in which none of these criteria can be left out."""
    required: dict[str, Any] = dict.fromkeys(ids_of(criteria), (Judged, ...))
    judgements = create_model("Criteria", **required)
    return create_model("EvidenceWithCriteria", __base__=AnswerWithCriteria, criteria=(judgements, ...))


def ids_of(criteria: Criteria) -> dict[str, Criterion]:
    """The criteria by the ids that the model knows them by."""
    return {f"criterion_{number}": one for number, one in enumerate(criteria, start=1)}


def _judged(criterion: Criterion, judged: Judged) -> CriterionScore:
    return CriterionScore(
        name=criterion.name,
        fingerprint=criterion.fingerprint,
        score=judged.score,
        explanation=readable(judged.explanation),
    )


def _finding(found: Found, creative: Creative) -> Finding:
    quote, explanation = readable(found.quote), readable(found.explanation)
    if not _vouched(found, creative):
        quote, explanation = "", f"{explanation} (The model quotes words that the creative does not have.)"
    return Finding(
        category=found.category, score=found.score, field=readable(found.field), quote=quote, explanation=explanation
    )


def _vouched(found: Found, creative: Creative) -> bool:
    """Whether the creative has the words that are quoted; what an image shows cannot be checked."""
    if found.field.startswith("images"):
        return True
    texts = [text for _, text in creative.texts()] + [creative.landing_page_url]
    return any(_folded(found.quote) in _folded(text) for text in texts)


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def readable(text: str) -> str:
    """`text` without control characters, which PostgreSQL and terminals do not take, and not longer than is read."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", " ", text).strip()[:LONGEST_TEXT]
