"""The recall evaluation: its metrics, its reading of files, and the command."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from personae_runtime.config import default_models_dir
from personae_runtime.engines.models import path as model_path
from personae_runtime.evals import memory as memory_eval
from personae_runtime.evals.memory import PlainBm25, load_locomo, measure, shares_at, turn_ids, unnamed
from personae_runtime.memory.embedder import OnnxEmbedder
from personae_runtime.memory.history import BadHistory, History, parse_locomo
from personae_serve.cli import build_app
from personae_serve.stores import EMBEDDING_MODEL


def sample(name: str, speakers: tuple[str, str], topics: list[str]) -> dict[str, Any]:
    """A conversation in which the first speaker tells of each topic in a session of its own."""
    first, second = speakers
    conversation: dict[str, Any] = {"speaker_a": first, "speaker_b": second}
    questions = []
    for number, topic in enumerate(topics, start=1):
        conversation[f"session_{number}_date_time"] = f"1:56 pm on {number} May, 2023"
        conversation[f"session_{number}"] = [
            {"speaker": second, "dia_id": f"D{number}:1", "text": f"Hello {first}, what is new?"},
            {"speaker": first, "dia_id": f"D{number}:2", "text": f"I have taken up {topic} with my neighbours."},
        ]
        evidence = [f"D{number}:2"]
        questions += [
            {"question": f"When did {first} take up {topic}?", "evidence": evidence, "category": 2},
            {"question": f"When did {second} take up {topic}?", "evidence": evidence, "category": 5},
        ]
    questions.append({"question": f"Is {first} well?", "evidence": [], "category": 3})
    return {"sample_id": name, "conversation": conversation, "qa": questions}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "two.json"
    path.write_text(
        json.dumps(
            [
                sample("one", ("Ada", "Ben"), ["fencing", "weaving", "rowing"]),
                sample("two", ("Cleo", "Dan"), ["archery", "chess", "baking"]),
            ]
        )
    )
    return path


def test_turn_ids_are_read_whatever_their_form() -> None:
    assert turn_ids('["D1:3", "D:02:04; D5:6 D7"]') == {"D1:3", "D2:4", "D5:6"}
    assert turn_ids("null") == frozenset()


def test_recall_at_k_is_the_share_of_the_evidence() -> None:
    ranked = [f"D1:{turn}" for turn in range(1, 31)]
    assert shares_at(frozenset({"D1:5", "D1:6", "D1:20", "D9:9"}), ranked) == [0.25, 0.5, 0.75]


def test_plain_bm25_puts_rare_words_first(file: Path) -> None:
    conversation = load_locomo(file)[0]
    assert PlainBm25(conversation.records).search("weaving with neighbours?")[0] == "D2:2"
    assert PlainBm25(conversation.records).search("?") == []


def test_names_of_speakers_are_taken_out_of_a_question(file: Path) -> None:
    one, two = load_locomo(file)
    assert unnamed("When did Ada's friend Cleo meet Ben?", one) == "When did friend Cleo meet ?"
    assert unnamed("When did Ada's friend Cleo meet Ben?", one, two) == "When did friend meet ?"
    assert unnamed("Ada?", one) == "Ada?"


async def test_a_name_gives_a_question_of_another_conversation_away(tmp_path: Path) -> None:
    path = tmp_path / "alike.json"
    path.write_text(
        json.dumps([sample("one", ("Ada", "Ben"), ["fencing"]), sample("two", ("Cleo", "Dan"), ["fencing"])])
    )
    report = await measure(load_locomo(path), tmp_path / "index", None)
    # "When did Ada take up fencing?" where only Cleo is known; without the name it has its answer there.
    assert report.abstain_other == 100.0
    assert report.abstain_other_unnamed == 50.0
    assert report.false_abstain_unnamed == 0.0


async def test_a_measured_file_has_every_figure(file: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    report = await measure(load_locomo(file), tmp_path / "index", None, on_progress=lambda *step: steps.append(step))
    assert (report.conversations, report.turns, report.questions) == (2, 12, 6)
    assert report.recall == {"5": 100.0, "10": 100.0, "20": 100.0}
    assert report.recall_by_category["2"] == report.recall
    assert report.recall_by_category["1"] is None
    assert set(report.bm25) == {"5", "10", "20"}
    assert report.abstain_other == 100.0
    assert report.abstain_other_unnamed is not None
    assert report.abstain_adversarial == 100.0
    assert report.false_abstain == 0.0
    assert report.false_abstain_unnamed == 0.0
    assert report.recall_spread == {"5": 0.0, "10": 0.0, "20": 0.0}
    assert steps[-1] == ("asking", 14, 14)


async def test_one_conversation_has_no_other(file: Path, tmp_path: Path) -> None:
    report = await measure(load_locomo(file)[:1], tmp_path / "index", None)
    assert report.abstain_other is None
    assert report.abstain_other_unnamed is None


def test_a_file_is_parsed_once_and_not_once_for_each_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ten.json"
    path.write_text(json.dumps([sample(f"c{number}", ("Ada", "Ben"), ["fencing"]) for number in range(10)]))
    parsed = 0

    def counting(data: bytes, **options: Any) -> History:
        nonlocal parsed
        parsed += len(data)
        return parse_locomo(data, **options)

    monkeypatch.setattr(memory_eval, "parse_locomo", counting)
    assert [conversation.name for conversation in load_locomo(path)] == [f"c{number}" for number in range(10)]
    assert parsed <= path.stat().st_size


def test_a_file_that_is_too_large_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_eval, "MAX_FILE_BYTES", 1 << 20)
    with file.open("a") as more:
        more.write(" " * (1 << 20))
    with pytest.raises(BadHistory, match=r"two\.json: larger than 1 MiB; measure fewer conversations"):
        load_locomo(file)


@pytest.mark.model
async def test_a_person_who_says_i_is_told_what_is_not_remembered(tmp_path: Path) -> None:
    """On `everyday.json`, to which the weight of `unsaid` was fitted; nobody is named in it."""
    models = Path(os.environ.get("PERSONAE_MODELS_DIR") or default_models_dir())
    embedder = OnnxEmbedder(
        model_path(EMBEDDING_MODEL, "model.onnx", models), model_path(EMBEDDING_MODEL, "tokenizer.json", models)
    )
    await embedder.start()
    try:
        report = await measure(load_locomo(Path(__file__).parent / "everyday.json"), tmp_path, embedder)
    finally:
        await embedder.close()
    assert report.false_abstain <= 12
    assert report.abstain_adversarial is not None
    assert report.abstain_adversarial >= 80
    assert report.abstain_other is not None
    assert report.abstain_other >= 75


def test_the_command_prints_one_json_object_last(file: Path) -> None:
    done = CliRunner().invoke(
        build_app(), ["eval", "memory", "--dataset", "locomo", "--path", str(file), "--json", "--lexical"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["recall"]["10"] == 100.0
    assert {
        *("bm25", "recall_by_category", "hit_by_category", "abstain_adversarial", "abstain_other", "false_abstain"),
        *("abstain_other_unnamed", "false_abstain_unnamed"),
        *("read_ms_p95", "read_ms_p50"),
    } <= found.keys()


def test_the_command_shows_people_a_table(file: Path) -> None:
    done = CliRunner().invoke(build_app(), ["eval", "memory", "--path", str(file), "--lexical"])
    assert done.exit_code == 0, done.output
    assert "plain BM25" in done.stdout
    assert "abstains wrongly" in done.stdout
    assert "without the speakers' names" in done.stdout
    assert "without what a host's ledger, decryption and facts add" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "can't be read"),
        ("{", "not JSON"),
        ("[1]", "expected an object with sample_id"),
        ('[{"sample_id": "a", "conversation": {}}]', "no messages"),
        ('[{"sample_id": "a", "conversation": []}]', "conversation 1: expected an object with sample_id"),
        ("twice", "conversation 2, field sample_id: already used"),
        ("no questions", "field qa: expected a list"),
        ("bad question", "question 1: expected an object"),
        ("no evidence", "nothing to measure"),
    ],
)
def test_a_bad_file_is_explained_in_one_line(content: str | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    good = sample("a", ("Ada", "Ben"), ["fencing"])
    changed = {
        "no questions": {"sample_id": "a", "conversation": good["conversation"]},
        "bad question": {**good, "qa": [{"question": 1, "category": 1}]},
        "no evidence": {**good, "qa": good["qa"][-1:]},
        "twice": [good, good],
    }
    if content is not None:
        path.write_text(json.dumps(changed[content]) if content in changed else content)
    with pytest.raises(BadHistory, match=expected):
        load_locomo(path)
    done = CliRunner().invoke(build_app(), ["eval", "memory", "--path", str(path), "--lexical"])
    assert done.exit_code == 1
    assert expected in done.stderr


def test_a_missing_model_names_the_way_out(file: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        build_app(), ["eval", "memory", "--path", str(file), "--models-dir", str(tmp_path / "none")]
    )
    assert done.exit_code == 1
    assert "personae models pull" in done.stderr
