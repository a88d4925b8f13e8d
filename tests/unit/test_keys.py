"""Concurrency keys as texts: each means one key only, and a person can read it."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from imprimatur import keys

names = st.text(alphabet="ab:@%3A/\n", min_size=1, max_size=6)


def test_a_key_says_who_named_it_and_whose_it_is() -> None:
    assert keys.given("nightly") == "key:nightly"
    assert keys.of_creative("cr-1") == "creative:cr-1"
    assert keys.of_creative("cr-1", bound_to="ada") == "creative@ada:cr-1"


@given(names, names, st.sampled_from(["", "a", "a:b", "a%3Ab", "key", "a@b"]))
def test_only_what_a_caller_named_is_shown_as_its_key(name: str, creative_id: str, user_id: str) -> None:
    assert keys.name_given(keys.given(name, bound_to=user_id)) == name
    assert keys.name_given(keys.of_creative(creative_id, bound_to=user_id)) == ""
    assert keys.name_given(None) == ""


@given(st.lists(st.tuples(names, st.one_of(st.just(""), names)), max_size=6, unique=True))
def test_what_differs_has_another_key(drawn: list[tuple[str, str]]) -> None:
    made = {kind(name, bound_to=user) for kind, (name, user) in product((keys.given, keys.of_creative), drawn)}
    assert len(made) == 2 * len(drawn)
