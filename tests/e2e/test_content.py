"""What personas said leaves as files whose manifests show every change."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format
from typer.testing import CliRunner

from personae.v1 import content_service_pb2 as pb
from personae.v1.provenance_pb2 import AiLabel
from personae_runtime.ledger.vault import master_key_of
from personae_runtime.provenance.label import DigitalSourceType
from personae_runtime.provenance.signing import ContentSigner, development_identity
from personae_runtime.provenance.verify import verify
from personae_serve.cli import build_app
from personae_serve.gateway import content as content_module
from tests.e2e.support import DEFAULT_REPLY, Api, Hosted, Pause, failure, run_cli

pytestmark = pytest.mark.asyncio(loop_scope="session")


def authority(hosted: Hosted) -> str:
    """What a verifier must trust to trust a host in development."""
    return development_identity(master_key_of(hosted.host.settings)).authority.decode()


async def export(api: Api, name: str) -> pb.ExportContentResponse:
    exported: pb.ExportContentResponse = await api.content.ExportContent(pb.ExportContentRequest(name=name))
    return exported


async def test_a_reply_is_exported_with_a_manifest_that_says_who_said_it(hosted: Hosted, api: Api) -> None:
    persona = await api.persona()
    session = await api.session(persona)
    await api.say(session, "Hello there.", "t1")
    [turn] = await api.turns(session)
    exported = await export(api, turn.name)
    assert (exported.media_type, exported.content.decode()) == ("text/plain", turn.reply_text)
    assert exported.ai_label == turn.ai_label
    found = verify(exported.content, exported.manifest, authority(hosted))
    assert (found.problems, found.trusted) == ((), True)
    assert found.generator.startswith("Personae ")
    told = dict(found.label)
    assert told.pop("persona_display_name") == "Nadia"
    assert json_format.ParseDict(told, AiLabel()) == turn.ai_label
    # Whom it was said to is nobody's business who reads the file.
    assert session.rsplit("/", 1)[1].encode() not in exported.manifest


async def test_a_session_is_exported_as_a_transcript(hosted: Hosted, api: Api) -> None:
    session = await api.session(await api.persona())
    await api.say(session, "Hello there.", "t1")
    await api.say(session, "Are you a real person?", "t2")
    turns = await api.turns(session)
    exported = await export(api, session)
    assert exported.media_type == "application/json"
    transcript = json.loads(exported.content)
    assert (transcript["schema"], transcript["session"]) == ("personae.transcript/1", session)
    assert transcript["disclosure"]
    said = [(one["user_text"], one["reply_text"]) for one in transcript["turns"]]
    assert said == [(turn.user_text, turn.reply_text) for turn in turns]
    labels = [json_format.ParseDict(one["ai_label"], AiLabel()) for one in transcript["turns"]]
    assert labels == [turn.ai_label for turn in turns]
    assert exported.ai_label.digital_source_type == DigitalSourceType.COMPOSITE
    assert exported.ai_label.model == turns[0].ai_label.model == "scripted"
    assert verify(exported.content, exported.manifest, authority(hosted)).trusted


async def test_a_transcript_that_no_model_had_a_part_in_does_not_say_so(api: Api) -> None:
    session = await api.session(await api.persona())
    await api.say(session, "Are you a real person?")
    label = (await export(api, session)).ai_label
    assert (label.model, label.digital_source_type) == ("", DigitalSourceType.ALGORITHMIC)


async def test_a_manifest_fits_no_other_reply(api: Api) -> None:
    session = await api.session(await api.persona())
    await api.say(session, "Hello there.", "t1")
    await api.say(session, "Are you a real person?", "t2")
    first, second = [await export(api, turn.name) for turn in await api.turns(session)]
    assert verify(first.content, first.manifest).holds
    assert not verify(first.content, second.manifest).holds
    assert not verify(second.content, first.manifest).holds


async def test_what_is_not_final_or_not_there_is_not_exported(
    hosted: Hosted, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    persona = await api.persona()
    session = await api.session(persona, f"{persona}/users/ann")
    empty = await failure(export(api, session))
    assert (empty.code, empty.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CONTENT_EMPTY")
    pause = Pause()
    hosted.engine.will_say(pause)
    call = api.converse(session, "Hello there.", "t1")
    await pause.wait()
    assert (await failure(export(api, f"{session}/turns/t1"))).reason == "CONTENT_NOT_FINAL"
    await api.cancel(session, "t1")
    call.cancel()
    assert (await failure(export(api, f"{session}/turns/t1"))).reason == "CONTENT_EMPTY"
    assert (await failure(export(api, f"{session}/turns/t9"))).reason == "RESOURCE_NOT_FOUND"
    assert (await failure(export(api, persona))).reason == "NAME_INVALID"
    await api.say(session, "Hello there.", "t2")
    monkeypatch.setattr(content_module, "MAX_CONTENT_BYTES", 200)
    assert (await failure(export(api, session))).reason == "CONTENT_TOO_LARGE"
    await api.erase(f"{persona}/users/ann")
    for name in (session, f"{session}/turns/t2"):
        gone = await failure(export(api, name))
        assert (gone.code, gone.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_only_its_person_and_their_service_may_export(hosted: Hosted, api: Api) -> None:
    persona = await api.persona()
    anns, bobs = [await api.session(persona, f"{persona}/users/{who}") for who in ("ann", "bob")]
    for session in (anns, bobs):
        await api.say(session, "Hello there.", "t1")
    ann = hosted.caller("key-of-ann")
    assert (await export(ann, f"{anns}/turns/t1")).content.decode() == DEFAULT_REPLY
    assert (await failure(export(ann, bobs))).reason == "USER_MISMATCH"
    assert (await failure(export(hosted.caller("key-of-another-tenant"), anns))).reason == "TENANT_MISMATCH"
    assert (await failure(export(hosted.caller("key-that-may-read-personas"), anns))).reason == "PERMISSION_DENIED"


async def test_a_host_without_a_certificate_exports_nothing(
    hosted: Hosted, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await api.session(await api.persona())
    await api.say(session, "Hello there.", "t1")
    require, unsigned = ContentSigner._require, ContentSigner(None)
    monkeypatch.setattr(ContentSigner, "_require", lambda self: require(unsigned))
    refused = await failure(export(api, f"{session}/turns/t1"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CONTENT_SIGNING_UNAVAILABLE")


async def test_the_command_line_exports_and_verifies(hosted: Hosted, api: Api, tmp_path: Path) -> None:
    session = await api.session(await api.persona())
    await api.say(session, "Hello there.", "t1")
    file, trusted = tmp_path / "reply.txt", tmp_path / "authority.pem"
    code, output = await run_cli(hosted, "content", "export", f"{session}/turns/t1", str(file))
    assert code == 0, output
    assert file.read_text() == DEFAULT_REPLY

    async def local(*arguments: str) -> tuple[int, str]:
        environment = {"PERSONAE_DATA_DIR": str(hosted.host.settings.data_dir)}
        result = await asyncio.to_thread(CliRunner().invoke, build_app(), ["content", *arguments], env=environment)
        return result.exit_code, result.output

    code, output = await local("authority")
    assert (code, output) == (0, authority(hosted))
    trusted.write_text(output)
    code, output = await local("verify", str(file), "--trust", str(trusted))
    assert code == 0, output
    assert "holds; signed by Personae (development), Content" in output
    assert "persona_display_name: Nadia" in output
    file.write_text(DEFAULT_REPLY.replace("fine", "find"))
    code, output = await local("verify", str(file), "--trust", str(trusted))
    assert (code, "does NOT hold" in output) == (1, True)
