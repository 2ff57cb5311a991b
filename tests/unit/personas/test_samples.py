"""The samples that ship are whole, and short enough for the smallest model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from personae_runtime.config import default_models_dir
from personae_runtime.engines.gguf import read_vocabulary
from personae_runtime.engines.llamacpp import gguf_file
from personae_runtime.errors import MissingModel
from personae_runtime.memory.history import read_history
from personae_runtime.personas.definition import PersonaDefinition
from personae_runtime.style.compile import compile_prefix
from personae_serve.cli.persona import read_persona_file
from personae_serve.gateway.convert import definition_from_proto, persona_type_to_text

SAMPLES = Path(__file__).parents[3] / "serve/personae_serve/samples"
PERSONAS = sorted((SAMPLES / "personas").glob("*.yaml"))


def load(path: Path) -> tuple[str, str, PersonaDefinition]:
    file = read_persona_file(path)
    assert file.persona_id == path.stem
    return file.display_name, persona_type_to_text(file.type), definition_from_proto(file.definition)


def test_there_are_an_assistant_a_companion_and_a_clone() -> None:
    assert sorted(load(path)[1] for path in PERSONAS) == ["assistant", "clone", "companion"]


def test_the_clone_has_twenty_posts_of_its_own() -> None:
    (posts,) = [definition.exemplars for _, kind, definition in map(load, PERSONAS) if kind == "clone"]
    assert len(posts) == len({post.reply for post in posts}) == 20
    assert all(not post.prompt for post in posts)


@pytest.mark.model
@pytest.mark.parametrize("path", PERSONAS, ids=lambda path: path.stem)
def test_a_prefix_leaves_room_in_a_small_context(path: Path) -> None:
    try:
        file = gguf_file("smollm2-135m-instruct", Path(os.environ.get("PERSONAE_MODELS_DIR") or default_models_dir()))
    except MissingModel as missing:
        (pytest.fail if os.environ.get("PERSONAE_REQUIRE_MODELS") else pytest.skip)(str(missing))
    name, kind, definition = load(path)
    tokens = read_vocabulary(file).count(compile_prefix(definition, persona_type=kind, display_name=name))
    assert tokens <= (650 if kind == "clone" else 380)


def test_the_history_is_one_persons_talks_over_many_days() -> None:
    history = read_history(SAMPLES / "history" / "marta.jsonl")
    assert 60 <= len(history.items) <= 100
    assert {item.speaker for item in history.items} == {"Marta", "Nadia"}
    assert len({item.thread for item in history.items}) == 10
    times = [item.occurred_at for item in history.items]
    assert all(times)
    assert times == sorted(time for time in times if time)
    assert len({item.external_id for item in history.items}) == len(history.items)
