"""Puts the engine's parts together: a creative in, evidence out. Synchronous; runs in a child process.

It says what it found and what it did not look at. What follows from it is the policy's business.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from imprimatur.evidence import (
    Category,
    CategoryScore,
    Creative,
    EngineIdentity,
    Evidence,
    Finding,
    Part,
    Recommendation,
)
from reviewer.engines.builtin import classifier, examples, images, language, lexicon, passages, text
from reviewer.engines.builtin.classifier import CATEGORIES, Features, Judgement
from reviewer.engines.builtin.disguise import Disguises
from reviewer.engines.builtin.embeddings import MAX_TOKENS, MODEL_NAME, Encoder, model_directory
from reviewer.engines.builtin.passages import Passage

WORTH_A_LOOK = 0.30  #: scores from here on come with a finding
SURELY_FORBIDDEN = 0.90  #: of a forbidden category: it rules, whatever else the ad touches
UNREAD_AT_MOST = 0.5  #: P(may be approved) of an ad that was not read, or only in part: nothing is known of it
LONGEST_QUOTE = 240  #: characters
VERSION = "3"
_SENSITIVE, _FORBIDDEN = classifier.MEMBERS


class Examiner:
    """The loaded engine. Make one per process: `loaded()`."""

    def __init__(self) -> None:
        self._encoder = Encoder(model_directory())
        self._lexicon = lexicon.load()
        self._classifier = classifier.load()
        self._vocabulary = self._encoder.words | self._lexicon.words
        self._english = language.vocabulary(
            self._encoder.frequent_words(),
            certain=self._lexicon.words | examples.benign_words() | language.function_words("english"),
        )
        self._disguises = Disguises(self._lexicon.outright())

    def examine(self, creative: Creative) -> Evidence:
        """Look at texts and images of one creative.

        Raises:
            UnreviewableInput: an image is broken, too large or of another format.
        """
        measures = [
            finding
            for index, image in enumerate(creative.images)
            for finding in images.examine(image, f"images[{index}]")
        ]
        read = passages.of(creative, self._vocabulary)
        unexamined = _out_of_reach(creative)
        if self._is_unread(creative, read.items):
            unexamined |= {Part.LANGUAGE}
        if not read.items:
            return _evidence_without_text(creative, measures, unexamined, read.truncated)
        readings = [passage.reading for passage in read.items]
        features = classifier.features(readings, self._encoder, self._lexicon)
        judgement = self._classifier.judge(features, np.array([item.stretch for item in read.items]))
        findings = sorted(_findings(read.items, features, judgement), key=lambda finding: -finding.score)
        score = round(min(judgement.approvable, UNREAD_AT_MOST if Part.LANGUAGE in unexamined else 1.0), 4)
        return Evidence(
            engine=identity(),
            approval_score=score,
            recommendation=recommended(score, judgement, read=Part.LANGUAGE not in unexamined),
            reason=_reason(score, findings, unexamined, judgement),
            categories=_scores(judgement),
            findings=(*findings, *measures),
            unexamined=unexamined,
            truncated=read.truncated or max(self._encoder.token_counts(readings)) > MAX_TOKENS,
        )

    def unread(self, creative: Creative) -> bool:
        """Whether some of its text is not plain English, or disguised."""
        return self._is_unread(creative, passages.of(creative, self._vocabulary).items)

    def _is_unread(self, creative: Creative, items: Sequence[Passage]) -> bool:
        declared = creative.language.split("-")[0].lower()
        if declared not in ("", "en"):
            return True
        pitch = [item for item in items if item.field not in ("name", "advertiser") and not item.stretch]
        names = [item for item in items if item.field in ("name", "advertiser")]
        return (
            language.unread([_seen(item) for item in pitch], self._english)
            or language.unread_names([_seen(item) for item in names], self._english)
            or any(
                self._disguises.in_passage(text.visible(item.quote), self._is_a_word)
                for item in items
                if not item.stretch
            )
        )

    def _is_a_word(self, word: str) -> bool:
        return language.known(word, self._vocabulary) or language.known(word, self._english)


@cache
def loaded() -> Examiner:
    """The process's own examiner; loading takes about half a second."""
    return Examiner()


def load() -> None:
    """The initializer of a child process."""
    loaded()


def examine(creative: Creative) -> Evidence:
    """What a child process runs."""
    return loaded().examine(creative)


@cache
def identity() -> EngineIdentity:
    """The version changes with the weights."""
    return EngineIdentity(name="builtin", version=f"{VERSION}+{classifier.fingerprint()}", model=MODEL_NAME)


def recommended(score: float, judgement: Judgement, *, read: bool) -> Recommendation:
    """The likelier side, whatever a policy's thresholds are; a person where the text was not `read`. One also for an
    ad that is rather sensitive than forbidden, however low its score: that says that nobody else may approve it."""
    if not read:
        return Recommendation.HUMAN
    if score >= 0.5:
        return Recommendation.APPROVE
    sensitive, forbidden = (float(judgement.categories[member].max()) for member in (_SENSITIVE, _FORBIDDEN))
    outweighs = forbidden > sensitive or forbidden >= SURELY_FORBIDDEN
    return Recommendation.REJECT if outweighs else Recommendation.HUMAN


def _seen(item: Passage) -> str:
    """What the language gate looks at: disguises undone, but accents of the original kept out too."""
    return item.reading or text.visible(item.quote)


def _out_of_reach(creative: Creative) -> frozenset[Part]:
    """Parts this engine never looks at. The landing page is no part of the creative: it is not fetched, not
    reviewed and not listed; an ad that is approved says nothing about the page behind it."""
    parts = (
        (Part.IMAGE, creative.images),
        (Part.VIDEO, creative.video_urls),
        (Part.AUDIO, creative.audio_urls),
    )
    return frozenset(part for part, present in parts if present)


def _scores(judgement: Judgement) -> tuple[CategoryScore, ...]:
    return tuple(
        CategoryScore(category=category, score=round(float(score), 4))
        for category, score in zip(CATEGORIES, judgement.categories, strict=True)
    )


def _findings(items: Sequence[Passage], features: Features, judgement: Judgement) -> Iterator[Finding]:
    """One per category worth a look, with the sentence that shows it best."""
    single = [index for index, item in enumerate(items) if not item.stretch]
    for row, category in enumerate(CATEGORIES):
        score = float(judgement.categories[row])
        if score < WORTH_A_LOOK:
            continue
        best = single[int(np.argmax(judgement.logits[single, row]))]
        terms = [find.words for find in features.finds[best] if find.category is category and find.weight > 1]
        named = ", ".join(f"“{term}”" for term in dict.fromkeys(terms))
        yield Finding(
            category=category,
            score=round(score, 4),
            field=items[best].field,
            quote=_shortened(items[best].quote),
            explanation=f"Reads like {label(category)}" + (f" by the words {named}." if named else " by its meaning."),
        )


def label(category: Category) -> str:
    """The category in words."""
    return category.value.replace("_", " ")


def _shortened(quote: str) -> str:
    return quote if len(quote) <= LONGEST_QUOTE else quote[: LONGEST_QUOTE - 1] + "…"


def _reason(score: float, findings: Sequence[Finding], unexamined: frozenset[Part], judgement: Judgement) -> str:
    if findings:
        worst = findings[0]
        others = f" Also: {', '.join(label(f.category) for f in findings[1:] if f.category)}." if findings[1:] else ""
        named = label(worst.category) if worst.category else ""
        return f"Possible {named} ({worst.score:.2f}) in {worst.field}: “{worst.quote}”.{others}" + _unseen(unexamined)
    row = int(np.argmax(judgement.categories))
    nearest = f"nearest is {label(CATEGORIES[row])} ({judgement.categories[row]:.2f})"
    if score >= 0.5:
        return f"Nothing sensitive and nothing against the rules was found in the text; {nearest}." + _unseen(
            unexamined
        )
    return f"No clear finding, but more speaks against approving than for it; {nearest}. Read the text." + _unseen(
        unexamined
    )


def _unseen(unexamined: frozenset[Part]) -> str:
    words = {Part.LANGUAGE: "text that is not plain English", Part.IMAGE: "image content"}
    parts = sorted(words.get(part, part.value) for part in unexamined)
    return f" Not examined, please look: {', '.join(parts)}." if parts else ""


def _evidence_without_text(
    creative: Creative, measures: Sequence[Finding], unexamined: frozenset[Part], truncated: bool
) -> Evidence:
    """Nothing was read, so nothing is known: a person's case, whatever the images."""
    what = "no text" if not creative.texts() else "no text that can be seen"
    return Evidence(
        engine=identity(),
        approval_score=UNREAD_AT_MOST,
        recommendation=Recommendation.HUMAN,
        reason=f"The creative has {what}, so this engine found nothing to judge by." + _unseen(unexamined),
        categories=tuple(CategoryScore(category=category, score=0.0) for category in CATEGORIES),
        findings=tuple(measures),
        unexamined=unexamined,
        truncated=truncated,
    )
