"""The packages stay apart: what may import what."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_python

RUNTIME = ROOT / "runtime" / "personae_runtime"
CLIENT = ROOT / "clients" / "python" / "personae_client"
SERVE = ROOT / "serve" / "personae_serve"

# Adapters whose libraries import grpc or ray; they load them inside functions.
LAZY_ADAPTERS: dict[str, str] = {
    "personae_runtime.telemetry.setup": "the OTLP exporter",
    "personae_runtime.engines.vllm": "vLLM",
    "personae_runtime.engines.watermark": "vLLM",
    "personae_runtime.memory.qdrant": "qdrant-client",
}

# Run as programs, or by a tool that prepares their context.
NOT_IMPORTABLE = ("personae_runtime.ledger.migrations",)


def modules(package: Path) -> list[str]:
    """Dotted names of all modules of a package that can be imported by themselves."""
    names = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        if not name.startswith(NOT_IMPORTABLE) and parts[-1] != "__main__":
            names.append(name)
    return names


def imported(name: str) -> set[str]:
    """Top-level packages that importing a module loads, in a process of its own."""
    script = f"import {name}, sys, json; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    loaded: list[str] = json.loads(run_python(script).splitlines()[-1])
    return set(loaded)


def imports_of(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Names that a file imports; of its top level, or anywhere."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("name", modules(RUNTIME))
def test_a_runtime_module_imports_without_grpc_or_ray(name: str) -> None:
    assert not imported(name) & {"grpc", "ray", "vllm"}


def test_lazy_adapters_exist() -> None:
    assert set(LAZY_ADAPTERS) <= set(modules(RUNTIME))


def test_only_the_lazy_adapters_import_grpc_at_all() -> None:
    for path in RUNTIME.rglob("*.py"):
        name = ".".join(path.relative_to(RUNTIME.parent).with_suffix("").parts)
        for target in imports_of(path):
            heavy = target.split(".")[0] in ("grpc", "ray", "vllm") or ".otlp." in f"{target}."
            assert not heavy or name in LAZY_ADAPTERS, f"{path}: imports {target}"


def test_the_runtime_never_imports_what_is_built_on_it() -> None:
    for path in RUNTIME.rglob("*.py"):
        for target in imports_of(path):
            assert target.split(".")[0] not in ("personae_serve", "personae_client", "personae"), f"{path}: {target}"


@pytest.mark.parametrize("name", modules(CLIENT))
def test_a_client_module_imports_no_server_package(name: str) -> None:
    server = {
        *("personae_runtime", "personae_serve", "asyncpg", "sqlalchemy", "alembic", "qdrant_edge", "onnxruntime"),
        *("tokenizers", "numpy", "xllamacpp", "opentelemetry", "structlog", "pydantic", "protovalidate", "typer"),
        *("rich", "yaml", "cryptography", "orjson", "uvloop", "ray"),
    }
    assert not imported(name) & server


def test_the_client_imports_only_what_its_distribution_depends_on() -> None:
    allowed = {"personae_client", "personae", "grpc", "grpc_status", "google", "tenacity"}
    standard = set(sys.stdlib_module_names)
    for path in CLIENT.rglob("*.py"):
        for target in imports_of(path):
            assert target.split(".")[0] in allowed | standard, f"{path}: imports {target}"


def test_the_audit_verifier_shares_no_code_with_what_it_checks() -> None:
    targets = {target.split(".")[0] for target in imports_of(SERVE / "audit_verify.py")}
    assert targets <= {"cryptography"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("package", [RUNTIME, SERVE, CLIENT], ids=lambda p: p.name)
def test_packages_are_typed_and_documented(package: Path) -> None:
    assert (package / "py.typed").exists()
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not tree.body or ast.get_docstring(tree), f"{path} has no docstring"
