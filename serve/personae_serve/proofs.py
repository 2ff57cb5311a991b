"""Signed records: what an erasure and an export leave. Anybody with the public key can check them, without a server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf import json_format

from personae.v1 import memory_service_pb2
from personae_runtime.ledger.erasure import Erasure

Signed = memory_service_pb2.ErasureProof | memory_service_pb2.ExportRecord


class Signer(Protocol):
    """What signs: the vault."""

    @property
    def public_key(self) -> bytes:
        """Ed25519, 32 bytes."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Ed25519, 64 bytes."""
        ...


def sign(message: Signed, signer: Signer) -> None:
    """Fill in the public key and the signature."""
    message.public_key = signer.public_key
    message.signature = signer.sign(_signed_bytes(message))


def holds(message: Signed, public_key: bytes | None = None) -> bool:
    """Whether the signature is right, and by `public_key` if given: anybody can sign with a key of their own."""
    if public_key is not None and message.public_key != public_key:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(message.public_key).verify(message.signature, _signed_bytes(message))
    except (InvalidSignature, ValueError):
        return False
    return True


def _signed_bytes(message: Signed) -> bytes:
    unsigned = type(message)()
    unsigned.CopyFrom(message)  # type: ignore[arg-type]  # of the same type
    unsigned.ClearField("signature")
    return unsigned.SerializeToString(deterministic=True)


def prover(signer: Signer) -> Callable[[Erasure, dict[str, int], datetime], bytes]:
    """Makes the signed proof of an erasure, serialized."""

    def prove(erasure: Erasure, remaining: dict[str, int], at: datetime) -> bytes:
        proof = memory_service_pb2.ErasureProof(
            erasure_id=str(erasure.erasure_id),
            scope=erasure.scope,
            memory_ids=[str(memory_id) for memory_id in erasure.memory_ids],
            erased=erasure.erased,
            remaining=remaining,
            reason=erasure.reason,
        )
        proof.request_time.FromDatetime(erasure.created_at)
        proof.complete_time.FromDatetime(at)
        sign(proof, signer)
        return proof.SerializeToString()

    return prove


def to_line(proof: bytes) -> bytes:
    """A serialized proof as a line of the erasure log: protobuf's JSON."""
    return to_json(memory_service_pb2.ErasureProof.FromString(proof)).encode()


def to_json(message: Signed) -> str:
    """A record as one line of protobuf's JSON."""
    return json_format.MessageToJson(message, indent=None)


def from_json(text: str) -> memory_service_pb2.ErasureProof:
    """A proof that `to_json` wrote.

    Raises:
        ValueError: it is none.
    """
    try:
        return json_format.Parse(text, memory_service_pb2.ErasureProof())
    except json_format.ParseError as error:
        raise ValueError("not an erasure proof in protobuf's JSON") from error
