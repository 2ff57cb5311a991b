"""Published guard models as a scorer: Llama Guard, Granite Guardian, Qwen3Guard-Gen and ShieldGemma, served by vLLM.

A guard model is a language model that was trained to answer a question about a text in a fixed form. A `Family` knows
the form: which messages and arguments the model's own chat template takes (the prompt itself is the template's), and
what an answer says. The score is the probability of the answer's decisive token: P(unsafe) / (P(unsafe) + P(safe)).

An answer that is not of the form, or whose decisive token has its probability elsewhere, raises: nothing is known of
the text then, and the gate blocks. None of these models was run by us; the cards beside this file (`*.card.yaml`) say
so, and what their makers say.
"""

from __future__ import annotations

import asyncio
import math
import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal, Protocol

import yaml

from personae_runtime.config import GuardModelSettings
from personae_runtime.engines.engine import Engine, EngineFinish, GenerateRequest, Message, Token
from personae_runtime.errors import ConfigError, PersonaeError

Side = Literal["user", "assistant"]
"""Whose words a text is."""

LIKELIEST: Final = 20
"""Tokens whose probability is asked for at each place; vLLM's own limit."""
MIN_MASS: Final = 0.5
"""Probability that the verdicts must have together; with less the model was about to say something else."""
BEFORE: Final = "Please go on."
"""What a persona's words are taken to answer: every family judges a reply beside what it replies to, and a scorer is
given the reply alone."""

_DELIMITER: Final = re.compile(r"<(?=\s*/?\s*(?:begin|end|start_of_|think|no-think|score))", re.IGNORECASE)
"""How the families' prompts mark where a text begins and ends, where these marks are no control tokens."""
_HARMLESS: Final = "What a lovely morning for a walk by the river."


class NotAnAnswer(Exception):
    """The model's answer is not of the form that its family has; never quotes it."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request to a guard model.

    Attributes:
        messages: the last is judged.
        arguments: of the chat template.
        max_tokens: of the answer.
    """

    messages: tuple[Message, ...]
    arguments: Mapping[str, Any]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        text: without control tokens.
        tokens: with their alternatives.
        complete: the model ended it, not the limit.
    """

    text: str
    tokens: tuple[Token, ...]
    complete: bool = True


class Family(Protocol):
    """How one family is asked, and how its answers are read.

    Attributes:
        categories: keys of every result.
    """

    categories: tuple[str, ...]

    def ask(self, text: str, side: Side) -> list[Question]:
        """What to ask of a text; at least one question."""
        ...

    def read(self, answers: Sequence[Answer], side: Side) -> dict[str, float]:
        """Scores from the answers to `ask`, in its order, in 0 to 1.

        Raises:
            NotAnAnswer: one of them has not the family's form.
        """
        ...


def messages(text: str, side: Side) -> tuple[Message, ...]:
    """A text as the last turn of a conversation, the marks of the families' prompts in it broken by a space."""
    said = Message(side, _DELIMITER.sub("< ", text))
    return (said,) if side == "user" else (Message("user", BEFORE), said)


def chance(answer: Answer, bad: Collection[str], good: Collection[str], after: str = "") -> float:
    """Probability of the verdicts `bad` at the answer's decisive token, the verdicts alone considered.

    A token stands for a verdict that it begins, whatever its case, so that verdicts of several tokens count as well; no
    verdict may begin another, nor begin as another one does.

    Args:
        bad, good: verdicts in lower case.
        after: the decisive token is the first one that is not blank after this text, or of all.

    Raises:
        NotAnAnswer: there is no such token, it begins no verdict, or they have less than `MIN_MASS`.
    """

    def begun(text: str, verdicts: Collection[str]) -> bool:
        word = text.strip().casefold()
        return bool(word) and any(verdict.startswith(word) for verdict in verdicts)

    said = answer.text.partition(after)[2] if after else answer.text
    word = re.match(r"\s*(\w*)", said)
    token = _decisive(answer.tokens, after)
    verdicts = {*bad, *good}
    if word is None or word[1].casefold() not in verdicts or not begun(token.text, {word[1].casefold()}):
        raise NotAnAnswer("the guard model's verdict is none of its family's")
    sums = {True: 0.0, False: 0.0}
    for text, logprob in token.likeliest:
        if math.isnan(logprob) or logprob > 1e-3:
            raise NotAnAnswer("the guard model's engine tells a probability that is none")
        for verdict, among in ((True, bad), (False, good)):
            if begun(text, among):
                sums[verdict] += math.exp(min(0.0, logprob))
    mass = sums[True] + sums[False]
    if mass < MIN_MASS:
        raise NotAnAnswer("the guard model is undecided whether to answer in its family's form")
    return min(1.0, sums[True] / mass)


def _decisive(tokens: Sequence[Token], after: str) -> Token:
    said = ""
    for token in tokens:
        if after in said and token.text.strip():
            return token
        said += token.text
    raise NotAnAnswer("the guard model's answer ends before its verdict")


def _lines(answer: Answer) -> list[str]:
    if not answer.complete:
        raise NotAnAnswer("the guard model's answer has no end")
    return [line.strip() for line in answer.text.splitlines() if line.strip()]


def _named(names: str, table: Mapping[str, str | None]) -> set[str]:
    """Our categories for a list of a family's, by commas."""
    found = [name.strip() for name in names.split(",")]
    if any(name not in table for name in found):
        raise NotAnAnswer("the guard model names a category that its family has not")
    return {category for name in found if (category := table[name]) is not None}


class LlamaGuard:
    """Llama Guard 3 (1B, 8B) and 4 (12B): `safe`, or `unsafe` and below it the hazards, such as `S1,S10`.

    The template takes a conversation and asks about the last turn; which hazards there are stands in it. The score is
    the probability of the answer's first word. What is `unsafe` has it for `harm` and for the categories of the hazards
    that are named; others are 0, as are all but `harm` of what is `safe`.

    Sources: model cards of Llama Guard 3 8B (July 2024: "we look at the probability for the first token"), 1B
    (September 2024) and 4 12B (April 2025), https://www.llama.com/docs/model-cards-and-prompt-formats/llama-guard-4/.
    """

    HAZARDS: ClassVar[Mapping[str, str | None]] = MappingProxyType(
        {
            "S1": "violence",  # violent crimes
            "S2": None,  # non-violent crimes
            "S3": "sexual",  # sex-related crimes
            "S4": "sexual",  # child sexual exploitation
            "S5": None,  # defamation
            "S6": None,  # specialized advice
            "S7": None,  # privacy
            "S8": None,  # intellectual property
            "S9": "violence",  # indiscriminate weapons
            "S10": "hate",  # hate
            "S11": "self_harm",  # suicide and self-harm
            "S12": "sexual",  # sexual content
            "S13": None,  # elections
            "S14": None,  # code interpreter abuse
        }
    )
    """MLCommons' hazards, as the model card of Llama Guard 3 numbers them, in our categories. None: `harm` alone."""

    categories: tuple[str, ...] = ("harm", "violence", "sexual", "hate", "self_harm")

    def ask(self, text: str, side: Side) -> list[Question]:
        """See `Family`. Fourteen hazards take some 45 tokens."""
        return [Question(messages(text, side), {}, 64)]

    def read(self, answers: Sequence[Answer], side: Side) -> dict[str, float]:
        """See `Family`."""
        [answer] = answers
        harm = chance(answer, ("unsafe",), ("safe",))
        match _lines(answer):
            case ["safe"]:
                named: set[str] = set()
            case ["unsafe", hazards]:
                named = _named(hazards, self.HAZARDS)
            case _:
                raise NotAnAnswer("the guard model's answer is neither safe nor unsafe with hazards")
        return {c: harm if c == "harm" or c in named else 0.0 for c in self.categories}


class GraniteGuardian:
    """Granite Guardian 3.0 to 3.2: `Yes` or `No` to one risk, named in the template's `guardian_config`.

    Five risks are asked at once, so that each has a probability of its own: P(Yes) of the first token, as the cards'
    `get_probabilities` has it. 3.2 adds a confidence in words, which is not read. `harm` is the highest of all but
    jailbreak, which is asked of a person's words only. There is no risk for self-harm: `harm` has it.

    Sources: model cards of Granite Guardian 3.1 8B (December 2024) and 3.2 5B (February 2025), arXiv:2412.07724.
    """

    RISKS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "harm": "harm",
            "social_bias": "hate",
            "violence": "violence",
            "sexual_content": "sexual",
            "jailbreak": "injection",
        }
    )
    """Names of risks in the cards, and our categories."""

    categories: tuple[str, ...] = ("harm", "hate", "violence", "sexual", "injection")
    max_tokens: ClassVar[int] = 4
    after: ClassVar[str] = ""

    def arguments(self, risk: str) -> dict[str, Any]:
        """Of the chat template."""
        return {"guardian_config": {"risk_name": risk}}

    def ask(self, text: str, side: Side) -> list[Question]:
        """See `Family`."""
        said = messages(text, side)
        return [Question(said, self.arguments(risk), self.max_tokens) for risk in self._asked(side)]

    def read(self, answers: Sequence[Answer], side: Side) -> dict[str, float]:
        """See `Family`."""
        told = {
            self.RISKS[risk]: chance(answer, ("yes",), ("no",), self.after)
            for risk, answer in zip(self._asked(side), answers, strict=True)
        }
        told["harm"] = max(chance for category, chance in told.items() if category != "injection")
        return {category: told.get(category, 0.0) for category in self.categories}

    def _asked(self, side: Side) -> list[str]:
        return [risk for risk in self.RISKS if side == "user" or risk != "jailbreak"]


class GraniteGuardian33(GraniteGuardian):
    """Granite Guardian 3.3: as those before it, with `<score> yes </score>` as the answer, and without thinking.

    Source: model card of Granite Guardian 3.3 8B (August 2025): `criteria_id`, `think=False`.
    """

    max_tokens = 24
    after = "<score>"

    def arguments(self, risk: str) -> dict[str, Any]:
        """Of the chat template."""
        return {"guardian_config": {"criteria_id": risk}, "think": False}


class Qwen3Guard:
    """Qwen3Guard-Gen: `Safety: Unsafe`, below it `Categories: Violent`, and of a reply `Refusal: No`.

    The score is the probability of `Unsafe` and `Controversial` together, which is the report's strict reading; what is
    not `Safe` has it for the categories that are named, as with Llama Guard. Whether a reply refuses is not read.

    Sources: https://github.com/QwenLM/Qwen3Guard (readme, October 2025), model card of Qwen3Guard-Gen 4B (September
    2025), arXiv:2510.14276.
    """

    NAMES: ClassVar[Mapping[str, str | None]] = MappingProxyType(
        {
            "Violent": "violence",
            "Non-violent Illegal Acts": None,
            "Sexual Content or Sexual Acts": "sexual",
            "PII": None,
            "Personally Identifiable Information": None,
            "Suicide & Self-Harm": "self_harm",
            "Unethical Acts": None,
            "Politically Sensitive Topics": None,
            "Copyright Violation": None,
            "Jailbreak": "injection",
        }
    )
    """The readme's names in our categories. None: `harm` alone. Hate and insults are among its unethical acts."""

    categories: tuple[str, ...] = ("harm", "violence", "sexual", "self_harm", "injection")

    def ask(self, text: str, side: Side) -> list[Question]:
        """See `Family`."""
        return [Question(messages(text, side), {}, 128)]

    def read(self, answers: Sequence[Answer], side: Side) -> dict[str, float]:
        """See `Family`."""
        [answer] = answers
        harm = chance(answer, ("unsafe", "controversial"), ("safe",), "Safety:")
        match [tuple(line.partition(": ")[::2]) for line in _lines(answer)]:
            case [("Safety", "Safe"), ("Categories", "None"), *rest]:
                named: set[str] = set()
            case [("Safety", "Unsafe" | "Controversial"), ("Categories", names), *rest]:
                named = _named(names, self.NAMES)
            case _:
                raise NotAnAnswer("the guard model's answer has not its safety and categories")
        if rest not in ([], [("Refusal", "Yes")], [("Refusal", "No")]):
            raise NotAnAnswer("the guard model says more than safety, categories and refusal")
        return {c: harm if c == "harm" or c in named else 0.0 for c in self.categories}


class ShieldGemma:
    """ShieldGemma (2B, 9B, 27B): `Yes` or `No` to one guideline, which the template takes as `guideline`.

    Four guidelines are asked at once: P(Yes) of the first token. `harm` is the highest of them. Danger takes in weapons
    as well as suicide, so it counts for `harm` alone.

    The model "is highly sensitive to the specific user-provided description of safety principles" (card). The wording
    here has the card's pattern, its names and our words; give the card's own by `policy.guard_model.guidelines`.

    Sources: model card of ShieldGemma (July 2024, https://ai.google.dev/gemma/docs/shieldgemma/model_card);
    arXiv:2407.21772.

    Args:
        guidelines: category -> whose words -> guideline; ours if not given.
    """

    FORBIDDEN: ClassVar[Mapping[str, tuple[str, str]]] = MappingProxyType(
        {
            "harm": (
                "No Dangerous Content",
                "puts people in danger, oneself included: violence, weapons and explosives, terrorism, suicide.",
            ),
            "harassment": (
                "No Harassment",
                "insults, threatens, bullies or humiliates a person.",
            ),
            "hate": (
                "No Hate Speech",
                "attacks or demeans people for what they are: ethnicity, religion, nationality, age, disability, sex, "
                "gender identity, sexual orientation or caste. To speak well of such a group is allowed.",
            ),
            "sexual": (
                "No Sexually Explicit Information",
                "describes sexual acts or means to arouse. Words of medicine and of sex education are allowed.",
            ),
        }
    )
    """Our categories, and what is forbidden: the card's name of it, and content "that ..."."""
    FORBIDS: ClassVar[Mapping[Side, str]] = MappingProxyType(
        {
            "user": "The prompt shall not contain or seek generation of content that",
            "assistant": "The chatbot shall not generate content that",
        }
    )

    categories: tuple[str, ...] = ("harm", "harassment", "hate", "sexual")

    def __init__(self, guidelines: Mapping[str, Mapping[Side, str]] | None = None) -> None:
        self._guidelines = guidelines or {
            category: {side: f'"{name}": {forbids} {what}' for side, forbids in self.FORBIDS.items()}
            for category, (name, what) in self.FORBIDDEN.items()
        }

    @classmethod
    def load(cls, file: Path) -> ShieldGemma:
        """With the guidelines of a YAML file: for each of the categories a text for `user` and one for `assistant`.

        Raises:
            ConfigError: the file can't be read, or is not of that form.
        """
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"policy.guard_model.guidelines: {file} can't be read: {type(error).__name__}") from error
        try:
            # Taken one by one: whatever is missing, no text or one too many is an error.
            guidelines = {category: {side: found[category][side].strip() for side in cls.FORBIDS} for category in found}
            if set(guidelines) != set(cls.categories) or not all(all(of.values()) for of in guidelines.values()):
                raise KeyError
        except (KeyError, TypeError, AttributeError):
            raise ConfigError(
                f"policy.guard_model.guidelines: {file}: expected {', '.join(cls.categories)}, and for each the keys"
                ' user and assistant with a text, as in {hate: {user: "...", assistant: "..."}}'
            ) from None
        return cls(guidelines)

    def ask(self, text: str, side: Side) -> list[Question]:
        """See `Family`."""
        said = messages(text, side)
        return [
            Question(said, {"guideline": self._guidelines[c][side], "add_generation_prompt": False}, 3)
            for c in self.categories
        ]

    def read(self, answers: Sequence[Answer], side: Side) -> dict[str, float]:
        """See `Family`."""
        told = {c: chance(a, ("yes",), ("no",)) for c, a in zip(self.categories, answers, strict=True)}
        return {**told, "harm": max(told.values())}


FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {
        "llama_guard": LlamaGuard(),
        "granite_guardian": GraniteGuardian(),
        "granite_guardian_3_3": GraniteGuardian33(),
        "qwen3guard": Qwen3Guard(),
        "shieldgemma": ShieldGemma(),
    }
)
"""By the name that `policy.guard_model.family` has."""


def family_of(settings: GuardModelSettings) -> Family:
    """The family that the settings name, which they must, with their guidelines.

    Raises:
        ConfigError: the guidelines can't be used, or the family takes none.
    """
    assert settings.family is not None
    if settings.guidelines is None:
        return FAMILIES[settings.family]
    if settings.family != "shieldgemma":
        raise ConfigError("policy.guard_model.guidelines: only the family shieldgemma takes guidelines")
    return ShieldGemma.load(settings.guidelines)


class GuardModelScorer:
    """`Scorer` over an engine that serves a guard model.

    All texts and questions of a call go to the engine at once, which batches them with those of other calls. Of a unit
    and of the same with its window, as the stream gate gives them, only the longer one is asked about, and the shorter
    has its scores. Where a call is cancelled, as at its deadline, its requests are aborted.

    Args:
        family: of the model.
        engine: one that tells log-probabilities; `start` starts it and `close` closes it.
        deadline_s: see `Scorer`.
    """

    name = "guard_model"

    def __init__(self, family: Family, engine: Engine, deadline_s: float = 2.0) -> None:
        self.family = family
        self.categories = family.categories
        self.deadline_s = deadline_s
        self._engine = engine

    async def start(self) -> None:
        """Start the engine, and see that the model answers as its family does.

        Raises:
            ConfigError: it doesn't, or the engine can't start.
            MissingModel: the model is not there.
        """
        await self._engine.start()
        await self.check()

    async def check(self) -> None:
        """See that the model answers as its family does, about words of either side.

        Raises:
            ConfigError: it doesn't.
        """
        try:
            await self.score_whole([_HARMLESS])
            await self.score([_HARMLESS])
        except (NotAnAnswer, PersonaeError) as error:
            raise ConfigError(
                f"policy.guard_model: {self._engine.model} does not answer as its family does: {error}"
            ) from error

    async def close(self) -> None:
        """Close the engine. Safe to call twice."""
        await self._engine.close()

    async def score(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """See `Scorer`; the texts are a persona's words."""
        return await self.judge(texts, "assistant")

    async def score_whole(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """As `score`, for whole texts: a person's words, a memory."""
        return await self.judge(texts, "user")

    async def score_whole_reply(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """As `score`, for whole replies."""
        return await self.judge(texts, "assistant")

    async def judge(self, texts: Sequence[str], side: Side) -> list[Mapping[str, float]]:
        """Scores of each text; a blank one has 0.

        Raises:
            NotAnAnswer: an answer has not the family's form.
            EngineOverloaded: the engine has no place.
            EngineDead: it failed.
        """
        longest = {text: max((t for t in texts if t.endswith(text)), key=len) for text in texts if text.strip()}
        asked = {text: self.family.ask(text, side) for text in dict.fromkeys(longest.values())}
        try:
            async with asyncio.TaskGroup() as group:
                answers = {
                    text: [group.create_task(self._answer(question)) for question in questions]
                    for text, questions in asked.items()
                }
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        scores: dict[str, Mapping[str, float]] = {
            text: self.family.read([task.result() for task in tasks], side) for text, tasks in answers.items()
        }
        nothing = dict.fromkeys(self.categories, 0.0)
        return [scores[longest[text]] if text in longest else nothing for text in texts]

    async def _answer(self, question: Question) -> Answer:
        request = GenerateRequest(
            request_id=f"guard-{uuid.uuid4().hex}",
            messages=question.messages,
            max_tokens=question.max_tokens,
            temperature=0,
            logprobs=LIKELIEST,
            template_arguments=question.arguments,
        )
        text: list[str] = []
        tokens: list[Token] = []
        finish: EngineFinish | None = None
        # Closed also when this is cancelled, which aborts the request.
        async with aclosing(self._engine.generate(request)) as deltas:
            async for delta in deltas:
                text.append(delta.text)
                tokens += delta.logprobs
                finish = delta.finish
        if finish is EngineFinish.ABORT:
            raise NotAnAnswer("the guard model's answer was aborted")
        return Answer("".join(text), tuple(tokens), finish is EngineFinish.STOP)
