"""The language gate: is a text English, which this engine reads, or something it must own up to not reading?

By script, by function words and by the share of unknown words: deterministic, no model, no download. It does not
name the language. When in doubt about a whole sentence it says unread, so that a person looks.
"""

import re
from collections.abc import Collection, Sequence

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")

ENGLISH = frozenset(
    ["the", "a", "an", "and", "or", "of", "to", "in", "on", "at", "for", "with", "from", "by", "is", "are", "was", "were", "be", "been", "it", "its", "this", "that", "these", "those", "you", "your", "yours", "we", "our", "us", "they", "their", "he", "she", "his", "her", "i", "my", "me", "not", "no", "do", "does", "don't", "can", "will", "would", "just", "get", "all", "more", "most", "now", "new", "free", "only", "every", "what", "when", "where", "how", "who", "why", "if", "as", "than", "into", "out", "up", "over", "about", "it's", "you're", "we're", "let's", "here", "there", "one", "off", "so", "too", "but", "have", "has", "had", "any", "some", "never", "always", "today", "shop", "buy", "order", "learn", "try"]
)

#: The commonest function words of other languages in Latin script, accents dropped as `text.visible` drops them,
#: those that are also English words left out.
FOREIGN = frozenset(
    # Spanish, Portuguese, Catalan, Italian, French, Romanian
    "el los las una unos unas del que por para con sin mas muy pero este esta estos estas tu tus sus su mi nuestra "
    "nuestro nuestros como cuando donde todo toda todos todas hoy ahora aqui gratis hasta desde sobre ya es y o "
    "os um uma dos da das nos nas pelo pela voce seu sua seus suas nao mais muito agora aqui ate com em "
    "il lo gli della delle dei degli nel nella nelle sul sulla di che non piu per tutto tutti tuo tua tuoi "
    "nostro nostra questo questa oggi sono anche solo subito le la les des une du au aux et est sont pour avec "
    "sans dans sur vous votre vos nous notre nos je il elle ce cette ces qui ne pas plus tres tout tous toute "
    "chez des aujourd'hui si sau din pentru cu este sunt dumneavoastra acum "
    # German, Dutch, Scandinavian
    "der das den dem des ein eine einen einem einer eines und oder aber nicht mit fur von zum zur bei aus auf im ist "
    "sind wir ihr ihre ihren unser unsere sie ich dein deine dich dir mehr jetzt heute nur hier kaufen alle auch "
    "het een van voor niet met onze jouw jij wij zijn naar bij ook nu alleen meer deze dit uw en de je "
    "och att det som pa av ar till inte fran din ditt dina vi oss nu har eller mer ikke og af til fra dig ditt "
    "dine nar hos kan vare "
    # Polish, Czech, Slovak, Croatian, Hungarian, Turkish, Finnish, Indonesian, Vietnamese, Swahili
    "nie sie jest dla na z za od do oraz tylko teraz nasz nasze twoj twoje jak przez juz w i sa je jako pro vas "
    "nebo ale az pri nase vase jsou ali samo nas koji az es egy hogy nem csak van most vagy mar ve bir bu ile "
    "icin cok daha en simdi hemen sizin ja on ei se nyt kun meidan sinun yang dan di untuk dengan anda kami "
    "ini itu dari dalam akan bisa sekarang va cua cho voi mot khong nhung ban cac trong duoc na ya wa kwa sasa"
    " hii yako".split()
) - ENGLISH - {"do", "on", "van", "most", "for", "en", "di", "solo", "plus", "ban", "dig", "din", "la", "mi", "pro", "lo", "dan", "si", "ne", "os", "das", "ya", "de", "le", "per", "em", "sur", "vi", "mar", "mas", "hem", "az", "je", "jak", "sin", "nos", "w", "z", "i", "o", "y", "ja", "note"}  # fmt: skip

UNKNOWN_SHARE = 0.5


def unread(passages: Sequence[str], vocabulary: Collection[str]) -> bool:
    """Whether any of the passages (sentences, made `text.visible`) is not English.

    `vocabulary` holds known lower-case English words. Names and numbers are no evidence either way.
    """
    if any(_foreign_script(passage) or _foreign_sentence(passage, vocabulary) for passage in passages):
        return True
    words = [word for passage in passages for word in _words(passage)]
    return len(words) >= 2 and _unknown_share(words, vocabulary) > UNKNOWN_SHARE


def _foreign_script(passage: str) -> bool:
    """A word of two letters or more, or any East Asian character, outside the Latin script."""
    return any(
        not char.isascii() and char.isalpha() and (len(word) > 1 or ord(char) > 0x2E7F) and ord(char) > 0x024F
        for word in _WORD.findall(passage)
        for char in word
    )


def _foreign_sentence(passage: str, vocabulary: Collection[str]) -> bool:
    words = _words(passage)
    english = sum(word in ENGLISH for word in words)
    foreign = sum(word in FOREIGN for word in words)
    if foreign >= 2 and foreign > english:
        return True
    if foreign == 1 and english == 0 and len(words) >= 2:
        return _unknown_share(words, vocabulary) >= 0.3
    return len(words) >= 4 and english == 0 and _unknown_share(words, vocabulary) > UNKNOWN_SHARE


def _words(passage: str) -> list[str]:
    return [word.lower().replace("’", "'") for word in _WORD.findall(passage)]


def _unknown_share(words: Sequence[str], vocabulary: Collection[str]) -> float:
    unknown = [word for word in words if not _known(word, vocabulary)]
    return len(unknown) / len(words)


def _known(word: str, vocabulary: Collection[str]) -> bool:
    """A word of the vocabulary, as it stands or without an ending; foreign function words are not known."""
    if word in FOREIGN:
        return False
    bare = word.split("'", maxsplit=1)[0]
    endings = ("", "s", "es", "ed", "d", "ing", "ly", "er", "r", "y", "ies", "est", "ness", "less", "able")
    return any(
        bare.endswith(end) and (stem := bare[: len(bare) - len(end)]) and (stem in vocabulary or stem + "e" in vocabulary)
        for end in endings
    )


def unread_names(names: Sequence[str], vocabulary: Collection[str]) -> bool:
    """The same for names of creatives and advertisers, which are often made-up or foreign words: only another
    script, or a sentence that is plainly foreign, counts."""
    return any(
        _foreign_script(name) or (len(_words(name)) >= 5 and _foreign_sentence(name, vocabulary)) for name in names
    )
