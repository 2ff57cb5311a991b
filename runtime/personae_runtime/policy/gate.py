"""The stream gate: what of a reply may leave, as it is written.

`released <= cleared`, always, in characters of the joined raw text:

- Matchers: no released prefix contains any part of a match that stops the
  reply, however the text was cut into deltas. Text is held from the earliest
  place where a match may have begun until that is decided.
- Scorers: nothing leaves before the unit it is in was scored. Where one judges
  whole texts, the last unit does not leave before the reply was, nor what ends
  a piece of a long one before the piece was.
- Verified claims: what a protocol would stop leaves only when the whole
  sentence is there and one of the persona's claims covers it.
- The decisions, their order and the text released are functions of the whole
  text: the same for every chunking. docs/policy.md has the argument.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from personae_runtime.policy.bundle import PIECE_CHARS, PIECE_STEP, Plan, Verdict, highest
from personae_runtime.policy.claims import NO_CLAIMS, Claims, Covered
from personae_runtime.policy.decision import Action, Decision, MatcherHit
from personae_runtime.policy.matchers import Span
from personae_runtime.policy.normalize import Normalizer
from personae_runtime.policy.scorers import Scorer
from personae_runtime.policy.units import MAX_UNIT_CHARS, WINDOW_CHARS, last_unit_end, unit_end

_NO_SCORES: Mapping[str, float] = MappingProxyType({})
Seen = dict[tuple[tuple[str, ...], tuple[str, ...]], Mapping[str, float]]
"""Scores of one reply's units, by the texts and the pieces they are of, so that a second gate need not ask again."""
_ENDS = frozenset(".!?…\n。！？")
_CLOSERS = "\"'”’»)]}*_」』）"


class ScorerFailure(Exception):
    """A scorer raised, was late, or gave something that is no score."""


@dataclass(frozen=True, slots=True)
class Clearance:
    """What one `clear` brought.

    Attributes:
        text: newly cleared text, to be delivered; '' if none.
        decision: the gravest decision that was newly taken, or None if there was nothing but plain allow.
            Once one stops, every later clearance is empty and repeats it.
        verified: decisions that were newly taken beside it, by which a verified claim let something pass.
    """

    text: str
    decision: Decision | None = None
    verified: tuple[Decision, ...] = ()


_NOTHING = Clearance("")


async def run_scorers(
    scorers: Sequence[Scorer], texts: Sequence[str], pieces: Sequence[str] | None = None, *, reply: bool = False
) -> dict[str, float]:
    """The highest score of each category over texts and scorers. Cheap scorers run here and now.

    Args:
        pieces: what scorers with a `score_whole` get by it instead of `texts`, where the whole text is there.
        reply: the pieces are of a persona's reply, for those that have a `score_whole_reply`.

    Raises:
        ScorerFailure: any of them failed or missed its deadline.
    """
    found: dict[str, float] = {}
    rows: list[Mapping[str, float]]
    for scorer in scorers:
        ask: Callable[[Sequence[str]], Awaitable[list[Mapping[str, float]]]] = scorer.score
        judged = texts
        if pieces is not None and (whole := getattr(scorer, "score_whole", None)) is not None:
            ask, judged = getattr(scorer, "score_whole_reply", whole) if reply else whole, pieces
        try:
            # Not isinstance: checking a protocol costs more than a cheap scorer does.
            score_now = getattr(scorer, "score_sync", None)
            if score_now is not None:
                rows = score_now(judged)
            else:
                async with asyncio.timeout(scorer.deadline_s):
                    rows = await ask(judged)
            if len(rows) != len(judged):
                raise ValueError(f"{len(rows)} results for {len(judged)} texts")
            scores = highest(rows, scorer.categories)
        except Exception as e:  # whatever went wrong, nothing is known of the text
            raise ScorerFailure(f"scorer {scorer.name}: {type(e).__name__}") from e
        for category, score in scores.items():
            if not (math.isfinite(score) and 0 <= score <= 1):
                raise ScorerFailure(f"scorer {scorer.name}: {category} is not in 0 to 1")
            found[category] = max(score, found.get(category, 0.0))
    return found


async def score_reply(scorers: Sequence[Scorer], texts: Sequence[str], pieces: Sequence[str]) -> Mapping[str, float]:
    """The highest score of each category over some of a reply.

    Args:
        texts: units, alone and with what came before them, which every scorer gets.
        pieces: of the whole reply, which those with a `score_whole` get, too.

    Raises:
        ScorerFailure: any of them failed or missed its deadline.
    """
    found = await run_scorers(scorers, texts)
    if pieces:
        wholes = [scorer for scorer in scorers if hasattr(scorer, "score_whole")]
        for category, score in (await run_scorers(wholes, (), pieces, reply=True)).items():
            found[category] = max(score, found[category])
    return found


class StreamGate:
    """Judges one reply. Not for use by two tasks at once.

    Call `feed` for each engine delta and, when it returns True, `clear`; at the
    end `clear(final=True)`.
    """

    __slots__ = (
        "_at", "_claims", "_decisions", "_ended", "_first", "_fresh", "_held", "_incoming", "_news", "_normal", "_out",
        "_piece", "_plan", "_raw", "_raw_start", "_released", "_scan", "_scorers", "_scores", "_seen", "_skip",
        "_stopped", "_unit", "_unit_end", "_verified", "_wholes",
    )  # fmt: skip

    def __init__(
        self, plan: Plan, scorers: Sequence[Scorer] = (), seen: Seen | None = None, claims: Claims = NO_CLAIMS
    ) -> None:
        self._plan = plan
        self._claims = claims
        self._seen = seen
        self._scorers = tuple(scorers)
        self._wholes = any(hasattr(scorer, "score_whole") for scorer in scorers)
        self._normal = Normalizer()
        self._incoming: list[str] = []
        self._decisions: list[Decision] = []
        self._news: Decision | None = None  # not yet told
        self._verified: list[Decision] = []  # not yet told
        self._out: list[str] = []  # cleared and not yet told
        self._stopped: Decision | None = None
        # Raw offsets count code points from the start of the reply.
        self._raw = ""  # raw text, at least from the start of the current unit on
        self._raw_start = 0
        self._at = 0  # where the current unit starts
        self._released = 0
        self._skip = 0  # raw text before this was replaced by a placeholder
        # Offsets into the window of normalised text.
        self._unit = 0  # where the current unit starts
        self._scan = 0  # no match starts in [_unit, _scan)
        self._unit_end: int | None = None  # raw; None while more text must come
        self._scores: Mapping[str, float] | None = None  # of the current unit
        self._first = True
        # The reply as `whole_pieces` cuts it, normalised, for scorers that judge it as one.
        self._piece = ""  # from where the next piece starts up to the current unit
        self._ended = False  # the last unit was judged, and with it the reply
        # What `feed` needs to guess whether `clear` has something to do.
        self._held = True
        self._fresh = 0

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Every decision but plain allow, in the order of the text."""
        return tuple(self._decisions)

    @property
    def released_chars(self) -> int:
        """Raw characters of the reply that were cleared."""
        return self._released

    def feed(self, text: str) -> bool:
        """Takes the next delta. True when `clear` may have something to release; False is only a hint, too."""
        if self._stopped is not None or not text:
            return False
        self._incoming.append(text)
        if self._held:
            return True
        self._fresh += len(text)
        if not _ENDS.isdisjoint(text):
            # A mark at the very end needs the next character before it ends a unit.
            self._held = True
            return text[-1] not in _ENDS
        return self._fresh > MAX_UNIT_CHARS

    async def clear(self, *, final: bool = False) -> Clearance:
        """Judges what has come. `final`: no more will.

        A scorer that fails or is late blocks. Cancelling this loses nothing: the
        next call goes on from there.
        """
        if self._stopped is None:
            self._take(final)
            await self._judge(final)
        if self._stopped is not None:
            return Clearance(self._flush(), self._stopped, self._tell_verified())
        self._trim()
        if self._at > self._raw_start:
            self._raw = self._raw[self._at - self._raw_start :]
            self._raw_start = self._at
        self._fresh = len(self._raw)
        # A match that may have begun, or a mark that needs the next character, can be settled by any delta.
        raw = self._raw
        self._held = (
            self._first
            or self._unit_end is not None
            or (bool(raw) and (raw[-1] in _ENDS or (raw[-1] in _CLOSERS and raw.rstrip(_CLOSERS)[-1:] in _ENDS)))
        )
        if not self._out and self._news is None and not self._verified:
            return _NOTHING
        clearance = Clearance(self._flush(), self._news, self._tell_verified())
        self._news = None
        return clearance

    async def _judge(self, final: bool) -> None:
        """Judges every unit that is complete, as far as its matches are decided."""
        plan, normal, matchers = self._plan, self._normal, self._plan.matchers
        text = normal.text
        pending = candidate = -1
        # Usually one search tells that no unit of what has come holds, or may begin, a match.
        if self._raw and self._scan < len(text):
            self._scan = matchers.candidate(text, self._scan) if final else matchers.quiet_until(text, self._scan)
        if not self._scorers and plan.silent and not self._first and self._unit_end is None:
            self._pass_quiet()
        while True:
            end = self._find_unit_end(final)
            if end is None or end > normal.raw_end:
                return
            unit_stop = normal.index_at(end)
            last = False
            if self._wholes and not text[unit_stop:].strip():
                if not final:
                    return  # it is the last one unless more is said
                last = not self._ended
            if self._scores is None:
                try:
                    self._scores = await self._score(unit_stop, last=last)
                except ScorerFailure:
                    self._stop(plan.scorer_failed())
                    return
            if self._scan < unit_stop and pending < 0:
                pending = len(text) if final else matchers.pending(text, self._scan)
            # The unit's first match, as far as matches are decided.
            limit = unit_stop if self._scan >= unit_stop or pending >= unit_stop else pending
            matched = False
            while self._scan < limit:
                if candidate < self._scan:
                    candidate = matchers.candidate(text, self._scan)
                if candidate >= limit:
                    self._scan = limit
                elif matched := matchers.matches_at(text, candidate):
                    self._scan = candidate
                    break
                else:
                    self._scan = candidate + 1  # the validator said no
            chars = end - self._at
            verdict = plan.evaluate((), self._scores, chars)
            if not verdict.action.stops:
                # What stands before the first match has none, and its scores allow it.
                self._release(normal.raw_start(self._scan) if self._scan < unit_stop else end)
            if limit < unit_stop:
                return
            spans: list[Span] = []
            covered: Covered | None = None
            if matched:
                spans = matchers.spans(text, self._scan, unit_stop)
                ids = tuple(sorted({s.matcher_id for s in spans}))
                verdict = plan.evaluate(ids, self._scores, chars)
                # Only where claims could make a difference, which the unit alone tells, is there anything to wait for.
                if (
                    verdict.action.stops
                    and (may := self._claims.may_cover(ids))
                    and not plan.evaluate(ids, self._scores, chars, may).action.stops
                ):
                    found = self._claims.cover(text, spans, self._unit, unit_stop, final=final)
                    if found is None:
                        return  # the sentence goes on
                    reduced = plan.evaluate(ids, self._scores, chars, found.matcher_ids)
                    if not reduced.action.stops:
                        verdict, covered = reduced, found
            if not verdict.plain or covered is not None:
                decision = self._decide(verdict, spans)
                if covered is not None:
                    decision = replace(decision, rules=(*decision.rules, covered.hit), claims=covered.claims)
                if decision.action.stops:
                    self._stop(decision)
                    return
                self._decisions.append(decision)
                if covered is not None:
                    self._verified.append(decision)
                elif self._news is None or self._news.action is Action.ALLOW:
                    self._news = decision
                if verdict.redact:
                    self._redact(verdict, spans)
            self._release(end)
            if self._wholes:
                self._piece = self._pieces(unit_stop)[1]
                self._ended |= last
            self._next_unit(end, unit_stop)

    def _pass_quiet(self) -> None:
        """Releases the units before the next possible match: what nothing scores and no rule minds."""
        normal = self._normal
        limit = normal.raw_start(self._scan) - self._raw_start
        start = self._at - self._raw_start
        end = last_unit_end(self._raw, start, limit)
        if end > start:
            end += self._raw_start
            self._next_unit(end, normal.index_at(end))
            self._release(end)

    def _take(self, final: bool) -> None:
        new = "".join(self._incoming)
        self._incoming.clear()
        self._raw += new
        self._normal.push(new, final=final)

    def _find_unit_end(self, final: bool) -> int | None:
        if self._unit_end is None and self._raw:
            start = self._at - self._raw_start
            end = unit_end(self._raw, first=self._first, start=start)
            if end is None and final and start < len(self._raw):
                end = len(self._raw)
            if end is not None:
                self._unit_end = self._raw_start + end
        return self._unit_end

    async def _score(self, unit_stop: int, *, last: bool) -> Mapping[str, float]:
        if not self._scorers:
            return _NO_SCORES
        text = self._normal.text
        texts = [text[self._unit : unit_stop]]
        if self._unit:
            texts.append(text[max(0, self._unit - WINDOW_CHARS) : unit_stop])
        pieces: list[str] = []
        if self._wholes and not self._ended:
            pieces, rest = self._pieces(unit_stop)
            # Of a long reply the end may be in the piece before already.
            if last and len(rest) > (PIECE_CHARS - PIECE_STEP if pieces else 0):
                pieces.append(rest)
        if self._seen is None:
            return await score_reply(self._scorers, texts, pieces)
        key = tuple(texts), tuple(pieces)
        if key not in self._seen:
            self._seen[key] = await score_reply(self._scorers, texts, pieces)
        return self._seen[key]

    def _pieces(self, unit_stop: int) -> tuple[list[str], str]:
        """The pieces of the reply that are full with the current unit, and what the next one has of it so far."""
        text, full = self._piece + self._normal.text[self._unit : unit_stop], []
        while len(text) >= PIECE_CHARS:
            full.append(text[:PIECE_CHARS])
            text = text[PIECE_STEP:]
        return full, text

    def _release(self, upto: int) -> None:
        start = self._released if self._released > self._skip else self._skip
        if upto > start:
            self._out.append(self._raw[start - self._raw_start : upto - self._raw_start])
        if upto > self._released:
            self._released = upto

    def _redact(self, verdict: Verdict, spans: Sequence[Span]) -> None:
        """Puts placeholders where the spans are; one may reach into units to come, which then begin after it."""
        normal = self._normal
        ranges: list[tuple[int, int, str]] = []
        for span in spans:
            placeholder = verdict.redact.get(span.matcher_id)
            if placeholder is None:
                continue
            start, stop = normal.raw_start(span.start), normal.raw_stop(span.end - 1)
            if ranges and start < ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], max(stop, ranges[-1][1]), ranges[-1][2])
            else:
                ranges.append((start, stop, placeholder))
        for start, stop, placeholder in ranges:
            if stop <= self._skip:
                continue  # inside one that began in a unit before
            self._release(start)
            if start >= self._skip:
                self._out.append(placeholder)
            self._skip = stop

    def _next_unit(self, end: int, unit_stop: int) -> None:
        self._at = end
        self._unit = unit_stop
        if self._scan < unit_stop:
            self._scan = unit_stop
        self._unit_end = None
        self._scores = None
        self._first = False

    def _decide(self, verdict: Verdict, spans: Sequence[Span]) -> Decision:
        return self._plan.decision(verdict, raw_hits(self._normal, spans), self._scores or _NO_SCORES)

    def _stop(self, decision: Decision) -> None:
        self._stopped = decision
        self._decisions.append(decision)
        self._raw = self._piece = ""  # the tail is dropped
        self._normal = Normalizer()

    def _tell_verified(self) -> tuple[Decision, ...]:
        told = tuple(self._verified)
        self._verified.clear()
        return told

    def _flush(self) -> str:
        text = "".join(self._out)
        self._out.clear()
        return text

    def _trim(self) -> None:
        """Forgets normalised text that no window and no `\\b` needs any more, now and then."""
        surplus = self._unit - WINDOW_CHARS - 1
        if surplus > WINDOW_CHARS:
            self._normal.trim(surplus)
            self._unit -= surplus
            self._scan -= surplus


def raw_hits(normal: Normalizer, spans: Sequence[Span]) -> tuple[MatcherHit, ...]:
    """Spans of normalised text as offsets into the raw text."""
    return tuple(MatcherHit(s.matcher_id, normal.raw_start(s.start), normal.raw_stop(s.end - 1)) for s in spans)
