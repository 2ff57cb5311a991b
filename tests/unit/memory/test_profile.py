"""The profile card: what holds now, in its order, within its tokens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.memory.facts import KINDS
from personae_runtime.memory.profile import MAX_TOKENS, KnownFact, fit, render

NOW = datetime(2024, 5, 15, tzinfo=UTC)


def count(text: str) -> int:
    return -(-len(text) // 4)


def known(predicate: str, value: str, number: int = 1, **changes: object) -> KnownFact:
    fields: dict[str, object] = {"valid_from": None, "valid_to": None, "confidence": 0.9, "said_at": NOW, **changes}
    return KnownFact(UUID(int=number), predicate, value, **fields)  # type: ignore[arg-type]


def test_a_card_has_what_holds_now_the_most_important_first() -> None:
    day = timedelta(days=1)
    card = render(
        [
            known("likes", "tea", 1, said_at=NOW - day),
            known("likes", "cake", 2),
            known("lives_in", "Porto", 3, valid_to=NOW - day),
            known("lives_in", "Lisbon", 4, valid_from=NOW - day),
            known("works_at", "Acme", 5, valid_from=NOW + day),
            known("name", "Marta", 6),
            known("owns", "a boat", 7, confidence=0.4),
            known("plans", "a trip", 8),
        ],
        NOW,
        count,
    )
    assert card.text == "- Name: Marta.\n- Lives in Lisbon.\n- Likes cake.\n- Likes tea."
    assert card.fact_ids == (UUID(int=6), UUID(int=4), UUID(int=2), UUID(int=1))
    assert card.tokens == count(card.text)


@given(st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.text(max_size=300)), max_size=80))
def test_a_card_never_has_more_tokens_than_it_may(facts: list[tuple[str, str]]) -> None:
    card = render([known(predicate, value, number) for number, (predicate, value) in enumerate(facts)], NOW, count)
    assert card.tokens == (count(card.text) if card.text else 0) <= MAX_TOKENS
    assert len(set(card.fact_ids)) == len(card.fact_ids)


def test_a_stored_card_fits_an_engine_that_counts_otherwise_and_what_policy_lets_pass() -> None:
    text = "- Name: Marta.\n- Lives in Lisbon.\n- Likes cake."
    assert fit(text, count, lambda line: "Lisbon" not in line) == "- Name: Marta.\n- Likes cake."
    assert fit(text, lambda words: 10 * len(words), lambda line: True) == "- Name: Marta."
    assert fit(text, lambda words: 201, lambda line: True) == ""
