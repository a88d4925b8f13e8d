"""English is read; anything else is owned up to."""

import pytest

from reviewer.engines.builtin import language, text
from reviewer.engines.builtin.embeddings import Encoder, model_directory

VOCABULARY = Encoder(model_directory()).words


def unread(raw: str) -> bool:
    return language.unread([text.visible(sentence) for sentence in text.sentences(raw)], VOCABULARY)


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
        "La Roche-Posay sunscreen",
        "El Paso pizza night",
        "OMG this blanket!! so cosy 😍",
        "Nike Air Max Plus",
        "20% off",
        "Café crème brûlée, made the way we like it",
    ],
)
def test_english_is_read_foreign_names_and_all(raw: str) -> None:
    assert not unread(raw)


def test_one_foreign_sentence_among_english_ones_is_noticed() -> None:
    assert unread("Our sofas are soft and deep. Kaufen Sie bei uns auch verbotene Waffen. Delivery is free.")


@pytest.mark.parametrize("gap", [" ", "  ", ".", "-", " . "])
def test_letters_that_make_no_words_are_not_read(gap: str) -> None:
    assert unread(f"Our sofas are soft. {gap.join('cometothecasinofriday')} Delivery is free.")


@pytest.mark.parametrize("raw", ["A.B.C. Plumbing, est. 1988", "Plans A, B and C for all of us", "R.S.V.P. by 1 May"])
def test_initials_and_abbreviations_are_read(raw: str) -> None:
    assert not unread(raw)


def test_names_may_be_made_up_words_but_not_of_another_script() -> None:
    assert not language.unread_names(["Zyxomma Brvtl", "IKEA Kallax", "Osteria da Gino"], VOCABULARY)
    assert language.unread_names(["Купить оружие"], VOCABULARY)
