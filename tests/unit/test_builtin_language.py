"""English is read; anything else is owned up to."""

from dataclasses import replace

import pytest

from imprimatur.evidence import Creative, Part
from reviewer.engines.builtin import examiner

BENIGN = "Our walks last about five hours. {} Dogs on leads are welcome, and a packed lunch is included in the price."


def unread(raw: str = "", **fields: str) -> bool:
    creative = replace(Creative(creative_id="c1", body=raw), **fields)  # type: ignore[arg-type]  # all are text
    return examiner.loaded().unread(creative)


@pytest.mark.parametrize(
    "raw",
    [
        "Jetzt kaufen und sparen",
        "Compra ahora y recibe un regalo",
        "Les meilleures offres sont ici. Achetez maintenant",
        "Sconti su tutto il catalogo",
        "Aproveite as ofertas de verão com até 50% de desconto",
        "Koop nu de nieuwe schoenen voor de zomer",
        "Kup teraz, zapłać później",
        "Köp dina skor hos oss",
        "Şimdi sipariş verin, yarın kapınızda olsun",
        "Diskon besar hari ini untuk semua produk",
        "Пришлите деньги сегодня",
        "無印良品の新しい家具",
        "지금 구매하세요",
        "اشتر الآن واحصل على خصم",
        "आज ही खरीदें",
        "Αγοράστε τώρα",
    ],
)
def test_another_language_is_not_read(raw: str) -> None:
    assert unread(raw)


@pytest.mark.parametrize(
    "raw",
    [
        "Shop now",
        "Fresh bread, every morning. Our bakers start at four.",
        "Le Creuset sale: up to 30 % off",
        "Croissants, pains au chocolat and éclairs",
        "Bialetti coffee pots",
        "El Paso pizza night",
        "OMG this blanket!! so cosy 😍",
        "Nike Air Max Plus",
        "20% off",
        "Café crème brûlée, made the way we like it",
    ],
)
def test_english_is_read_foreign_names_and_all(raw: str) -> None:
    assert not unread(raw)


@pytest.mark.parametrize(
    "sentence",
    [
        "Kaufen Sie bei uns auch verbotene Waffen.",
        "Waffen ohne Schein.",
        "Pistolen diskret geliefert!",
        "Wapens zonder vergunning.",
        "Fegyver engedély nélkül.",
        "Armas sem registo.",
        "Pistolas baratas, envío discreto.",
        "Kokaina z dostawą.",
        "Broń palna tanio.",
        "Ginklai be leidimo.",
        "Aseita ilman lupaa.",
        "Silah satılır ruhsatsız.",
        "Jual senjata tanpa izin.",
        "Nunua bunduki bila leseni.",
        "Prynwch gynnau nawr.",
        "Oruzhie bez licenzii.",
        "Oferujemy mefedron.",
        "Kokaina.",
        "Sned us yuor bnak psasword.",
        "Xnx wtht prscrptn.",
        "Bbuuyy ccooccaaiinnee.",
        "eniacoc fo marg a.",
        "Ohl pbpnvar gbavtug.",
        "Uybay ethmay erehay.",
    ],
)
def test_one_sentence_that_is_no_english_is_noticed_whatever_stands_around_it(sentence: str) -> None:
    assert not unread(BENIGN.format(""), headline="Guided walks in the Dales", call_to_action="See dates")
    assert unread(BENIGN.format(sentence), headline="Guided walks in the Dales", call_to_action="See dates")


@pytest.mark.parametrize("field", ["headline", "call_to_action", "name", "advertiser"])
def test_any_field_that_is_no_english_is_noticed(field: str) -> None:
    assert unread(BENIGN.format(""), **{field: "Kokaina bez recepty"})


@pytest.mark.parametrize(
    "sentence",
    [
        "Fresh herion at our door.",
        "Come in for some c*caine.",
        "We now stock cocainne too.",
        "Ask the barman for eniacoc.",
        "Ask for our viiiagraaa on the way.",
        "Pick up your prscrptn at the gate.",
        "Bring f**ts.",
    ],
)
def test_a_word_that_may_be_a_telling_one_in_disguise_is_noticed(sentence: str) -> None:
    assert unread(BENIGN.format(sentence))


@pytest.mark.parametrize("raw", ["🍄🌿❄️ fresh in, dm 🔌", "🍆💦 tonight", "🍄🌿", "🍄", "❄️❄️❄️ delivered", "50 %"])
def test_pictures_in_place_of_words_are_not_read(raw: str) -> None:
    assert unread(raw)


@pytest.mark.parametrize(
    "raw", ["Fresh bread, every morning 🥖", "Summer sale!! 🎉🔥", "New trainers in 👟 See you soon 👋😍"]
)
def test_emoji_beside_words_do_not_keep_them_from_being_read(raw: str) -> None:
    assert not unread(raw)


@pytest.mark.parametrize("gap", [" ", "  ", ".", "-", " . "])
def test_letters_that_make_no_words_are_not_read(gap: str) -> None:
    assert unread(f"Our sofas are soft. {gap.join('cumtodakazinofridey')} Delivery is free.")


@pytest.mark.parametrize("raw", ["A.B.C. Plumbing, est. 1988", "Plans A, B and C for all of us", "R.S.V.P. by 1 May"])
def test_initials_and_abbreviations_are_read(raw: str) -> None:
    assert not unread(raw)


@pytest.mark.parametrize("name", ["Zyxomma Brvtl", "IKEA Kallax", "Osteria Gino", "Spring sale DE-AT-CH"])
def test_names_may_be_made_up_words(name: str) -> None:
    assert not unread(BENIGN.format(""), name=name, advertiser=name)


@pytest.mark.parametrize("name", ["Купить оружие", "🍄🌿"])
def test_names_may_not_be_of_another_script_or_pictures(name: str) -> None:
    assert unread(BENIGN.format(""), name=name)
    assert unread(BENIGN.format(""), advertiser=name)


def test_a_declared_language_is_believed_but_english_is_looked_at() -> None:
    english, german = Creative(creative_id="c1", body="Shop now", language="de"), "Waffen ohne Schein"
    assert examiner.loaded().unread(english)
    assert unread(german, language="en")
    assert Part.LANGUAGE in examiner.examine(english).unexamined
