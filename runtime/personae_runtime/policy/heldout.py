"""Heads that have not seen a row, for evaluating on rows that the shipped heads were trained on.

The shipped heads are trained on all rows of the moderation set's development file. So that an evaluation on that
file says what they do on *new* text, training also keeps one set of heads per cross-validation fold, each trained
without its fold, and salted hashes that tell a trained row and its fold. Text that no hash knows is judged by the
shipped heads. Deployment never reads this.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

import numpy as np

from personae_runtime.errors import ConfigError
from personae_runtime.policy.normalize import normalize
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.scorers import NgramScorer

HELD_OUT_FILE: Final = "heldout.npz"
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
        self._folds = folds
        self.heads = heads
        self.rows_by_fold = Counter(folds.values())
        self._policies: dict[tuple[int, int], Policy] = {}

    @classmethod
    def load(cls) -> HeldOut:
        """The folds that ship with the heads.

        Raises:
            ConfigError: they are missing or damaged.
        """
        try:
            data = resources.files(__package__).joinpath(HELD_OUT_FILE).read_bytes()
            with np.load(io.BytesIO(data), allow_pickle=False) as held:
                return cls.unpack({name: held[name] for name in held.files})
        except (OSError, KeyError, ValueError) as e:
            raise ConfigError(f"the held-out heads ({HELD_OUT_FILE}) can't be read: {e}") from e

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
        return self._folds.get(row_hash(text))

    def policy_for(self, text: str, policy: Policy) -> Policy:
        """`policy` with heads that were not trained on `text`: itself, where its own weren't."""
        fold = self.fold(text)
        if fold is None or not any(isinstance(scorer, NgramScorer) for scorer in policy.scorers):
            return policy
        key = (id(policy), fold)
        if key not in self._policies:
            scorers = [self.heads[fold] if isinstance(one, NgramScorer) else one for one in policy.scorers]
            self._policies[key] = Policy(policy.bundle, scorers)
        return self._policies[key]
