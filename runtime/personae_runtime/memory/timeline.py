"""What held when: from all that was said about one thing to facts that follow one another.

A slot is what only one fact may say at a time, such as where a person lives. Its
facts are computed anew from all claims on it whenever one comes or goes, so that
the order of their arrival does not matter, and a claim that is forgotten leaves
nothing behind.

At each moment the claim counts that is known to have held latest: a state when
it was said, an event ("I moved in May") when it happened. Before it was said a
claim without a begin reaches back only to where nothing else is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from personae_runtime.memory.store import Basis

ANY: Final = ""
"""Value of a denial that denies whatever was claimed, as in "I quit my job"."""

_EVER: Final = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class Claim:
    """One place in one memory that says or denies something.

    Attributes:
        memory_id, begin, end: where it stands, characters, the end excluded.
        predicate, value: what is said, as it is shown.
        key: `predicate` and `value` as they are compared; claims of one key say the same.
        denied: it says that this holds no more.
        said_at: when; aware, UTC, as all times here.
        known_at: when it is known to have held: `said_at`, or when an event happened.
        valid_from, valid_to: when it began and ended to hold, the end excluded, as far as it says.
        expires_at: of the memory.
        thread: of the memory.
    """

    memory_id: UUID
    begin: int
    end: int
    predicate: str
    value: str
    key: str
    denied: bool
    said_at: datetime
    known_at: datetime
    valid_from: datetime | None
    valid_to: datetime | None
    confidence: float
    basis: Basis
    extractor: str
    expires_at: datetime | None = None
    thread: str = ""

    @property
    def place(self) -> tuple[UUID, int, int, str]:
        """What tells claims apart."""
        return (self.memory_id, self.begin, self.end, ("-" if self.denied else "+") + self.key)


@dataclass(frozen=True, slots=True)
class Segment:
    """One fact: a stretch of time, and the claims that it rests on, oldest first.

    Attributes:
        valid_from: None where nothing tells when it began.
        valid_to: None if it still holds. A claim that later ones leave no time at all is a segment that ends as it
            begins.
        next: place in the list of the segment that took its place; None if none did.
    """

    claims: tuple[Claim, ...]
    valid_from: datetime | None
    valid_to: datetime | None
    next: int | None

    @property
    def holds(self) -> bool:
        """There is a time at which it holds."""
        return self.valid_from is None or self.valid_to is None or self.valid_from < self.valid_to


def arrange(claims: Sequence[Claim]) -> list[Segment]:
    """The facts of one slot in the order of time; those of denials come last.

    At most one that is not denied holds at any moment.
    """
    ordered = sorted(set(claims), key=_rank)
    said = [claim for claim in ordered if not claim.denied]
    bounds = sorted({_EVER[0], *(bound for claim in ordered for bound in _bounds(claim))})
    # (winner's key, begin, end) of every elementary interval, neighbours of one key joined.
    runs: list[tuple[str | None, datetime, datetime]] = []
    for begin, end in zip(bounds, [*bounds[1:], _EVER[1]], strict=True):
        key = _winner(ordered, begin)
        if runs and runs[-1][0] == key:
            runs[-1] = (key, runs[-1][1], end)
        else:
            runs.append((key, begin, end))
    stretches: list[tuple[tuple[Claim, ...], datetime, datetime]] = []
    for key, begin, end in runs:
        if key is not None:
            own = tuple(claim for claim in said if claim.key == key and _reaches(claim, begin, end))
            stretches.append((own, begin, end))
    shown = {claim.place for own, _, _ in stretches for claim in own}
    for key in dict.fromkeys(claim.key for claim in said):
        hidden = tuple(claim for claim in said if claim.key == key and claim.place not in shown)
        if hidden:
            start = min(claim.valid_from or claim.valid_to or claim.said_at for claim in hidden)
            stretches.append((hidden, start, start))
    stretches.sort(key=lambda stretch: (stretch[1], stretch[2], stretch[0][0].key))
    segments = [
        Segment(own, None if begin == _EVER[0] else begin, None if end == _EVER[1] else end, None)
        for own, begin, end in stretches
    ]
    segments = [_followed(segment, place, segments) for place, segment in enumerate(segments)]
    for key in dict.fromkeys(claim.key for claim in ordered if claim.denied):
        own = tuple(claim for claim in ordered if claim.denied and claim.key == key)
        begin = max(claim.valid_from or claim.said_at for claim in own)
        taken_up = [
            place
            for place, segment in enumerate(segments)
            if segment.valid_from is not None
            and segment.valid_from > begin
            and segment.holds
            and _denies(own[0], segment.claims[0])
        ]
        place = taken_up[0] if taken_up else None
        segments.append(Segment(own, begin, None if place is None else segments[place].valid_from, place))
    return segments


def _followed(segment: Segment, own: int, segments: Sequence[Segment]) -> Segment:
    if segment.valid_to is None:
        return segment
    for place, other in enumerate(segments):
        begins = other.valid_from or _EVER[0]
        ends = other.valid_to or _EVER[1]
        if place != own and other.holds and begins <= segment.valid_to < ends:
            return Segment(segment.claims, segment.valid_from, segment.valid_to, place)
    return segment


def _rank(claim: Claim) -> tuple[datetime, datetime, int, int, UUID, int, str]:
    # Said in one breath, a denial goes before what holds instead.
    return (
        claim.known_at,
        claim.said_at,
        0 if claim.denied else 1,
        claim.begin,
        claim.memory_id,
        claim.end,
        claim.key,
    )


def _strong(claim: Claim) -> tuple[datetime, datetime] | None:
    """The time that a claim speaks of; None if it names no begin and is over."""
    if claim.valid_from is None and not claim.denied and claim.valid_to is not None and claim.valid_to <= claim.said_at:
        return None
    begin = claim.valid_from or claim.said_at
    end = claim.valid_to or _EVER[1]
    return (begin, end) if begin < end else None


def _weak(claim: Claim) -> datetime | None:
    """The end of the time before which it may have held as well, for all that it says."""
    if claim.denied or claim.valid_from is not None:
        return None
    return min(claim.said_at, claim.valid_to) if claim.valid_to is not None else claim.said_at


def _bounds(claim: Claim) -> list[datetime]:
    return [bound for bound in (*(_strong(claim) or ()), _weak(claim)) if bound is not None and bound != _EVER[1]]


def _winner(ordered: Sequence[Claim], at: datetime) -> str | None:
    """Key of the claim that counts at a moment; `ordered` by `_rank`."""
    denials: list[Claim] = []
    for claim in reversed(ordered):
        reach = _strong(claim)
        if reach is None or not reach[0] <= at < reach[1]:
            continue
        if claim.denied:
            denials.append(claim)
        else:
            return None if any(_denies(denial, claim) for denial in denials) else claim.key
    before = [(end, place) for place, claim in enumerate(ordered) if (end := _weak(claim)) is not None and at < end]
    if not before or any(_denies(denial, ordered[min(before)[1]]) for denial in denials):
        return None
    return ordered[min(before)[1]].key


def _denies(denial: Claim, claim: Claim) -> bool:
    return denial.value == ANY or denial.key == claim.key


def _reaches(claim: Claim, begin: datetime, end: datetime) -> bool:
    reach, before = _strong(claim), _weak(claim)
    return (reach is not None and reach[0] < end and begin < reach[1]) or (before is not None and begin < before)
