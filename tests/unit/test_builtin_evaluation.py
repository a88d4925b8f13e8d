"""The promises of docs/evaluation.md, held on the sets that nothing was trained on."""

import json
from functools import cache

import numpy as np
import pytest

from docs import evaluation as page
from imprimatur.evidence import Category
from imprimatur.policy import Decision
from reviewer.engines.builtin import classifier, examiner, examples, regression, train
from reviewer.evaluation import data, labelled
from reviewer.evaluation.evaluation import Evaluation, evaluate
from reviewer.evaluation.labelled import Kind


@cache
def found() -> Evaluation:
    return evaluate(labelled.read(data.path("test")), examiner.examine)


def test_at_most_two_in_a_hundred_sensitive_ads_are_approved() -> None:
    share = found().false_approvals
    assert share.count <= 0.02 * share.total


def test_at_least_half_of_the_plainly_benign_ads_are_approved_without_a_person() -> None:
    share = found().benign_approvals
    assert share.count >= 0.50 * share.total


def test_approval_scores_are_calibrated() -> None:
    assert found().calibration_error <= 0.08


def test_no_plainly_benign_ad_is_rejected_and_hardly_one_in_words_that_look_bad() -> None:
    assert found().confusion[Kind.BENIGN][Decision.REJECTED] == 0
    assert found().confusion[Kind.BENIGN_HARD][Decision.REJECTED] <= 2


def test_ads_in_another_language_go_to_a_person() -> None:
    foreign = [outcome for outcome in found().outcomes if outcome.ad.kind is Kind.OTHER]
    assert len(foreign) >= 10
    assert {outcome.verdict.decision for outcome in foreign} == {Decision.PENDING}


def test_the_set_has_what_it_takes() -> None:
    ads = [outcome.ad for outcome in found().outcomes]
    assert len(ads) >= 400
    assert sum(ad.kind is Kind.BENIGN for ad in ads) >= 140
    assert sum(ad.must_not_approve for ad in ads) >= 150
    assert {category for ad in ads for category in ad.categories or ()} == set(Category)


def test_none_of_its_texts_is_trained_on() -> None:
    trained = {(each.creative.headline, each.creative.body) for each in examples.examples()}
    ads = [ad for name in page.SETS for ad in labelled.read(data.path(name))]
    assert [ad.id for ad in ads if (ad.creative.headline, ad.creative.body) in trained] == []


def test_the_page_tells_the_figures_of_these_weights() -> None:
    figures = json.loads(page.FIGURES.read_text(encoding="utf-8"))
    measured = found().document()
    assert figures["test"]["engine"] == measured["engine"], "run make evaluate"
    for name in ("false_approve_rate", "benign_approved_rate", "to_a_person_rate"):
        assert figures["test"][name] == pytest.approx(measured[name], abs=0.01)
    assert page.page(figures) == page.PAGE.read_text(encoding="utf-8")


def test_the_same_examples_give_the_same_weights_to_the_bit() -> None:
    few = [each for number, each in enumerate(examples.examples()) if number % 80 == 0]
    first, second = (classifier.to_arrays(train.trained(train.prepared(few))) for _ in range(2))
    assert {name: array.tobytes() for name, array in first.items()} == {
        name: array.tobytes() for name, array in second.items()
    }


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_the_weights_kept_are_those_that_training_gives() -> None:
    from reviewer.children import ChildPool

    pool = ChildPool(1)
    try:
        off = await pool.run(train.differences, str(classifier.WEIGHTS))
    finally:
        await pool.close()
    assert max(off.values()) <= 1e-6


def test_one_bad_input_makes_its_bag_bad() -> None:
    inputs = np.array([[0.0], [4.0], [0.0], [0.0], [0.0], [4.0], [0.0]] * 20)
    starts = np.arange(0, len(inputs), 7)[:, None] + np.array([0, 2, 4])
    truth = np.tile([1.0, 0.0, 1.0], 20)
    line, whole = regression.bags(inputs, starts.ravel(), truth, np.ones(len(truth)), penalty=0.1)
    sums = classifier.pooled(inputs @ line, starts.ravel())
    sizes = np.tile([2.0, 2.0, 3.0], 20)
    chances = classifier.probability(whole @ np.stack([sums, np.log(sizes), np.ones(len(sums))]))
    assert ((chances > 0.5) == (truth == 1)).all()
