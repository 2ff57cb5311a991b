"""Heads that have not seen a row, for evaluating on rows that the shipped heads were trained on.

The shipped heads are trained on all rows of the moderation set's development file. So that an evaluation on that
file says what they do on *new* text, training also keeps one set of heads per cross-validation fold, each trained
without its fold, and salted hashes that tell a trained row and its fold. Text that no hash knows is judged by the
shipped heads. Deployment never reads this.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from personae_runtime.errors import ConfigError
from personae_runtime.policy.cascade import HARM_FILE, CascadeScorer, HarmHead, read_arrays
from personae_runtime.policy.normalize import normalize
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.scorers import NgramScorer, Scorer

HELD_OUT_FILE: Final = "heldout.npz"
HARM_HELD_OUT_FILE: Final = "harm_heldout.npz"
_SALT: Final = b"personae.heldout"


def row_hash(text: str) -> int:
    """64 bits that tell a training row by its normalised words, and give no text away."""
    words = " ".join(normalize(text).split())
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8, salt=_SALT).digest(), "big")


class HeldOut:
    """The folds.

    Args:
        folds: `row_hash` of each trained row -> its fold.
        heads: for each fold the n-gram head trained without it.
    """

    def __init__(self, folds: Mapping[int, int], heads: tuple[NgramScorer, ...]) -> None:
        self.folds = folds
        self.heads = heads
        # The cascade's head has folds of its own of the same rows.
        self.harm_folds: Mapping[int, int] = {}
        self.harm: tuple[HarmHead, ...] = ()
        self.rows_by_fold = Counter(folds.values())

    @classmethod
    def load(cls) -> HeldOut:
        """The folds that ship with the heads.

        Raises:
            ConfigError: they are missing or damaged.
        """
        try:
            held = cls.unpack(read_arrays(HELD_OUT_FILE))
            arrays, vectors = read_arrays(HARM_HELD_OUT_FILE), read_arrays(HARM_FILE)["vectors"]
            held.harm_folds = dict(zip(arrays.pop("hashes").tolist(), arrays.pop("folds").tolist(), strict=True))
            if held.harm_folds.keys() != held.folds.keys():
                raise ValueError(f"{HARM_HELD_OUT_FILE} knows other rows")
            count = len(arrays["bias"])
            held.harm = tuple(HarmHead.unpack({n: a[k] for n, a in arrays.items()}, vectors) for k in range(count))
        except (OSError, KeyError, ValueError) as e:
            raise ConfigError(f"the held-out heads ({HELD_OUT_FILE}) can't be read: {e}") from e
        return held

    @classmethod
    def unpack(cls, arrays: Mapping[str, Any]) -> HeldOut:
        """From the arrays that `personae_runtime.policy.training` writes: `hashes` and `folds`, shape (rows,);
        `ngram_tables`, shape (folds, categories + 1, buckets); `ngram_biases`, shape (folds, categories);
        `categories`."""
        categories = tuple(str(c) for c in arrays["categories"])
        heads = tuple(
            NgramScorer(table, bias, categories)
            for table, bias in zip(arrays["ngram_tables"], arrays["ngram_biases"], strict=True)
        )
        return cls(dict(zip(arrays["hashes"].tolist(), arrays["folds"].tolist(), strict=True)), heads)

    def fold(self, text: str) -> int | None:
        """The fold of a row that the shipped heads were trained on; None for any other text."""
        return self.folds.get(row_hash(text))

    def policy_for(self, text: str, policy: Policy) -> Policy:
        """`policy` with heads that were not trained on `text`: itself, where its own weren't."""
        fold = self.fold(text)
        if fold is None:
            return policy
        harm = self.harm_folds.get(row_hash(text), -1)
        return Policy(policy.bundle, [self._unseen(one, fold, harm) for one in policy.scorers])

    def _unseen(self, scorer: Scorer, fold: int, harm: int) -> Scorer:
        if isinstance(scorer, NgramScorer):
            return self.heads[fold]
        if isinstance(scorer, CascadeScorer) and harm >= 0:
            return CascadeScorer(self.harm[harm], scorer.embedder, scorer.deadline_s, scorer.injection)
        return scorer
