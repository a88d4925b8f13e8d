"""Terms are found, harmless uses are not."""

import re

import pytest

from imprimatur.evidence import Category
from reviewer.engines.builtin import lexicon


def weighty(reading: str) -> set[Category]:
    return {find.category for find in lexicon.load().finds(reading) if find.weight >= 2}


def test_every_category_has_terms_and_harmless_uses() -> None:
    for wanted in (3, 0):
        found = {category for marks in lexicon.load().terms.values() for category, weight in marks if weight == wanted}
        assert found == set(Category)


@pytest.mark.parametrize(
    ("reading", "category"),
    [
        ("Double your bitcoin in 24 hours", Category.SCAM),
        ("Earn $500 a day from home", Category.SCAM),
        ("Fake passports for sale", Category.ILLICIT),
        ("Handguns and ammo", Category.WEAPONS),
        ("I lost 30 pounds", Category.DIETING),
        ("Vote yes this Tuesday", Category.POLITICAL),
        ("Three pharmacies near you", Category.PHARMACEUTICAL),
    ],
)
def test_a_telling_term_is_found(reading: str, category: Category) -> None:
    assert category in weighty(reading)


@pytest.mark.parametrize(
    "reading",
    ["Glue guns", "Killer deals", "Root beer", "Weed killer", "Bet you'll love it", "Coffee capsules", "Photo shoot"],
)
def test_a_harmless_use_hides_the_word_in_it(reading: str) -> None:
    assert weighty(reading) == set()


def test_a_harmless_use_does_not_hide_the_same_word_elsewhere() -> None:
    assert Category.WEAPONS in weighty("Glue guns and real guns")


def test_patterns_are_not_slow_on_hostile_text() -> None:
    hostile = ["earn " * 3000, "double your " * 1500, "guaranteed " * 2000, "1" * 15000, "verify your " * 1500]
    for text in hostile:
        lexicon.load().finds(text)


def test_an_unknown_category_or_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="astrology"):
        lexicon.parsed(["[astrology]", "3: horoscope"])
    with pytest.raises(re.error):
        lexicon.parsed(["[scam]", "3/ ("])
