"""Who a persona is: the content of a revision."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
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
class PersonaDefinition:
    """The content of a revision; never changes once published.

    Attributes:
        card: who the persona is, in the second person.
        model: name of the model; empty is the host's default.
        adapter: name of a LoRA adapter of that model; empty is the base model.
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

    def to_json(self) -> bytes:
        """The recorded form."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> PersonaDefinition:
        """What `to_json` wrote."""
        raw: dict[str, Any] = orjson.loads(data)
        style = raw.pop("style")
        for key in ("signature_phrases", "avoided_phrases"):
            style[key] = tuple(style[key])
        exemplars = tuple(Exemplar(**one) for one in raw.pop("exemplars"))
        return cls(style=StyleSheet(**style), exemplars=exemplars, **raw)
