from __future__ import annotations

import random

import pytest

from personae_runtime.abuse.duplicates import GRAM, Duplicates, Fingerprints, Sighting, similarity
from personae_runtime.policy.normalize import normalize

KEY = b"k" * 32
TEXT = (
    "Have you heard what the new mayor did with the harbour money? Everybody in town says that it went to his"
    " brother's firm, and that the old bridge will fall before anyone looks at it."
)
FINGERPRINTS = Fingerprints(KEY, 60)


def signed(text: str) -> Sighting:
    signature = FINGERPRINTS.of(text)
    assert signature is not None
    return Sighting("acme", "p", 0.0, signature)


def jaccard(one: str, other: str) -> float:
    def grams(text: str) -> set[str]:
        letters = "".join(c for c in normalize(text) if c.isalnum())
        return {letters[at : at + GRAM] for at in range(len(letters) - GRAM + 1)}

    return len(grams(one) & grams(other)) / len(grams(one) | grams(other))


def test_the_estimate_is_near_the_jaccard_index_of_the_texts() -> None:
    draw = random.Random(3)
    words = TEXT.split()
    for share in (0.0, 0.05, 0.2, 0.5, 1.0):
        for _ in range(10):
            other = " ".join(word[::-1] if draw.random() < share else word for word in words)
            estimate = similarity(signed(TEXT).signature, signed(other).signature)
            # Four standard deviations of the mean of 64 draws, at most 4 * 0.5 / 8.
            assert estimate == pytest.approx(jaccard(TEXT, other), abs=0.25)


@pytest.mark.parametrize(
    "other",
    [
        TEXT.upper(),
        TEXT.replace(" ", "  ") + " 🎉🎉",
        TEXT.replace("a", "а").replace("e", "е"),  # Cyrillic
        TEXT.replace("harbour", "harbor").replace("Everybody", "Everyone"),
        "Hi! " + TEXT + " #mayor",
        TEXT.replace("a", "a\u200b"),
    ],
)
def test_what_people_read_as_the_same_is_found(other: str) -> None:
    duplicates = Duplicates(3600, 0.7)
    duplicates.add(signed(TEXT))
    assert list(duplicates.personas("acme", signed(other).signature, 1.0)) == ["p"]


def test_other_texts_and_other_tenants_are_not_found() -> None:
    duplicates = Duplicates(3600, 0.7)
    duplicates.add(signed(TEXT))
    other = "Would you help me choose a lock for my bicycle that two can open, and that is not too heavy?"
    assert duplicates.personas("acme", signed(other).signature, 1.0) == {}
    assert duplicates.personas("other", signed(TEXT).signature, 1.0) == {}


def test_a_text_counts_for_its_window_and_a_persona_once() -> None:
    duplicates = Duplicates(100, 0.7)
    signature = signed(TEXT).signature
    for at, persona in ((0.0, "a"), (50.0, "b"), (60.0, "a")):
        duplicates.add(Sighting("acme", persona, at, signature))
    assert duplicates.personas("acme", signature, 70) == {"a": 60.0, "b": 50.0}
    assert duplicates.personas("acme", signature, 155) == {"a": 60.0}
    assert duplicates.personas("acme", signature, 161) == {}
    assert not duplicates._bands, "what is over is not kept"


def test_short_texts_have_no_fingerprint() -> None:
    assert FINGERPRINTS.of("Hello there, how are you today?") is None
    assert FINGERPRINTS.of("🎉" * 200) is None
    assert FINGERPRINTS.of("") is None


def test_fingerprints_of_another_key_tell_nothing() -> None:
    theirs = Fingerprints(b"x" * 32, 60).of(TEXT)
    assert theirs is not None
    assert similarity(theirs, signed(TEXT).signature) < 0.1


def test_a_sighting_survives_its_report_and_a_broken_one_is_refused() -> None:
    seen = signed(TEXT)
    again = Sighting.unpack(seen.pack())
    assert (again.tenant, again.persona, again.at) == (seen.tenant, seen.persona, seen.at)
    assert (again.signature == seen.signature).all()
    with pytest.raises(ValueError, match="length"):
        Sighting.unpack([*seen.pack()[:3], "00ff00ff"])
