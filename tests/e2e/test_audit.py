"""The audit log of a real host: what enters, what it proves, and that no change to an export goes unseen."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from personae.v1 import audit_service_pb2 as pb
from personae.v1 import persona_service_pb2
from personae.v1 import policy_service_pb2 as policy_pb
from personae_serve.audit_verify import Report, check_consistency, check_inclusion, leaf_hash, read_note, verify
from tests.e2e.conftest import StartHost, start_hosted
from tests.e2e.support import Api, Hosted, failure, new_user, run_cli

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARENT = "tenants/demo"
CRY = "I don't want to live anymore"


@dataclass
class Life:
    """What a person did at a host of its own, and the log of it."""

    hosted: Hosted
    persona: str
    user: str
    session: str
    early: pb.Checkpoint
    lines: list[bytes]

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Every entry, read."""
        found = [json.loads(line) for line in self.lines]
        return [json.loads(line["entry"]) for line in found if line["type"] == "entry"]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Entries of a kind."""
        return [entry for entry in self.entries if entry["kind"] == kind]


async def export(api: Api) -> list[bytes]:
    """The lines of an export as a file holds them."""
    call = api.audit.ExportAuditLog(pb.ExportAuditLogRequest(parent=PARENT))
    return [f"{message.json_line}\n".encode() async for message in call]


async def consent(api: Api, user: str, state: policy_pb.ConsentState) -> None:
    await api.consents.RecordConsent(
        policy_pb.RecordConsentRequest(
            consent_event=policy_pb.ConsentEvent(
                subject=user, purpose=policy_pb.CONSENT_PURPOSE_MEMORY, state=state, evidence="a form in blue ink"
            )
        )
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def life(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Life]:
    """A persona published twice and withdrawn, a person who consents, is in need, and is erased."""
    async with AsyncExitStack() as stack:
        yield await live(await start_hosted(stack, tmp_path_factory.mktemp("audit")))


async def live(hosted: Hosted) -> Life:
    """See `life`."""
    api = hosted.api
    persona = await api.persona()
    user = new_user(persona)
    await consent(api, user, policy_pb.CONSENT_STATE_GRANTED)
    session = await api.session(persona, user)
    await api.say(session, CRY)
    early = await api.audit.GetCheckpoint(pb.GetCheckpointRequest(parent=PARENT))
    await consent(api, user, policy_pb.CONSENT_STATE_WITHDRAWN)
    await api.publish(persona, "You are Nadia, who repairs bikes.")
    await api.audit.GetCheckpoint(pb.GetCheckpointRequest(parent=PARENT))
    await api.personas.WithdrawRevision(
        persona_service_pb2.WithdrawRevisionRequest(name=f"{persona}/revisions/2", reason="it named a customer")
    )
    await api.erase(user, reason="asked for")
    return Life(hosted, persona, user, session, early, await export(api))


async def test_the_log_tells_of_decisions_consents_revisions_and_erasures(life: Life) -> None:
    kinds = [entry["kind"] for entry in life.entries]
    assert kinds.count("revision_published") == 2
    assert kinds.count("revision_withdrawn") == 1
    assert kinds.count("consent") == 2
    assert kinds.count("erasure") == 1
    scope = life.hosted.scope(life.user)
    decision = next(entry["body"] for entry in life.of("decision") if entry["body"]["category"] == "self_harm")
    assert decision["stage"] == "input"
    assert decision["action"] in ("block", "escalate")
    assert decision["person"] == scope
    assert [entry["body"]["state"] for entry in life.of("consent")] == ["GRANTED", "WITHDRAWN"]
    assert {entry["body"]["person"] for entry in life.of("consent")} == {scope}
    [erasure] = life.of("erasure")
    assert erasure["body"]["person"] == scope
    assert erasure["body"]["whole_person"]
    # What rests on something stands behind it.
    assert kinds.index("revision_published") < kinds.index("decision") < kinds.index("erasure")


async def test_it_holds_no_words_and_names_no_person(life: Life) -> None:
    text = b"".join(life.lines).decode()
    for secret in (CRY, life.user, life.user.rsplit("/", 1)[1], life.session.rsplit("/", 1)[1], "blue ink", "customer"):
        assert secret not in text


async def test_an_export_holds_and_contains_checkpoints_given_out_before(life: Life) -> None:
    report = verify(life.lines, public_key=life.early.public_key, pinned=[life.early.note])
    assert report.problems == []
    assert report.entries == len(life.entries)
    assert report.pinned == [life.early.tree_size]
    assert report.last is not None
    assert report.last.size == report.entries > life.early.tree_size


async def test_an_erasure_changes_nothing_in_the_log(life: Life) -> None:
    api = life.hosted.api
    again = await export(api)
    assert again == life.lines
    # The entry of the decision about the person can still be proved, by the decision's id.
    decision = life.of("decision")[0]
    proof = await api.audit.GetInclusionProof(pb.GetInclusionProofRequest(parent=PARENT, entry_id=decision["id"]))
    assert json.loads(proof.entry.entry_json) == decision


async def test_proofs_lead_from_entries_and_old_trees_to_signed_roots(life: Life) -> None:
    api = life.hosted.api
    size = len(life.entries)
    for index in range(size):
        proof = await api.audit.GetInclusionProof(pb.GetInclusionProofRequest(parent=PARENT, index=index))
        signed = read_note(proof.checkpoint.note, life.early.public_key)
        assert (signed.size, signed.root) == (size, proof.root_hash)
        check_inclusion(leaf_hash(proof.entry.entry_json.encode()), index, size, signed.root, proof.hashes)
        grown = await api.audit.GetConsistencyProof(
            pb.GetConsistencyProofRequest(parent=PARENT, first_tree_size=index + 1, second_tree_size=size)
        )
        check_consistency(index + 1, size, grown.first_root_hash, signed.root, grown.hashes)
        if index + 1 == life.early.tree_size:
            assert grown.first_root_hash == life.early.root_hash


async def test_entries_are_listed_in_pages_in_order(life: Life) -> None:
    listed: list[str] = []
    token = ""
    while True:
        page = await life.hosted.api.audit.ListAuditEntries(
            pb.ListAuditEntriesRequest(parent=PARENT, page_size=3, page_token=token)
        )
        assert [entry.index for entry in page.audit_entries] == list(range(len(listed), len(listed) + 3))[
            : len(page.audit_entries)
        ]
        listed += [entry.entry_json for entry in page.audit_entries]
        token = page.next_page_token
        if not token:
            break
    assert [json.loads(entry) for entry in listed] == life.entries


async def test_what_cannot_be_proved_says_so(life: Life) -> None:
    audit = life.hosted.api.audit
    size = len(life.entries)
    absent = await failure(audit.GetInclusionProof(pb.GetInclusionProofRequest(parent=PARENT, index=size)))
    assert (absent.code, absent.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    for request in (
        pb.GetInclusionProofRequest(parent=PARENT, index=1, tree_size=1),
        pb.GetInclusionProofRequest(parent=PARENT, index=1, tree_size=size + 1),
    ):
        found = await failure(audit.GetInclusionProof(request))
        assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TREE_SIZE_INVALID")
        assert found.fields == ["tree_size"]
    found = await failure(
        audit.GetConsistencyProof(
            pb.GetConsistencyProofRequest(parent=PARENT, first_tree_size=3, second_tree_size=size + 1)
        )
    )
    assert (found.reason, found.fields) == ("TREE_SIZE_INVALID", ["second_tree_size"])


async def test_another_tenant_and_a_user_are_refused(life: Life) -> None:
    other = life.hosted.caller("key-of-another-tenant")
    request = pb.GetCheckpointRequest(parent=PARENT)
    assert (await failure(other.audit.GetCheckpoint(request))).reason == "TENANT_MISMATCH"
    assert (await failure(life.hosted.caller("key-of-ann").audit.GetCheckpoint(request))).reason == "PERMISSION_DENIED"
    empty = await other.audit.GetCheckpoint(pb.GetCheckpointRequest(parent="tenants/other"))
    assert empty.tree_size == 0


# -- mutations ----------------------------------------------------------------


def judge(life: Life, lines: list[bytes]) -> Report:
    """The verdict of somebody who kept the key and the newest checkpoint."""
    return verify(lines, public_key=life.early.public_key, pinned=[json.loads(life.lines[-1])["note"]])


def splits(life: Life) -> Iterator[tuple[str, list[bytes]]]:
    """Every line dropped, doubled, swapped with the next; the log cut off behind it; every entry altered."""
    lines = life.lines
    for at, line in enumerate(lines):
        yield f"drop {at}", lines[:at] + lines[at + 1 :]
        yield f"double {at}", [*lines[: at + 1], line, *lines[at + 1 :]]
        if at:
            yield f"cut before {at}", lines[:at]
        if at + 1 < len(lines):
            yield f"swap {at}", [*lines[:at], lines[at + 1], line, *lines[at + 2 :]]
        read = json.loads(line)
        if read["type"] == "entry":
            entry = json.loads(read["entry"])
            entry["body"]["persona"] = "another"
            read["entry"] = json.dumps(entry, separators=(",", ":"), ensure_ascii=False)
            forged = json.dumps(read, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
            yield f"alter {at}", [*lines[:at], forged, *lines[at + 1 :]]
            # Numbered anew, as whoever forges would.
            yield f"remove {at}", renumbered(lines[:at] + lines[at + 1 :])
            yield f"insert {at}", renumbered([*lines[:at], forged, *lines[at:]])


def renumbered(lines: list[bytes]) -> list[bytes]:
    """The lines with entries numbered by their places."""
    found, index = [], 0
    for line in lines:
        read = json.loads(line)
        if read["type"] == "entry":
            read["index"], index = index, index + 1
        found.append(json.dumps(read, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
    return found


async def test_every_altered_dropped_reordered_inserted_or_cut_line_is_detected(life: Life) -> None:
    assert renumbered(life.lines) == life.lines
    count = 0
    for what, lines in splits(life):
        count += 1
        assert not judge(life, lines).holds, what
    assert count > 60


async def test_every_changed_byte_is_detected(life: Life) -> None:
    whole = b"".join(life.lines)
    chosen = random.Random(5)
    for at in chosen.sample(range(len(whole)), 1_500):
        changed = bytes([whole[at] ^ (1 << chosen.randrange(8))])
        mutated = whole[:at] + changed + whole[at + 1 :]
        assert not judge(life, mutated.splitlines(keepends=True)).holds, (at, whole[at : at + 1], changed)


def without_first_checkpoints(lines: list[bytes]) -> Iterator[list[bytes]]:
    """The log, and the same less its first checkpoints with the proofs that lead on from them: every entry is there,
    and is signed by the later ones."""
    places: dict[str, list[int]] = {"checkpoint": [], "consistency": []}
    for at, line in enumerate(lines):
        places.get(json.loads(line)["type"], []).append(at)
    for count in range(len(places["checkpoint"])):
        gone = {*places["checkpoint"][:count], *places["consistency"][:count]}
        yield [line for at, line in enumerate(lines) if at not in gone]


async def test_no_series_of_changes_goes_undetected(life: Life) -> None:
    lines = life.lines
    places = st.integers(0, len(lines) - 1)

    @settings(max_examples=300, deadline=None, database=None)
    @given(st.lists(st.tuples(st.sampled_from(("drop", "move", "copy", "change")), places, places), min_size=1))
    def check(changes: list[tuple[str, int, int]]) -> None:
        found = list(lines)
        for what, at, to in changes:
            if not found:
                break
            at %= len(found)
            line = found[at] if what == "copy" else found.pop(at)
            if what == "change":
                found.insert(at, line.replace(b"demo", b"dome", 1 + to % 3))
            elif what != "drop":
                found.insert(to % (len(found) + 1), line)
        for candidate in (found, renumbered(found)):
            assert judge(life, candidate).holds == (candidate in untouched)

    untouched = list(without_first_checkpoints(lines))
    assert lines in untouched
    check()


async def test_cut_off_behind_an_earlier_checkpoint_only_a_known_one_tells(life: Life) -> None:
    at = next(index for index, line in enumerate(life.lines) if json.loads(line)["type"] == "checkpoint")
    cut = life.lines[: at + 1]
    assert verify(cut, public_key=life.early.public_key).holds
    assert "cut off" in judge(life, cut).problems[0]


async def test_a_log_signed_anew_by_another_key_is_told_by_the_key_alone(life: Life, start_host: StartHost) -> None:
    other = await start_host("other")
    await other.api.persona()
    forged = await export(other.api)
    assert verify(forged).holds
    assert not verify(forged, public_key=life.early.public_key).holds
    assert not verify(forged, pinned=[life.early.note]).holds


# -- the command line ---------------------------------------------------------


async def test_the_command_line_exports_proves_and_verifies(life: Life, tmp_path: Path) -> None:
    file, receipt, note = tmp_path / "log.jsonl", tmp_path / "receipt.jsonl", tmp_path / "checkpoint"
    code, output = await run_cli(life.hosted, "audit", "export", str(file))
    assert (code, file.read_bytes()) == (0, b"".join(life.lines)), output
    decision = life.of("decision")[0]
    code, output = await run_cli(life.hosted, "audit", "prove", decision["id"], str(receipt))
    assert code == 0, output
    code, output = await run_cli(life.hosted, "audit", "checkpoint")
    assert code == 0, output
    note.write_text(output)
    key = base64.b64encode(life.early.public_key).decode()
    for path in (file, receipt):
        code, output = await verify_cli(str(path), "--public-key", key, "--checkpoint", str(note))
        assert code == 0, output
        assert "personae/demo: holds" in output
    receipt.write_bytes(receipt.read_bytes().replace(b"self_harm", b"harmless!"))
    code, output = await verify_cli(str(receipt), "--public-key", key)
    assert code == 1
    assert "does not lead to the root" in output


async def verify_cli(*arguments: str) -> tuple[int, str]:
    """`personae audit verify` in this process: it needs no server."""
    from typer.testing import CliRunner

    from personae_serve.cli import build_app

    result = await asyncio.to_thread(CliRunner().invoke, build_app(), ["audit", "verify", *arguments])
    return result.exit_code, result.output
