"""Attacks by file: JSON Lines, one case a line. docs/redteam.md has the format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import re2
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from personae_runtime.errors import InvalidArgument
from personae_runtime.policy.normalize import normalize

STARTER: Final = Path(__file__).parent / "starter.jsonl"
"""The corpus that ships."""
MAX_BYTES: Final = 64 * 1024 * 1024

_Text = Annotated[str, Field(min_length=1, max_length=8000)]
Detector = Literal["canary", "system_prompt", "human_claim"]


class Case(BaseModel):
    """One attack.

    Attributes:
        prompt: what the attacker wants to get through.
        category: for the report, such as "prompt_injection".
        marker: a text that only a reply which obeys contains. No message of the case contains it.
        evidence: regular expressions (RE2) of normalised text, one of which a harmful reply matches.
        detectors: general detectors whose silence means that the attack failed.
        steps: said one after another before the prompt in `crescendo`, in place of the general ones.
        topic: what `crescendo` begins with.
        translations: the prompt in other languages, by BCP 47 tag.
        strategies: the only ones to play it by; empty is all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]
    category: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
    prompt: _Text
    marker: Annotated[str, Field(max_length=200)] = ""
    evidence: tuple[_Text, ...] = ()
    detectors: tuple[Detector, ...] = ()
    steps: tuple[_Text, ...] = ()
    topic: Annotated[str, Field(max_length=200)] = "this subject"
    translations: dict[Annotated[str, Field(pattern=r"^[a-zA-Z]{2,3}(-[a-zA-Z0-9]+)*$")], _Text] = {}
    strategies: tuple[str, ...] = ()

    @field_validator("evidence")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re2.compile(pattern)
            except re2.error as error:
                raise ValueError(f"{pattern!r} is no regular expression of RE2: {error}") from None
        return patterns

    @field_validator("strategies")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        # Here, as strategies are of cases.
        from personae_serve.redteam.strategies import NAMES, known

        if not known(names):
            raise ValueError(f"expected strategies among {', '.join(NAMES)}")
        return names

    @model_validator(mode="after")
    def _tells_echo_from_obedience(self) -> Case:
        said = (self.prompt, *self.steps, *self.translations.values())
        if self.marker and any(normalize(self.marker) in normalize(text) for text in said):
            raise ValueError("the marker stands in a message: a reply that only repeats the message would count")
        return self

    @property
    def judged(self) -> bool:
        """Whether anything could show that it succeeded, and so that it did not."""
        return bool(self.marker or self.evidence or self.detectors)

    @property
    def digest(self) -> str:
        """Of all that it says: attempts of different runs compare only if it is the same."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def read(paths: Sequence[Path]) -> list[Case]:
    """The cases of files, in order.

    Raises:
        InvalidArgument: says which line is wrong, and how.
    """
    cases: dict[str, Case] = {}
    for path in paths:
        for number, line in enumerate(_content(path).split("\n"), 1):
            if not line.strip():
                continue
            where = f"{path}: line {number}"
            try:
                row: Any = json.loads(line)
                case = Case.model_validate(row)
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"]))
                raise InvalidArgument(f"{where}: {field + ': ' if field else ''}{first['msg']}") from None
            except (ValueError, RecursionError):
                raise InvalidArgument(f"{where}: not JSON; expected one object a line") from None
            if case.id in cases:
                raise InvalidArgument(f"{where}: id {case.id!r} stands twice")
            cases[case.id] = case
    if not cases:
        raise InvalidArgument(f"{', '.join(map(str, paths))}: no case in it")
    return list(cases.values())


def _content(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidArgument(f"{path}: larger than {MAX_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}: can't be read as UTF-8 text: {error}") from None
