"""The embedding model's graph, rebuilt of fused operators for one text at a time.

The file holds int8 weights that a general export multiplies out to float32 before
each product: 42 MB are then read for every text, and some 350 small operators come
on top. Here the same weights stay int8 (`DynamicQuantizeMatMul`: the activations
are quantised too, to 8 bits with one scale for a whole matrix), query, key and value
are one product, and attention, GELU and the layer norms are one operator each. What
it gains and costs is in `docs/memory.md`.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

HEADS: Final = 12
"""Attention heads of all-MiniLM-L6-v2."""

_EPSILON: Final = 1e-12
_EMBEDDINGS: Final = "inner.embeddings."
_LAYER: Final = "inner.encoder.layer.{}."
_CONTRIB: Final = "com.microsoft"
_QUERY_KEY_VALUE: Final = ("query", "key", "value")

Array = NDArray[Any]


class UnknownGraph(ValueError):
    """The model is laid out otherwise than the one that this module rebuilds."""


def fused(path: Path) -> bytes:
    """The model of a file as a serialised ONNX graph of fused operators.

    Its input is `input_ids`, int64 of shape (1, tokens), without padding; its
    output `last_hidden_state`, float32 of shape (1, tokens, dimensions).

    Args:
        path: an export of a BERT encoder, whose matrices are int8 with a scale per
            output, and whose tables of embeddings are int8 with a scale per row.

    Raises:
        UnknownGraph: it is no such export.
    """
    try:
        source = _Source(onnx.load(str(path)).graph)
        return _built(source)
    except (KeyError, IndexError, ValueError) as error:
        raise UnknownGraph(f"{path}: {error}") from error


class _Source:
    """Weights of an exported graph, by the names that the original model gives them."""

    def __init__(self, graph: GraphProto) -> None:
        self._constants = {one.name: one for one in graph.initializer}
        self._makers = {out: node for node in graph.node for out in node.output}
        # The export names biases and norms as the model does, but numbers the matrices: each is known by the bias
        # that is added to its product.
        self._products: dict[str, NodeProto] = {}
        for node in graph.node:
            bias = next((name for name in node.input if name.endswith(".bias")), None)
            if node.op_type == "Add" and bias is not None:
                other = next(name for name in node.input if name != bias)
                if other in self._makers and self._makers[other].op_type == "MatMul":
                    self._products[bias] = self._makers[other]
        self.layers = sum(name.endswith(".intermediate.dense.bias") for name in self._products)
        if not self.layers:
            raise UnknownGraph("no encoder layers")

    def plain(self, name: str) -> Array:
        """A constant that is stored as it is."""
        return np.asarray(numpy_helper.to_array(self._constants[name]))

    def quantised(self, name: str) -> tuple[Array, Array]:
        """int8 values and float32 scales of what the graph computes as float(values) * scales."""
        product = self._makers[name]
        cast = self._makers[product.input[0]]
        if (product.op_type, cast.op_type) != ("Mul", "Cast"):
            raise UnknownGraph(f"{name} is not quantised")
        values = self.plain(cast.input[0])
        if values.dtype != np.int8:
            raise UnknownGraph(f"{name} is {values.dtype}")
        return values, self.plain(product.input[1]).astype(np.float32)

    def dense(self, *biases: str) -> tuple[Array, Array, Array]:
        """Values (inputs, outputs), scales (outputs) and bias (outputs) of linear maps, side by side."""
        parts = [self.quantised(self._products[bias].input[1]) for bias in biases]
        for values, scales in parts:
            if scales.size != values.shape[1]:
                raise UnknownGraph("a matrix has no scale for each output")
        return (
            np.concatenate([values for values, _ in parts], axis=1),
            np.concatenate([scales.reshape(-1) for _, scales in parts]),
            np.concatenate([self.plain(bias) for bias in biases]),
        )


class _Target:
    """Nodes and constants of a graph that is being made. Each result is named by its caller."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: Array) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], *outputs: str, domain: str = "", **attributes: Any) -> str:
        made = helper.make_node(kind, inputs, list(outputs), name=f"{outputs[0]}.{kind}", domain=domain, **attributes)
        self.nodes.append(made)
        return outputs[0]

    def dense(self, name: str, given: str, weights: tuple[Array, Array, Array]) -> str:
        values, scales, bias = weights
        inputs = [
            given,
            self.constant(f"{name}.weight", values),
            self.constant(f"{name}.scale", scales),
            "",  # zero point
            self.constant(f"{name}.bias", bias),
        ]
        return self.node("DynamicQuantizeMatMul", inputs, name, domain=_CONTRIB)

    def normed(self, name: str, given: str, skip: str, gamma: Array, beta: Array) -> str:
        inputs = [given, skip, self.constant(f"{name}.gamma", gamma), self.constant(f"{name}.beta", beta)]
        return self.node("SkipLayerNormalization", inputs, name, domain=_CONTRIB, epsilon=_EPSILON)


def _built(source: _Source) -> bytes:
    target = _Target()
    state = _embeddings(source, target)
    for number in range(source.layers):
        last = number == source.layers - 1
        state = _layer(source, target, number, state, "last_hidden_state" if last else f"layer{number}")
    dimensions = source.plain(f"{_EMBEDDINGS}LayerNorm.weight").size
    graph = helper.make_graph(
        target.nodes,
        "fused",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "tokens"])],
        [helper.make_tensor_value_info(state, TensorProto.FLOAT, [1, "tokens", dimensions])],
        target.constants,
    )
    versions = [helper.make_opsetid("", 18), helper.make_opsetid(_CONTRIB, 1)]
    made: bytes = helper.make_model(graph, opset_imports=versions, ir_version=10).SerializeToString()
    return made


def _embeddings(source: _Source, target: _Target) -> str:
    """Words and places, normed. Every token is of the first type, so that its row joins the places' table."""
    words, scales = source.quantised(f"{_EMBEDDINGS}word_embeddings.weight")
    places, place_scales = source.quantised(f"{_EMBEDDINGS}position_embeddings.weight")
    if scales.size != words.shape[0]:
        raise UnknownGraph("the words have no scale for each row")
    table = places.astype(np.float32) * place_scales + source.plain(f"{_EMBEDDINGS}token_type_embeddings.weight")[0]
    target.node("Gather", [target.constant("words", words), "input_ids"], "word", axis=0)
    target.node("Gather", [target.constant("word_scales", scales), "input_ids"], "word_scale", axis=0)
    target.node("Cast", ["word"], "word_float", to=TensorProto.FLOAT)
    target.node("Mul", ["word_float", "word_scale"], "word_vector")
    target.node("Shape", ["input_ids"], "tokens", start=1, end=2)
    first = target.constant("first", np.array([0], dtype=np.int64))
    target.node("Slice", [target.constant("places", table), first, "tokens"], "place")
    target.node("Add", ["word_vector", "place"], "word_in_place")
    norm = [target.constant(name, source.plain(f"{_EMBEDDINGS}LayerNorm.{name}")) for name in ("weight", "bias")]
    return target.node("LayerNormalization", ["word_in_place", *norm], "embedded", axis=-1, epsilon=_EPSILON)


def _layer(source: _Source, target: _Target, number: int, state: str, out: str) -> str:
    """One layer of the encoder: attention and feed-forward, each added to what went in, and normed."""
    theirs, ours = _LAYER.format(number), f"layer{number}."

    def norm(part: str) -> tuple[Array, Array]:
        return source.plain(f"{theirs}{part}.LayerNorm.weight"), source.plain(f"{theirs}{part}.LayerNorm.bias")

    biases = [f"{theirs}attention.self.{name}.bias" for name in _QUERY_KEY_VALUE]
    joined = target.dense(f"{ours}attention", state, source.dense(*biases))
    heads = [ours + name for name in _QUERY_KEY_VALUE]
    target.node("Split", [joined], *heads, axis=-1, num_outputs=len(heads))
    attended = target.node("MultiHeadAttention", heads, f"{ours}attended", domain=_CONTRIB, num_heads=HEADS)
    mixed = target.dense(f"{ours}mixed", attended, source.dense(f"{theirs}attention.output.dense.bias"))
    between = target.normed(f"{ours}between", mixed, state, *norm("attention.output"))
    wide = target.dense(f"{ours}wide", between, source.dense(f"{theirs}intermediate.dense.bias"))
    active = target.node("Gelu", [wide], f"{ours}active", domain=_CONTRIB)
    narrow = target.dense(f"{ours}narrow", active, source.dense(f"{theirs}output.dense.bias"))
    return target.normed(out, narrow, between, *norm("output"))
