"""Texts to unit vectors: all-MiniLM-L6-v2 through ONNX Runtime."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from personae_runtime.errors import ConfigError, FailedPrecondition, MissingModel
from personae_runtime.memory.index import DENSE_DIM
from personae_runtime.memory.worker import LaneWorker

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

Vector = NDArray[np.float32]
"""Shape (DENSE_DIM,), unit length."""

MAX_TOKENS: Final = 256
"""Longest input, special tokens included; the rest is cut. It is the length the model's authors set."""

_BULK_NICE: Final = 10

_log = logging.getLogger(__name__)


@runtime_checkable
class Embedder(Protocol):
    """Gives texts their place in the dense space."""

    async def embed(self, texts: Sequence[str], *, bulk: bool = False) -> list[Vector]:
        """One vector per text, in order.

        Args:
            texts: any strings; the empty one is allowed.
            bulk: background work; it never holds up a call without it.
        """
        ...


@dataclass
class _Asked:
    """A text that is being embedded, and how many wait for it."""

    call: asyncio.Future[Vector]
    waiting: int = 0


class OnnxEmbedder:
    """`Embedder` on an ONNX export of a BERT-like sentence encoder.

    Mean of the last hidden states over the real tokens, then L2 norm, as the
    model was trained. Texts go through one at a time: with one thread a batch
    is no faster, and a cancelled or overtaken call costs one text at most.

    Args:
        model_path: ONNX file; inputs input_ids, attention_mask and possibly
            token_type_ids; output 0 of shape (batch, tokens, DENSE_DIM). The model
            that `personae models pull` fetches is rebuilt of faster operators.
        tokenizer_path: `tokenizer.json` of the same model.
        threads: of one inference.
    """

    def __init__(self, model_path: Path, tokenizer_path: Path, threads: int = 1) -> None:
        self._model_path = model_path
        self._tokenizer_path = tokenizer_path
        self._threads = threads
        self._session: InferenceSession | None = None
        self._tokenizer: Tokenizer | None = None
        self._inputs: tuple[str, ...] = ()
        # Both lanes share the session, which is safe to run concurrently; each has
        # its thread, so that a turn's query shares the processor with a bulk load
        # but never waits for one.
        self._query_lane: LaneWorker | None = None
        self._asked: dict[str, _Asked] = {}
        self._bulk_lane: LaneWorker | None = None

    async def start(self) -> None:
        """Load the model (about 0.6 s).

        Raises:
            MissingModel: a file is not there.
            ConfigError: a file is no such model.
        """
        if self._session is not None:
            return
        for path in (self._model_path, self._tokenizer_path):
            if not path.is_file():
                raise MissingModel(
                    f"the embedding model's file {path} is missing; run `personae models pull`, "
                    "or set `memory.dense` to false to recall by words alone",
                    metadata={"path": str(path)},
                )
        await asyncio.to_thread(self._load)
        self._query_lane = LaneWorker("embed-query")
        self._bulk_lane = LaneWorker("embed-bulk", nice=_BULK_NICE)

    async def embed(self, texts: Sequence[str], *, bulk: bool = False) -> list[Vector]:
        """See `Embedder.embed`.

        Raises:
            FailedPrecondition: `start` was not awaited, or the embedder is closed.
        """
        lane = self._bulk_lane if bulk else self._query_lane
        if lane is None:
            raise FailedPrecondition("the embedder is not started", reason="EMBEDDER_CLOSED")
        if bulk:
            return [await lane.run(lambda text=text: self._embed(text)) for text in texts]  # type: ignore[misc]
        return [await self._query(text, lane) for text in texts]

    async def close(self) -> None:
        """Finish what runs and free the model. Safe to call twice."""
        lanes, self._query_lane, self._bulk_lane = (self._query_lane, self._bulk_lane), None, None
        for lane in lanes:
            if lane is not None:
                await lane.close()
        self._session = self._tokenizer = None

    async def _query(self, text: str, lane: LaneWorker) -> Vector:
        # A turn may ask several indexes the same at once. The last who waits takes the call back if it has not begun:
        # vectors that came too late for their turns would otherwise make the next ones late.
        asked = self._asked.get(text)
        if asked is None or asked.call.done():
            asked = self._asked[text] = _Asked(asyncio.ensure_future(lane.run(lambda: self._embed(text))))
        asked.waiting += 1
        try:
            return await asyncio.shield(asked.call)
        finally:
            asked.waiting -= 1
            if not asked.waiting:
                asked.call.cancel()
                if self._asked.get(text) is asked:
                    del self._asked[text]

    def _load(self) -> None:
        # Imported here: the native library costs a lexical-only host nothing.
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(
                _graph(self._model_path), options, providers=["CPUExecutionProvider"]
            )
            tokenizer = Tokenizer.from_file(str(self._tokenizer_path))
        except Exception as error:
            raise ConfigError(
                f"{self._model_path} and {self._tokenizer_path} can't be loaded as an embedding model; "
                "run `personae models pull` to fetch them again",
            ) from error
        shape = session.get_outputs()[0].shape
        if shape[-1] != DENSE_DIM:
            raise ConfigError(f"{self._model_path} gives vectors of {shape[-1]} dimensions, expected {DENSE_DIM}")
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length=MAX_TOKENS)
        self._inputs = tuple(spec.name for spec in session.get_inputs())
        self._session, self._tokenizer = session, tokenizer

    def _embed(self, text: str) -> Vector:
        assert self._session is not None
        assert self._tokenizer is not None
        encoding = self._tokenizer.encode(text)
        feed = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        arrays = {name: np.asarray([feed[name]], dtype=np.int64) for name in self._inputs}
        hidden = np.asarray(self._session.run(None, arrays)[0], dtype=np.float32)[0]
        mean = hidden.mean(axis=0)  # nothing is padded: every token is real
        vector: Vector = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return vector


def _graph(path: Path) -> bytes | str:
    """The fused graph of the model that it is known for, else the file as it is."""
    from personae_runtime.memory.fusion import UnknownGraph, fused

    try:
        return fused(path)
    except UnknownGraph as unknown:
        _log.info("the embedding model is run as it was exported: %s", unknown)
        return str(path)
