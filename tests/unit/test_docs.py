"""The documentation says what the code does, where that can be checked."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from personae.v1 import event_pb2
from personae_runtime.telemetry import names
from personae_serve.gateway.auth import PERMISSIONS
from tests.conftest import ROOT
from tools import apidoc, lawdoc

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PAGE_IDS = [str(page.relative_to(ROOT)) for page in PAGES]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_REASON = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")


def prose(page: Path) -> str:
    """A page without its code, so that brackets in code are no links."""
    return re.sub(r"`[^`\n]+`", "", _FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """Fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def first_cells(page: str) -> list[str]:
    """What stands in backquotes at the beginning of each table row of a page."""
    return re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_relative_links_resolve(page: Path) -> None:
    for target in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert file.is_relative_to(ROOT), f"{page.name}: {target} leaves the repository"
        if fragment:
            assert fragment in anchors(file), f"{page.name}: {target}"


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in (ROOT / "README.md", ROOT / "docs" / "decisions" / "README.md")
        for target in _LINK.findall(prose(page))
    }
    assert set(PAGES) - linked == {ROOT / "README.md"}


def test_the_api_reference_is_what_the_protos_say() -> None:
    committed = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert committed == apidoc.markdown(), "docs/api.md is not what protos/ say: run make docs"


def test_the_page_of_laws_is_what_the_policy_files_say() -> None:
    committed = (ROOT / "docs" / "laws.md").read_text(encoding="utf-8")
    assert committed == lawdoc.markdown(), "docs/laws.md is not what the policy's files say: run make docs"


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_python_examples_are_python(page: Path) -> None:
    for language, code in _FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            compile(code, page.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def shell_commands() -> Iterator[tuple[str, list[str]]]:
    """Every `personae ...` line in the shell blocks of the pages, with its words."""
    for page in PAGES:
        for language, code in _FENCE.findall(page.read_text(encoding="utf-8")):
            if language in ("sh", "console"):
                for line in code.splitlines():
                    found = re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*personae (.+)", line)
                    if found:
                        yield page.name, shlex.split(found[1], comments=True)


def test_commands_in_examples_exist_with_their_options() -> None:
    from personae_serve.cli import build_app

    root = typer.main.get_command(build_app())
    commands = list(shell_commands())
    assert commands
    for page, words in commands:
        command: Any = root
        rest = list(words)
        while rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]
        shown = f"{page}: personae {' '.join(words)}"
        assert getattr(command, "invoke_without_command", True) or rest in ([], ["--help"]), shown
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word for word in rest if word.startswith("--")} <= known, shown


# -- errors ------------------------------------------------------------------


def reasons_in_code() -> set[str]:
    """Every reason that an error of ours can have.

    `reason = "..."` in a class, `reason="..."` in a call (or a constant of the
    module that holds it), and the reasons of a persona's standing.
    """
    found: set[str] = set()
    for package in ("runtime/personae_runtime", "serve/personae_serve"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            constants = {
                target.id: node.value.value
                for node in tree.body
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for node in ast.walk(tree):
                value: ast.expr | None = None
                if isinstance(node, ast.keyword) and node.arg == "reason":
                    value = node.value
                elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Standing":
                    value = node.args[2] if len(node.args) > 2 else None
                elif isinstance(node, ast.ClassDef):
                    for line in node.body:
                        names = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
                        if [getattr(name, "id", "") for name in names] == ["reason"]:
                            value = getattr(line, "value", None)
                word = constants.get(value.id) if isinstance(value, ast.Name) else getattr(value, "value", None)
                if isinstance(word, str) and _REASON.fullmatch(word):
                    found.add(word)
    return found


def test_every_reason_is_documented_once_and_none_that_is_gone() -> None:
    documented = [cell for cell in first_cells("api-errors.md") if _REASON.fullmatch(cell)]
    documented = [cell for cell in documented if not cell.startswith("REASON_")]
    assert len(documented) == len(set(documented))
    assert set(documented) == reasons_in_code()


def test_every_way_to_interrupt_a_turn_is_documented() -> None:
    documented = {cell for cell in first_cells("api-errors.md") if cell.startswith("REASON_")}
    assert documented == set(event_pb2.TurnInterrupted.Reason.keys())


# -- telemetry ---------------------------------------------------------------


def test_every_metric_is_documented_and_none_that_is_gone() -> None:
    metrics = {value for key, value in vars(names).items() if key.startswith("METRIC_")}
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = text.split("### Metrics", 1)[1].split("###", 1)[0]
    assert set(re.findall(r"^\| `([a-z_.]+)` \|", section, re.MULTILINE)) == metrics


def test_every_stage_span_is_documented() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(personae\.turn\.[a-z_]+)`", text.split("### Metrics", 1)[0])) == set(names.STAGE_SPANS)


# -- settings ----------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_settings_that_pages_name_exist(page: Path) -> None:
    from personae_runtime.config import describe

    known = {row.key for row in describe()}
    sections = {key.split(".", 1)[0] for key in known if "." in key}
    others = {*PERMISSIONS.values(), "master.key"}
    for word in re.findall(r"`([a-z_]+\.[a-z_]+)`", page.read_text(encoding="utf-8")):
        section, _, ending = word.partition(".")
        if section in sections and word not in others and ending not in ("py", "md"):
            assert word in known, f"{page.name}: {word}"
