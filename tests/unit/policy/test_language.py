"""The language scorer, on sentences of our own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.errors import ConfigError
from personae_runtime.policy.bundle import open_bundle
from personae_runtime.policy.decision import Action, PolicyContext, Stage
from personae_runtime.policy.language import MIN_LETTERS, OTHER_LANGUAGE, LanguageScorer
from personae_runtime.policy.normalize import normalize
from personae_runtime.policy.policy import Policy, rule_tester
from personae_runtime.policy.scorers import build_scorers
from tests.unit.policy.bundles import IN_ENGLISH_ONLY

ENGLISH = [
    "I moved to Porto in May and the rain surprised me.",
    "haha that was a nice one, see you at the weekend mate",
    "Can you recommend a book about the history of bread?",
    "my sister says hi btw, she got the job!!!",
    "How did Sylvia Plath die, and when was she born?",
]
OTHERS = {
    "pt": "Mudei para o Porto em maio e a chuva surpreendeu-me.",
    "es": "Mi hermana compró una bicicleta roja para ir al trabajo.",
    "de": "Kannst du mir ein Buch über die Geschichte des Brotes empfehlen?",
    "fr": "Ma sœur a trouvé un nouvel emploi près de la gare.",
    "ru": "Моя сестра купила красный велосипед, чтобы ездить на работу.",
    "tr": "Kız kardeşim işe gitmek için kırmızı bir bisiklet aldı.",
    "pl": "Moja siostra kupiła czerwony rower, żeby jeździć do pracy.",
    "ja": "妹は通勤のために赤い自転車を買いました。とても気に入っているそうです。",
    "ar": "اشترت أختي دراجة حمراء للذهاب إلى العمل كل يوم.",
    "ko": "여동생이 출근하려고 빨간 자전거를 샀는데 아주 마음에 든다고 해요.",
    "hi": "मेरी बहन ने काम पर जाने के लिए एक लाल साइकिल खरीदी।",
    "nl": "Mijn zus heeft een rode fiets gekocht om naar haar werk te gaan.",
}


@cache
def english() -> LanguageScorer:
    """Loaded once, and not before a test runs: it takes a second and 120 MB."""
    return LanguageScorer.load(["en"])


@pytest.fixture
def scorer() -> LanguageScorer:
    return english()


def scores(scorer: LanguageScorer, texts: Sequence[str]) -> list[float]:
    return [row[OTHER_LANGUAGE] for row in scorer.score_sync(texts)]


def test_english_is_known_and_a_dozen_others_are_not(scorer: LanguageScorer) -> None:
    assert max(scores(scorer, ENGLISH)) < 0.7
    assert min(scores(scorer, list(OTHERS.values()))) >= 0.9


@pytest.mark.parametrize("language", OTHERS)
def test_so_it_is_as_the_stream_gate_reads_it(scorer: LanguageScorer, language: str) -> None:
    assert scores(scorer, [normalize(OTHERS[language])])[0] >= 0.9


def test_what_is_known_is_a_setting(scorer: LanguageScorer) -> None:
    both = LanguageScorer.load(["en", "pt"])
    assert scores(both, [OTHERS["pt"]])[0] < 0.5
    assert scores(both, [OTHERS["ru"]])[0] >= 0.9


@pytest.mark.parametrize("text", ["", "ok lol", "12345 67890 12345 67890 12345", "Ich", "🎉🎉🎉" * 20, "Ana, Lisboa"])
def test_too_few_letters_tell_nothing(scorer: LanguageScorer, text: str) -> None:
    assert scores(scorer, [text]) == [0.0]


@given(st.text(max_size=300))
def test_any_text_has_a_score(text: str) -> None:
    [score] = scores(english(), [text])
    assert 0 <= score <= 1
    if sum(map(str.isalpha, text)) < MIN_LETTERS:
        assert score == 0


@pytest.mark.parametrize("known", [["en", "klingon"], []])
def test_a_language_that_cannot_be_told_is_refused(known: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"policy\.languages"):
        LanguageScorer.load(known)


async def test_a_rule_can_refuse_what_nobody_reads() -> None:
    policy = Policy(
        open_bundle(IN_ENGLISH_ONLY.encode(), "b", rule_tester()),
        build_scorers(["ngram", "language"], 1000.0, languages=["en"]),
    )
    refused = await policy.decide(Stage.INPUT, OTHERS["de"], PolicyContext())
    assert (refused.action, refused.reason_code) == (Action.BLOCK, "LANGUAGE_NOT_SUPPORTED")
    assert refused.scores[OTHER_LANGUAGE] >= 0.9
    assert (await policy.decide(Stage.INPUT, ENGLISH[0], PolicyContext())).action is Action.ALLOW
    without = Policy(policy.bundle, build_scorers(["ngram"], 1000.0))
    assert (await without.decide(Stage.INPUT, OTHERS["de"], PolicyContext())).action is Action.ALLOW
