"""Near-identical texts that go to many personas: what coordinated accounts send.

A text is a set of character 5-grams of its letters and digits, and of that set
MinHash keeps 64 minima (A. Broder, "On the resemblance and containment of
documents", 1997), of which the share that two texts agree in estimates how much
of their sets is common (Jaccard). Candidates are found by bands of four minima
(Leskovec, Rajaraman and Ullman, *Mining of Massive Datasets*, 3.4): two texts
with 0.7 in common share a band of 16 with probability 0.99, with 0.3 with 0.12.

All hashes are keyed: without the key nobody can tell whether a given text was
among them. No text is kept.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import shake_256
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from personae_runtime.policy.normalize import normalize

HASHES: Final = 64
BAND: Final = 4
GRAM: Final = 5
_MOST_CHARS: Final = 2_000
"""Of a longer text the beginning tells."""
_KEPT: Final = 20_000
_WORDLESS: Final = re.compile(r"[\W_]+")

Signature = NDArray[np.uint32]


class Fingerprints:
    """Makes signatures.

    Args:
        key: of the hashes; at least 16 bytes that nobody else knows.
        min_chars: letters and digits from which a text is told by its words rather than by chance.
    """

    def __init__(self, key: bytes, min_chars: int) -> None:
        words = np.frombuffer(shake_256(key).digest(8 * (GRAM + 2 * HASHES)), np.uint64)
        # Odd multipliers: multiply-shift (Dietzfelbinger et al., 1997).
        self._gram = words[:GRAM] | np.uint64(1)
        self._times = words[GRAM : GRAM + HASHES, None] | np.uint64(1)
        self._plus = words[GRAM + HASHES :, None]
        self._min_chars = max(min_chars, GRAM)

    def of(self, text: str) -> Signature | None:
        """The signature of a text; None of one that is too short."""
        if len(text) < self._min_chars:
            return None
        letters = _WORDLESS.sub("", normalize(text[:_MOST_CHARS]))
        if len(letters) < self._min_chars:
            return None
        points = np.frombuffer(letters.encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)
        grams = np.unique(
            (sliding_window_view(points, GRAM) * self._gram).sum(axis=1, dtype=np.uint64) >> np.uint64(16)
        )
        minima = (grams * self._times + self._plus).min(axis=1)
        signature: Signature = (minima >> np.uint64(32)).astype(np.uint32)
        return signature


def similarity(one: Signature, other: Signature) -> float:
    """An estimate of the Jaccard index of two texts' 5-grams, 0 to 1."""
    return float(np.mean(one == other))


@dataclass(frozen=True, slots=True)
class Sighting:
    """A text that a persona was sent, as its signature; `at` is Unix time in seconds."""

    tenant: str
    persona: str
    at: float
    signature: Signature

    def pack(self) -> list[Any]:
        """For JSON."""
        return [self.tenant, self.persona, self.at, self.signature.tobytes().hex()]

    @classmethod
    def unpack(cls, packed: list[Any]) -> Sighting:
        """What `pack` made.

        Raises:
            ValueError: it did not make this.
        """
        tenant, persona, at, signature = packed
        found = np.frombuffer(bytes.fromhex(signature), np.uint32)
        if found.shape != (HASHES,):
            raise ValueError("a signature of another length")
        return cls(tenant, persona, float(at), found)


class Duplicates:
    """Texts of the last while, found by what they have in common.

    Args:
        window_s: how long a text counts.
        at_least: similarity from which two are the same.
    """

    def __init__(self, window_s: float, at_least: float) -> None:
        self._window_s = window_s
        self._at_least = at_least
        self._sightings: OrderedDict[int, Sighting] = OrderedDict()
        self._bands: dict[tuple[str, int, bytes], dict[str, int]] = {}
        self._next = 0

    def personas(self, tenant: str, signature: Signature, now: float) -> dict[str, float]:
        """Personas of a tenant that were sent about this text in the window, with when they last were."""
        self._expire(now)
        found: dict[str, float] = {}
        for band in _bands(tenant, signature):
            for persona, number in self._bands.get(band, {}).items():
                seen = self._sightings[number]
                if found.get(persona, -np.inf) < seen.at and similarity(signature, seen.signature) >= self._at_least:
                    found[persona] = seen.at
        return found

    def add(self, seen: Sighting) -> None:
        """Keep one, for its time."""
        number = self._next
        self._next += 1
        self._sightings[number] = seen
        for band in _bands(seen.tenant, seen.signature):
            held = self._bands.setdefault(band, {})
            # Of a band, a persona's newest stands for all of its.
            before = held.get(seen.persona)
            if before is None or self._sightings[before].at <= seen.at:
                held[seen.persona] = number
        if len(self._sightings) > _KEPT:
            self._drop(next(iter(self._sightings)))

    def _expire(self, now: float) -> None:
        # In the order in which they came, which is nearly that of their times.
        while self._sightings:
            number, seen = next(iter(self._sightings.items()))
            if seen.at > now - self._window_s:
                return
            self._drop(number)

    def _drop(self, number: int) -> None:
        seen = self._sightings.pop(number)
        for band in _bands(seen.tenant, seen.signature):
            held = self._bands.get(band, {})
            if held.get(seen.persona) == number:
                del held[seen.persona]
                if not held:
                    del self._bands[band]


def _bands(tenant: str, signature: Signature) -> list[tuple[str, int, bytes]]:
    return [(tenant, at, signature[at : at + BAND].tobytes()) for at in range(0, HASHES, BAND)]
