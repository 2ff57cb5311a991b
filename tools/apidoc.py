"""docs/api.md from protos/: `python -m tools.apidoc > docs/api.md`.

The comments, the validation rules and the permissions are those that the server
itself is built from, so the page can't say anything else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from google.api import field_behavior_pb2
from google.protobuf import descriptor_pb2 as d
from grpc_tools import protoc

from buf.validate import validate_pb2
from personae_serve.gateway.auth import PERMISSIONS, PUBLIC

PROTOS: Final = Path(__file__).parent.parent / "protos"
PACKAGE: Final = "personae.v1"

# The order of the page: the first question first.
FILES: Final = tuple(
    f"personae/v1/{name}.proto"
    for name in (
        "persona_service",
        "session_service",
        "event",
        "memory_service",
        "policy_service",
        "bundle",
        "review_service",
        "audit_service",
        "content_service",
        "provenance",
    )
)

_HEAD = """\
# API reference

<!-- Written by `make docs` from protos/: change the comments there. -->

Package `personae.v1`, over gRPC. How it is meant to be used: [concepts](concepts.md). What a call can fail with:
[errors](api-errors.md). In Python: [the SDK](sdk-python.md).

Every call carries `authorization: Bearer KEY` as metadata. *Permission* is what the key needs; `sessions.*` and `*`
cover it too. A user token has, at most, the permissions that concern its own user. `grpc.health.v1.Health` needs no
key; neither does reflection, which is on in a development profile only.

Rules are checked before a call does anything; a call that breaks one fails with INVALID_ARGUMENT and names
the fields. Texts are measured in characters (Unicode code points).

| service | |
|---|---|
"""

_SCALARS: Final = {
    d.FieldDescriptorProto.TYPE_STRING: "string",
    d.FieldDescriptorProto.TYPE_INT32: "int32",
    d.FieldDescriptorProto.TYPE_INT64: "int64",
    d.FieldDescriptorProto.TYPE_DOUBLE: "double",
    d.FieldDescriptorProto.TYPE_BOOL: "bool",
    d.FieldDescriptorProto.TYPE_BYTES: "bytes",
}

_BEHAVIOURS: Final = {
    field_behavior_pb2.REQUIRED: "required",
    field_behavior_pb2.OUTPUT_ONLY: "set by the server",
    field_behavior_pb2.INPUT_ONLY: "never shown",
    field_behavior_pb2.IMMUTABLE: "never changes",
    field_behavior_pb2.IDENTIFIER: "name",
}


@dataclass(frozen=True, slots=True)
class _File:
    """A proto file and the comments of what is in it, by descriptor path."""

    proto: d.FileDescriptorProto
    comments: Mapping[tuple[int, ...], str]


def load(protos: Path = PROTOS) -> list[_File]:
    """The API's files, with comments.

    Raises:
        RuntimeError: protoc refuses them; what it says is on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set.bin"
        arguments = [
            "protoc",
            f"-I{protos}",
            f"-I{protos / 'third_party'}",
            f"-I{resources.files('grpc_tools') / '_proto'}",
            "--include_source_info",
            f"--descriptor_set_out={out}",
            *FILES,
        ]
        if protoc.main(arguments):
            raise RuntimeError("protoc can't read the API's files")
        found = {file.name: file for file in d.FileDescriptorSet.FromString(out.read_bytes()).file}
    return [
        _File(
            found[name],
            {
                tuple(place.path): " ".join(place.leading_comments.split())
                for place in found[name].source_code_info.location
                if place.leading_comments
            },
        )
        for name in FILES
    ]


def markdown(protos: Path = PROTOS) -> str:
    """The whole page."""
    files = load(protos)
    lines = [_HEAD.rstrip("\n")]
    for file in files:
        for at, service in enumerate(file.proto.service):
            lines.append(f"| {_link(service.name)} | {_cell(file.comments.get((6, at), ''))} |")
    for file in files:
        lines += [line for at, service in enumerate(file.proto.service) for line in _service(file, service, (6, at))]
    lines += ["", "## Messages"]
    for file in files:
        for at, message in enumerate(file.proto.message_type):
            lines += _message(file, message, (4, at), message.name)
    lines += ["", "## Enums"]
    for file in files:
        for at, enum in enumerate(file.proto.enum_type):
            lines += _enum(file, enum, (5, at), enum.name)
        for at, message in enumerate(file.proto.message_type):
            for inner, enum in enumerate(message.enum_type):
                lines += _enum(file, enum, (4, at, 4, inner), f"{message.name}.{enum.name}")
    return "\n".join(lines) + "\n"


def _service(file: _File, service: d.ServiceDescriptorProto, path: tuple[int, ...]) -> Iterator[str]:
    yield from ("", f"## {service.name}", "")
    if comment := file.comments.get(path):
        yield from (comment, "")
    yield from ("| method | permission | |", "|---|---|---|")
    for at, method in enumerate(service.method):
        permission = PERMISSIONS[f"/{PACKAGE}.{service.name}/{method.name}"]
        needs = "none" if permission == PUBLIC else f"`{permission}`"
        answer = _type(method.output_type)
        if method.server_streaming:
            answer = f"stream of {answer}"
        words = [f"{_type(method.input_type)} → {answer}.", _cell(file.comments.get((*path, 2, at), ""))]
        yield f"| **{method.name}** | {needs} | {' '.join(filter(None, words))} |"


def _message(file: _File, message: d.DescriptorProto, path: tuple[int, ...], name: str) -> Iterator[str]:
    yield from ("", f"### {name}", "")
    if comment := file.comments.get(path):
        yield from (comment, "")
    if not message.field:
        return
    entries = {f".{PACKAGE}.{name}.{inner.name}": inner for inner in message.nested_type if inner.options.map_entry}
    yield from ("| field | type | rules | meaning |", "|---|---|---|---|")
    for at, field in enumerate(message.field):
        kind = _field_type(field, entries)
        rules = "; ".join(_rules(message, field))
        yield f"| `{field.name}` | {kind} | {rules} | {_cell(file.comments.get((*path, 2, at), ''))} |"
    for at, inner in enumerate(message.nested_type):
        if not inner.options.map_entry:
            yield from _message(file, inner, (*path, 3, at), f"{name}.{inner.name}")


def _enum(file: _File, enum: d.EnumDescriptorProto, path: tuple[int, ...], name: str) -> Iterator[str]:
    yield from ("", f"### {name}", "")
    if comment := file.comments.get(path):
        yield from (comment, "")
    yield from ("| value | number | meaning |", "|---|---|---|")
    for at, value in enumerate(enum.value):
        yield f"| `{value.name}` | {value.number} | {_cell(file.comments.get((*path, 2, at), ''))} |"


def _field_type(field: d.FieldDescriptorProto, entries: Mapping[str, d.DescriptorProto]) -> str:
    if field.type_name in entries:
        key, value = entries[field.type_name].field
        return f"map of {_scalar(key)} to {_scalar(value)}"
    kind = _scalar(field)
    return f"list of {kind}" if field.label == d.FieldDescriptorProto.LABEL_REPEATED else kind


def _scalar(field: d.FieldDescriptorProto) -> str:
    return _type(field.type_name) if field.type_name else _SCALARS[field.type]


def _type(full_name: str) -> str:
    name = full_name.removeprefix(f".{PACKAGE}.")
    return _link(name) if name != full_name else f"`{full_name.lstrip('.')}`"


def _link(name: str) -> str:
    return f"[{name}](#{name.lower().replace('.', '')})"


def _rules(message: d.DescriptorProto, field: d.FieldDescriptorProto) -> Iterator[str]:
    """What is asked of a field, in words."""
    behaviours: Iterable[int] = field.options.Extensions[field_behavior_pb2.field_behavior]
    said = [_BEHAVIOURS[value] for value in behaviours]
    rules = field.options.Extensions[validate_pb2.field]
    if rules.required and "required" not in said:
        said.insert(0, "required")
    yield from said
    if field.proto3_optional:
        yield "optional"
    elif field.HasField("oneof_index"):
        yield f"one of `{message.oneof_decl[field.oneof_index].name}`"
    kind = rules.WhichOneof("type")
    if kind == "repeated":
        if rules.repeated.HasField("max_items"):
            yield f"at most {rules.repeated.max_items} items"
        inner = rules.repeated.items.WhichOneof("type")
        if inner is not None:
            words = "; ".join(_value_rules(inner, getattr(rules.repeated.items, inner)))
            yield f"each {words}"
    elif kind is not None:
        yield from _value_rules(kind, getattr(rules, kind))


def _value_rules(kind: str, rules: Any) -> Iterator[str]:
    known = {"min_len", "max_len", "pattern", "uuid", "gte", "lte", "defined_only", "not_in", "const"}
    given = {field.name for field, _ in rules.ListFields()}
    if given - known:
        # A rule that this page can't say must not be left out of it.
        raise NotImplementedError(f"no words for {kind} rules {sorted(given - known)}")
    if "max_len" in given:
        unit = "bytes" if kind == "bytes" else "characters"
        yield f"{rules.min_len} to {rules.max_len} {unit}" if rules.min_len else f"at most {rules.max_len} {unit}"
    if "const" in given:
        yield f"`{str(rules.const).lower()}`"
    if "pattern" in given:
        yield f"matches `{rules.pattern}`".replace("|", "\\|")
    if "uuid" in given:
        yield "a UUID, or empty"
    if kind != "enum" and {"gte", "lte"} <= given:
        yield f"{rules.gte:g} to {rules.lte:g}"
    elif "gte" in given:
        yield f"at least {rules.gte:g}"
    elif "lte" in given:
        yield f"at most {rules.lte:g}"
    if "not_in" in given:
        yield "not UNSPECIFIED" if list(rules.not_in) == [0] else f"none of {', '.join(map(str, rules.not_in))}"
    if "const" in given:
        yield f"{rules.const}".lower()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(markdown(), end="")
