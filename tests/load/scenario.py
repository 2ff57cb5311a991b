"""Who talks, about what, when, and what goes wrong on the way: the load before it is sent.

Everything is drawn from one seed, before or apart from any answer: a server
that is slow can't make the load lighter.
"""

from __future__ import annotations

import json
import math
import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from personae_runtime.errors import ConfigError

TEXTS = (
    "My rear brake squeals when it rains. What should I check first?",
    "Which tyres did I put on for the winter, and were they any good?",
    "How do I true a wheel at home without a stand?",
    "The shifter feels loose since my last ride. Is that serious?",
    "I slept badly and the harbour was loud all night. What now?",
    "Tell me about the orchard again, the one behind the school.",
    "We had a long day; what would be a quiet thing to do tonight?",
    "Please help me write two lines for my aunt's birthday card.",
)
_LATEST_EVENT = 3
"""A stream is cut, or a turn cancelled, after one to this many of its events."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Tenant(_Section):
    """One tenant's part of the load.

    Attributes:
        name: of the tenant, as in `tenants/{name}`.
        key: its API key; empty takes the one that the command line gives.
        share: its part of all conversations, over the sum of all shares.
        personas, users: how many of each; a conversation draws one of both.
        first_user: number of the first user, for runs that must meet people who have not talked yet.
    """

    name: str = Field("demo", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    key: str = ""
    share: float = Field(1.0, gt=0)
    personas: int = Field(2, ge=1, le=1000)
    users: int = Field(200, ge=1)
    first_user: int = Field(0, ge=0)


class Message(_Section):
    """A chat message as OpenAI's API takes it."""

    role: str
    content: str


class Scenario(_Section):
    """What the load is made of.

    Pauses between a reply and the next turn are log-normal, as times between
    messages that people send are found to be (Stouffer, Malmgren and Amaral,
    arXiv:physics/0605027; Blenn and Van Mieghem, arXiv:1607.02952). Their
    median and spread are this project's assumption for a chat.

    Attributes:
        seed: of everything that is drawn.
        tenants: the mix.
        texts: what people say; drawn at random.
        messages: verbatim chats, one for each conversation in turn, in place of
            `texts` (driver `openai` only): for runs that must send equal prompts.
        system: first message of a chat (driver `openai` only).
        think_median_s, think_sigma: of the pause; sigma is that of the logarithm.
        turns_mean: mean turns of a conversation, geometric, at least one.
        reply_tokens: limit of a reply; also the length that plans assume.
        tokens_per_s: pace of one stream that plans assume.
        temperature: of sampling; 0 is greedy.
        resume_share: share of turns whose stream is cut and attached again.
        cancel_share: share of turns that are cancelled half-way.
    """

    seed: int = 0
    tenants: tuple[Tenant, ...] = Field((Tenant(),), min_length=1)
    texts: tuple[str, ...] = Field(TEXTS, min_length=1)
    messages: tuple[tuple[Message, ...], ...] = ()
    system: str = "You are Nadia, the assistant of a bicycle workshop by the river."
    think_median_s: float = Field(15.0, gt=0)
    think_sigma: float = Field(1.0, ge=0, le=3)
    turns_mean: float = Field(4.0, ge=1)
    reply_tokens: int = Field(64, ge=1, le=4096)
    tokens_per_s: float = Field(10.0, gt=0)
    temperature: float = Field(0.0, ge=0, le=2)
    resume_share: float = Field(0.02, ge=0, le=1)
    cancel_share: float = Field(0.02, ge=0, le=1)

    @property
    def reply_s(self) -> float:
        """Seconds that a reply is planned to take."""
        return self.reply_tokens / self.tokens_per_s


def load_scenario(path: Path | None = None, **changed: Any) -> Scenario:
    """A scenario from a TOML or JSON file, with single values replaced.

    Raises:
        ConfigError: the file can't be read or parsed, or a value is not allowed; it says which and why.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
            values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The scenario {path} can't be read: {error}.") from error
        except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"The scenario {path} is not valid {path.suffix[1:].upper()}: {error}.") from error
        if not isinstance(values, dict):
            raise ConfigError(f"The scenario {path} must be a table of settings, such as {{'seed': 1}}.")
    try:
        return Scenario.model_validate(values | changed)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'scenario'}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False)
        )
        raise ConfigError(f"The scenario {path or ''} is not valid: {problems}.") from error


@dataclass(frozen=True, slots=True)
class PlannedTurn:
    """One turn.

    Attributes:
        due_s: when it should be sent, seconds from the start of the run.
        cut_after, cancel_after: events after which the stream is cut, or the
            turn cancelled; None is never.
    """

    number: int
    due_s: float
    text: str
    cut_after: int | None = None
    cancel_after: int | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A session's plan.

    Attributes:
        turns: how many; None goes on for as long as the run does.
        gap_median_s: median pause before a further turn.
    """

    scenario: Scenario
    index: int
    tenant: Tenant
    persona: str
    user: str
    first_due_s: float
    turns: int | None
    gap_median_s: float

    def plan(self) -> Iterator[PlannedTurn]:
        """Its turns, the same each time it is called.

        A turn is due when the one before should have been over, and a pause
        later, whether it is over or not.
        """
        draw, scenario = _draw(self.scenario.seed, "turns", self.index), self.scenario
        due, number = self.first_due_s, 0
        while self.turns is None or number < self.turns:
            number += 1
            chance, at = draw.random(), draw.randint(1, _LATEST_EVENT)
            cut = chance < scenario.resume_share
            cancel = not cut and chance < scenario.resume_share + scenario.cancel_share
            text = draw.choice(scenario.texts)
            yield PlannedTurn(number, due, text, at if cut else None, at if cancel else None)
            due += scenario.reply_s + draw.lognormvariate(math.log(self.gap_median_s), scenario.think_sigma)


def arrivals(scenario: Scenario, rate: float, duration_s: float) -> list[Conversation]:
    """Conversations that begin by a Poisson process of `rate` per second, for `duration_s` seconds."""
    draw = _draw(scenario.seed, "arrivals")
    found: list[Conversation] = []
    at = draw.expovariate(rate)
    while at < duration_s:
        more = 1 - 1 / scenario.turns_mean
        turns = 1
        while draw.random() < more:
            turns += 1
        found.append(_conversation(scenario, len(found), at, turns, scenario.think_median_s))
        at += draw.expovariate(rate)
    return found


def held_open(scenario: Scenario, count: int, streaming_share: float) -> list[Conversation]:
    """`count` conversations that go on and on, of which about `streaming_share` stream at any time.

    The pauses follow from the planned length of a reply. The first turns are due
    as if everybody had talked for long: at the forward recurrence time of the
    renewal process of turns (Cox, Renewal Theory, 1962), so that the load is the
    same from the first second on.
    """
    draw = _draw(scenario.seed, "open")
    sigma, reply = scenario.think_sigma, scenario.reply_s
    mean = reply * (1 - streaming_share) / streaming_share
    mu = math.log(mean) - sigma**2 / 2
    found = []
    for index in range(count):
        # The cycle that covers a given moment is drawn by its length: a log-normal's
        # length-biased form is the log-normal with mu + sigma².
        biased = draw.random() < mean / (mean + reply)
        cycle = reply + draw.lognormvariate(mu + sigma**2 if biased else mu, sigma)
        found.append(_conversation(scenario, index, draw.random() * cycle, None, math.exp(mu)))
    return found


def burst(scenario: Scenario, count: int) -> list[Conversation]:
    """`count` conversations of one turn, all due at once."""
    return [_conversation(scenario, index, 0.0, 1, scenario.think_median_s) for index in range(count)]


def _conversation(scenario: Scenario, index: int, due: float, turns: int | None, gap: float) -> Conversation:
    draw = _draw(scenario.seed, "who", index)
    (tenant,) = draw.choices(scenario.tenants, [tenant.share for tenant in scenario.tenants])
    # A persona's revision is published once and kept: what differs in it is in the name.
    settings = f"{scenario.reply_tokens}-{round(scenario.temperature * 100)}"
    persona = f"load-{settings}-{draw.randrange(tenant.personas)}"
    # Users in turn: the quota of turns is per user, and a run must not meet it by chance.
    user = f"u{tenant.first_user + index % tenant.users}"
    return Conversation(scenario, index, tenant, persona, user, due, turns, gap)


def _draw(seed: int, *parts: object) -> random.Random:
    return random.Random("/".join(map(str, (seed, *parts))))
