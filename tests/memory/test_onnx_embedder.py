"""The embedder `onnx`, where it is installed and a model is at hand; `tests/bench/onnx_model.py` makes one.

OMNI_ONNX_MODEL names its directory.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from omni_mcp.contracts.memory import MemorySettings
from omni_mcp.engines.memory.embedder_onnx import TEXTS_AT_ONCE, OnnxEmbedder
from omni_mcp.engines.memory.embedders import embedder_of
from tests.memory.conftest import Place, item, recalled

DIRECTORY = os.environ.get("OMNI_ONNX_MODEL")
ODD_TEXTS = ["", "  ", "\0", "\ud800", "🦉", "漢字", "x" * 10_000, "word " * 5000]

pytest.importorskip("onnxruntime", reason="the extra memory-onnx is not installed")
pytest.importorskip("tokenizers", reason="the extra memory-onnx is not installed")
pytestmark = pytest.mark.skipif(DIRECTORY is None, reason="OMNI_ONNX_MODEL names no model")


@pytest.fixture(scope="module")
def embedder() -> OnnxEmbedder:
    return OnnxEmbedder(Path(DIRECTORY or ""))


def test_texts_about_the_same_are_nearer_than_others(embedder: OnnxEmbedder) -> None:
    dog, puppy, tax = embedder.embed(["We adopted a dog.", "My puppy is asleep.", "The tax office sent a letter."])

    assert dog @ puppy > dog @ tax + 0.2


def test_a_text_has_the_same_vector_alone_and_among_others(embedder: OnnxEmbedder) -> None:
    among = embedder.embed(["a cello", *("noise " * number for number in range(TEXTS_AT_ONCE)), "a cello"])

    assert np.allclose(embedder.embed(["a cello"])[0], among[0], atol=1e-5)
    assert np.allclose(among[0], among[-1], atol=1e-5)


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: ascii(text)[:20])
def test_any_text_has_a_vector_of_length_one_or_none(embedder: OnnxEmbedder, text: str) -> None:
    [vector] = embedder.embed([text])

    assert vector.shape == (embedder.dimensions,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4) or not text.strip()


def test_another_model_has_another_name(embedder: OnnxEmbedder, tmp_path: Path) -> None:
    for name in ("model.onnx", "tokenizer.json"):
        shutil.copyfile(Path(DIRECTORY or "") / name, tmp_path / name)
    same = OnnxEmbedder(tmp_path).name
    words = tmp_path / "tokenizer.json"
    words.write_text(words.read_text() + "\n")

    assert same == embedder.name
    assert OnnxEmbedder(tmp_path).name != embedder.name


async def test_a_memory_that_was_kept_with_the_table_is_read_anew(place: Place) -> None:
    async with place.open() as store:
        await store.put_many([item("My puppy is asleep."), item("The tax office sent a letter.")])
    settings = MemorySettings(embedder="onnx", model=DIRECTORY)
    async with place.open(embedder=embedder_of(settings, lambda: None)) as store:
        found = await recalled(store, "dog")

    assert found[0].item.text == "My puppy is asleep."
    assert found[0].parts["meaning"] > 0
