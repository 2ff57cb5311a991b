"""The transparency report as a document, and its check without a server.

The document is one JSON object that holds what it takes: the signed checkpoint
of the audit log and, for each decision of the sample, its leaf's hash and the
proof that it is in the log. With an export of the log the sample is drawn again and what was told is counted again.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from personae_runtime.statistics import wilson
from personae_serve.audit_verify import Invalid, check_inclusion, leaf_hash, read_note
from personae_serve.audit_verify import verify as verify_log
from personae_serve.html import page

if TYPE_CHECKING:
    from personae.v1.audit_service_pb2 import ReportFigure, TransparencyReport

FORMAT: Final = "personae-transparency/1"
FIGURES: Final = {
    "allowed": "Decisions that a rule had a part in and that let the text pass",
    "restricted": "Decisions that restricted something, on the service's own initiative and by automated means",
    "reviewed": "of those, reviewed by a person after an appeal",
    "automated_share": "Share of the restrictions that no person has looked at",
    "complaints": "Complaints (appeals) received",
    "median_hours_to_decision": "Median hours to the decision on a complaint",
    "crisis_referrals": "Crisis referrals: decisions about self-harm that told of a crisis line",
}
ARTICLES: Final = {
    "restricted": "Art. 15(1)(c)",
    "automated_share": "Art. 15(1)(e)",
    "reason": "Art. 15(1)(c): by type of illegal content or violation of the terms",
    "rule": "Art. 15(1)(c): by detection method",
    "action": "Art. 15(1)(c): by type of restriction",
    "complaints": "Art. 15(1)(d)",
    "complaint_outcome": "Art. 15(1)(d): decisions taken, and how many were reversed (OVERTURN)",
    "median_hours_to_decision": "Art. 15(1)(d)",
    "sample": "Art. 15(1)(e): accuracy and possible rate of error of the automated means",
    "crisis_referrals": "California SB 243, Bus. & Prof. Code § 22601 ff.: annual report",
}
NOT_COVERED: Final = (
    "Orders of authorities (Art. 15(1)(a)) and notices (Art. 15(1)(b)): none is received through this service.",
    "Measures to train and assist the people who moderate (Art. 15(1)(c)): for the operator to describe.",
    "Out-of-court disputes (Art. 24(1)(a)) and suspensions for misuse (Art. 24(1)(b)): not recorded here.",
    "Average monthly active recipients in the Union (Art. 24(2)): not counted here.",
)
# What an entry of the log holds of a table's kind.
_IN_LOG: Final[dict[str, Callable[[Any], str]]] = {
    "action": lambda body: body["action"],
    "stage": lambda body: body["stage"],
    "reason": lambda body: f"{body['category']}/{body['reason_code']}",
    "rule": lambda body: f"{body['category']}/{body['reason_code']}/{(body['rules'] or [''])[0]}",
}
_ADDING_UP: Final = ("action", "stage", "reason", "rule", "region", "age_band", "persona_type")


def document(report: TransparencyReport) -> dict[str, Any]:
    """The report as JSON holds it; a suppressed number is null."""
    sample = None
    if report.HasField("sample"):
        drawn = report.sample
        judged = drawn.HasField("false_positive_rate")
        sample = {
            "seed": drawn.seed,
            "correct": drawn.correct_count,
            "false_positive": drawn.false_positive_count,
            "undecided": drawn.undecided_count,
            "false_positive_rate": drawn.false_positive_rate if judged else None,
            "interval": [drawn.false_positive_rate_low, drawn.false_positive_rate_high] if judged else None,
            "items": [
                {
                    "decision": item.decision,
                    "leaf_hash": _text(item.leaf_hash),
                    "index": item.index,
                    "hashes": [_text(one) for one in item.hashes],
                    **({"entry": item.entry_json} if item.entry_json else {}),
                }
                for item in drawn.items
            ],
        }
    return {
        "format": FORMAT,
        "tenant": report.parent.removeprefix("tenants/"),
        "start": _time(report.start_time.ToDatetime(UTC)),
        "end": _time(report.end_time.ToDatetime(UTC)),
        "created": _time(report.create_time.ToDatetime(UTC)),
        "min_people": report.min_people,
        "allowed": _told(report.allowed),
        "restricted": _told(report.restricted),
        "reviewed": _told(report.reviewed),
        "automated_share": report.automated_share if report.HasField("automated_share") else None,
        "tables": {
            table.dimension: [{"key": row.key, "count": _told(row.count)} for row in table.rows]
            for table in report.tables
        },
        "complaints": _told(report.complaints),
        "median_hours_to_decision": (
            report.median_hours_to_decision if report.HasField("median_hours_to_decision") else None
        ),
        "crisis_referrals": _told(report.crisis_referrals),
        "sample": sample,
        "checkpoint": report.checkpoint.note,
        "public_key": _text(report.checkpoint.public_key),
        "articles": dict(ARTICLES),
        "not_covered": list(NOT_COVERED),
    }


def html(made: Mapping[str, Any]) -> str:
    """The document as a page."""
    return page("transparency.html", report=made, figures=FIGURES.items())


def _told(figure: ReportFigure) -> int | None:
    return None if figure.suppressed else figure.value


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _time(at: datetime) -> str:
    # As the audit log writes it, so that texts compare as times do.
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# -- checking -----------------------------------------------------------------


@dataclass(slots=True)
class Checked:
    """What was found.

    Attributes:
        problems: what does not hold; empty if all does.
        proved, unproved: decisions of the sample that are proved to be in the log, and those older than it.
        counted: tables that were counted again in the log.
    """

    problems: list[str] = field(default_factory=list)
    proved: int = 0
    unproved: int = 0
    counted: list[str] = field(default_factory=list)


def verify(
    made: Mapping[str, Any],
    *,
    public_key: bytes | None = None,
    pinned: Sequence[str] = (),
    log: Iterable[bytes] | None = None,
) -> Checked:
    """Check a document.

    Args:
        public_key: of the installation, known from elsewhere; without it the key that the document names.
        pinned: checkpoints known from elsewhere, which `log` must contain too.
        log: the lines of an exported audit log, with their line feeds: the sample is drawn again, and actions,
            stages, reasons and rules are counted again.
    """
    checked = Checked()
    try:
        _check(made, checked, public_key, pinned, log)
    except Invalid as error:
        checked.problems.append(str(error))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        checked.problems.append(f"not a transparency report: {type(error).__name__} {error}")
    return checked


def _check(
    made: Mapping[str, Any],
    checked: Checked,
    public_key: bytes | None,
    pinned: Sequence[str],
    log: Iterable[bytes] | None,
) -> None:
    if made["format"] != FORMAT:
        raise Invalid(f"unknown format {made['format']!r}")
    named = base64.b64decode(made["public_key"], validate=True)
    if public_key is not None and named != public_key:
        raise Invalid("the report names another public key than the one given")
    note = read_note(made["checkpoint"], named)
    if note.origin != f"personae/{made['tenant']}":
        raise Invalid("the checkpoint is of another log")
    _check_sums(made, checked)
    sample = made["sample"]
    if sample is not None:
        if sample["seed"] != f"personae-sample/1 {made['tenant']} {made['start']} {made['end']}":
            checked.problems.append("the sample was drawn by another seed than its time's")
        _check_rate(sample, checked)
        ids = [_id(item, made["tenant"]) for item in sample["items"]]
        if len(set(ids)) < len(ids) or ids != sorted(ids, key=lambda one: _draw(sample["seed"], one)):
            checked.problems.append("the sample is not in the order in which it is drawn")
        if sample["correct"] + sample["false_positive"] + sample["undecided"] > len(ids):
            checked.problems.append("more judgments than decisions in the sample")
        for item in sample["items"]:
            try:
                _check_item(item, made, note.size, note.root, checked)
            except Invalid as error:
                checked.problems.append(f"{item['decision']}: {error}")
    if log is not None:
        _check_log(made, checked, named, [*pinned, made["checkpoint"]], list(log))


def _check_item(item: Mapping[str, Any], made: Mapping[str, Any], size: int, root: bytes, checked: Checked) -> None:
    if not item["leaf_hash"]:
        checked.unproved += 1
        return
    leaf = base64.b64decode(item["leaf_hash"], validate=True)
    hashes = [base64.b64decode(one, validate=True) for one in item["hashes"]]
    check_inclusion(leaf, item["index"], size, root, hashes)
    if "entry" in item:
        if leaf_hash(item["entry"].encode()) != leaf:
            raise Invalid("the entry is not the leaf")
        entry = json.loads(item["entry"])
        if entry["kind"] != "decision" or entry["id"] != _id(item, made["tenant"]):
            raise Invalid("the entry is of something else")
        if not made["start"] <= entry["time"] < made["end"] or entry["body"]["action"] == "allow":
            raise Invalid("the entry is not of a restriction of this time")
    checked.proved += 1


def _check_sums(made: Mapping[str, Any], checked: Checked) -> None:
    """What adds up does, as far as it is told."""
    totals = {**dict.fromkeys(_ADDING_UP, made["restricted"]), "complaint_outcome": made["complaints"]}
    for name, rows in made["tables"].items():
        counts = [row["count"] for row in rows]
        told = sum(count for count in counts if count is not None)
        total = totals.get(name)
        if total is None:
            if any(count is not None for count in counts):
                checked.problems.append(f"{name}: rows of a suppressed total are told")
        elif told > total or (None not in counts and told != total) or (None in counts and told == total):
            checked.problems.append(f"{name}: the rows do not add up to {total}")
    reviewed, restricted, share = made["reviewed"], made["restricted"], made["automated_share"]
    if share is not None and (not restricted or reviewed is None or abs(share - (1 - reviewed / restricted)) > 1e-9):
        checked.problems.append("automated_share does not follow from the counts")


def _check_rate(sample: Mapping[str, Any], checked: Checked) -> None:
    wrong, judged = sample["false_positive"], sample["false_positive"] + sample["correct"]
    told = None if sample["false_positive_rate"] is None else [sample["false_positive_rate"], *sample["interval"]]
    computed = [wrong / judged, *wilson(wrong, judged)] if judged else None
    if (told is None) != (computed is None) or (
        told and computed and any(abs(one - other) > 1e-9 for one, other in zip(told, computed, strict=True))
    ):
        checked.problems.append("the rate of false positives does not follow from the judgments")


def _check_log(
    made: Mapping[str, Any], checked: Checked, key: bytes, pinned: Sequence[str], lines: Sequence[bytes]
) -> None:
    found = verify_log(lines, public_key=key, pinned=pinned)
    if not found.holds:
        checked.problems += [f"log: {problem}" for problem in found.problems]
        return
    bodies: dict[str, Any] = {}
    allowed = 0
    for line in lines:
        read = json.loads(line)
        if read["type"] != "entry":
            continue
        entry = json.loads(read["entry"])
        if entry["kind"] == "decision" and made["start"] <= entry["time"] < made["end"]:
            if entry["body"]["action"] == "allow":
                allowed += 1
            else:
                bodies[entry["id"]] = entry["body"]
    for name, count in (("allowed", allowed), ("restricted", len(bodies))):
        if made[name] is not None and made[name] != count:
            checked.problems.append(f"{name}: the report has {made[name]}, the log {count}")
    for name, kind in _IN_LOG.items():
        counted = Counter(kind(body) for body in bodies.values())
        rows = {row["key"]: row["count"] for row in made["tables"].get(name, ())}
        if set(rows) != set(counted) or any(rows[one] not in (None, counted[one]) for one in rows):
            checked.problems.append(f"{name}: the report's rows are not those of the log")
        checked.counted.append(name)
    sample = made["sample"]
    if sample is not None:
        ids = [_id(item, made["tenant"]) for item in sample["items"]]
        drawn = sorted(bodies, key=lambda one: _draw(sample["seed"], one))[: len(ids)]
        if drawn != ids:
            checked.problems.append("the sample is not the one that the log's decisions give")


def _id(item: Mapping[str, Any], tenant: str) -> str:
    prefix = f"tenants/{tenant}/decisions/"
    if not item["decision"].startswith(prefix):
        raise Invalid(f"{item['decision']!r} is no decision of the tenant")
    return str(item["decision"]).removeprefix(prefix)


def _draw(seed: str, decision: str) -> tuple[bytes, str]:
    return sha256(f"{seed}\n{decision}".encode()).digest(), decision
