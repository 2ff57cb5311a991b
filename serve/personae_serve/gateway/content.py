"""`personae.v1.ContentService`: what personas said, as files with signed manifests."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import orjson

from personae.v1 import content_service_pb2 as pb
from personae.v1 import content_service_pb2_grpc
from personae_runtime.errors import FailedPrecondition
from personae_runtime.ledger.sessions import SessionLedger, SessionRow, TurnRow
from personae_runtime.provenance.label import DigitalSourceType, Label
from personae_runtime.provenance.signing import ContentSigner
from personae_serve.gateway import convert
from personae_serve.gateway.auth import CALLER
from personae_serve.gateway.servicers import Context, _own

SCHEMA: Final = "personae.transcript/1"
MAX_CONTENT_BYTES: Final = 8 << 20
"""Of a transcript; half of what the SDK takes in one message."""
_PAGE: Final = 200
_TEXT, _JSON = "text/plain", "application/json"


class ContentServicer(content_service_pb2_grpc.ContentServiceServicer):
    """`personae.v1.ContentService`."""

    def __init__(self, sessions: SessionLedger, signer: ContentSigner) -> None:
        self._sessions = sessions
        self._signer = signer

    async def ExportContent(self, request: pb.ExportContentRequest, context: Context) -> pb.ExportContentResponse:
        name = _own("turn" if "/turns/" in request.name else "session", request.name)
        session = await self._sessions.get(name)
        CALLER.get().require_user(session.user)
        if name.turn:
            media_type, title = _TEXT, "Reply"
            content, label = _reply(session, await self._sessions.turn(session, name.turn))
        else:
            media_type, title = _JSON, "Transcript"
            content, label = await self._transcript(session)
        manifest = await asyncio.to_thread(
            self._signer.sign, content, media_type, f"{title} of {session.display_name}", session.display_name, label
        )
        return pb.ExportContentResponse(
            content=content, media_type=media_type, manifest=manifest, ai_label=convert.ai_label(label)
        )

    async def _transcript(self, session: SessionRow) -> tuple[bytes, Label]:
        """All turns that have ended, and the label of the whole: that of the newest reply which a model wrote, with the
        person's words; of the newest, if no model wrote any."""
        lines: list[bytes] = []
        size, last = 0, 0
        newest: Label | None = None
        while True:
            rows = await self._sessions.turns(session, after=last, limit=_PAGE, live=False)
            for row in rows:
                last = row.turn_no
                if row.ended_at is None:
                    continue
                label = convert.reply_label(session, row)
                if label is not None and label.source is not DigitalSourceType.ALGORITHMIC:
                    newest = replace(label, source=DigitalSourceType.COMPOSITE)
                elif newest is None or newest.source is DigitalSourceType.ALGORITHMIC:
                    newest = label or newest
                lines.append(orjson.dumps(_turn(row, label)))
                size += len(lines[-1])
                if size > MAX_CONTENT_BYTES:
                    raise FailedPrecondition(
                        f"the transcript has more than {MAX_CONTENT_BYTES} bytes; export its turns one by one",
                        reason="CONTENT_TOO_LARGE",
                    )
            if len(rows) < _PAGE:
                break
        if newest is None:
            raise _nothing(session.name.session_name())
        head = {
            "schema": SCHEMA,
            "session": session.name.session_name(),
            "persona_display_name": session.display_name,
            "disclosure": session.disclosure,
        }
        # A turn a line, for people who read it.
        content = orjson.dumps(head)[:-1] + b',"turns":[\n' + b",\n".join(lines) + b"\n]}\n"
        return content, newest


def _reply(session: SessionRow, row: TurnRow) -> tuple[bytes, Label]:
    label = convert.reply_label(session, row)
    name = f"{session.name.session_name()}/turns/{row.turn_id}"
    if row.ended_at is None:
        raise FailedPrecondition(
            "the turn has not ended; what it says is not final",
            reason="CONTENT_NOT_FINAL",
            violations=((name, "a turn that has ended"),),
        )
    if label is None:
        raise _nothing(name)
    return row.reply_text.encode(), label


def _turn(row: TurnRow, label: Label | None) -> dict[str, Any]:
    return {
        "turn_id": row.turn_id,
        "state": row.state,
        "create_time": _time(row.created_at),
        "end_time": None if row.ended_at is None else _time(row.ended_at),
        "user_text": row.user_text,
        "reply_text": row.reply_text,
        "ai_label": None if label is None else label.to_dict(),
    }


def _time(value: datetime) -> str:
    return value.isoformat().replace("+00:00", "Z")


def _nothing(name: str) -> FailedPrecondition:
    return FailedPrecondition(
        "nothing that was said is held: there was no reply, or it was erased",
        reason="CONTENT_EMPTY",
        violations=((name, "a reply"),),
    )
