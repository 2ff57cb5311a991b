"""Guard models: how each family is asked, and what its answers say.

The answers are written by hand in the form that each family's card has; no weights of theirs take part.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import AsyncExitStack
from importlib import resources
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.config import GuardModelSettings, Settings, load_settings
from personae_runtime.engines.engine import (
    Engine,
    EngineCapacity,
    EngineDelta,
    EngineFinish,
    GenerateRequest,
    Message,
    Token,
)
from personae_runtime.errors import ConfigError, EngineOverloaded, NotFound
from personae_runtime.policy.decision import Action, PolicyContext, Stage
from personae_runtime.policy.gate import ScorerFailure, run_scorers
from personae_runtime.policy.guard_models import (
    BEFORE,
    FAMILIES,
    LIKELIEST,
    Answer,
    GuardModelScorer,
    LlamaGuard,
    NotAnAnswer,
    Qwen3Guard,
    ShieldGemma,
    Side,
    family_of,
)
from personae_runtime.policy.normalize import normalize
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.scorers import RULE_CATEGORIES, Scorer, build_scorers
from personae_serve.stores import make_guard_model, open_policy
from tests.conftest import ROOT

LLAMA, GRANITE, GRANITE33, QWEN, SHIELD = (
    FAMILIES[name] for name in ("llama_guard", "granite_guardian", "granite_guardian_3_3", "qwen3guard", "shieldgemma")
)
VERDICTS = ("safe", "unsafe", "controversial", "yes", "no")


def answer(text: str, other: str, chance_of_other: float, *, rest: float = 0.0, complete: bool = True) -> Answer:
    """An answer in words and blanks. Its verdict has the chance that `other`, the model's second thought, and `rest`,
    which is spread over other tokens, leave."""
    tokens = []
    for piece in re.findall(r"\n+|\s?\w+|\s?[^\w\s]", text):
        if piece.strip().casefold() in VERDICTS:
            chances = {piece: 1 - chance_of_other - rest, other: chance_of_other, "Sure": rest}
        else:
            chances = {piece: 0.99, "\n": 0.01}
        tokens.append(Token(piece, tuple((t, math.log(c)) for t, c in chances.items() if c > 0)))
    return Answer(text, tuple(tokens), complete)


# -- how each family is asked ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_persons_words_stand_alone_and_a_reply_stands_beside_what_it_replies_to(name: str) -> None:
    for question in FAMILIES[name].ask("Hello there.", "user"):
        assert question.messages == (Message("user", "Hello there."),)
    for question in FAMILIES[name].ask("Hello there.", "assistant"):
        assert question.messages == (Message("user", BEFORE), Message("assistant", "Hello there."))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "mark", ["<END CONVERSATION>", "<end_of_turn>", "</score>", "< start_of_turn>", "<BEGIN UNSAFE CONTENT CATEGORIES>"]
)
def test_a_text_cannot_close_its_own_quotation(name: str, mark: str) -> None:
    [*_, said] = FAMILIES[name].ask(f"a {mark} b", "user")[0].messages
    assert mark not in said.content
    assert said.content.replace("< ", "<").replace(" ", "") == f"a{mark}b".replace(" ", "")


def test_granite_guardian_is_asked_about_one_risk_at_a_time() -> None:
    risks = [question.arguments["guardian_config"]["risk_name"] for question in GRANITE.ask("Hello.", "user")]
    assert risks == ["harm", "social_bias", "violence", "sexual_content", "jailbreak"]
    assert len(GRANITE.ask("Hello.", "assistant")) == 4  # nobody jailbreaks by replying
    newer = GRANITE33.ask("Hello.", "user")
    assert [question.arguments["guardian_config"] for question in newer] == [{"criteria_id": risk} for risk in risks]
    assert not any(question.arguments["think"] for question in newer)


def test_shieldgemma_is_asked_by_guidelines_that_fit_the_side() -> None:
    prompts = [question.arguments["guideline"] for question in SHIELD.ask("Hello.", "user")]
    replies = [question.arguments["guideline"] for question in SHIELD.ask("Hello.", "assistant")]
    assert prompts[1].startswith('"No Harassment": The prompt shall not contain or seek generation of content that ')
    assert replies[1].startswith('"No Harassment": The chatbot shall not generate content that ')
    assert [re.findall(r'^"([^"]*)"', text) for text in prompts] == [
        ["No Dangerous Content"],
        ["No Harassment"],
        ["No Hate Speech"],
        ["No Sexually Explicit Information"],
    ]
    assert len({*prompts, *replies}) == 8


def test_shieldgemmas_guidelines_can_be_the_cards(tmp_path: Path) -> None:
    texts = {c: {side: f"{c} of {side}" for side in ("user", "assistant")} for c in SHIELD.categories}
    file = tmp_path / "shieldgemma.yaml"
    file.write_text(yaml.safe_dump(texts))
    family = family_of(GuardModelSettings(family="shieldgemma", model="m", guidelines=file))
    asked = [question.arguments["guideline"] for question in family.ask("Hello.", "assistant")]
    assert asked == [f"{c} of assistant" for c in SHIELD.categories]
    broken: list[Any] = ["", [], {}, {**texts, "weather": texts["hate"]}, {**texts, "hate": {"user": "x"}}]
    broken += [{**texts, "hate": {"user": "x", "assistant": 7}}, {**texts, "hate": {"user": "x", "assistant": " "}}]
    for wrong in broken:
        file.write_text(yaml.safe_dump(wrong))
        with pytest.raises(ConfigError, match=r"policy\.guard_model\.guidelines: .*user and assistant"):
            ShieldGemma.load(file)
    with pytest.raises(ConfigError, match="only the family shieldgemma"):
        family_of(GuardModelSettings(family="qwen3guard", model="m", guidelines=file))
    for content in (b"{", b"\xff"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="can't be read"):
            ShieldGemma.load(file)


# -- what answers say -----------------------------------------------------------------------------------------------


def test_llama_guard_names_hazards_below_its_verdict() -> None:
    found = LLAMA.read([answer("\n\nunsafe\nS1,S10", "safe", 0.2)], "user")
    assert found == pytest.approx({"harm": 0.8, "violence": 0.8, "hate": 0.8, "sexual": 0, "self_harm": 0})
    assert LLAMA.read([answer("\n\nsafe", "unsafe", 0.3)], "user") == pytest.approx(
        {"harm": 0.3, "violence": 0, "hate": 0, "sexual": 0, "self_harm": 0}
    )
    # Privacy is no category of ours.
    crime = LLAMA.read([answer("unsafe\nS7", "safe", 0.25)], "assistant")
    assert crime == pytest.approx({"harm": 0.75, "violence": 0, "hate": 0, "sexual": 0, "self_harm": 0})


def test_a_verdict_of_several_tokens_counts_by_its_first() -> None:
    first = Token(" un", ((" un", math.log(0.6)), ("safe", math.log(0.1)), ("s", math.log(0.1)), ("S1", math.log(0.2))))
    tokens = (Token("\n", (("\n", 0.0),)), first, Token("safe", (("safe", 0.0),)))
    assert LLAMA.read([Answer("\n unsafe\nS12", tokens)], "user")["sexual"] == pytest.approx(0.75)


def test_granite_guardian_has_a_probability_for_each_risk() -> None:
    answers = [
        answer("No", "Yes", 0.1),
        answer("No", "Yes", 0.05),
        answer("Yes", "No", 0.1),
        answer("No", "yes", 0.02),
        answer("Yes\n<confidence> High </confidence>", "No", 0.3, complete=False),
    ]
    found = GRANITE.read(answers, "user")
    assert found == pytest.approx({"harm": 0.9, "hate": 0.05, "violence": 0.9, "sexual": 0.02, "injection": 0.7})
    reply = GRANITE.read(answers[:4], "assistant")
    assert reply == pytest.approx({"harm": 0.9, "hate": 0.05, "violence": 0.9, "sexual": 0.02, "injection": 0})


@pytest.mark.parametrize("form", ["<score> {} </score>", "<think>\n</think>\n<score> {} </score>"])
def test_granite_guardian_3_3_answers_between_marks(form: str) -> None:
    answers = [answer(form.format("yes"), " no", 0.2), *[answer(form.format("no"), " yes", 0.1)] * 3]
    found = GRANITE33.read(answers, "assistant")
    assert found == pytest.approx({"harm": 0.8, "hate": 0.1, "violence": 0.1, "sexual": 0.1, "injection": 0})


def test_qwen3guard_has_three_verdicts_of_which_two_are_harm() -> None:
    found = QWEN.read([answer("Safety: Unsafe\nCategories: Violent, Jailbreak", " Safe", 0.1)], "user")
    assert found == pytest.approx({"harm": 0.9, "violence": 0.9, "injection": 0.9, "sexual": 0, "self_harm": 0})
    unsure = QWEN.read(
        [answer("Safety: Controversial\nCategories: Politically Sensitive Topics", " Unsafe", 0.4)], "user"
    )
    assert unsure == pytest.approx({"harm": 1, "violence": 0, "injection": 0, "sexual": 0, "self_harm": 0})
    refusal = QWEN.read([answer("Safety: Safe\nCategories: None\nRefusal: Yes", " Unsafe", 0.05)], "assistant")
    assert refusal == pytest.approx({"harm": 0.05, "violence": 0, "injection": 0, "sexual": 0, "self_harm": 0})


def test_shieldgemma_has_a_probability_for_each_guideline() -> None:
    answers = [answer("No", "Yes", chance, complete=False) for chance in (0.1, 0.4, 0.2, 0.3)]
    assert SHIELD.read(answers, "user") == pytest.approx({"harm": 0.4, "harassment": 0.4, "hate": 0.2, "sexual": 0.3})


JUNK: dict[str, tuple[str, ...]] = {
    "llama_guard": (
        "",
        "I can't help with that.",
        "unsafe",
        "unsafe\nS15",
        "unsafe\nviolence",
        "unsafe\nS1\nS2",
        "safe\nS1",
        "safe, I think",
        "unsafe S1",
        "safely",
    ),
    "granite_guardian": ("", "Maybe", "N/A", "Yesterday", "You", "<score> yes </score>"),
    "granite_guardian_3_3": ("", "yes", "<score> </score>", "<score> maybe </score>", "<think>\nyes"),
    "qwen3guard": (
        "",
        "Unsafe",
        "Safety: Unsafe",
        "Safety: Maybe\nCategories: None",
        "Safety: Unsafe\nCategories: Weather",
        "Safety: Unsafe\nCategories: None",
        "Safety: Safe\nCategories: Violent",
        "Categories: None\nSafety: Safe",
        "Safety: Safe\nCategories: None\nRefusal: Perhaps",
        "Safety: Safe\nCategories: None\nRefusal: No\nSafety: Unsafe",
    ),
    "shieldgemma": ("", "Perhaps", "N", "Notwithstanding", "* Yes"),
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in JUNK.items() for text in texts])
def test_what_has_not_the_familys_form_is_no_answer(name: str, text: str) -> None:
    family = FAMILIES[name]
    count = len(family.ask("Hello.", "user"))
    with pytest.raises(NotAnAnswer):
        family.read([answer(text, "Yes", 0.1)] * count, "user")


def test_an_answer_that_was_cut_off_is_none_where_its_end_matters() -> None:
    for family, text in ((LLAMA, "unsafe\nS1,S1"), (QWEN, "Safety: Unsafe\nCategories: Violent")):
        with pytest.raises(NotAnAnswer, match="no end"):
            family.read([answer(text, "safe", 0.1, complete=False)], "user")


def test_a_model_that_was_about_to_say_something_else_has_not_answered() -> None:
    assert LLAMA.read([answer("safe", "unsafe", 0.1, rest=0.4)], "user")["harm"] == pytest.approx(1 / 6)
    with pytest.raises(NotAnAnswer, match="undecided"):
        LLAMA.read([answer("safe", "unsafe", 0.1, rest=0.6)], "user")


words = st.sampled_from(
    [
        *("safe", "unsafe", "un", "s", "Yes", "No", " no", "yes", "\n", "S1", ",", "S10", "Safety", ":", " Unsafe"),
        *(
            " Safe",
            "Controversial",
            "Categories",
            " None",
            " Violent",
            "<score>",
            "</score>",
            "Refusal",
            "Sure",
            "",
            "�",
        ),
    ]
)
logprobs = st.floats(max_value=1.0) | st.just(math.nan)
tokens = st.builds(
    lambda text, logprob, more: Token(text, ((text, logprob), *more)),
    words,
    logprobs,
    st.lists(st.tuples(words, logprobs), max_size=4),
)


@given(
    name=st.sampled_from(sorted(FAMILIES)),
    side=st.sampled_from(["user", "assistant"]),
    drawn=st.lists(st.lists(tokens, max_size=9).map(tuple), min_size=5, max_size=5),
    texts=st.none() | st.lists(st.text(max_size=30), min_size=5, max_size=5),
    complete=st.booleans(),
)
def test_any_answer_has_scores_in_0_to_1_or_is_none(
    name: str, side: Side, drawn: list[tuple[Token, ...]], texts: list[str] | None, complete: bool
) -> None:
    family = FAMILIES[name]
    count = len(family.ask("Hello.", side))
    said = ["".join(token.text for token in one) for one in drawn] if texts is None else texts
    answers = [Answer(text, one, complete) for text, one in zip(said, drawn, strict=True)][:count]
    try:
        found = family.read(answers, side)
    except NotAnAnswer:
        return
    assert tuple(sorted(found)) == tuple(sorted(family.categories))
    assert all(0 <= score <= 1 for score in found.values())


@given(
    name=st.sampled_from(sorted(FAMILIES)),
    other=st.floats(min_value=1e-6, max_value=0.5),
    rest=st.floats(min_value=0, max_value=0.4),
)
def test_harm_is_the_probability_of_the_bad_verdict_among_the_verdicts(name: str, other: float, rest: float) -> None:
    good = {"llama_guard": ("safe", "unsafe"), "qwen3guard": ("Safety: Safe\nCategories: None", " Unsafe")}
    good["granite_guardian_3_3"] = ("<score> no </score>", " yes")
    text, bad = good.get(name, ("No", "Yes"))
    family = FAMILIES[name]
    count = len(family.ask("Hello.", "user"))
    found = family.read([answer(text, bad, other, rest=rest)] * count, "user")
    assert found["harm"] == pytest.approx(other / (1 - rest))


# -- tables and cards -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_categories_are_those_that_rules_may_ask_for(name: str) -> None:
    family = FAMILIES[name]
    assert set(family.categories) <= set(RULE_CATEGORIES)
    assert "harm" in family.categories


@pytest.mark.parametrize("table", [LlamaGuard.HAZARDS, Qwen3Guard.NAMES])
def test_tables_map_to_categories_that_the_family_gives(table: Mapping[str, str | None]) -> None:
    family = LLAMA if table is LlamaGuard.HAZARDS else QWEN
    assert {category for category in table.values() if category} == set(family.categories) - {"harm"}


def test_llama_guards_hazards_are_fourteen() -> None:
    assert list(LlamaGuard.HAZARDS) == [f"S{number}" for number in range(1, 15)]


def test_every_family_has_a_card_that_says_what_was_not_measured() -> None:
    cards: dict[str, Any] = {}
    for family in ("llama_guard", "granite_guardian", "qwen3guard", "shieldgemma"):
        text = resources.files("personae_runtime.policy").joinpath(f"{family}.card.yaml").read_text("utf-8")
        card = yaml.safe_load(text)
        assert all(card[key] for key in ("licence", "languages", "sources"))
        assert card["figures"] == "none: not run by us"
        cards |= {one: card for one in card["families"]}
    assert set(cards) == set(FAMILIES)
    for name, card in cards.items():
        assert set(card["categories"]) == set(FAMILIES[name].categories)


# -- the scorer -----------------------------------------------------------------------------------------------------


class Scripted:
    """An engine that answers as a function of the request, and keeps what it was asked and what was closed early."""

    def __init__(self, say: Callable[[GenerateRequest], Answer | Exception | None]) -> None:
        self.say = say
        self.asked: list[GenerateRequest] = []
        self.aborted: list[str] = []

    @property
    def model(self) -> str:
        return "scripted"

    @property
    def adapters(self) -> Collection[str]:
        return ()

    async def start(self) -> None:
        pass

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[EngineDelta, None]:
        self.asked.append(request)
        said = self.say(request)
        try:
            if said is None:
                await asyncio.Future()
            if isinstance(said, Exception):
                raise said
            assert said is not None
            for token in said.tokens:
                yield EngineDelta("", 1, logprobs=(token,))
            finish = EngineFinish.STOP if said.complete else EngineFinish.LENGTH
            yield EngineDelta(said.text, 0, finish, 10)
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.append(request.request_id)
            raise

    async def abort(self, request_id: str) -> None:
        pass

    def count_tokens(self, text: str) -> int:
        return len(text)

    def capacity(self) -> EngineCapacity:
        return EngineCapacity(1, 0, 0, 0, 2048)

    async def health(self) -> None:
        pass

    async def close(self) -> None:
        pass


SAFE = answer("\n\nsafe", "unsafe", 0.1)
UNSAFE = answer("\n\nunsafe\nS10", "safe", 0.1)


def judged(request: GenerateRequest) -> Answer:
    return UNSAFE if "vermin" in request.messages[-1].content else SAFE


def scorer(say: Callable[[GenerateRequest], Answer | Exception | None], deadline_s: float = 5.0) -> GuardModelScorer:
    return GuardModelScorer(LLAMA, cast(Engine, Scripted(say)), deadline_s)


def engine_of(guard: GuardModelScorer) -> Scripted:
    return cast(Scripted, guard._engine)


async def test_it_is_a_scorer_that_asks_in_whole_texts_and_in_units() -> None:
    guard = scorer(judged)
    assert isinstance(guard, Scorer)
    assert [row["hate"] for row in await guard.score_whole(["They are vermin.", "They are bakers."])] == [0.9, 0.0]
    assert {request.messages[-1].role for request in engine_of(guard).asked} == {"user"}
    await guard.score(["Hello."])
    last = engine_of(guard).asked[-1]
    assert [message.role for message in last.messages] == ["user", "assistant"]
    assert (last.temperature, last.logprobs) == (0, LIKELIEST)


async def test_a_reply_is_asked_about_as_the_personas_words_also_as_a_whole() -> None:
    guard = scorer(judged)
    policy = Policy.load(None, ["guard_model"], 5_000, guard_model=guard)
    reply = "Good morning. The river is low. Take the bridge, then."
    decision = await policy.decide(Stage.OUTPUT, reply, PolicyContext("assistant"))
    assert decision.action is Action.ALLOW
    asked = engine_of(guard).asked
    assert {request.messages[-1].role for request in asked} == {"assistant"}
    assert normalize(reply) in [request.messages[-1].content for request in asked]


async def test_a_unit_is_asked_about_once_with_its_window_and_a_blank_one_never() -> None:
    guard = scorer(judged)
    rows = await guard.score(["are vermin.", "They are vermin.", "", "  "])
    assert [row["hate"] for row in rows] == [0.9, 0.9, 0.0, 0.0]
    assert [request.messages[-1].content for request in engine_of(guard).asked] == ["They are vermin."]


async def test_requests_of_one_call_run_at_once() -> None:
    waiting = 0
    both = asyncio.Event()

    class Together(Scripted):
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[EngineDelta, None]:
            nonlocal waiting
            waiting += 1
            if waiting == 8:
                both.set()
            await both.wait()  # none answers before all have asked
            async for delta in super().generate(request):
                yield delta

    guard = GuardModelScorer(SHIELD, cast(Engine, Together(lambda _: answer("No", "Yes", 0.1))), 5.0)
    async with asyncio.timeout(5):
        rows = await guard.score(["One thing.", "Quite another."])
    assert [row["harm"] for row in rows] == pytest.approx([0.1, 0.1])


async def test_a_late_answer_fails_and_its_requests_are_aborted() -> None:
    guard = scorer(lambda _: None, deadline_s=0.01)
    with pytest.raises(ScorerFailure, match="guard_model: TimeoutError"):
        await run_scorers([guard], ["Hello.", "Other."])
    assert sorted(engine_of(guard).aborted) == sorted(request.request_id for request in engine_of(guard).asked)
    assert len(engine_of(guard).aborted) == 2


async def test_one_failure_ends_the_call_and_aborts_the_others() -> None:
    full = EngineOverloaded("no place", retry_after_s=1.0)
    guard = scorer(lambda request: full if "two" in request.messages[-1].content else None)
    with pytest.raises(EngineOverloaded):
        await guard.score(["number one", "number two"])
    [waited] = [one for one in engine_of(guard).asked if "one" in one.messages[-1].content]
    assert engine_of(guard).aborted == [waited.request_id]
    guard = scorer(lambda _: Answer("I'd rather not say.", ()))
    with pytest.raises(ScorerFailure, match="NotAnAnswer"):
        await run_scorers([guard], ["Hello."])


@pytest.mark.parametrize("stage", [Stage.INPUT, Stage.MEMORY, Stage.OUTPUT])
async def test_what_it_cannot_judge_is_blocked(stage: Stage) -> None:
    policy = Policy.load(None, ["ngram", "guard_model"], 1000.0, guard_model=scorer(lambda _: Answer("Sure!", ())))
    decision = await policy.decide(stage, "What a lovely morning.", PolicyContext())
    assert (decision.action, decision.reason_code) == (Action.BLOCK, "SCORER_FAILED")


async def test_its_scores_are_those_that_rules_ask_for() -> None:
    policy = Policy.load(None, ["ngram", "guard_model"], 1000.0, guard_model=scorer(judged))
    refused = await policy.decide(Stage.INPUT, "They are vermin, I tell you.", PolicyContext())
    assert refused.action is Action.BLOCK
    assert (refused.scores["hate"], refused.scores["harm"]) == (0.9, 0.9)
    allowed = await policy.decide(Stage.INPUT, "They bake good bread, I tell you.", PolicyContext())
    assert allowed.action is Action.ALLOW


async def test_a_model_of_another_family_is_found_at_the_start() -> None:
    await scorer(judged).start()
    with pytest.raises(ConfigError, match=r"policy\.guard_model: scripted does not answer as its family"):
        await scorer(lambda _: answer("No", "Yes", 0.1)).start()
    with pytest.raises(ConfigError, match="no place"):
        await scorer(lambda _: EngineOverloaded("no place")).start()


def test_without_a_model_there_is_no_such_scorer() -> None:
    with pytest.raises(ConfigError, match=r"policy\.guard_model"):
        build_scorers(["guard_model"], 1000.0)


# -- configuration --------------------------------------------------------------------------------------------------

ENTRY = {"kind": "vllm", "model": "guard-8b"}


def configured(**changes: Any) -> Settings:
    given: dict[str, Any] = {
        "policy": {
            "scorers": ["ngram", "guard_model"],
            "guard_model": {"family": "llama_guard", "model": "guard-8b", "deadline_ms": 1500},
        },
        "cluster": {"models": [ENTRY, {"kind": "synthetic", "model": "swift"}]},
    }
    return load_settings(**{**given, **changes})


def test_no_persona_can_name_the_guard_model() -> None:
    settings = configured()
    assert [model.model for model in settings.model_deployments] == ["swift"]
    assert [model.model for model in settings.every_deployment] == ["swift", "guard-8b"]
    alone = configured(cluster={"models": [ENTRY]})
    assert [model.model for model in alone.model_deployments] == [alone.engine.model]


def test_a_guard_model_that_nothing_asks_is_not_run() -> None:
    settings = configured(policy={"guard_model": {"family": "llama_guard", "model": "guard-8b"}})
    assert [model.model for model in settings.every_deployment] == ["swift"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"policy": {"scorers": ["guard_model"]}}, "policy.guard_model.family"),
        (
            {"policy": {"scorers": ["guard_model"], "guard_model": {"family": "shieldgemma"}}},
            "policy.guard_model.model",
        ),
        (
            {"policy": {"scorers": ["guard_model"], "guard_model": {"family": "qwen3guard", "guidelines": "x.yaml"}}},
            "policy.guard_model.guidelines",
        ),
        ({"cluster": {"models": []}}, "cluster.models"),
        ({"cluster": {"models": [{**ENTRY, "kind": "llamacpp"}]}}, "cluster.models"),
        ({"cluster": {"models": [{**ENTRY, "min_replicas": 0}]}}, "cluster.models"),
    ],
)
def test_a_scorer_without_its_model_is_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        configured(**changes)
    assert f"  {key} (" in str(refused.value)


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="`llama_guard` or `granite_guardian`"):
        load_settings(policy={"guard_model": {"family": "wild_guard"}})


def test_settings_become_a_scorer() -> None:
    made = make_guard_model(configured())
    assert (made.family, made.deadline_s) == (LLAMA, 1.5)
    assert make_guard_model(configured(), 60_000).deadline_s == 60
    with pytest.raises(ConfigError, match=r"docs/policy\.md"):
        make_guard_model(load_settings())


async def test_a_host_without_the_models_files_does_not_start(tmp_path: Path) -> None:
    settings = configured(models_dir=tmp_path)
    async with AsyncExitStack() as stack:
        with pytest.raises(NotFound, match="guard-8b"):
            await open_policy(settings, stack)
        # A gateway of a cluster runs no model: it is given the deployment's scorer.
        policy = await open_policy(settings, stack, scorer(judged))
    assert [one.name for one in policy.scorers] == ["ngram", "guard_model"]


def test_the_example_of_the_page_loads(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "policy.md").read_text("utf-8")
    [example] = [block for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "guard_model" in block]
    file = tmp_path / "personae.toml"
    file.write_text(example)
    settings = load_settings(file)
    assert settings.guard_model_deployment is not None
    assert "guard_model" in settings.policy.scorers
