"""What a report withholds so that nobody few is told of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.ledger.reports import Figure, hidden

figures = st.tuples(st.integers(1, 40), st.integers(0, 30)).map(lambda n: Figure(n[0] + n[1], n[0]))
cells = st.dictionaries(st.sampled_from("abcdefgh"), figures)


@given(cells, st.integers(1, 10))
def test_no_suppressed_cell_follows_by_subtraction(table: dict[str, Figure], least: int) -> None:
    gone = hidden(table, least)
    assert {key for key, cell in table.items() if cell.people < least} <= gone
    # What total minus told gives is a sum of several, and not of few; or nothing is told at all.
    if gone and gone != set(table):
        assert len(gone) >= 2
        assert sum(table[key].value for key in gone) >= least


@given(cells, st.integers(1, 10))
def test_nothing_is_suppressed_without_need(table: dict[str, Figure], least: int) -> None:
    if all(cell.people >= least for cell in table.values()):
        assert hidden(table, least) == set()


def test_the_smallest_others_go_with_it() -> None:
    table = {"few": Figure(2, 2), "small": Figure(9, 6), "large": Figure(70, 50)}
    assert hidden(table, 5) == {"few", "small"}
