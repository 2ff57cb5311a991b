"""Who a persona is: the content of a revision."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class StyleSheet:
    """How the persona writes; empty strings, zeros and empty tuples leave it to the model.

    Attributes:
        tone: in a few words.
        formality: "casual", "neutral", "formal" or "".
        max_sentences: of a usual reply.
        signature_phrases, avoided_phrases: that belong, or don't belong, to the persona.
        emoji: "none", "sparing", "free" or "".
        language_code: BCP 47 tag of the language of replies.
    """

    tone: str = ""
    formality: str = ""
    max_sentences: int = 0
    signature_phrases: tuple[str, ...] = ()
    avoided_phrases: tuple[str, ...] = ()
    emoji: str = ""
    language_code: str = ""


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One example of the persona's voice; an empty `prompt` makes it a post of its own."""

    reply: str
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class VerifiedClaim:
    """A fact of the person or business behind a persona that somebody with the permission to has verified.

    What it lets a persona say is `policy.claims`'.

    Attributes:
        claim_id: within the definition.
        kind: "child", "body", "possession", "offer" or "endorsement".
        statement: one fact, in the third person: "has a daughter called Mia".
        subject: what a sentence must name to be this fact: "Mia"; empty is nothing in particular.
        evidence: where the proof of it is kept.
        verified_by: name of the caller's key; empty until it is verified.
        verified_at, expires_at: aware UTC; without the latter it holds for good.
    """

    claim_id: str
    kind: str
    statement: str
    subject: str = ""
    evidence: str = ""
    verified_by: str = ""
    verified_at: datetime | None = None
    expires_at: datetime | None = None

    def holds_at(self, now: datetime) -> bool:
        """Whether it is verified and has not expired."""
        return self.verified_at is not None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class PersonaDefinition:
    """The content of a revision; never changes once published.

    Attributes:
        card: who the persona is, in the second person.
        model: name of the model; empty is the host's default.
        adapter: name of a LoRA adapter of that model; empty is the base model.
        verified_claims: what it may say of itself as a fact.
        max_output_tokens: of a reply; 0 is the host's default.
        temperature: of sampling; None is the host's default.
    """

    card: str
    style: StyleSheet = field(default_factory=StyleSheet)
    exemplars: tuple[Exemplar, ...] = ()
    model: str = ""
    max_output_tokens: int = 0
    temperature: float | None = None
    adapter: str = ""
    verified_claims: tuple[VerifiedClaim, ...] = ()

    def to_json(self) -> bytes:
        """The recorded form; without claims as it was before there were any, so that older gateways can read it."""
        raw = asdict(self)
        if not self.verified_claims:
            del raw["verified_claims"]
        return orjson.dumps(raw)

    @classmethod
    def from_json(cls, data: bytes) -> PersonaDefinition:
        """What `to_json` wrote."""
        raw: dict[str, Any] = orjson.loads(data)
        style = raw.pop("style")
        for key in ("signature_phrases", "avoided_phrases"):
            style[key] = tuple(style[key])
        exemplars = tuple(Exemplar(**one) for one in raw.pop("exemplars"))
        claims = tuple(_claim(one) for one in raw.pop("verified_claims", ()))
        return cls(style=StyleSheet(**style), exemplars=exemplars, verified_claims=claims, **raw)


def _claim(raw: dict[str, Any]) -> VerifiedClaim:
    times = {key: raw[key] and datetime.fromisoformat(raw[key]) for key in ("verified_at", "expires_at")}
    return VerifiedClaim(**{**raw, **times})
