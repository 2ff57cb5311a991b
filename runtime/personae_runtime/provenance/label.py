"""Labels: what marks words as an AI's, in machine-readable form (Regulation (EU) 2024/1689, article 50(2)).

One label goes with everything that leaves in a persona's name: events, turns,
exports and manifests. It says what was in force when the words were made, so
what it rests on is kept with the turn (`Origin`) and never looked up later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import orjson

from personae_runtime.memory.store import ENGINE_EXTRACTOR, MemoryRecord


class DigitalSourceType(StrEnum):
    """Terms of the IPTC's Digital Source Type NewsCodes (https://cv.iptc.org/newscodes/digitalsourcetype/)."""

    TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    """Made by a model that was trained on content."""
    COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    """That, together with something else."""
    ALGORITHMIC = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicMedia"
    """Made by rules alone: words that policy says in the persona's place."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What writes a turn's reply and what lets it out, as it was when the turn was admitted.

    Attributes:
        model: as the host lists it.
        adapter: LoRA adapter of the model; empty for none.
        policy_bundle: version of the bundle, with the hash of its content.
    """

    model: str = ""
    adapter: str = ""
    policy_bundle: str = ""

    def to_json(self) -> str:
        """The recorded form."""
        return orjson.dumps(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Origin:
        """What `to_json` wrote, also in another version; what was not recorded is empty."""
        found = orjson.loads(text)
        return cls(found.get("model", ""), found.get("adapter", ""), found.get("policy_bundle", ""))


NO_ORIGIN: Final = Origin()


@dataclass(frozen=True, slots=True)
class Label:
    """What marks one piece of text.

    Attributes:
        persona: full name of the persona in whose name it was said.
        revision: full name of the revision; empty where none wrote, as of facts.
        origin: of text that no model wrote `model` and `adapter` are empty.
        generated_at: aware, UTC.
    """

    persona: str
    revision: str
    origin: Origin
    generated_at: datetime
    source: DigitalSourceType

    def to_dict(self) -> dict[str, Any]:
        """The label as JSON, with the API's names (`AiLabel`)."""
        return {
            "generated_by_ai": True,
            "persona": self.persona,
            "revision": self.revision,
            **asdict(self.origin),
            "generate_time": self.generated_at.isoformat().replace("+00:00", "Z"),
            "digital_source_type": self.source.value,
        }


def of_text(persona: str, revision: str, origin: Origin, at: datetime, *, template: bool) -> Label:
    """The label of a piece of a reply; `template` is of words that policy says in the persona's place."""
    if template:
        return Label(persona, revision, Origin(policy_bundle=origin.policy_bundle), at, DigitalSourceType.ALGORITHMIC)
    return Label(persona, revision, origin, at, DigitalSourceType.TRAINED)


def of_reply(
    persona: str, revision: str, origin: Origin, at: datetime, *, finish_reason: str, in_history: bool
) -> Label:
    """The label of a whole reply.

    Policy that stops a reply says something in its place, behind what had been
    released. Policy that stops the person's words (they do not become history)
    says all of it.
    """
    if finish_reason != "POLICY":
        return Label(persona, revision, origin, at, DigitalSourceType.TRAINED)
    if not in_history:
        return of_text(persona, revision, origin, at, template=True)
    return Label(persona, revision, origin, at, DigitalSourceType.COMPOSITE)


def of_memory(persona: str, record: MemoryRecord) -> Label | None:
    """The label of a memory: of a fact that a model drew from the person's words. None for their words themselves."""
    if record.fact is None or not record.fact.extractor.startswith(ENGINE_EXTRACTOR):
        return None
    origin = Origin(model=record.fact.extractor.removeprefix(ENGINE_EXTRACTOR))
    return Label(persona, "", origin, record.created_at, DigitalSourceType.COMPOSITE)


def of_document(persona: str, digital_source_type: str, published_at: datetime) -> Label | None:
    """The label of a document and its passages, as far as whoever stored it says that it was generated."""
    try:
        source = DigitalSourceType(digital_source_type)
    except ValueError:
        return None
    return Label(persona, "", NO_ORIGIN, published_at, source)


def of_card(facts: Iterable[Label | None], at: datetime | None) -> Label | None:
    """The label of a profile card made of facts with these labels; None if a model drew none of them."""
    found = next((one for one in facts if one is not None), None)
    return None if found is None or at is None else replace(found, generated_at=at)
