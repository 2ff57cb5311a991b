"""Words to sparse vectors: the lexical arm, and the text that a memory is found by.

BM25 (Robertson & Zaragoza, "The Probabilistic Relevance Framework: BM25 and
Beyond", 2009, eq. 3.15) split in two: a document's vector holds the saturated
term frequencies, the index applies IDF per scope, a query's vector holds ones.
The average length is fixed, so that a vector never changes because other
memories came or went.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Collection
from datetime import datetime
from typing import Any, Final
from zlib import crc32

import Stemmer  # type: ignore[import-not-found]  # ships no types

from personae_runtime.memory.facts import question_words
from personae_runtime.memory.index import SparseVector
from personae_runtime.memory.store import MemoryRecord

K1: Final = 1.2
B: Final = 0.75
"""Saturation and length normalisation: the customary values (ibid., 3.5)."""

AVERAGE_TERMS: Final = 60.0
"""Terms of a typical windowed memory, stop words gone."""

OWN_COPIES: Final = 2
"""How often a memory's own words count against one time for each neighbour's."""

MAX_TEXT_CHARS: Final = 8_000
"""Characters of one text that are looked at; a memory has at most as many."""

# Function words only: a word such as "not", "who" or "when" may carry a question.
_FUNCTION_WORDS: Final = """
    a an and are as at be been but by did do does for from had has have i in is it its me my of on or our so
    that the their them then there these they this those to was we were will with you your
"""
STOPWORDS: Final = frozenset(_FUNCTION_WORDS.split())

_WORD: Final = re.compile(r"\w+(?:'\w+)*")
_MONTHS: Final = (  # not strftime: its month names follow the process's locale
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_stemmers = threading.local()  # a stemmer keeps a cache and is not safe to share


def terms(text: str) -> list[str]:
    """Stems in order: NFKC, case-folded, without accents, possessives or stop words."""
    stems: list[str] = _stemmer().stemWords([word for word in _words(text) if word and word not in STOPWORDS])
    return stems


def held(stems: Collection[str], text: str) -> set[str]:
    """Those of the stems that a text has among its `terms`."""
    # A stem begins as its word does, so most words need not be stemmed.
    initials = {stem[0] for stem in stems}
    words = [word for word in _words(text) if word and word[0] in initials and word not in STOPWORDS]
    return set(stems).intersection(_stemmer().stemWords(words))


def _words(text: str) -> list[str]:
    plain = text[:MAX_TEXT_CHARS].replace("\u2019", "'")
    if plain.isascii():  # normal already, and most texts are
        plain = plain.casefold()
    else:
        folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", plain).casefold())
        accents = [ord(char) for char in set(folded) if unicodedata.combining(char)]
        plain = folded.translate(dict.fromkeys(accents)) if accents else folded
    words: list[str] = _WORD.findall(plain)
    if "'" in plain:
        words = [word.removesuffix("'s").replace("'", "") for word in words]
    return words


def term_id(stem: str) -> int:
    """Place of a stem in the sparse space: CRC-32 of its UTF-8 bytes.

    Two of n stems share a place with probability of about n^2 / 2^33: below one
    in 1,000 for a person's 2,000 distinct words.
    """
    return crc32(stem.encode())


def document_vector(text: str) -> SparseVector:
    """Term weights of a text, without IDF: tf·(K1+1) / (tf + K1·(1 - B + B·length/AVERAGE_TERMS))."""
    counts = Counter(map(term_id, terms(text)))
    length_norm = K1 * (1 - B + B * counts.total() / AVERAGE_TERMS)
    return SparseVector(
        indices=tuple(counts),
        values=tuple(count * (K1 + 1) / (count + length_norm) for count in counts.values()),
    )


def query_vector(text: str) -> SparseVector | None:
    """One per distinct term; None if nothing but stop words is asked."""
    ids = tuple(dict.fromkeys(map(term_id, terms(text))))
    return SparseVector(ids, (1.0,) * len(ids)) if ids else None


def lexical_text(record: MemoryRecord, before: MemoryRecord | None, after: MemoryRecord | None) -> str:
    """What the lexical arm finds a memory by: date, speaker, its own words twice, each neighbour's once.

    The neighbours give an answer its question's words; the date answers "when".
    """
    own = [f"{record.speaker}: {record.text}"] * OWN_COPIES
    if record.fact is not None:
        # A question about it has other words: "where do I live" for "back in Lisbon".
        own.append(question_words(record.fact.predicate))
    around = [f"{other.speaker}: {other.text}" for other in (before, after) if other is not None]
    return "\n".join([spoken_date(record.occurred_at), *own, *around])


def dense_text(record: MemoryRecord) -> str:
    """What the dense arm embeds: no date, which only draws the vectors together, and no neighbour,
    whose own vector is mixed in instead (`indexer.NEIGHBOUR_SHARE`)."""
    return f"{record.speaker}: {record.text}"


def spoken_date(moment: datetime) -> str:
    """A date as people write it, in words that a question can hit: "8 May 2023"."""
    return f"{moment.day} {_MONTHS[moment.month - 1]} {moment.year}"


def _stemmer() -> Any:
    stemmer = getattr(_stemmers, "english", None)
    if stemmer is None:
        stemmer = _stemmers.english = Stemmer.Stemmer("english")
    return stemmer
