from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personae_runtime.errors import Unavailable
from personae_runtime.ledger.bundles import trial
from personae_runtime.policy.bundle import Bundle
from personae_runtime.policy.decision import Action, PolicyContext, Stage
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.rollout import InForce, Policies, Shadow, share
from personae_runtime.policy.scorers import Scorer
from tests.unit.policy.bundles import BUNDLE, WholeWordScorer, WordScorer, whole

OWN = Policy(whole(), [])
NEW = Policy(whole(BUNDLE.replace("1.0.0", "2.0.0").replace("banana", "cherry")), [])
SESSIONS = st.text(min_size=1, max_size=40)


def policies(percent: int, bundle: str = "b") -> Policies:
    found = Policies(OWN)
    found.put("acme", InForce(OWN, (bundle, NEW), percent))
    return found


@settings(max_examples=50)
@given(SESSIONS, st.text(max_size=32), st.integers(0, 99))
def test_a_session_has_the_same_bundle_however_often_and_wherever_it_is_asked(
    session: str, bundle: str, percent: int
) -> None:
    assert policies(percent, bundle).of("acme", session) is policies(percent, bundle).of("acme", session)


@settings(max_examples=50)
@given(SESSIONS, st.text(max_size=32), st.integers(0, 99), st.integers(0, 99))
def test_a_session_that_has_the_candidate_keeps_it_while_the_percentage_grows(
    session: str, bundle: str, one: int, other: int
) -> None:
    less, more = sorted((one, other))
    if policies(less, bundle).of("acme", session) is NEW:
        assert policies(more, bundle).of("acme", session) is NEW


@settings(max_examples=50)
@given(SESSIONS, st.text(max_size=32))
def test_no_session_has_a_candidate_in_shadow(session: str, bundle: str) -> None:
    assert 0 <= share(bundle, session) < 1
    assert policies(0, bundle).of("acme", session) is OWN


@pytest.mark.parametrize("percent", [1, 10, 50, 90, 99])
def test_the_share_of_sessions_is_the_percentage_and_another_one_for_each_bundle(percent: int) -> None:
    count = 4000
    taken = [
        {at for at in range(count) if policies(percent, bundle).of("acme", f"sessions/{at}") is NEW}
        for bundle in ("one", "two")
    ]
    # Five standard deviations of a binomial distribution.
    for found in taken:
        assert abs(len(found) / count - percent / 100) <= 5 * (percent / 100 * (1 - percent / 100) / count) ** 0.5
    assert taken[0] != taken[1]


def test_only_the_tenants_own_sessions_are_judged_by_what_it_published() -> None:
    found = policies(99)
    assert found.of("other", "s") is OWN
    assert found.shadow("other") is None
    assert found.shadow("acme") is None
    assert policies(0).shadow("acme") == ("b", NEW)


def test_where_a_bundle_is_missing_nothing_is_judged_and_nothing_remembered() -> None:
    found = Policies(OWN)
    assert found.remembers("hello", PolicyContext(tenant="acme"))
    found.miss("acme", "no such key")
    with pytest.raises(Unavailable, match="no such key") as error:
        found.of("acme")
    assert error.value.reason == "POLICY_UNAVAILABLE"
    assert not found.remembers("hello", PolicyContext(tenant="acme"))
    assert found.of("other") is OWN
    found.put("acme", InForce(NEW))
    assert found.of("acme") is NEW


def shadow(candidate: Bundle, live: Policy, text: str, scorers: Sequence[Scorer] = ()) -> Shadow:
    """What is noted of a reply that a live policy judges."""

    async def run() -> Shadow:
        noted = Shadow("b", Policy(candidate, scorers), PolicyContext())
        gate = live.open_stream(PolicyContext(), noted.seen)
        for at in range(0, len(text), 7):
            gate.feed(text[at : at + 7])
            noted.reply.append(text[at : at + 7])
            if (await gate.clear()).decision is not None:
                break
        await gate.clear(final=True)
        noted.replied(gate.decisions, live.version)
        return noted

    return asyncio.run(run())


def test_a_candidate_judges_a_reply_as_a_gate_would_and_asks_no_scorer_twice() -> None:
    scorer = WordScorer("violence")
    live = Policy(whole(), [scorer])
    text = "All is well here. There is violence, and violence again. I like a cherry. The end of it."
    noted = shadow(NEW.bundle, live, text, [scorer])
    asked = len(scorer.units)
    [found] = asyncio.run(noted.judge())
    assert len(scorer.units) == asked
    assert (found.live.action, found.candidate.action, found.differs) == (Action.BLOCK, Action.BLOCK, False)


def test_a_candidate_judges_the_whole_reply_by_the_scores_that_it_got() -> None:
    scorer = WholeWordScorer("knife", "neck", needed=2)
    live = Policy(whole(), [scorer])
    text = "Take the knife. " + "It is a fine day by the river. " * 10 + "Now hold it to the neck."
    noted = shadow(NEW.bundle, live, text, [scorer])
    assert scorer.pieces == [text.lower()]
    asked = list(scorer.asked)
    [found] = asyncio.run(noted.judge())
    assert (scorer.pieces, scorer.asked) == ([text.lower()], asked)
    assert found.live.action is found.candidate.action is Action.BLOCK
    assert not found.differs


def test_a_candidate_that_would_note_or_stop_something_else_differs() -> None:
    stopping = whole(BUNDLE.replace("banana", "cherry").replace("action: allow", "action: block"))
    [found] = asyncio.run(shadow(stopping, OWN, "I like a cherry. And so on.").judge())
    assert (found.live.action, found.candidate.action, found.candidate.rules[0].rule_id) == (
        Action.ALLOW, Action.BLOCK, "note",
    )  # fmt: skip
    assert found.differs
    assert asyncio.run(shadow(stopping, OWN, "I like it. And so on.").judge()) == []


class Broken(WordScorer):
    def score_sync(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        raise RuntimeError


def test_what_a_failed_scorer_stopped_says_nothing_of_the_candidate() -> None:
    noted = shadow(NEW.bundle, Policy(whole(), [Broken()]), "I like a cherry. And so on.")
    live = asyncio.run(Policy(whole(), [Broken()]).decide(Stage.INPUT, "hello", PolicyContext()))
    noted.saw("hello", live)
    assert asyncio.run(noted.judge()) == []


WHEELS = b"""
version: 1.0.0
extends: default
matchers: [{id: wheels, kind: literal, max_chars: 20, literals: [unicycle]}]
rules:
  - id: no_wheels
    stages: [input]
    when: '"wheels" in matches'
    action: block
    category: brand
    reason_code: NO_WHEELS
    template: refusal
    description: No talk of unicycles.
    tests: [{text: my unicycle, match: true}, {text: my feet, match: false}]
"""


def test_a_rule_that_is_switched_off_for_a_tenant_is_so_in_the_bundle_that_it_published() -> None:
    own = Policy(whole(), [])
    published = trial(WHEELS, own)
    own.rules_off = lambda tenant: frozenset({"no_wheels", "asked_if_human"} if tenant == "acme" else ())

    def action(text: str, tenant: str) -> Action:
        return asyncio.run(published.decide(Stage.INPUT, text, PolicyContext(tenant=tenant))).action

    assert action("my unicycle", "other") is Action.BLOCK
    assert action("my unicycle", "acme") is Action.ALLOW
    # A protocol's rule is not switched off by that.
    assert action("Are you human?", "acme") is Action.BLOCK
