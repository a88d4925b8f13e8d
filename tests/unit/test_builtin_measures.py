"""The figures of an evaluation, against values known from elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.main import run
from imprimatur.evidence import Category, CategoryScore, Creative, EngineIdentity, Evidence, Part, Recommendation
from reviewer.evaluation.evaluation import evaluate
from reviewer.evaluation.labelled import Kind, LabelledAd
from reviewer.evaluation.measures import calibration_error, hits, reliability, wilson


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_agrees_with_newcombes_table(count: int, total: int, low: float, high: float) -> None:
    assert wilson(count, total) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_the_interval_holds_the_rate_and_lies_in_zero_to_one(pair: tuple[int, int]) -> None:
    low, high = wilson(*pair)
    assert 0 <= low <= pair[0] / pair[1] <= high <= 1


def test_the_calibration_error_weighs_each_bins_gap_by_its_count() -> None:
    bins = reliability([0.05, 0.05, 0.95, 1.0], [False, True, True, True])
    assert [(each.count, each.share_true) for each in bins] == [(2, 0.5), (2, 1.0)]
    assert calibration_error(bins) == pytest.approx((2 * 0.45 + 2 * 0.025) / 4)


def test_hits_count_what_was_found_what_not_and_what_was_no_hit() -> None:
    found = hits([(True, True), (True, False), (False, True), (False, False), (True, True)])
    assert (found.true_positives, found.false_positives, found.false_negatives) == (2, 1, 1)
    assert (found.precision, found.recall) == (2 / 3, 2 / 3)
    assert hits([(False, False)]).precision is None


def ad(id_: str, kind: Kind, *, must_not_approve: bool, categories: frozenset[Category] | None) -> LabelledAd:
    creative = Creative(creative_id=id_, headline=id_)
    return LabelledAd(creative=creative, kind=kind, categories=categories, must_not_approve=must_not_approve)


def scripted(creative: Creative) -> Evidence:
    """An engine that likes all but "beer", which it sees, and does not read "fremd"."""
    beer, foreign = creative.headline == "beer", creative.headline == "fremd"
    score = 0.2 if beer else 0.95
    return Evidence(
        engine=EngineIdentity(name="scripted", version="1"),
        approval_score=score,
        recommendation=Recommendation.HUMAN if beer else Recommendation.APPROVE,
        reason="",
        categories=(CategoryScore(category=Category.ALCOHOL, score=0.8 if beer else 0.1),),
        unexamined=frozenset({Part.LANGUAGE}) if foreign else frozenset(),
    )


def test_the_figures_follow_from_the_decisions() -> None:
    alcohol = frozenset({Category.ALCOHOL})
    found = evaluate(
        [
            ad("sofa", Kind.BENIGN, must_not_approve=False, categories=frozenset()),
            ad("fremd", Kind.BENIGN, must_not_approve=False, categories=frozenset()),
            ad("beer", Kind.SENSITIVE, must_not_approve=True, categories=alcohol),
            ad("wine", Kind.SENSITIVE, must_not_approve=True, categories=alcohol),
            ad("rum", Kind.SENSITIVE, must_not_approve=True, categories=None),
        ],
        scripted,
    ).document()
    assert (found["false_approve_rate"], found["false_approve_count"], found["false_approve_of"]) == (0.6667, 2, 3)
    assert (found["benign_approved_rate"], found["to_a_person_rate"]) == (0.5, 0.4)
    assert found["ece"] == pytest.approx((0.2 + 4 * (0.95 - 0.5)) / 5)
    assert found["categories"]["alcohol"]["recall"] == 0.5
    assert found["decisions"]["sensitive"] == {"approved": 2, "rejected": 0, "pending": 1}
    assert found["items"][2] == {
        "id": "beer",
        "label": ["alcohol"],
        "must_not_approve": True,
        "decision": "pending",
        "policy_triggered": "sensitive_category",
        "approval_score": 0.2,
        "top_categories": [{"category": "alcohol", "score": 0.8}],
    }


def test_without_ads_of_a_kind_its_rates_are_null() -> None:
    found = evaluate([ad("beer", Kind.SENSITIVE, must_not_approve=True, categories=None)], scripted).document()
    assert (found["benign_approved_rate"], found["benign_approved_interval"]) == (None, None)


def labelled_file(tmp_path: Path) -> Path:
    path = tmp_path / "ads.jsonl"
    rows = [
        {"id": "a", "headline": "Oak desks, made to order", "label": "benign", "must_not_approve": False},
        {"id": "b", "headline": "Handguns and ammo", "label": "weapons", "must_not_approve": True},
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["evaluate", *arguments, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_command_gives_the_figures_as_flat_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, str(labelled_file(tmp_path)))
    assert {"false_approve_rate", "benign_approved_rate", "ece", "items"} <= set(found)
    assert found["false_approve_rate"] == 0.0
    assert [item["id"] for item in found["items"]] == ["a", "b"]
    assert found["items"][1]["policy_triggered"] == "sensitive_category"
    assert found["items"][1]["top_categories"][0]["category"] == "weapons"


def test_the_command_decides_by_a_policy_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"mode": "require-human"}')
    found = evaluated(capsys, str(labelled_file(tmp_path)), "--policy", str(policy))
    assert {item["policy_triggered"] for item in found["items"]} == {"human_required"}


def test_the_command_shows_tables_to_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(labelled_file(tmp_path))]) == 0
    shown = capsys.readouterr().out
    assert "false approvals" in shown
    assert "0 of 1" in shown


@pytest.mark.parametrize(
    ("policy", "said"),
    [("{", "is not JSON"), ("[]", "must hold one JSON object"), ('{"detect_min": 2}', "from 0 to 1")],
)
def test_a_bad_policy_is_an_error_that_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str, said: str
) -> None:
    path = tmp_path / "policy.json"
    path.write_text(policy)
    assert run(["evaluate", str(labelled_file(tmp_path)), "--policy", str(path)]) == 1
    assert said in capsys.readouterr().err


def test_labels_that_are_not_known_are_told_beside_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ads.jsonl"
    path.write_text('{"id": "a", "headline": "Handguns and ammo", "label": "tier 3", "must_not_approve": true}')
    assert run(["evaluate", str(path), "--json"]) == 0
    written = capsys.readouterr()
    assert json.loads(written.out)["false_approve_of"] == 1
    assert "labels not known here, in 1 of 1 ads: tier_3" in written.err


def test_a_bad_file_is_an_error_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ads.jsonl"
    path.write_text('{"id": "a", "headline": "x", "label": "benignn", "must_not_approve": false}')
    assert run(["evaluate", str(path)]) == 1
    error = capsys.readouterr().err
    assert "line 1: field 'label': is \"benignn\"; did you mean 'benign'? allowed: one or several of benign" in error
    assert error.count("\n") == 1
