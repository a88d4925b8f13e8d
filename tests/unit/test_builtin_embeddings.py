"""The NumPy forward pass gives the vectors that its model is known for."""

import numpy as np
import pytest

from reviewer.engines.builtin import embeddings
from reviewer.engines.builtin.embeddings import DIMENSIONS, MAX_TOKENS, Encoder, model_directory

ENCODER = Encoder(model_directory())


def test_it_agrees_with_the_figures_published_for_the_model() -> None:
    """The cosines that sentence-transformers' documentation gives for all-MiniLM-L6-v2."""
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = ENCODER.encode(texts)
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    assert np.allclose(vectors @ vectors.T, published, atol=2e-4)


def test_vectors_have_length_one_and_384_dimensions() -> None:
    vectors = ENCODER.encode(["Sofas", "Deep, soft sofas made to order", ""])
    assert vectors.shape == (3, DIMENSIONS)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "like", "unlike"),
    [
        ("Cheap flights to Rome", "Low-cost air travel to Italy", "A cordless drill"),
        ("Bet on tonight's match", "Place a wager on the football game", "Wool socks for hikers"),
        ("A pistol for self-defence", "Handguns to protect your home", "Piano lessons for children"),
    ],
)
def test_like_texts_are_closer_than_unlike_ones(text: str, like: str, unlike: str) -> None:
    first, second, third = ENCODER.encode([text, like, unlike])
    assert first @ second > first @ third + 0.2


def test_a_text_has_the_same_vector_whatever_stands_beside_it() -> None:
    alone = ENCODER.encode(["Fresh bread"])[0]
    crowd = ENCODER.encode(["Fresh bread", "word " * 200, "x", *[f"text {number}" for number in range(40)]])[0]
    assert np.allclose(alone, crowd, atol=1e-5)


def test_a_text_beyond_the_limit_is_cut_and_counted() -> None:
    long = "sofa " * (MAX_TOKENS * 2)
    assert ENCODER.token_counts([long])[0] > MAX_TOKENS
    assert np.allclose(ENCODER.encode([long]), ENCODER.encode([long + "chair"]), atol=1e-5)


def test_no_texts_give_no_vectors() -> None:
    assert ENCODER.encode([]).shape == (0, DIMENSIONS)


def test_the_gelu_is_exact_to_float_precision() -> None:
    from math import erf, sqrt

    values = np.linspace(-6, 6, 1001, dtype=np.float32)
    exact = [0.5 * x * (1 + erf(x / sqrt(2))) for x in values.astype(float)]
    assert np.allclose(embeddings._gelu(values), exact, atol=2e-6)
