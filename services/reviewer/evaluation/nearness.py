"""How near a test set lies to what the builtin engine was trained on: a set of paraphrases would measure little."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imprimatur.evidence import Creative
from reviewer.engines.builtin import examples, text
from reviewer.engines.builtin.embeddings import Encoder, model_directory


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """Cosine of each ad's sentence embedding (headline and body as one text) with its nearest training example."""

    similarities: Sequence[float]
    equal_texts: int  #: ads whose headline and body, letter for letter, stand in the training data

    def quantile(self, share: float) -> float:
        """The similarity that `share` of the ads stay below."""
        return float(np.quantile(self.similarities, share))

    def above(self, similarity: float) -> int:
        """How many ads have a training example at least that near."""
        return sum(each >= similarity for each in self.similarities)


def nearness(creatives: Sequence[Creative]) -> Nearness:
    """Of each creative to the training data. Embeds all of it: about a minute."""
    encoder = Encoder(model_directory())
    trained = [_pitch(example.creative) for example in examples.examples()]
    asked = [_pitch(creative) for creative in creatives]
    nearest = (encoder.encode(asked) @ encoder.encode(trained).T).max(axis=1)
    return Nearness(similarities=[float(each) for each in nearest], equal_texts=len(set(asked) & set(trained)))


def _pitch(creative: Creative) -> str:
    return text.visible(" ".join(filter(None, (creative.headline, creative.body))))
