"""OnnxEmbedder runs a sentence model on this machine: better vectors than the table's, some milliseconds for each text.

The directory of a model holds `model.onnx` (`input_ids`, `attention_mask` and, where it has them, `token_type_ids` to
one vector for each piece) and `tokenizer.json`. A text's vector is the mean over its pieces. It needs the extra
`memory-onnx`; `tests/bench/onnx_model.py` makes a directory of all-MiniLM-L6-v2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy import float32
from numpy.typing import NDArray

PIECES = 256  # of a text; further ones do not count
TEXTS_AT_ONCE = 32
THREADS = 2


class OnnxEmbedder:
    """Vectors from a model on the disk (port `Embedder`), read when it is first asked for. Safe for several threads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._reading = Lock()
        self._model: Model | None = None

    @property
    def name(self) -> str:
        """Its digest is in it: another model never meets vectors of this one."""
        return self._read().name

    @property
    def dimensions(self) -> int:
        return self._read().dimensions

    def embed(self, texts: Sequence[str]) -> NDArray[float32]:
        """Return one row of length 1 for each text, all zeros for a blank one."""
        model = self._read()
        rows = np.zeros((len(texts), model.dimensions), dtype=float32)
        filled = sorted((place for place, text in enumerate(texts) if text.strip()), key=lambda at: len(texts[at]))
        for begin in range(0, len(filled), TEXTS_AT_ONCE):
            some = filled[begin : begin + TEXTS_AT_ONCE]
            rows[some] = model.means([texts[place].encode("utf-8", "replace").decode() for place in some])
        return rows

    def _read(self) -> Model:
        with self._reading:
            if self._model is None:
                self._model = read_model(self._directory)
            return self._model


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A session of onnxruntime and a tokenizer."""

    name: str
    dimensions: int
    session: Any
    tokenizer: Any

    def means(self, texts: Sequence[str]) -> NDArray[float32]:
        """Return the mean over the pieces of each text, of length 1."""
        found = self.tokenizer.encode_batch(list(texts))
        numbers = np.array([one.ids for one in found], dtype=np.int64)
        mask = np.array([one.attention_mask for one in found], dtype=np.int64)
        given = {"input_ids": numbers, "attention_mask": mask, "token_type_ids": np.zeros_like(numbers)}
        wanted = {one.name for one in self.session.get_inputs()}
        [vectors] = self.session.run(
            [self.session.get_outputs()[0].name], {name: value for name, value in given.items() if name in wanted}
        )
        counted = mask[:, :, None].astype(float32)
        sums = (vectors * counted).sum(axis=1)
        units: NDArray[float32] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), float32(1e-12))
        return units.astype(float32)


def read_model(directory: Path) -> Model:
    """Read `model.onnx` and `tokenizer.json`."""
    onnxruntime: Any = import_module("onnxruntime")  # the extra memory-onnx
    tokenizers: Any = import_module("tokenizers")
    content = (directory / "model.onnx").read_bytes()
    words = (directory / "tokenizer.json").read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    tokenizer = tokenizers.Tokenizer.from_str(words.decode())
    tokenizer.enable_truncation(PIECES)
    tokenizer.enable_padding()
    digest = hashlib.sha256(hashlib.sha256(content).digest() + hashlib.sha256(words).digest()).hexdigest()
    dimensions = session.get_outputs()[0].shape[-1]
    return Model(name=f"onnx {digest[:32]}", dimensions=int(dimensions), session=session, tokenizer=tokenizer)
