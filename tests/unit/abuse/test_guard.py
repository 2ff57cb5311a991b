from __future__ import annotations

import orjson
import pytest

from personae_runtime.abuse.guard import AbuseGuard, Attempt, Origin, Refusal, Ticket
from personae_runtime.config import AbuseSettings
from personae_runtime.policy.decision import Action, Decision, Stage

TEXT = "About the same words for everybody, so that it looks as if very many people had come to think of it alone. {}"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def guard(clock: Clock, turns_per_minute: int = 100, **changed: float) -> AbuseGuard:
    return AbuseGuard(AbuseSettings(**changed), turns_per_minute, b"k" * 32, lambda: "v1", clock)


def attempt(
    person: str = "ann",
    persona: str = "nadia",
    text: str = "Hello.",
    owner: str = "",
    device: str = "",
    network: str = "",
) -> Attempt:
    return Attempt("acme", persona, owner, person, f"users/{person}", Origin(device, network), text)


def begin(one: AbuseGuard, wanted: Attempt) -> Ticket:
    ticket = one.ask(wanted)
    assert isinstance(ticket, Ticket), ticket
    return ticket


def refused(one: AbuseGuard, wanted: Attempt) -> Refusal:
    refusal = one.ask(wanted)
    assert isinstance(refusal, Refusal)
    return refusal


def run(one: AbuseGuard, wanted: Attempt, *categories: str) -> None:
    ticket = begin(one, wanted)
    for category in categories:
        one.decided(ticket, Decision(Action.BLOCK, Stage.INPUT, "v1", category, "X"))
    one.ended(ticket)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("owner", "OWNER_LIMIT"), ("device", "DEVICE_LIMIT"), ("network", "NETWORK_LIMIT")],
)
def test_a_limit_counts_by_its_subject_over_persons_and_personas(kind: str, reason: str) -> None:
    clock = Clock()
    one = guard(clock, **{f"turns_per_minute_by_{kind}": 3})
    for at in range(3):
        begin(one, attempt(f"u{at}", f"p{at}", **{kind: "x"}))
    refusal = refused(one, attempt("u9", "p9", **{kind: "x"}))
    assert refusal.error.reason == reason
    assert refusal.error.retry_after_s is not None
    assert 0 < refusal.error.retry_after_s <= 60
    assert refusal.decision is not None
    assert (refusal.decision.stage, refusal.decision.action) == (Stage.SIGNAL, Action.BLOCK)
    assert (refusal.decision.category, refusal.decision.reason_code) == ("abuse", reason)
    begin(one, attempt("u9", "p9", **{kind: "y"}))
    begin(one, attempt("u9", "p9"))
    clock.now += refusal.error.retry_after_s + 0.01
    begin(one, attempt("u9", "p9", **{kind: "x"}))


def test_zero_turns_a_limit_off_and_what_is_not_said_is_not_limited() -> None:
    one = guard(Clock(), turns_per_minute_by_device=0, turns_per_minute_by_network=1)
    for at in range(5):
        begin(one, attempt(f"u{at}", device="x"))


def test_turns_that_did_not_begin_count_nothing() -> None:
    one = guard(Clock(), turns_per_minute=1)
    for _ in range(3):
        ticket = one.ask(attempt())
        assert isinstance(ticket, Ticket)
        one.dropped(ticket)
    begin(one, attempt())
    assert refused(one, attempt()).error.reason == "QUOTA_EXCEEDED"
    one.forget("ann")
    begin(one, attempt())


def test_a_flood_of_refusals_is_recorded_once_a_minute_for_each() -> None:
    clock = Clock()
    one = guard(clock, turns_per_minute=1)
    begin(one, attempt("ann"))
    begin(one, attempt("bob"))
    assert [refused(one, attempt("ann")).decision is None for _ in range(3)] == [False, True, True]
    assert refused(one, attempt("bob")).decision is not None
    clock.now += 61
    begin(one, attempt("ann"))
    assert refused(one, attempt("ann")).decision is not None


def test_about_the_same_text_to_many_personas_is_refused_and_other_texts_are_not() -> None:
    clock = Clock()
    one = guard(clock, duplicate_personas=3, duplicate_min_chars=60)
    for at in range(3):
        begin(one, attempt(f"u{at}", f"p{at}", TEXT.format(at)))
        clock.now += 10
    refusal = refused(one, attempt("u9", "p9", TEXT.format("!")))
    assert refusal.error.reason == "NEAR_DUPLICATES"
    # Who has had it may have it again.
    begin(one, attempt("u9", "p1", TEXT.format("?")))
    begin(one, attempt("u9", "p9", "Something else altogether, long enough to be compared with what others said. " * 2))
    assert refusal.error.retry_after_s == pytest.approx(3600 - 30)
    clock.now += 3570.1
    begin(one, attempt("u9", "p9", TEXT.format("!")))


def test_blocks_of_several_people_open_a_personas_breaker_and_probes_close_it() -> None:
    clock = Clock()
    one = guard(clock, breaker_blocks=4, breaker_probes=2, breaker_cooldown_s=30)
    for at in range(4):
        assert one.not_closed() == 0
        run(one, attempt(f"u{at}"), "hate", "hate")
        # So that the tenant has enough turns that pass.
        for _ in range(2):
            run(one, attempt(f"u{at}", "other"))
    refusal = refused(one, attempt("ann"))
    assert (refusal.error.reason, refusal.error.metadata) == ("BREAKER_OPEN", {"of": "persona"})
    assert refusal.error.retry_after_s == 30
    assert one.not_closed() == 1
    begin(one, attempt("ann", "other"))
    clock.now += 30
    probes = [begin(one, attempt("ann")), begin(one, attempt("bob"))]
    assert refused(one, attempt("eve")).error.reason == "BREAKER_OPEN"
    for ticket in probes:
        one.ended(ticket)
    # What was blocked before is answered for.
    for at in range(9):
        begin(one, attempt(f"u{at}"))
    assert one.not_closed() == 0


def test_a_tenants_breaker_opens_over_its_personas() -> None:
    one = guard(Clock(), breaker_blocks=4)
    for at in range(4):
        run(one, attempt(f"u{at}", f"p{at}"), "violence")
    refusal = refused(one, attempt("ann", "p9"))
    assert refusal.error.metadata == {"of": "tenant"}


def test_one_person_cannot_close_a_persona_to_others() -> None:
    one = guard(Clock(), breaker_blocks=4, breaker_blocks_by_person=3)
    for _ in range(20):
        run(one, attempt("troll"), "hate")
    begin(one, attempt("ann"))


@pytest.mark.parametrize("category", ["self_harm", "identity", "disclosure", "minors", "policy", "kill_switch"])
def test_who_is_in_a_crisis_or_asks_what_they_talk_to_is_not_turned_away(category: str) -> None:
    one = guard(Clock(), breaker_blocks=2)
    for at in range(20):
        run(one, attempt(f"u{at}"), category)
    begin(one, attempt("ann"))


def test_a_memory_that_is_left_out_is_no_blocked_turn() -> None:
    one = guard(Clock(), breaker_blocks=2)
    for at in range(20):
        ticket = begin(one, attempt(f"u{at}"))
        one.decided(ticket, Decision(Action.BLOCK, Stage.MEMORY, "v1", "pii", "X"))
        one.ended(ticket)
    begin(one, attempt("ann"))


def test_of_many_that_ask_at_once_no_more_get_leave() -> None:
    one = guard(Clock(), turns_per_minute_by_device=3)
    asked = [one.ask(attempt(f"u{at}", device="x")) for at in range(10)]
    tickets = [ticket for ticket in asked if isinstance(ticket, Ticket)]
    assert len(tickets) == 3
    one.dropped(tickets[0])
    begin(one, attempt("ann", device="x"))
    refused(one, attempt("ann", device="x"))


def test_few_blocks_among_many_turns_open_nothing() -> None:
    one = guard(Clock(), breaker_blocks=4, breaker_share=0.5)
    for at in range(20):
        run(one, attempt(f"u{at}"), *(["hate"] if at % 3 == 0 else []))
    begin(one, attempt("ann"))


def test_processes_that_report_to_each_other_refuse_together() -> None:
    clock = Clock()
    settings = {
        "turns_per_minute_by_device": 4,
        "duplicate_personas": 2,
        "duplicate_min_chars": 60,
        "breaker_blocks": 4,
    }
    here, there = guard(clock, **settings), guard(clock, **settings)

    def exchange() -> None:
        for one, other in ((here, there), (there, here)):
            # As the ledger carries it.
            counts, sightings = orjson.loads(orjson.dumps(one.report()))
            other.hear([tuple(count) for count in counts], sightings)

    for at in range(2):
        for side, one in enumerate((here, there)):
            run(one, attempt(f"u{at}{side}", f"p{side}", TEXT.format(at), device="x"), "hate")
    begin(here, attempt("ann", "p8", device="x"))
    exchange()
    for one in (here, there):
        assert refused(one, attempt("ann", "p9", device="x")).error.reason == "DEVICE_LIMIT"
        assert refused(one, attempt("ann", "p9", TEXT.format("!"))).error.reason == "NEAR_DUPLICATES"
        assert refused(one, attempt("ann", "p9")).error.metadata == {"of": "tenant"}
    assert here.report() == ([], [])
