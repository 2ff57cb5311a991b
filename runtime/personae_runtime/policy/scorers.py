"""Scorers: how likely a text is of a harmful category, in 0 to 1.

`NgramScorer` is the cheap one that always runs: a logistic regression per
category over hashed character 2- to 5-grams of normalised text. It sees
wording, not intent; `ngram_head.json` beside the weights says how well, and
`personae_runtime.policy.training` makes both.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from personae_runtime.errors import ConfigError
from personae_runtime.memory.embedder import Embedder
from personae_runtime.policy.normalize import normalize

CATEGORIES = ("sexual", "hate", "violence", "harassment", "self_harm", "injection")
"""What the n-gram head gives."""

RULE_CATEGORIES = (*CATEGORIES, "harm", "other_language")
"""What rules may ask scores for; one that no scorer gives is 0. `harm` is any harm, the cascade's or a guard model's;
`other_language` the language scorer's."""

HEAD_FILE = "ngram_head.npz"
ORDERS = (2, 3, 4, 5)
_GROW, _MIX, _FOLD = np.uint32(0x9E3779B1), np.uint32(0x85EBCA6B), np.uint32(15)  # odd constants of our choice


@runtime_checkable
class Scorer(Protocol):
    """Scores texts by category.

    Attributes:
        name: as configured.
        categories: keys of every result.
        deadline_s: seconds after which `score` counts as failed.
    """

    name: str
    categories: tuple[str, ...]
    deadline_s: float

    async def score(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """One mapping per text (raw or normalised), each of all `categories`, in 0 to 1.

        Any exception means that nothing is known of the texts, and blocks them.
        """
        ...


@runtime_checkable
class SyncScorer(Scorer, Protocol):
    """A scorer cheap enough (well under a millisecond) to run in the event loop."""

    def score_sync(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """As `score`, without awaiting."""
        ...


@runtime_checkable
class WholeScorer(Scorer, Protocol):
    """A scorer that judges whole texts otherwise than units of a reply.

    One to which it matters whose words they are has `score_whole_reply`, too: the same for a persona's.
    """

    async def score_whole(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """As `score`, of texts that are whole, or pieces of long ones."""
        ...


def hash_ngrams(codes: NDArray[np.uint32], bits: int) -> NDArray[np.uint32]:
    """Buckets, in 0 to 2**bits - 1, of all character n-grams of `codes`, orders 2 to 5.

    Args:
        codes: code points, shape (m,).
        bits: of a bucket number.
    """
    sizes = [max(0, len(codes) - order + 1) for order in ORDERS]
    out = np.empty(sum(sizes), dtype=np.uint32)
    rolling, at = codes, 0
    for order, size in zip(ORDERS, sizes, strict=True):
        if size:
            # Polynomial hash of one character more than before; wraps at 2**32 by design.
            block = out[at : at + size]
            np.multiply(rolling[:size], _GROW, out=block)
            block += codes[order - 1 :]
            rolling = block
            at += size
    out ^= out >> _FOLD
    out *= _MIX
    out >>= np.uint32(32 - bits)
    return out


def distinct(buckets: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Each bucket once, ascending. As `np.unique`, at a tenth of its cost for arrays this short."""
    if not len(buckets):
        return buckets.astype(np.intp)
    ordered = np.sort(buckets)
    new = np.empty(len(ordered), dtype=np.bool_)
    new[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return ordered[new].astype(np.intp)


def text_codes(text: str) -> NDArray[np.uint32]:
    """Code points as the head reads them: normalised, white-space runs as one space, one space at either end."""
    return np.frombuffer(f" {' '.join(normalize(text).split())} ".encode("utf-32-le"), dtype=np.uint32)


class NgramScorer:
    """The hashed n-gram head.

    A text's features are the idf of the distinct buckets of its n-grams, divided
    by their Euclidean norm. The logit of category c is then sum(w[bucket, c]) /
    sqrt(sum(idf[bucket]**2)) + b[c], idf already in w: one look-up per bucket.

    Args:
        table: float32, shape (categories + 1, 2**bits); the last row is idf squared.
        bias: float32, shape (categories,).
        categories: names of the rows.
        deadline_s: see `Scorer`.
    """

    name = "ngram"

    def __init__(
        self, table: NDArray[Any], bias: NDArray[Any], categories: tuple[str, ...], deadline_s: float = 1.0
    ) -> None:
        self.categories = categories
        self.deadline_s = deadline_s
        self.table = table
        self.bias = bias
        # A bucket's numbers side by side, in whole groups of eight: one cache line per look-up.
        self._rows = np.zeros((table.shape[1], -(-len(table) // 8) * 8), dtype=np.float32)
        self._rows[:, : len(table)] = table.T
        self._bias: list[float] = bias.astype(float).tolist()
        self._bits = int(table.shape[1]).bit_length() - 1

    @classmethod
    def load(cls, deadline_s: float = 1.0) -> NgramScorer:
        """The head that ships with the runtime.

        Raises:
            ConfigError: the weights are missing or damaged.
        """
        try:
            data = resources.files(__package__).joinpath(HEAD_FILE).read_bytes()
            with np.load(io.BytesIO(data), allow_pickle=False) as head:
                categories = tuple(str(c) for c in head["categories"])
                return cls(np.vstack([head["weights"], head["idf2"]]), head["bias"], categories, deadline_s)
        except (OSError, KeyError, ValueError) as e:
            raise ConfigError(f"the n-gram scorer's weights ({HEAD_FILE}) can't be read: {e}") from e

    def without(self, category: str) -> NgramScorer:
        """The same head less one category."""
        kept = [i for i, name in enumerate(self.categories) if name != category]
        names = tuple(self.categories[i] for i in kept)
        return NgramScorer(self.table[[*kept, -1]], self.bias[kept], names, self.deadline_s)

    def score_sync(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """See `SyncScorer`. About 100 µs for a unit of 150 characters with its window."""
        found: list[Mapping[str, float]] = []
        for text in texts:
            buckets = distinct(hash_ngrams(text_codes(text), self._bits))
            # Not a matrix product: BLAS threads cost more than they save here.
            *sums, norm2 = np.einsum("ij->j", self._rows.take(buckets, axis=0)).tolist()[: len(self.categories) + 1]
            norm = math.sqrt(norm2) or 1.0
            found.append(
                {
                    category: 1.0 / (1.0 + math.exp(-max(-60.0, s / norm + b)))
                    for category, s, b in zip(self.categories, sums, self._bias, strict=True)
                }
            )
        return found

    async def score(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """See `Scorer`."""
        return self.score_sync(texts)


class SelfHarmScorer:
    """Another scorer's score of self-harm alone: what runs where no configured scorer gives it."""

    name = "self_harm"
    categories: tuple[str, ...] = ("self_harm",)

    def __init__(self, scorer: SyncScorer) -> None:
        self._scorer = scorer
        self.deadline_s = scorer.deadline_s

    def score_sync(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """See SyncScorer."""
        return [{"self_harm": scores["self_harm"]} for scores in self._scorer.score_sync(texts)]

    async def score(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """See Scorer."""
        return self.score_sync(texts)


def build_scorers(
    names: Sequence[str],
    deadline_ms: float,
    embedder: Embedder | None = None,
    languages: Sequence[str] = ("en",),
    guard_model: Scorer | None = None,
) -> tuple[Scorer, ...]:
    """Scorers by configured name.

    Args:
        guard_model: the scorer of that name, which has a deadline of its own; the caller starts and closes it.
        languages: ISO 639 codes of those that are no other language for the language scorer.
        embedder: what the cascade embeds by; the caller starts and closes it.

    Raises:
        ConfigError: an unknown name, or one that can't load.
    """
    # Imported here: they build on this module.
    from personae_runtime.policy.cascade import CascadeScorer, HarmHead
    from personae_runtime.policy.injection import InjectionJudge, InjectionScorer
    from personae_runtime.policy.language import LanguageScorer

    made: list[Scorer] = []
    for name in names:
        if name == "ngram":
            ngram = NgramScorer.load(deadline_ms / 1000)
            # One that was made for injection says it better.
            made.append(ngram.without("injection") if "injection" in names else ngram)
        elif name == "injection":
            if "cascade" not in names:  # which has both stages
                made.append(InjectionScorer.load(deadline_ms / 1000))
        elif name == "cascade":
            if embedder is None:
                raise ConfigError("policy.scorers: 'cascade' needs the embedding model, and none is open here")
            judge = InjectionJudge.load() if "injection" in names else None
            made.append(CascadeScorer(HarmHead.load(), embedder, deadline_ms / 1000, judge))
        elif name == "language":
            made.append(LanguageScorer.load(languages, deadline_ms / 1000))
        elif name == "guard_model":
            if guard_model is None:
                raise ConfigError("policy.scorers: 'guard_model' needs the model of policy.guard_model, not open here")
            made.append(guard_model)
        else:
            raise ConfigError(
                f"policy.scorers: {name!r} is not a scorer; expected 'ngram', 'injection', 'cascade', 'language' or"
                " 'guard_model', as in [\"ngram\"]"
            )
    return tuple(made)
