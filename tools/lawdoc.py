"""docs/laws.md from the policy's data files: `python -m tools.lawdoc > docs/laws.md`.

Laws, rules, reminders and crisis lines are read from the files that the server itself loads.
"""

from __future__ import annotations

from collections import defaultdict
from importlib import resources
from typing import Any, Final

import yaml

from personae_runtime.policy import laws
from personae_runtime.policy.bundle import DEFAULT_BUNDLE, protocol_file
from personae_runtime.policy.protocols import Reminder

_HEAD: Final = """\
# Laws

<!-- Written by `make docs` from runtime/personae_runtime/policy/: laws.yaml, protocols.yaml, default_bundle.yaml and
crisis_lines.yaml. Change those. -->

What the rules and [protocols](protocols.md) rest on. Each names its laws by id, a decision cites them as its legal
basis, and this page lists what meets which. It is no legal advice: a law that stands here was read by engineers, what
is marked *to check* must be answered by counsel first, and a law that does not stand here may still apply to you.

"""


def markdown() -> str:
    """The page."""
    met = _met()
    parts = [_HEAD, "| id | law | applies from | met by |\n|---|---|---|---|\n"]
    known = laws.laws()
    for law_id, law in known.items():
        by = ", ".join(f"`{one}`" for one in met[law_id])
        also = laws.met_by().get(law_id, "")
        cell = ". ".join(filter(None, (by, also))) or "nothing here: the operator's"
        parts.append(f"| [`{law_id}`](#{law_id}) | {law.name}, {law.article} | {law.since.isoformat()} | {cell} |\n")
    for law_id, law in known.items():
        parts.append(f"\n## {law_id}\n\n{law.name}, {law.article}. Applies from {law.since.isoformat()}.\n\n")
        parts.append(f"It demands: {law.demands}\n\n")
        if law.to_check:
            parts.append(f"*To check:* {law.to_check}\n\n")
        parts.append(f"Source: <{law.source}>\n")
    parts += _reminders() + _crisis_lines()
    return "".join(parts)


def _met() -> dict[str, list[str]]:
    """Rules and protocols by the law that they name."""
    raw = protocol_file()[0]
    bundle: dict[str, Any] = yaml.safe_load(
        resources.files("personae_runtime.policy").joinpath(DEFAULT_BUNDLE).read_bytes()
    )
    met: dict[str, list[str]] = defaultdict(list)
    named = [(rule["id"], rule.get("laws", ())) for rule in (*raw["rules"], *bundle["rules"])]
    named += [(one["code"], one["laws"]) for one in raw["reminders"]]
    named += [(raw["self_harm"]["held"]["id"], raw["self_harm"]["laws"]), ("disclosure", raw["disclosure_laws"])]
    for name, ids in named:
        laws.cite(ids)
        for law_id in ids:
            if name not in met[law_id]:
                met[law_id].append(name)
    return met


def _reminders() -> list[str]:
    raw = protocol_file()[0]
    parts = ["\n## Reminders\n\n| notice | to whom | where | at least every | law |\n|---|---|---|---|---|\n"]
    for entry in raw["reminders"]:
        one = Reminder.model_validate(entry)
        whom = "whoever is, or may be, a minor" if one.age_bands else "everybody"
        where = ", ".join(region or "region unknown" for region in one.regions) or "everywhere"
        cited = ", ".join(f"[`{law}`](#{law})" for law in one.laws)
        parts.append(f"| `{one.code}` | {whom} | {where} | {one.every_s / 3600:g} h of use | {cited} |\n")
    return parts


def _crisis_lines() -> list[str]:
    lines = protocol_file()[1]
    parts = [
        "\n## Crisis lines\n\nThe card of each region. *Checked* is the day on which number and hours were compared"
        " with a stored copy of the page given; lines that say *never* have not been compared with anything, and must"
        " be before the service opens there. Numbers change: check them all again at least once a year.\n\n"
        "| region | service | number | hours | checked | service's own page |\n|---|---|---|---|---|---|\n"
    ]
    for region, line in sorted(lines["regions"].items()):
        checked = f"{line['checked']}, [against]({line['against']})" if "checked" in line else "never"
        parts.append(
            f"| {region} | {line['service']} | {line['number']} | {line['hours']} | {checked} | <{line['source']}> |\n"
        )
    default = lines["default"]
    parts.append(f"| any other | {default['service']} | | | never | <{default['source']}> |\n")
    return parts


if __name__ == "__main__":
    print(markdown(), end="")
