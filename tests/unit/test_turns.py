"""Whose turn it is among the priorities."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as some

from imprimatur.job import Priority
from imprimatur.turns import SHARES, first_place, next_of

CHANCES = [(number + 0.5) / 2000 for number in range(2000)]


def test_shares_add_up_to_all_starts_and_every_priority_has_one() -> None:
    assert set(SHARES) == set(Priority)
    assert sum(SHARES.values()) == pytest.approx(1.0)
    assert SHARES[Priority.HIGH] > SHARES[Priority.NORMAL] > SHARES[Priority.LOW] > 0


@pytest.mark.parametrize(
    ("waiting", "shares"),
    [
        ([Priority.HIGH, Priority.NORMAL, Priority.LOW], {1: 0.75, 2: 0.20, 3: 0.05}),
        ([Priority.LOW, Priority.HIGH], {1: 0.9375, 3: 0.0625}),
        ([Priority.LOW], {3: 1.0}),
    ],
    ids=["all wait", "nobody waits for the middle", "one alone"],
)
def test_those_who_wait_share_the_starts(waiting: list[Priority], shares: dict[int, float]) -> None:
    counted = Counter(next_of(waiting, chance) for chance in CHANCES)
    assert {int(one): number / len(CHANCES) for one, number in counted.items()} == pytest.approx(shares, abs=0.001)


@given(some.sets(some.sampled_from(Priority), min_size=1), some.floats(0, 1, exclude_max=True))
def test_only_those_who_wait_get_a_turn(waiting: set[Priority], chance: float) -> None:
    assert next_of(waiting, chance) in waiting


def test_one_place_at_a_time_is_won_as_often_as_the_shares_say() -> None:
    """Three exponential clocks: the one with rate r rings first in r of all cases."""
    won: Counter[Priority] = Counter()
    coarse = [(number + 0.5) / 40 for number in range(40)]
    for high in coarse:
        for normal in coarse:
            for low in coarse:
                places = {
                    Priority.HIGH: first_place(Priority.HIGH, high),
                    Priority.NORMAL: first_place(Priority.NORMAL, normal),
                    Priority.LOW: first_place(Priority.LOW, low),
                }
                won[min(places, key=lambda one: places[one])] += 1
    assert {one: number / 40**3 for one, number in won.items()} == pytest.approx(dict(SHARES), abs=0.02)
