"""The cascade: a cheap head for every text, and a head on the embedder for those it can't clear.

`harm` is any harm, also of kinds without a category of their own (crime, breach of privacy). Its logit is

    a * (m_0 + KINDS * max_k m_k + CHARS * q) + d,    m_k = sum_i c_ki exp(-gamma |x - v_i|^2) + b_k

with q the logit of a hashed n-gram head and x the text's embedding beside its intent features. m_0 is a support vector
machine with a radial kernel for any harm, for a linear head on the embedding sees topic more than intent; m_1 and the
others are machines for one kind of harm each, as each kind lies elsewhere. a and d make it a probability (Platt's
scaling). Where q is below the band, the text is not embedded and the machines' part is taken as `UNEMBEDDED`. Made by
`python -m personae_runtime.policy.training.harm`; `harm_head.card.yaml` has the figures.

The same embedding serves injection's second stage (`injection.InjectionJudge`), so that a text is embedded once.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from personae_runtime.errors import ConfigError
from personae_runtime.memory.embedder import Embedder, Vector
from personae_runtime.policy.injection import InjectionJudge
from personae_runtime.policy.injection import chance as probability
from personae_runtime.policy.intent import intent
from personae_runtime.policy.scorers import NgramScorer

HARM: Final = "harm"
INJECTION: Final = "injection"
HARM_FILE: Final = "harm_head.npz"
INTENT_SCALE: Final = 0.15
"""Weight of an intent feature beside the embedding, which has unit length."""
KINDS: Final = 2.0
"""Weight of the highest decision value for a kind of harm beside that for any."""
CHARS: Final = 0.6
"""Weight of the n-gram logit beside them."""
STREAM_BAND: Final = 0.0
"""The n-gram logit below which a unit of a reply is not embedded: one that the cheap head finds harmless rather."""
UNEMBEDDED: Final = -1.0 - KINDS
"""The machines' value for what they were not asked: their margin on the harmless side."""


def point(vector: NDArray[np.float32], text: str) -> NDArray[np.float32]:
    """What the machines read: the embedding, and the scaled intent features after it."""
    return np.concatenate([vector, INTENT_SCALE * intent(text)])


class HarmHead:
    """The numbers of a trained head.

    Args:
        chars: the cheap head, of the one category `harm`.
        vectors: float32, shape (training texts, embedding + intent features).
        coefficients: float32, shape (machines, training texts), that for any harm first; 0 where a text is no support
            vector of a machine.
        offsets: b above, shape (machines,).
        gamma: of the kernel.
        slope, shift: a and d above.
        band: the n-gram logit below which a text is not embedded.
    """

    def __init__(
        self,
        chars: NgramScorer,
        vectors: NDArray[np.float32],
        coefficients: NDArray[np.float32],
        *,
        offsets: NDArray[np.float32],
        gamma: float,
        slope: float,
        shift: float,
        band: float,
    ) -> None:
        used = np.flatnonzero(coefficients.any(axis=0))
        self.chars = chars
        self.band = band
        self._vectors = np.ascontiguousarray(vectors[used], dtype=np.float32)
        self._squares = np.einsum("ij,ij->i", self._vectors, self._vectors)
        self._coefficients = np.ascontiguousarray(coefficients[:, used], dtype=np.float32)
        self._offsets, self._gamma, self._slope, self._shift = offsets, gamma, slope, shift

    @classmethod
    def load(cls) -> HarmHead:
        """The head that ships.

        Raises:
            ConfigError: it is missing or damaged.
        """
        try:
            return cls.unpack(read_arrays(HARM_FILE))
        except (OSError, KeyError, ValueError) as e:
            raise ConfigError(f"the cascade's weights ({HARM_FILE}) can't be read: {e}") from e

    @classmethod
    def unpack(cls, arrays: Mapping[str, Any], vectors: NDArray[Any] | None = None) -> HarmHead:
        """From the arrays that training writes; `vectors` where they are kept elsewhere."""
        table = np.vstack([arrays["weights"], arrays["idf2"]])
        gamma, slope, shift, band = (float(x) for x in arrays["scalars"])
        return cls(
            NgramScorer(table, arrays["bias"], (HARM,)),
            np.asarray(arrays["vectors"] if vectors is None else vectors, dtype=np.float32),
            np.asarray(arrays["coefficients"], dtype=np.float32),
            offsets=np.asarray(arrays["offsets"], dtype=np.float32),
            gamma=gamma, slope=slope, shift=shift, band=band,
        )  # fmt: skip

    def cheap(self, text: str) -> float:
        """The n-gram logit."""
        chance = self.chars.score_sync([text])[0][HARM]
        return math.log(chance / (1 - chance)) if 0 < chance < 1 else math.copysign(60, chance - 0.5)

    def machine(self, x: NDArray[np.float32]) -> float:
        """The machines' decision values at a `point`, as they are weighed."""
        distances = np.maximum(self._squares - 2 * (self._vectors @ x) + float(x @ x), 0)
        any_harm, *kinds = (self._coefficients @ np.exp(-self._gamma * distances) + self._offsets).tolist()
        return float(any_harm + KINDS * max(kinds))

    def chance(self, cheap: float, machine: float) -> float:
        """Probability of harm."""
        logit = self._slope * (machine + CHARS * cheap) + self._shift
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, logit))))


def read_arrays(name: str) -> dict[str, Any]:
    """A file of arrays beside the code. Raises: OSError, ValueError."""
    with np.load(io.BytesIO(resources.files(__package__).joinpath(name).read_bytes()), allow_pickle=False) as data:
        return {key: data[key] for key in data.files}


class CascadeScorer:
    """`Scorer` of the category `harm`, and of `injection` where it is given the judge of it.

    Args:
        head: the numbers.
        embedder: started by the host. What it raises blocks the text, as does missing the deadline.
        deadline_s: see `Scorer`.
        injection: both stages; units of a reply get the first one only, for no rule asks a persona's own words more.
    """

    name = "cascade"

    def __init__(
        self, head: HarmHead, embedder: Embedder, deadline_s: float = 1.0, injection: InjectionJudge | None = None
    ) -> None:
        self.head = head
        self.embedder = embedder
        self.deadline_s = deadline_s
        self.injection = injection
        self.categories: tuple[str, ...] = (HARM,) if injection is None else (HARM, INJECTION)

    async def score(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """See `Scorer`. Of a unit and of the same with its window, as the stream gate gives them, only the longer one
        is embedded, and the shorter has its score."""
        harm, _ = await self._judge(texts, STREAM_BAND, {})
        if self.injection is None:
            return [{HARM: chance} for chance in harm]
        return [{HARM: chance, **row} for chance, row in zip(harm, self.injection.cheap.score_sync(texts), strict=True)]

    async def score_whole(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """As `score`, for whole texts, as the heads were trained on: embedded unless the cheap heads clear them. A
        piece that the one before it ends with has that one's embedding, too."""
        judge = self.injection
        if judge is None:
            return [{HARM: chance} for chance in (await self._judge(texts, self.head.band, {}))[0]]
        first = {text: judge.first(text) for text in texts}
        harm, vectors = await self._judge(texts, self.head.band, {t: f for t, f in first.items() if f >= judge.band})
        rows: list[Mapping[str, float]] = []
        for text, chance in zip(texts, harm, strict=True):
            logit = judge.logit(text, vectors[text], first[text]) if first[text] >= judge.band else first[text]
            rows.append({HARM: chance, INJECTION: probability(logit)})
        return rows

    async def _judge(
        self, texts: Sequence[str], band: float, also: Collection[str]
    ) -> tuple[list[float], dict[str, Vector]]:
        """The chance of harm of each text, and embeddings of those in `also`, and of those whose cheap logit reaches
        `band`: only these are judged for harm by it."""
        head = self.head
        cheap = [head.cheap(text) for text in texts]
        longest = {text: max((t for t in texts if t.endswith(text)), key=len) for text in texts}
        asked = {longest[text] for text, logit in zip(texts, cheap, strict=True) if logit >= band}
        wanted = list(dict.fromkeys(one for text, one in longest.items() if one in asked or text in also))
        vectors = dict(zip(wanted, await self.embedder.embed(wanted), strict=True)) if wanted else {}
        machine = {one: head.machine(point(vectors[one], one)) for one in asked}
        harm = [head.chance(c, machine.get(longest[t], UNEMBEDDED)) for c, t in zip(cheap, texts, strict=True)]
        return harm, {text: vectors[one] for text, one in longest.items() if one in vectors}
