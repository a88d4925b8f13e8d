"""Files of labelled ads: what is taken, and what is said about a line that is not as it should be."""

import json
from pathlib import Path
from typing import Any

import pytest

from imprimatur.evidence import Category
from reviewer.evaluation import labelled
from reviewer.evaluation.labelled import BadLabelledFile, Kind, LabelledAd

ROW = {"id": "a1", "headline": "Sofas", "body": "", "cta": "Shop", "label": "benign", "must_not_approve": False}


def written(tmp_path: Path, *rows: dict[str, Any] | str | bytes) -> Path:
    path = tmp_path / "ads.jsonl"
    texts = [row if isinstance(row, str | bytes) else json.dumps(row) for row in rows]
    path.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts))
    return path


def read_one(tmp_path: Path, **changes: object) -> LabelledAd:
    (ad,) = labelled.read(written(tmp_path, ROW | changes))
    return ad


def test_an_ad_is_read_field_by_field(tmp_path: Path) -> None:
    ad = read_one(tmp_path, body="Deep seats.", label="alcohol", must_not_approve=True)
    assert (ad.id, ad.creative.headline, ad.creative.body, ad.creative.call_to_action) == (
        "a1",
        "Sofas",
        "Deep seats.",
        "Shop",
    )
    assert (ad.kind, ad.must_not_approve) == (Kind.SENSITIVE, True)
    assert ad.categories == frozenset({Category.ALCOHOL})


@pytest.mark.parametrize(
    ("label", "kind", "categories"),
    [
        ("benign", Kind.BENIGN, set()),
        ("Benign", Kind.BENIGN, set()),
        ("benign-hard", Kind.BENIGN_HARD, set()),
        ("hard negative: weapons", Kind.BENIGN_HARD, set()),
        ("sensitive", Kind.SENSITIVE, None),
        ("forbidden", Kind.FORBIDDEN, None),
        ("other", Kind.OTHER, None),
        ("self-harm", Kind.FORBIDDEN, {Category.SELF_HARM}),
        ("Sensitive Social Issue", Kind.SENSITIVE, {Category.SENSITIVE_SOCIAL_ISSUE}),
        ("scam, crypto", Kind.FORBIDDEN, {Category.SCAM, Category.CRYPTO}),
        (["alcohol", "gambling"], Kind.SENSITIVE, {Category.ALCOHOL, Category.GAMBLING}),
        ("sensitive: alcohol", Kind.SENSITIVE, {Category.ALCOHOL}),
    ],
)
def test_a_label_says_kind_and_categories(
    tmp_path: Path, label: object, kind: Kind, categories: set[Category] | None
) -> None:
    ad = read_one(tmp_path, label=label)
    assert (ad.kind, ad.categories) == (kind, categories)


@pytest.mark.parametrize(("must_not_approve", "kind"), [(True, Kind.SENSITIVE), (False, Kind.OTHER)])
def test_of_a_label_of_the_houses_own_only_must_not_approve_is_known(
    tmp_path: Path, must_not_approve: bool, kind: Kind
) -> None:
    ad = read_one(tmp_path, label=["alcohol", "Brand Safety 3"], must_not_approve=must_not_approve)
    assert (ad.kind, ad.categories, ad.own_label) == (kind, None, "brand_safety_3")


def test_absent_and_null_texts_are_empty_and_other_fields_unread(tmp_path: Path) -> None:
    row = {"id": 7, "body": "Soap", "cta": None, "label": "benign", "must_not_approve": False, "source": "us"}
    (ad,) = labelled.read(written(tmp_path, row, ""))
    assert (ad.id, ad.creative.headline, ad.creative.call_to_action) == ("7", "", "")


@pytest.mark.parametrize(
    ("changes", "field", "allowed"),
    [
        ({"label": "benignn"}, "label", "benign, benign_hard, sensitive, forbidden, other, political, "),
        ({"label": "alcohol, gamblling"}, "label", "did you mean 'gambling'"),
        ({"label": 3}, "label", "a list of texts"),
        ({"label": []}, "label", "one or several of benign"),
        ({"must_not_approve": "true"}, "must_not_approve", "true or false"),
        ({"must_not_approve": 1}, "must_not_approve", "true or false"),
        ({"body": "half \ud83c"}, "body", "whole characters"),
        ({"label": ["\ud83c"]}, "label", "whole characters"),
        ({"id": ""}, "id", "a text that no other line has"),
        ({"headline": 5}, "headline", "a text"),
        ({"headline": " ", "cta": ""}, "headline", "headline, body, cta"),
    ],
)
def test_a_wrong_value_is_named_with_line_field_and_what_is_allowed(
    tmp_path: Path, changes: dict[str, object], field: str, allowed: str
) -> None:
    path = written(tmp_path, ROW, ROW | {"id": "a2"} | changes)
    with pytest.raises(BadLabelledFile) as raised:
        labelled.read(path)
    assert f"{path}: line 2: field '{field}': " in str(raised.value)
    assert allowed in str(raised.value)


@pytest.mark.parametrize("field", ["id", "label", "must_not_approve"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    row = {name: value for name, value in ROW.items() if name != field}
    with pytest.raises(BadLabelledFile, match=f"line 1: field '{field}': is missing"):
        labelled.read(written(tmp_path, row))


def test_a_misspelt_field_is_not_taken_for_an_absent_one(tmp_path: Path) -> None:
    row = {name: value for name, value in ROW.items() if name != "headline"} | {"headlin": "Buy rifles"}
    with pytest.raises(BadLabelledFile, match="field 'headlin': is unknown; did you mean 'headline'"):
        labelled.read(written(tmp_path, row))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "is no JSON object"),
        (b'{"id": "\xff"}', "is not UTF-8"),
        ("NaN", "no JSON object"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str | bytes, said: str) -> None:
    with pytest.raises(BadLabelledFile, match=f"line 3: .*{said}"):
        labelled.read(written(tmp_path, ROW, "", line))


def test_two_ads_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadLabelledFile, match="line 2: field 'id': 'a1' stands in line 1 already"):
        labelled.read(written(tmp_path, ROW, ROW))


def test_an_empty_file_and_an_absent_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadLabelledFile, match="holds no ad"):
        labelled.read(written(tmp_path, ""))
    with pytest.raises(BadLabelledFile, match="No such file"):
        labelled.read(tmp_path / "absent.jsonl")
