"""Verified claims: what they let a persona say, what nothing does, and the stream gate's guarantee with them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from personae_runtime.errors import InvalidArgument
from personae_runtime.personas.definition import PersonaDefinition, VerifiedClaim
from personae_runtime.policy.bundle import parse_bundle, protocol_file
from personae_runtime.policy.claims import check, holding, verification
from personae_runtime.policy.decision import Action, AgeBand, Decision, PolicyContext, Stage
from personae_runtime.policy.normalize import Normalizer
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.units import WINDOW_CHARS, split_units
from tests.unit.policy.strategies import INVISIBLE

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
CASES = max(1_000, settings().max_examples)


def claim(id: str, kind: str, statement: str, subject: str = "", expires_at: datetime | None = None) -> VerifiedClaim:
    return VerifiedClaim(id, kind, statement, subject, "contract 7", "ops", NOW, expires_at)


CLAIMS = (
    claim("mia", "child", "has a daughter called Mia who is nine years old"),
    claim("lisbon", "body", "was born in Lisbon and grew up in Porto"),
    claim("bike", "possession", "has an old red bike"),
    claim("course", "offer", "is selling a course in wheel building", "wheel building"),
    claim("wax", "endorsement", "swears by Acme chain wax", "Acme wax"),
)
CLONE = PolicyContext("clone", AgeBand.ADULT, "PT", "acme", "ana", 3, CLAIMS)
# Rules of the protocols alone: nothing else may stop or note a text here.
BARE = Policy(parse_bundle(b'version: "1"\ntemplates: {refusal: "No."}\n', "bare.yaml", None), [])


def judged(text: str, context: PolicyContext = CLONE) -> Decision:
    return asyncio.run(BARE.decide(Stage.OUTPUT, text, context))


# -- what a claim covers ----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "by"),
    [
        ("I have a daughter.", "mia"),
        ("Yes, of course: I have a daughter called Mia!", "mia"),
        ("Hello there. I've got a daughter, Mia, who is nine. She is lovely.", "mia"),
        ("My daughter is called Mia", "mia"),
        ("I was born in Lisbon, and I grew up in Porto.", "lisbon"),
        ("I have an old bike.", "bike"),
        ("I'm selling a course in wheel building.", "course"),
        ("I swear by Acme's chain wax.", "wax"),
        ("I have a d\u0430ughter called Mia.", "mia"),  # a Cyrillic a
    ],
)
def test_a_sentence_of_the_claims_words_passes_and_the_decision_names_the_claim(text: str, by: str) -> None:
    decision = judged(text)
    assert decision.action is Action.ALLOW
    assert decision.claims == (f"tenants/acme/personas/ana/revisions/3/claims/{by}",)
    assert [hit.rule_id for hit in decision.rules] == ["identity_verified"]
    assert (decision.category, decision.reason_code) == ("", "")
    assert Decision.from_columns(
        {
            "stage": "output", "action": "allow", "category": "", "reason_code": "", "rules": [],
            "bundle_version": decision.bundle_version,
        },
        {},
        decision.detail(),
    ) == decision  # fmt: skip
    without = judged(text, PolicyContext("clone", AgeBand.ADULT, "PT", "acme", "ana", 3))
    assert without.action is Action.BLOCK
    assert without.claims == ()


@pytest.mark.parametrize(
    "text",
    [
        "I have a daughter called Zoe.",
        "I have a daughter, Zoe.",
        "Zoe is tired, I have a daughter.",
        "I have a daughter: Mia, and a son.",
        "I have two daughters.",
        "I have a daughter, not Mia.",
        "I have a daughter 👶",
        "I have a daughter called Mia\nand a cat",
        "I have a son called Mia.",
        "As a mother of two I know.",
        "I was born in Leeds.",
        "I have a new red bike.",
        "I have an old red car.",
        "I'm selling a course.",  # of what?
        "I'm selling a course in frame building.",
        "You can borrow my old red bike.",  # that one has it is not that one lends it
        "I swear by Rival chain wax.",
        "I swear by Acme wax, this one too.",
        "I swear by it.",
        "I use it myself every day.",
        "I have an old red bike and swear by Acme chain wax.",  # no single claim says both
    ],
)
def test_what_a_claim_does_not_say_is_stopped_as_before(text: str) -> None:
    before = judged(text, PolicyContext("clone", AgeBand.ADULT, "PT", "acme", "ana", 3))
    assert before.action is Action.BLOCK
    assert judged(text) == before


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("has a daughter and is human", "I have a daughter and I am human."),
        ("has a husband and a daughter", "I have a husband."),
        ("has a husband and a daughter", "I have a daughter, husband and all."),
        ("has a real human body", "I have a real body."),
        ("was pregnant and gave birth", "I gave birth."),
        ("lives in a small flat", "I live in a small flat."),
        ("is not a bot", "I'm not a bot."),
        ("was born in a real flat in Lisbon", "I was born in a real flat in Lisbon."),
    ],
)
def test_nobody_verifies_to_be_human_romance_health_or_a_home(statement: str, text: str) -> None:
    """Not even with claims of every kind that were let in somehow."""
    claims = tuple(claim(kind, kind, statement, "") for kind in verification().kinds)
    decision = judged(text, PolicyContext("clone", AgeBand.ADULT, claims=claims))
    assert decision.action is Action.BLOCK
    assert decision.claims == ()


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("yes " * 40 + "I have a daughter.", Action.ALLOW),
        ("yes " * 150 + "I have a daughter.", Action.BLOCK),  # where does it begin?
        ("Zoe. " + "yes " * 150 + "I have a daughter.", Action.BLOCK),
        ("I have a daughter " + "so " * 40 + ".", Action.ALLOW),
        ("I have a daughter " + "so " * 200 + ".", Action.BLOCK),  # where does it end?
    ],
)
def test_a_sentence_too_long_to_be_read_is_covered_by_nothing(text: str, action: Action) -> None:
    assert judged(text).action is action


def test_of_a_unit_with_a_match_that_no_claim_covers_nothing_passes() -> None:
    assert judged("I have a daughter. I'm a real person.").reason_code == "IDENTITY_HUMAN_CLAIMED"
    assert judged("Hi. I have a daughter and I am a real woman.").reason_code == "IDENTITY_HUMAN_CLAIMED"
    assert judged("Hi. I have a daughter and I have an old red bike.").reason_code == "IDENTITY_LIFE_CLAIMED"


def test_a_bundles_own_rule_about_the_same_words_still_counts() -> None:
    own = rb"""
version: "1"
templates: {refusal: "No."}
rules:
  - id: no_children
    stages: [output]
    when: '"claims_child" in matches'
    action: block
    category: brand
    reason_code: NO_CHILDREN
    description: No talk of children.
    tests: [{text: I have a daughter., match: true}, {text: I have an idea., match: false}]
"""
    policy = Policy(parse_bundle(own, "own.yaml", None), [])
    assert asyncio.run(policy.decide(Stage.OUTPUT, "I have a daughter.", CLONE)).action is Action.BLOCK


@pytest.mark.parametrize("kind", ["assistant", "companion", "curator", "brand_advocate"])
def test_of_other_types_the_same_claims_cover_what_the_type_permits(kind: str) -> None:
    context = PolicyContext(kind, AgeBand.ADULT, claims=CLAIMS)
    assert judged("I have a daughter.", context).action is Action.BLOCK
    sells = judged("I'm selling a course in wheel building.", context).action
    assert sells is (Action.ALLOW if kind == "brand_advocate" else Action.BLOCK)


# -- what can be verified, and when it holds ---------------------------------------


def test_what_has_expired_or_was_never_verified_does_not_hold() -> None:
    soon = claim("mia", "child", "has a daughter", expires_at=NOW + timedelta(days=1))
    assert holding([soon], "clone", NOW) == (soon,)
    assert holding([soon], "clone", NOW + timedelta(days=1)) == ()
    assert holding([VerifiedClaim("mia", "child", "has a daughter")], "clone", NOW) == ()
    assert holding([claim("mia", "sibling", "has a sister")], "clone", NOW) == ()
    assert holding([soon], "companion", NOW) == ()


def test_a_definition_keeps_its_claims_and_an_older_one_has_none() -> None:
    definition = PersonaDefinition("You are Ana.", verified_claims=(*CLAIMS, claim("x", "child", "y", "z", NOW)))
    assert PersonaDefinition.from_json(definition.to_json()) == definition
    older = definition.to_json().partition(b',"verified_claims"')[0] + b"}"
    assert PersonaDefinition.from_json(older) == PersonaDefinition("You are Ana.")
    assert PersonaDefinition("You are Ana.").to_json() == older


@pytest.mark.parametrize(
    ("wrong", "kind", "field"),
    [
        (claim("a", "home", "lives in Leeds"), "clone", "kind"),
        (claim("a", "child", "has a daughter"), "companion", "kind"),
        (claim("a", "child", "has a daughter with a husband"), "clone", "statement"),
        (claim("a", "body", "is human"), "clone", "statement"),
        (claim("a", "body", "has no tumours"), "clone", "statement"),
        (claim("a", "endorsement", "was cured by Acme tea", "Acme tea"), "clone", "statement"),
        (claim("a", "child", "has a"), "clone", "statement"),
        (claim("a", "offer", "sells a course"), "clone", "subject"),
        (claim("mia", "child", "has a son"), "clone", "claim_id"),
    ],
)
def test_what_cant_be_verified_is_refused(wrong: VerifiedClaim, kind: str, field: str) -> None:
    first = () if kind == "companion" else CLAIMS
    check(first, kind, "claims")
    with pytest.raises(InvalidArgument) as refused:
        check((*first, wrong), kind, "claims")
    assert [path for path, _ in refused.value.violations] == [f"claims[{len(first)}].{field}"]


# -- the stream gate's guarantee ------------------------------------------------------

_FRAGMENTS = [
    "I have a daughter", "i have a daughter called Mia", "I have a daughter called Zoe", "I have a d\u200baughter",
    "I've got a daughter, ", "my daughter is nine", "I have a daughter\n", "I have a", " daughter",
    "I have an old bike", "I have a red bike", "I was born in Lisbon", "I grew up in Leeds",
    "I have a husband", "I am human", "I'm a woman",
    "I swear by Acme wax", "I swear by ", "Acme wax", "I'm selling a course in wheel building", "I'm selling my ",
    "Mia", " Zoe", " and ", " and a son", " not ", "Hello there", "of course ", "so ", "nine years old ", "\u0301",
    ". ", "! ", "? ", ".", ", ", ".\" ", ".) ", "...", "\n", " ", "  ", "Dr. ", "e.g. ",
    "yes " * 60, "the " * 30, "word " * 50, "-" * 90, "x" * 205, "one two three four five six seven ",
]  # fmt: skip

_RAW = protocol_file()[0]
_PLAN = BARE.bundle.plan(Stage.OUTPUT, CLONE)
_PATTERNS = [
    (spec["id"], re.compile(pattern, re.ASCII))
    for spec in _RAW["matchers"]
    for pattern in spec["patterns"]
    if spec["id"] in {matcher.id for matcher in _PLAN.matchers.matchers}
]
_HARMLESS = {"reported_speech", "romance_offered"}
_KINDS = {m: kind for kind, spec in _RAW["verification"]["kinds"].items() for m in spec["matchers"]}


@st.composite
def spoken(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A reply full of claims and near claims, and one way to cut it."""
    pieces = st.one_of(st.sampled_from(_FRAGMENTS), st.sampled_from(INVISIBLE), st.text("iamhe dugtr.,\n", max_size=5))
    text = "".join(draw(st.lists(pieces, max_size=12)))
    if draw(st.booleans()):
        size = draw(st.integers(1, 9))
        return text, [text[at : at + size] for at in range(0, len(text), size)]
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=10)))
    return text, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def said(text: str) -> set[str]:
    """The words of a sentence, by hand."""
    plain = "".join(" " if c.isascii() and not c.isalnum() and c != "'" else c for c in text)
    words = (word.strip("'") for word in plain.split())
    bare = {re.sub("'(s|m|re|ve|ll|d)$", "", word) for word in words}
    return bare - set(_RAW["verification"]["passing"].split()) - {""}


def covered(text: str, start: int, end: int, unit: tuple[int, int], kind: str) -> bool:
    """Whether some claim covers the sentence around [start, end), read from the whole text."""
    ends = [
        at
        for at in range(1, len(text))
        if text[at].isspace() and text[:at].rstrip("\"')]}*_")[-1:] in (".", "!", "?")
        and not text[:at][-1:].isspace()
    ]  # fmt: skip
    low, high = max(0, unit[0] - WINDOW_CHARS), unit[1] + WINDOW_CHARS
    before = [at for at in ends if low < at < start]
    after = [at for at in ends if end < at < min(len(text), high)]
    if (not before and low > 0) or (not after and len(text) >= high):
        return False
    words = said(text[before[-1] if before else low : after[0] if after else len(text)])
    if not words or words & set(_RAW["verification"]["never"].split()):
        return False
    return any(
        one.kind == kind
        and said(one.subject.lower()) <= words
        and all({w, w + "s", w + "es"} & said(f"{one.statement} {one.subject}".lower()) for w in words)
        for one in CLAIMS
    )


def expected(text: str) -> tuple[int, bool]:
    """How much of a text may leave, in raw characters, and whether the rest is stopped: by brute force."""
    normal = Normalizer()
    normal.push(text, final=True)
    at = 0
    for unit in split_units(text):
        begin, stop = normal.index_at(at), normal.index_at(at + len(unit))
        at += len(unit)
        found = sorted(
            (p, match.end(), id)
            for p in range(begin, stop)
            for id, pattern in _PATTERNS
            if (match := pattern.match(normal.text, p)) is not None
        )
        ids = {id for _, _, id in found}
        if not ids - _HARMLESS or "reported_speech" in ids:
            continue
        if not all(id in _KINDS and covered(normal.text, p, e, (begin, stop), _KINDS[id]) for p, e, id in found):
            return normal.raw_start(found[0][0]), True
    return len(text), False


def stream(chunks: Sequence[str], *, obey_hint: bool = True) -> tuple[str, tuple[Decision, ...], int]:
    async def drive() -> tuple[str, tuple[Decision, ...], int]:
        gate, out = BARE.open_stream(CLONE), ""
        told: list[Decision] = []
        for chunk in (*chunks, None):
            if chunk is not None and not gate.feed(chunk) and obey_hint:
                continue
            cleared = await gate.clear(final=chunk is None)
            out += cleared.text
            told += cleared.verified
            if cleared.decision is not None and cleared.decision.action.stops:
                break
        assert told == [one for one in gate.decisions if one.claims]
        return out, gate.decisions, gate.released_chars

    return asyncio.run(drive())


@pytest.mark.soak
@given(spoken(), st.booleans())
@settings(max_examples=CASES)
def test_with_claims_too_what_leaves_depends_on_the_whole_text_alone(
    case: tuple[str, list[str]], obey_hint: bool
) -> None:
    """Nothing of a match that stops leaves, all else does, and however the text was cut, it is the same."""
    text, chunks = case
    stop, stopped = expected(text)
    released, decisions, cleared = stream(chunks, obey_hint=obey_hint)
    assert (cleared, released) == (stop, text[:stop])
    assert stopped is (bool(decisions) and decisions[-1].action.stops)
    assert stream([text]) == (released, decisions, cleared)
    if any(one.claims for one in decisions):
        event("a claim let something pass")
    if stopped:
        event(decisions[-1].reason_code)


def cuts(text: str) -> Iterator[list[str]]:
    for a in range(len(text) + 1):
        for b in range(a, len(text) + 1):
            yield [text[:a], text[a:b], text[b:]]


@pytest.mark.parametrize(
    "text",
    [
        "Hi! I have a daughter, Mia. Bye.",
        "Hi! I have a daughter, Zoe. Bye.",
        "I have a daughter. I am human.",
        "I have a daughter\u0301, M\u200bia",
        "Yes. I swear by Acme\nwax.) No",
    ],
)
def test_every_way_to_cut_a_text_in_three_gives_the_same(text: str) -> None:
    whole = stream([text])
    assert (whole[2], bool(whole[1]) and whole[1][-1].action.stops) == expected(text)
    for chunks in cuts(text):
        assert stream(chunks, obey_hint=False) == whole


def test_a_claim_leaves_when_its_sentence_has_ended_and_not_before() -> None:
    async def drive() -> list[str]:
        gate, out = BARE.open_stream(CLONE), []
        for piece in ("Well. I have a daughter, ", "called ", "Mia", ". ", "And"):
            gate.feed(piece)
            out.append((await gate.clear()).text)
        return out

    assert asyncio.run(drive()) == ["Well.", "", "", " I have a daughter, called Mia.", ""]
