"""Guard models over a real vLLM: prompts, log-probabilities, batches, deadlines and refusals.

No guard model's weights take part. SmolLM2-135M stands in: after examples it answers as Llama Guard does, and what its
scores say of a text is nothing.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest

from personae_runtime.engines.engine import EngineDelta, EngineFinish, GenerateRequest, Message
from personae_runtime.engines.vllm import VllmEngine
from personae_runtime.errors import ConfigError, EngineOverloaded
from personae_runtime.policy.decision import Action, PolicyContext, Stage
from personae_runtime.policy.gate import ScorerFailure, run_scorers
from personae_runtime.policy.guard_models import (
    FAMILIES,
    LIKELIEST,
    GuardModelScorer,
    LlamaGuard,
    NotAnAnswer,
    Question,
    Side,
)
from personae_runtime.policy.policy import Policy
from tests.contract.conftest import PARALLEL, VLLM, WAITING

pytestmark = [pytest.mark.asyncio(loop_scope="session"), *VLLM]

EXAMPLES = tuple(
    message
    for word, verdict in (("dog", "unsafe\nS1"), ("table", "safe"), ("horse", "unsafe\nS1"), ("spoon", "safe"))
    for message in (Message("user", word), Message("assistant", verdict))
)


class StandIn(LlamaGuard):
    """Llama Guard's answers from a model that is shown how to answer."""

    def ask(self, text: str, side: Side) -> list[Question]:
        [question] = super().ask(text, "user")
        return [replace(question, messages=(*EXAMPLES, *question.messages))]


def stand_in(engine: VllmEngine, deadline_s: float = 60.0) -> GuardModelScorer:
    return GuardModelScorer(StandIn(), engine, deadline_s)


async def deltas_of(engine: VllmEngine, request: GenerateRequest) -> list[EngineDelta]:
    return [delta async for delta in engine.generate(request)]


async def test_each_token_comes_with_the_likeliest_in_its_place(vllm_engine: VllmEngine) -> None:
    request = GenerateRequest("likeliest", (Message("user", "Name a river."),), 8, temperature=0, logprobs=5)
    deltas = await deltas_of(vllm_engine, request)
    tokens = [token for delta in deltas for token in delta.logprobs]
    assert len(tokens) == sum(delta.tokens for delta in deltas) > 1
    assert "".join(token.text for token in tokens).startswith("".join(delta.text for delta in deltas))
    for token in tokens:
        assert len(token.likeliest) == 5
        # Greedy: what was drawn is what was likeliest.
        assert token.likeliest[0] == (token.text, max(logprob for _, logprob in token.likeliest))
        assert 0 < sum(math.exp(logprob) for _, logprob in token.likeliest) <= 1 + 1e-3
    plain = GenerateRequest("plain", (Message("user", "Name a river."),), 8, temperature=0)
    assert not any(delta.logprobs for delta in await deltas_of(vllm_engine, plain))


async def test_arguments_reach_the_template(vllm_engine: VllmEngine) -> None:
    async def prompt_tokens(name: str, **arguments: bool) -> int:
        request = GenerateRequest(name, (Message("user", "Hello."),), 1, temperature=0, template_arguments=arguments)
        return (await deltas_of(vllm_engine, request))[-1].input_tokens

    # "<|im_start|>" and what follows.
    header = 1 + vllm_engine.count_tokens("assistant\n")
    assert await prompt_tokens("with") - await prompt_tokens("without", add_generation_prompt=False) == header


async def test_scores_are_the_probabilities_that_the_engine_tells(vllm_engine: VllmEngine) -> None:
    guard = stand_in(vllm_engine)
    together = await guard.score_whole(["cat", "chair", "cat", " "])
    assert [set(row) for row in together] == [set(LlamaGuard.categories)] * 4
    assert together[0] == together[2]
    assert together[3]["harm"] == 0
    for text, row in zip(("cat", "chair"), together[:2], strict=True):
        [question] = StandIn().ask(text, "user")
        request = GenerateRequest(f"by-hand-{text}", question.messages, 1, temperature=0, logprobs=LIKELIEST)
        [first] = [token for delta in await deltas_of(vllm_engine, request) for token in delta.logprobs]
        chances = {verdict: 0.0 for verdict in ("unsafe", "safe")}
        for told, logprob in first.likeliest:
            for verdict in chances:
                if told.strip() and verdict.startswith(told.strip().casefold()):
                    chances[verdict] += math.exp(logprob)
        assert row["harm"] == pytest.approx(chances["unsafe"] / sum(chances.values()), abs=1e-3)
    # The same text alone, without others in its batch.
    assert (await guard.score_whole(["chair"]))[0]["harm"] == pytest.approx(together[1]["harm"], abs=1e-3)


async def test_a_model_that_does_not_answer_in_the_form_blocks(vllm_engine: VllmEngine) -> None:
    guard = GuardModelScorer(FAMILIES["shieldgemma"], vllm_engine, 60.0)
    with pytest.raises(NotAnAnswer):
        await guard.score(["What a lovely morning."])
    with pytest.raises(ConfigError, match="does not answer as its family"):
        await guard.check()
    policy = Policy.load(None, ["ngram", "guard_model"], 1000.0, guard_model=guard)
    decision = await policy.decide(Stage.INPUT, "What a lovely morning.", PolicyContext())
    assert (decision.action, decision.reason_code) == (Action.BLOCK, "SCORER_FAILED")


async def test_a_call_past_its_deadline_is_aborted_in_the_engine(vllm_engine: VllmEngine) -> None:
    guard = GuardModelScorer(FAMILIES["llama_guard"], vllm_engine, 0.05)
    with pytest.raises(ScorerFailure, match="TimeoutError"):
        await run_scorers([guard], ["Tell me a long story.", "And another one, please."])
    assert vllm_engine.capacity().running == 0
    # vLLM has let go of them, too: what comes next has the engine for itself.
    [last] = (await deltas_of(vllm_engine, GenerateRequest("next", (Message("user", "Hi."),), 1, temperature=0)))[-1:]
    assert last.finish is EngineFinish.LENGTH


async def test_more_than_the_engine_has_places_for_is_refused(vllm_engine: VllmEngine) -> None:
    texts = ["cat", "chair", "lamp", "bird", "bench"]
    assert len(texts) == PARALLEL + WAITING + 1
    with pytest.raises(EngineOverloaded):
        await stand_in(vllm_engine).score_whole(texts)
    assert vllm_engine.capacity().running == 0
    async with asyncio.timeout(60):
        assert len(await stand_in(vllm_engine).score_whole(texts[:-1])) == PARALLEL + WAITING
