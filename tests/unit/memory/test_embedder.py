"""The ONNX embedder, on the real model."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from personae_runtime.config import default_models_dir
from personae_runtime.engines.models import path as model_path
from personae_runtime.errors import ConfigError, FailedPrecondition, MissingModel
from personae_runtime.memory.embedder import MAX_TOKENS, Embedder, OnnxEmbedder, Vector
from personae_runtime.memory.fusion import UnknownGraph, fused
from personae_runtime.memory.index import DENSE_DIM

MODEL = "all-minilm-l6-v2-int8"


def files() -> tuple[Path, Path]:
    """The model and its tokenizer."""
    models_dir = Path(os.environ.get("PERSONAE_MODELS_DIR") or default_models_dir())
    return model_path(MODEL, "model.onnx", models_dir), model_path(MODEL, "tokenizer.json", models_dir)


@pytest.fixture
async def embedder() -> AsyncIterator[OnnxEmbedder]:
    made = OnnxEmbedder(*files())
    await made.start()
    yield made
    await made.close()


@pytest.mark.model
async def test_vectors_have_unit_length_and_texts_of_like_meaning_lie_close(embedder: OnnxEmbedder) -> None:
    assert isinstance(embedder, Embedder)
    bike, cycle, soup = await embedder.embed(
        ["My bicycle has a flat tyre.", "There is a puncture in my bike's wheel.", "The soup needs more salt."]
    )
    for vector in (bike, cycle, soup):
        assert vector.shape == (DENSE_DIM,)
        assert vector.dtype == np.float32
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert bike @ cycle > 0.5 > bike @ soup


@pytest.mark.model
async def test_a_text_has_the_same_vector_in_any_company_and_either_lane(embedder: OnnxEmbedder) -> None:
    [alone] = await embedder.embed(["Hello there"])
    [_, among] = await embedder.embed(["a much longer text " * 20, "Hello there"], bulk=True)
    assert np.array_equal(alone, among)


@pytest.mark.model
async def test_empty_and_overlong_texts_are_embedded(embedder: OnnxEmbedder) -> None:
    empty, long, longer = await embedder.embed(["", "word " * 1000, "word " * 1000 + "and what was cut"])
    assert np.isfinite(empty).all()
    assert np.array_equal(long, longer)
    assert await embedder.embed([]) == []


@pytest.mark.model
async def test_a_query_does_not_wait_for_a_bulk_load(embedder: OnnxEmbedder) -> None:
    bulk = asyncio.create_task(embedder.embed(["some text to index " * 10] * 200, bulk=True))
    await asyncio.sleep(0)
    await embedder.embed(["a query"])
    assert not bulk.done()
    bulk.cancel()
    await asyncio.wait([bulk])


@pytest.mark.model
async def test_what_nobody_waits_for_any_more_is_not_embedded(
    embedder: OnnxEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, embedded, go_on, embed = threading.Event(), list[str](), threading.Event(), embedder._embed

    def held_up(text: str) -> Vector:
        embedded.append(text)
        begun.set()
        assert go_on.wait(30)
        return embed(text)

    monkeypatch.setattr(embedder, "_embed", held_up)
    first = asyncio.create_task(embedder.embed(["first"]))
    await asyncio.to_thread(begun.wait, 30)
    both = [asyncio.create_task(embedder.embed(["wanted twice"])) for _ in range(2)]
    late = [asyncio.create_task(embedder.embed([f"late {n}"])) for n in range(3)]
    for _ in range(3):
        await asyncio.sleep(0)
    for given_up in (both[0], *late):
        given_up.cancel()
    await asyncio.wait([both[0], *late])
    go_on.set()
    [[one], [other]] = await asyncio.gather(first, both[1])
    await embedder.embed(["late 1"])
    assert embedded == ["first", "wanted twice", "late 1"]
    assert not np.array_equal(one, other)


@pytest.mark.model
async def test_a_closed_embedder_says_so(embedder: OnnxEmbedder) -> None:
    await embedder.close()
    await embedder.close()
    with pytest.raises(FailedPrecondition, match="not started"):
        await embedder.embed(["x"])


async def test_a_missing_file_is_named_with_the_command_that_gets_it(tmp_path: Path) -> None:
    with pytest.raises(MissingModel, match=r"model\.onnx.*personae models pull"):
        await OnnxEmbedder(tmp_path / "model.onnx", tmp_path / "tokenizer.json").start()


async def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    for name in ("model.onnx", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match="can't be loaded"):
        await OnnxEmbedder(tmp_path / "model.onnx", tmp_path / "tokenizer.json").start()


@pytest.mark.model
async def test_the_fused_graph_says_what_the_exported_one_says(embedder: OnnxEmbedder) -> None:
    exported = unfused()
    texts = ["My bicycle has a flat tyre.", "When did Ana move to Porto?", "word " * 1000, "Ça va? 你好 🙂"]
    for ours, theirs in zip(await embedder.embed(texts), [exported(text) for text in texts], strict=True):
        # Activations are quantised to 8 bits: what that costs in recall is in docs/memory.md.
        assert ours @ theirs > 0.985


def unfused() -> Callable[[str], Vector]:
    """The model's file as it was exported, through ONNX Runtime alone."""
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

    model, words = files()
    session = InferenceSession(str(model), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(words))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=MAX_TOKENS)

    def embed(text: str) -> Vector:
        ids = np.array([tokenizer.encode(text).ids])
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        mean: Vector = np.asarray(session.run(None, feed)[0])[0].mean(axis=0)
        return mean / np.float32(np.linalg.norm(mean))

    return embed


@pytest.mark.model
@pytest.mark.parametrize("part", ["nodes", "weights", "everything"])
def test_a_graph_of_another_layout_is_not_fused_but_told(tmp_path: Path, part: str) -> None:
    import onnx

    model = onnx.load(str(files()[0]))
    if part in ("nodes", "everything"):
        del model.graph.node[:]
    if part in ("weights", "everything"):
        del model.graph.initializer[:]
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnknownGraph):
        fused(path)
