"""BM25, with an idf that never falls below zero: a frequent word says little, not no.

K1 and B are for short turns, whose length says little (docs/decisions/0012).
"""

from __future__ import annotations

import numpy as np
from numpy import float32, float64
from numpy.typing import NDArray

K1 = 0.9
B = 0.3


def idf(items: int, having: NDArray[float64]) -> NDArray[float64]:
    """Return the weight of words that so many of *items* have."""
    return np.log1p((items - having + 0.5) / (having + 0.5))


def saturated(counts: NDArray[float32], lengths: NDArray[float32], mean_length: float) -> NDArray[float32]:
    """Return what each occurrence count is worth in an item of that length, in words."""
    halfway = K1 * (1 - B + B / mean_length * lengths)
    return (counts * (K1 + 1) / (counts + halfway)).astype(float32)
