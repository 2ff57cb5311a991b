"""The law that rules and protocols name by id: what it demands, since when, and where it stands (`laws.yaml`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from functools import lru_cache
from importlib import resources
from typing import Final

import yaml
from pydantic import BaseModel, ConfigDict, Field

from personae_runtime.errors import ConfigError

LAWS_FILE: Final = "laws.yaml"


class Law(BaseModel):
    """One provision.

    Attributes:
        article: what of it is meant; `cite` is what decisions cite, if that is less.
        since: first day of application.
        to_check: what counsel must say first; empty if nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    article: str
    cite: str = ""
    demands: str
    since: date
    source: str
    to_check: str = ""

    @property
    def citation(self) -> str:
        """As a decision's legal basis names it."""
        return f"{self.name}, {self.cite or self.article}"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    laws: Mapping[str, Law]
    also: Mapping[str, str] = Field(default_factory=dict)


@lru_cache(maxsize=1)
def _file() -> _File:
    file = _File.model_validate(yaml.safe_load(resources.files(__package__).joinpath(LAWS_FILE).read_bytes()))
    unknown = file.also.keys() - file.laws.keys()
    if unknown:
        raise ConfigError(f"{LAWS_FILE}: also: no such laws: {sorted(unknown)}")
    return file


def laws() -> Mapping[str, Law]:
    """Every law, by id."""
    return _file().laws


def met_by() -> Mapping[str, str]:
    """What meets a law beside the rules that name it, by the law's id; Markdown."""
    return _file().also


def cite(ids: Iterable[str]) -> str:
    """The citations of some laws, joined by semicolons.

    Raises:
        ConfigError: there is no law of such an id.
    """
    known = laws()
    unknown = [one for one in ids if one not in known]
    if unknown:
        raise ConfigError(f"laws: unknown {unknown}; expected some of {sorted(known)}")
    return "; ".join(known[one].citation for one in ids)
