"""Small bundles that the policy tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from personae_runtime.policy.bundle import Bundle, parse_bundle
from personae_runtime.policy.decision import Decision, PolicyContext, Stage
from personae_runtime.policy.gate import StreamGate
from personae_runtime.policy.scorers import CATEGORIES, Scorer

CONTEXT = PolicyContext()

IN_ENGLISH_ONLY = """
version: "1"
extends: default
templates: {not_read: "I can talk in English only."}
rules:
  - id: language_not_read
    stages: [input]
    when: 'scores["other_language"] >= 0.9'
    action: block
    category: policy
    reason_code: LANGUAGE_NOT_SUPPORTED
    template: not_read
    description: The text is in a language that is not judged here.
    tests:
      - {text: "Wie geht es dir?", scores: {other_language: 0.95}, match: true}
      - {text: "How are you?", scores: {other_language: 0.1}, match: false}
"""

BUNDLE = r"""
version: 1.0.0
matchers:
  - {id: human, kind: regex, max_chars: 40, patterns: ['\bi\sam\s(?:a\s)?(?:real\s){0,2}human\b']}
  - {id: word, kind: literal, max_chars: 30, literals: [forbidden fruit, "Ünsäglich"]}
  - {id: mark, kind: literal, whole_word: false, max_chars: 8, literals: ["<|x|>"]}
  - {id: digits, kind: regex, max_chars: 12, patterns: ['[0-9]{3,6}-[0-9]{2,4}']}
  - {id: card, kind: regex, max_chars: 37, validator: luhn, patterns: ['\b(?:[0-9][ -]?){12,18}[0-9]\b']}
  - {id: mail, kind: regex, max_chars: 60, patterns: ['\b[a-z0-9.]{1,20}@(?:[a-z]{1,8}\.){1,3}[a-z]{2,7}\b']}
  - {id: noted, kind: literal, max_chars: 10, literals: [banana]}
templates:
  disclosure: "{persona} is an AI."
  disclosure_clone: "This is not {persona}, but an AI."
  refusal: "No."
  mail_removed: "[mail]"
notices:
  HELP: {default: "call somebody", regions: {PT: "ligue"}}
rules:
  - id: stop
    stages: [output, input, memory]
    when: '"human" in matches || "word" in matches || "mark" in matches || "digits" in matches || "card" in matches'
    action: block
    category: test
    reason_code: STOPPED
    notice: HELP
    description: stops
    tests: [{text: I am a human, match: true}, {text: I am here, match: false}]
  - id: flood
    stages: [output]
    when: '"ignorable_flood" in matches'
    action: escalate
    category: test
    reason_code: FLOOD
    description: stops floods
    tests: [{text: "a\u200b\u200b\u200b\u200b\u200b\u200b\u200b\u200b\u200bb", match: true}, {text: ab, match: false}]
  - id: redact
    stages: [output]
    when: '"mail" in matches'
    action: transform
    redact: [mail]
    template: mail_removed
    category: test
    reason_code: REDACTED
    description: redacts
    tests: [{text: to a@b.example now, match: true}, {text: to a at b, match: false}]
  - id: note
    stages: [output]
    when: '"noted" in matches'
    action: allow
    category: test
    reason_code: NOTED
    description: records
    tests: [{text: a banana, match: true}, {text: an apple, match: false}]
  - id: scored
    stages: [output, input]
    when: 'scores["violence"] >= 0.5'
    action: block
    category: violence
    reason_code: SCORED
    description: by score
    tests: [{text: x, match: true, scores: {violence: 0.5}}, {text: x, match: false, scores: {violence: 0.49}}]
"""


class WordScorer:
    """Scores violence by how many of some words are in a text; deterministic and cheap."""

    name = "word"
    categories = CATEGORIES
    deadline_s = 5.0

    def __init__(self, *words: str, needed: int = 1) -> None:
        self.words, self.needed = words, needed
        self.units: list[str] = []  # the first text of each call is the unit, the second repeats it with its window

    def score_sync(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        self.units.append(texts[0])
        return [
            dict.fromkeys(CATEGORIES, 0.0)
            | {"violence": min(1.0, sum(w in text.lower() for w in self.words) / (2 * self.needed))}
            for text in texts
        ]

    async def score(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        return self.score_sync(texts)


class WholeWordScorer:
    """Scores violence of whole texts by how many of some words are in them, and none of units."""

    name = "whole"
    categories = CATEGORIES
    deadline_s = 5.0

    def __init__(self, *words: str, needed: int = 1) -> None:
        self._scorer = WordScorer(*words, needed=needed)
        self.asked: list[str] = []
        self.pieces: list[str] = []

    async def score(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        self.asked += texts
        return [dict.fromkeys(CATEGORIES, 0.0) for _ in texts]

    async def score_whole(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        self.pieces += texts
        return self._scorer.score_sync(texts)


def load(text: str = BUNDLE) -> Bundle:
    return parse_bundle(text.encode(), "test.yaml", WordScorer("violence"), protocols=False)


def whole(text: str = BUNDLE) -> Bundle:
    """With the protocols, as a `Policy` needs it; no scorer here passes their tests."""
    return parse_bundle(text.encode(), "test.yaml", None)


def run_gate(
    bundle: Bundle, chunks: Iterable[str], scorers: Sequence[Scorer] = (), *, obey_hint: bool = True
) -> tuple[str, tuple[Decision, ...], int]:
    """What left, every decision, and how many raw characters were cleared, as the turn drives a gate."""

    async def drive() -> tuple[str, tuple[Decision, ...], int]:
        gate = StreamGate(bundle.plan(Stage.OUTPUT, CONTEXT), scorers)
        out: list[str] = []
        for chunk in chunks:
            if gate.feed(chunk) or not obey_hint:
                cleared = await gate.clear()
                out.append(cleared.text)
                if cleared.decision is not None and cleared.decision.action.stops:
                    return "".join(out), gate.decisions, gate.released_chars
        out.append((await gate.clear(final=True)).text)
        return "".join(out), gate.decisions, gate.released_chars

    return asyncio.run(drive())
