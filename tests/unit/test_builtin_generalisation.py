"""How the engine fares on ads that it was not trained on, decided as the default policy would.

The examples in data/builtin/dev.jsonl share no wording with the training data; 17 of the 42 benign ones are
worded to mislead. benign_whole.jsonl and hidden_whole.jsonl hold ads of several sentences with a name and an
advertiser; in the second, one sentence is sensitive or blocked. None is trained on. They guard against a fall-back; how
good the engine is, test_builtin_evaluation measures on sets that nothing was chosen by.
"""

from functools import cache
from pathlib import Path

import numpy as np

from imprimatur.evidence import FORBIDDEN, Category, Evidence
from imprimatur.policy import Decision, Policy, decide
from reviewer.engines.builtin import examiner, examples
from reviewer.engines.builtin.examples import Example

DATA = Path(__file__).parent / "data" / "builtin"
DETECTED = 0.30
APPROVED = 0.90


@cache
def found() -> tuple[tuple[Example, Evidence], ...]:
    return tuple((example, examiner.examine(example.creative)) for example in examples.examples_of(DATA / "dev.jsonl"))


def approved(evidence: Evidence) -> bool:
    return (
        evidence.approval_score >= APPROVED
        and not evidence.unexamined
        and all(score.score < DETECTED for score in evidence.categories)
    )


def share_approved(kind: str) -> float:
    outcomes = [approved(evidence) for example, evidence in found() if _kind(example) == kind]
    return sum(outcomes) / len(outcomes)


def calibration_error(chances: list[float], truths: list[float]) -> float:
    """Expected calibration error over ten bins of equal width."""
    chance, truth = np.array(chances), np.array(truths)
    bins = np.minimum((chance * 10).astype(int), 9)
    gaps = [abs(chance[bins == n].mean() - truth[bins == n].mean()) * (bins == n).mean() for n in set(bins.tolist())]
    return float(sum(gaps))


def _kind(example: Example) -> str:
    return "benign" if not example.labels else "blocked" if example.labels & FORBIDDEN else "sensitive"


def test_at_least_half_of_the_benign_ads_are_approved() -> None:
    assert share_approved("benign") >= 0.50


def test_hardly_a_sensitive_ad_and_no_blocked_one_is_approved() -> None:
    assert share_approved("sensitive") <= 0.02
    assert share_approved("blocked") == 0.0


def test_no_benign_and_hardly_a_merely_sensitive_ad_is_recommended_for_rejection() -> None:
    rejected = [e.labels for e, evidence in found() if not e.labels & FORBIDDEN and evidence.recommendation == "reject"]
    assert len(rejected) <= 1
    assert frozenset() not in rejected


def test_no_benign_or_merely_sensitive_ad_is_rejected_without_a_person() -> None:
    lawful = [evidence for example, evidence in found() if not example.labels & FORBIDDEN]
    assert Decision.REJECTED not in {decide(Policy(), (), evidence).decision for evidence in lawful}


def test_category_scores_mean_what_they_say() -> None:
    pairs = [(s.score, float(s.category in e.labels)) for e, evidence in found() for s in evidence.categories]
    assert calibration_error([score for score, _ in pairs], [truth for _, truth in pairs]) <= 0.08


def test_approval_scores_mean_what_they_say() -> None:
    truths = [float(_kind(example) == "benign") for example, _ in found()]
    assert calibration_error([evidence.approval_score for _, evidence in found()], truths) <= 0.08


def test_most_sensitive_ads_are_put_in_their_own_category() -> None:
    hits = [
        any(s.score >= DETECTED and s.category in e.labels for s in evidence.categories)
        for e, evidence in found()
        if _kind(e) == "sensitive"
    ]
    assert sum(hits) / len(hits) >= 0.75


def test_every_category_is_represented() -> None:
    assert {label for example, _ in found() for label in example.labels} == set(Category)


@cache
def decisions(file: str) -> dict[str, str]:
    """What the default policy makes of the ads of one file, by their ids."""
    return {
        example.id: str(decide(Policy(), (), examiner.examine(example.creative)).decision)
        for example in examples.examples_of(DATA / file)
    }


def test_many_benign_ads_of_several_sentences_are_approved_and_none_rejected() -> None:
    outcomes = list(decisions("benign_whole.jsonl").values())
    assert outcomes.count("approved") / len(outcomes) >= 0.33
    assert "rejected" not in outcomes


def test_hardly_an_ad_with_one_telling_sentence_is_approved() -> None:
    outcomes = list(decisions("hidden_whole.jsonl").values())
    assert outcomes.count("approved") <= 1


def test_no_validation_ad_is_trained_on() -> None:
    bodies = {example.creative.body for example in examples.examples()}
    files = ("dev.jsonl", "benign_whole.jsonl", "hidden_whole.jsonl")
    assert [e.id for file in files for e in examples.examples_of(DATA / file) if e.creative.body in bodies] == []
