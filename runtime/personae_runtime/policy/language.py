"""How likely a text is in a language that nobody here can judge.

The heads, the patterns and the reviewers of a deployment read some languages, and pass what is written in others
unread. `LanguageScorer` gives that a score of its own, `other_language`, so that a rule can say what becomes of such
a text. The model is py3langid's: naive Bayes over byte n-grams, 140 labels. `language_scorer.card.yaml` has its
figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from personae_runtime.errors import ConfigError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

OTHER_LANGUAGE: Final = "other_language"
MIN_LETTERS: Final = 20
"""Fewer tell no language: of short English lines ("ok lol") many look like another."""


class LanguageScorer:
    """`SyncScorer` of the one category `other_language`: 1 less the chance that a text is in a known language.

    A text of fewer than `MIN_LETTERS` letters scores 0. About 0.1 ms for a unit of 150 characters; 120 MB of memory.

    Args:
        model: with probabilities.
        known: ISO 639 codes, such as `en`.
        deadline_s: see `Scorer`.
    """

    name = "language"
    categories: tuple[str, ...] = (OTHER_LANGUAGE,)

    def __init__(self, model: LanguageIdentifier, known: Sequence[str], deadline_s: float = 1.0) -> None:
        self._model = model
        self._known = frozenset(known)
        self.deadline_s = deadline_s

    @classmethod
    def load(cls, known: Sequence[str], deadline_s: float = 1.0) -> LanguageScorer:
        """With the model that the library brings (about 1 s).

        Raises:
            ConfigError: a language is not one of the model's, or none is named.
        """
        # Imported here: a host without this scorer has no use for 120 MB of it.
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        labels = set(model.labels)
        if unknown := sorted(set(known) - labels):
            raise ConfigError(
                f"policy.languages: {unknown} can't be told; expected ISO 639-1 codes such as 'en' or 'pt'"
            )
        if not known:
            raise ConfigError("policy.languages: at least one, such as 'en'")
        return cls(model, known, deadline_s)

    def score_sync(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """See `SyncScorer`."""
        return [{OTHER_LANGUAGE: self._score(text)} for text in texts]

    async def score(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """See `Scorer`."""
        return self.score_sync(texts)

    def _score(self, text: str) -> float:
        if sum(map(str.isalpha, text)) < MIN_LETTERS:
            return 0.0
        chances = self._model.rank(text)
        known = sum(float(chance) for language, chance in chances if language in self._known)
        return min(1.0, max(0.0, 1.0 - known))
