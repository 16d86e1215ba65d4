"""Make the static table of the memory: one vector for each word piece, from the sentence model that a package carries.

Each entry of the vocabulary goes through the model alone. What all have in common is taken out (their mean), principal
components bring 384 numbers to 128, the strong components are brought nearer to the weak ones, and each vector is
weighted by how rare its entry is (smooth inverse frequency; frequencies by Zipf's law, because the vocabulary is in
their order). Sources: Arora et al., "A simple but tough-to-beat baseline for sentence embeddings", 2017; decision 0012
for what was tried and measured.
Run: `python tests/bench/static_table.py --out FILE.npz` (about a minute; pip fetches one package of 84 MB into a
directory that is thrown away).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy import float32
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.bench.sentence_model import SentenceModel, fetch_weights, read_vocabulary

DIMENSIONS = 128
FIRST_CHARACTER, FIRST_WORD = 999, 1996  # entries; those before are [PAD] and others that no text contains
CHARACTER_PLACE = 60  # in the order by frequency: a mark or a letter alone is as frequent as this word, or more
ZIPF_SMOOTHING = 1e-4
WHITENING = 0.75  # 0 leaves the components as strong as they are, 1 makes them equal


def token_vectors(model: SentenceModel, entries: int) -> NDArray[float32]:
    """Return what the model says of each entry of the vocabulary alone."""
    return model.embed_numbers([[number] for number in range(entries)])


def reduced(vectors: NDArray[float32], dimensions: int) -> NDArray[float32]:
    """Return *vectors* without their mean, in their first principal components, made more equal."""
    centred = vectors - vectors.mean(axis=0)
    _, components = np.linalg.eigh(centred.T @ centred)
    turned = centred @ components[:, ::-1][:, :dimensions]
    equalled: NDArray[float32] = turned / turned.std(axis=0) ** WHITENING
    return equalled


def rarity_weights(entries: int) -> NDArray[float32]:
    """Return a / (a + p) for each entry, p by Zipf's law over its place in the vocabulary; 0 for what no text has."""
    places = np.arange(entries, dtype=float32) - (FIRST_WORD - 1)
    places[:FIRST_WORD] = CHARACTER_PLACE
    shares = 1 / places
    shares /= shares.sum()
    weights = ZIPF_SMOOTHING / (ZIPF_SMOOTHING + shares)
    weights[:FIRST_CHARACTER] = 0
    return weights.astype(float32)


def write_table(file: Path, vectors: NDArray[float32], vocabulary: list[str]) -> None:
    """Write int8 rows, the scale of each, and the vocabulary, the same bytes each time."""
    scale = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-6) / 127
    np.savez_compressed(
        file,
        vectors=np.rint(vectors / scale).astype(np.int8),
        scale=scale.astype(np.float16),
        vocabulary=np.frombuffer("\n".join(vocabulary).encode(), dtype=np.uint8),
    )


def main() -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a directory with the weights, instead of pip's")
    given = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        model = given.model or fetch_weights(Path(directory))
        vocabulary = read_vocabulary(model)
        vectors = token_vectors(SentenceModel(model), len(vocabulary))
    table = reduced(vectors, DIMENSIONS) * rarity_weights(len(vocabulary))[:, None]
    write_table(given.out, table, vocabulary)
    print(f"{given.out}: {given.out.stat().st_size} bytes, {time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
