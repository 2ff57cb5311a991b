"""Checks exported content against its manifest, without a server and without the network.

The C2PA library checks the signature, the assertions that it covers and the hash
of the content. Bytes that no signature covers, such as padding, it passes over;
a manifest of ours is written in one way only, so whatever byte of it is changed,
something does not hold any more.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from personae_runtime.provenance.signing import LABEL_ASSERTION, library, library_settings

_MOST_BYTES: Final = 1 << 20
"""A manifest of ours has about 3 KB."""

# JUMBF (ISO/IEC 19566-5): what a box is called, by the first four bytes of its type; the rest is the same for all.
_TYPE_REST: Final = bytes.fromhex("00110010800000aa00389b71")
_REQUESTABLE_WITH_LABEL: Final = b"\x03"
_TOGGLES: Final = (_REQUESTABLE_WITH_LABEL, b"\x13")
"""With a label, and with or without a salt (a private box)."""
_COSE_SIGN1: Final = 18


class _Malformed(Exception):
    """The manifest is not written as an export's is; the message says where."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a content and its manifest are found to be.

    Attributes:
        problems: what does not hold; empty if all does.
        trusted: the signing certificate leads to an authority that was given.
        signer: organization and name of the signing certificate, as it says itself.
        generator: what made the manifest, with its version.
        label: the AI label (`AiLabel` in JSON, and `persona_display_name`).
    """

    problems: tuple[str, ...]
    trusted: bool = False
    signer: str = ""
    generator: str = ""
    label: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Nothing is wrong."""
        return not self.problems


def verify(content: bytes, manifest: bytes, authorities: str = "") -> Verdict:
    """Check a content.

    Args:
        authorities: PEM of the certificates that are trusted to vouch for signers. Without any, whoever changed
            the content can have signed it anew.

    Raises:
        ContentSigningUnavailable: the library is missing.
    """
    c2pa = library()
    try:
        _require_ours(manifest)
        with (
            c2pa.Context(c2pa.Settings.from_dict(library_settings(authorities))) as context,
            c2pa.Reader("application/octet-stream", io.BytesIO(content), manifest, context) as reader,
        ):
            state = reader.get_validation_state()
            found = json.loads(reader.json())
    except _Malformed as error:
        return Verdict((f"the manifest is not as an export writes it: {error}",))
    except c2pa.C2paError as error:
        return Verdict((f"the manifest can't be read: {error}",))
    problems = [f"{one['explanation']} ({one['code']})" for one in _failures(found)]
    if state not in ("Valid", "Trusted") and not problems:
        problems.append(f"the manifest is found to be {state}")
    active = found.get("manifests", {}).get(found.get("active_manifest"), {})
    labels = [one["data"] for one in active.get("assertions", []) if one.get("label") == LABEL_ASSERTION]
    if len(labels) != 1 or not isinstance(labels[0], dict):
        problems.append("the manifest holds no AI label")
        labels = []
    if authorities and state != "Trusted" and not problems:
        problems.append("the signing certificate leads to none of the authorities that are trusted")
    signed, made = active.get("signature_info", {}), (active.get("claim_generator_info") or [{}])[0]
    return Verdict(
        tuple(problems),
        trusted=state == "Trusted",
        signer=", ".join(one for one in (signed.get("issuer"), signed.get("common_name")) if one),
        generator=" ".join(one for one in (made.get("name"), made.get("version")) if one),
        label=labels[0] if labels else {},
    )


def _failures(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the library found wrong; whether the signer is trusted is told apart."""
    for one in found.get("validation_results", {}).get("activeManifest", {}).get("failure", []):
        if one["code"] != "signingCredential.untrusted":
            yield one


# -- the only way to write it ----------------------------------------------------


def _require_ours(manifest: bytes) -> None:
    """Raise unless all bytes are either covered by the signature or the only ones that an export has there.

    A store of one manifest: assertions (each covered by its hash in the claim),
    the claim (covered by the signature) and the signature.
    """
    if len(manifest) > _MOST_BYTES:
        raise _Malformed("it is too long")
    store = [box for root in _boxes(manifest) for box in _children(root)]
    if len(store) != 2 or store[0] != (b"jumd", _description(b"c2pa", b"c2pa")):
        raise _Malformed("it is no store of one manifest")
    parts = _children(store[1])
    if len(parts) != 4 or not parts[0][1].startswith(b"c2ma" + _TYPE_REST + _REQUESTABLE_WITH_LABEL):
        raise _Malformed("a manifest is its assertions, a claim and a signature")
    assertions, claim, signature = map(_children, parts[1:])
    for boxes, kind, name in (
        (assertions, b"c2as", b"c2pa.assertions"),
        (claim, b"c2cl", b"c2pa.claim.v2"),
        (signature, b"c2cs", b"c2pa.signature"),
    ):
        if not boxes or boxes[0] != (b"jumd", _description(kind, name)):
            raise _Malformed(f"{name.decode()} is called otherwise")
    if any(kind != b"jumb" for kind, _ in assertions[1:]):
        raise _Malformed("something stands among the assertions")
    for assertion in assertions[1:]:
        kind, description = (_children(assertion) or [(b"", b"")])[0]
        # The hash of an assertion leaves out the bits of its description that mean nothing.
        if kind != b"jumd" or description[16:17] not in _TOGGLES:
            raise _Malformed("an assertion is described otherwise")
    if [kind for kind, _ in claim[1:]] != [b"cbor"] or [kind for kind, _ in signature[1:]] != [b"cbor"]:
        raise _Malformed("a claim and a signature are one CBOR box each")
    _require_signature(signature[1][1])


def _require_signature(data: bytes) -> None:
    """Raise unless a COSE signature (RFC 9052, section 4.2) has nothing unsigned in it but zeros."""
    import cbor2

    try:
        found = cbor2.loads(data)
        again = cbor2.dumps(found)
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError):
        raise _Malformed("the signature is not CBOR") from None
    value = found.value if isinstance(found, cbor2.CBORTag) and found.tag == _COSE_SIGN1 else None
    if again != data or not isinstance(value, list | tuple) or len(value) != 4 or not isinstance(value[1], Mapping):
        raise _Malformed("the signature is not a COSE_Sign1")
    for key, padding in value[1].items():
        if key not in ("pad", "pad2") or not isinstance(padding, bytes) or padding.strip(b"\0"):
            raise _Malformed("something unsigned stands beside the signature")


Box = tuple[bytes, bytes]
"""Type and payload."""


def _description(kind: bytes, name: bytes) -> bytes:
    return kind + _TYPE_REST + _REQUESTABLE_WITH_LABEL + name + b"\0"


def _children(box: Box) -> list[Box]:
    kind, payload = box
    if kind != b"jumb":
        raise _Malformed("a box that should hold others does not")
    return _boxes(payload)


def _boxes(data: bytes) -> list[Box]:
    """The boxes that fill the data, exactly."""
    found: list[Box] = []
    begin = 0
    while begin < len(data):
        size = int.from_bytes(data[begin : begin + 4])
        if size < 8 or begin + size > len(data):
            raise _Malformed("a box does not end where it should")
        found.append((data[begin + 4 : begin + 8], data[begin + 8 : begin + size]))
        begin += size
    return found
