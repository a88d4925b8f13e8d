"""When evidence may be used again: what makes up its key, and what may be kept at all."""

import uuid
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imprimatur import reuse
from imprimatur.evidence import Category, Creative, EngineIdentity, Image, Part
from imprimatur.job import JobType
from imprimatur.reuse import digest_of, encode, key_of, may_be_kept
from tests import makers

TENANT = uuid.UUID(int=1)
ENGINE = EngineIdentity(name="llm", version="v3/1+aa", model="m")
CREATIVE = Creative(
    creative_id="cr-1",
    name="n",
    format="f",
    headline="h",
    body="b",
    call_to_action="c",
    advertiser="a",
    landing_page_url="https://ads.example/",
    language="en",
    declared_categories=(Category.ALCOHOL,),
    images=(Image(name="i", data=b"bytes"),),
    video_urls=("https://ads.example/v",),
    audio_urls=("https://ads.example/s",),
)


def key(creative: Creative = CREATIVE, **changes: Any) -> bytes:
    asked: dict[str, Any] = {
        "tenant_id": TENANT,
        "job_type": JobType.CREATIVE_REVIEW,
        "engine": ENGINE,
        "provider": "p",
        "criteria": [("tone", "is friendly")],
    }
    return key_of(creative, **asked | changes)


#: What an engine is not shown.
NOT_SHOWN = {"creative_id"}
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
images = st.builds(Image, name=st.just("i") | texts, data=st.just(b"bytes") | st.binary(min_size=1, max_size=3))


@pytest.mark.parametrize("name", [field.name for field in fields(Creative)])
@given(data=st.data())
def test_every_part_of_a_creative_that_an_engine_is_shown_changes_the_key(name: str, data: st.DataObject) -> None:
    strategies: dict[str, st.SearchStrategy[Any]] = {
        "declared_categories": st.lists(st.sampled_from(Category), unique=True).map(tuple),
        "images": st.lists(images, max_size=2).map(tuple),
        "video_urls": st.lists(texts, max_size=2).map(tuple),
        "audio_urls": st.lists(texts, max_size=2).map(tuple),
    }
    value = data.draw(strategies.get(name, texts))
    other = replace(CREATIVE, **{name: value})
    same = other == CREATIVE or name in NOT_SHOWN
    assert (key(other) == key()) == same


@pytest.mark.parametrize(
    "change",
    [
        {"tenant_id": uuid.UUID(int=2)},
        {"engine": replace(ENGINE, name="builtin")},
        {"engine": replace(ENGINE, version="v4/1+aa")},
        {"engine": replace(ENGINE, model="n")},
        {"provider": "q"},
        {"criteria": []},
        {"criteria": [("tone", "is stern")]},
        {"criteria": [("voice", "is friendly")]},
        {"criteria": [("tone", "is friendly"), ("more", "")]},
        {"job_type": "media_tagging"},
    ],
)
def test_whom_it_is_for_and_who_is_asked_what_changes_the_key(change: dict[str, Any]) -> None:
    assert key(**change) != key()
    assert key(**change) == key(**change)


def test_another_schema_of_evidence_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(reuse, "SCHEMA", reuse.SCHEMA + 1)
    assert key() != before


def test_an_image_with_other_bytes_another_name_or_another_place_changes_the_key() -> None:
    one, other = Image(name="i", data=b"bytes"), Image(name="i", data=b"bytez")
    shown = [(one,), (other,), (replace(one, name="j"),), (one, other), (other, one), (one, one), ()]
    assert len({key(replace(CREATIVE, images=each)) for each in shown}) == len(shown)


def test_how_images_are_seen_counts_where_there_are_any() -> None:
    sights = [(), ("2048",), ("1024",), ("1024", ""), ("", "1024")]
    assert len({key(sight=sight) for sight in sights}) == len(sights)
    assert len({key(replace(CREATIVE, images=()), sight=sight) for sight in sights}) == 1


def test_text_that_moves_to_the_next_field_changes_the_key() -> None:
    one = Creative(creative_id="cr", headline="ab", body="c")
    assert len({key(one), key(replace(one, headline="a", body="bc")), key(replace(one, headline="abc", body=""))}) == 3


def test_an_image_counts_by_its_bytes_wherever_it_comes_from() -> None:
    inline = Image(name="i", data=b"bytes")
    digest = digest_of(inline)
    assert digest is not None
    uploaded = Image(name="i", asset_id=digest.hex())
    fetched = Image(name="i", url="https://ads.example/i", data=b"bytes")
    assert {digest_of(one) for one in (inline, uploaded, fetched)} == {digest}
    assert {key(replace(CREATIVE, images=(one,))) for one in (inline, uploaded, fetched)} == {key()}
    with pytest.raises(ValueError, match="must be fetched first"):
        key(replace(CREATIVE, images=(Image(name="i", url="https://ads.example/i"),)))


values = st.recursive(texts | st.binary(max_size=4), lambda inner: st.lists(inner, max_size=3), max_leaves=8)


def decode(encoded: bytes) -> tuple[Any, bytes]:
    """The value at the beginning, and what follows it."""
    kind, number, rest = encoded[:1], int.from_bytes(encoded[1:9], "big"), encoded[9:]
    if kind == b"s":
        items = []
        for _ in range(number):
            item, rest = decode(rest)
            items.append(item)
        return items, rest
    content = rest[:number]
    return content.decode() if kind == b"t" else content, rest[number:]


@given(value=values, behind=st.binary(max_size=4))
def test_an_encoding_can_be_read_back_and_so_is_nothing_elses(value: Any, behind: bytes) -> None:
    assert decode(encode(value) + behind) == (value, behind)


@given(one=values, other=values)
def test_no_two_values_have_the_same_encoding(one: Any, other: Any) -> None:
    assert (encode(one) == encode(other)) == (one == other)


@pytest.mark.parametrize("part", Part)
def test_what_may_be_examined_the_next_time_is_not_kept(part: Part) -> None:
    never = part in {Part.VIDEO, Part.AUDIO, Part.LANGUAGE}
    assert may_be_kept(makers.evidence(unexamined=frozenset({part}))) is never


def test_evidence_of_a_truncated_creative_is_not_kept() -> None:
    assert may_be_kept(makers.evidence())
    assert not may_be_kept(makers.evidence(truncated=True))
