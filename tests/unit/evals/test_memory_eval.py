"""The recall evaluation: its metrics, its reading of files, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from personae_runtime.evals.memory import PlainBm25, load_locomo, measure, shares_at, turn_ids
from personae_runtime.memory.history import BadHistory
from personae_serve.cli import build_app


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


async def test_a_measured_file_has_every_figure(file: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    report = await measure(load_locomo(file), tmp_path / "index", None, on_progress=lambda *step: steps.append(step))
    assert (report.conversations, report.turns, report.questions) == (2, 12, 6)
    assert report.recall == {"5": 100.0, "10": 100.0, "20": 100.0}
    assert report.recall_by_category["2"] == report.recall
    assert report.recall_by_category["1"] is None
    assert set(report.bm25) == {"5", "10", "20"}
    assert report.abstain_other == 100.0
    assert report.abstain_adversarial == 100.0
    assert report.false_abstain == 0.0
    assert report.recall_spread == {"5": 0.0, "10": 0.0, "20": 0.0}
    assert steps[-1] == ("asking", 14, 14)


async def test_one_conversation_has_no_other(file: Path, tmp_path: Path) -> None:
    assert (await measure(load_locomo(file)[:1], tmp_path / "index", None)).abstain_other is None


def test_the_command_prints_one_json_object_last(file: Path) -> None:
    done = CliRunner().invoke(
        build_app(), ["eval", "memory", "--dataset", "locomo", "--path", str(file), "--json", "--lexical"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["recall"]["10"] == 100.0
    assert {
        *("bm25", "recall_by_category", "hit_by_category", "abstain_adversarial", "abstain_other", "false_abstain"),
        *("read_ms_p95", "read_ms_p50"),
    } <= found.keys()


def test_the_command_shows_people_a_table(file: Path) -> None:
    done = CliRunner().invoke(build_app(), ["eval", "memory", "--path", str(file), "--lexical"])
    assert done.exit_code == 0, done.output
    assert "plain BM25" in done.stdout
    assert "abstains wrongly" in done.stdout


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "can't be read"),
        ("{", "not JSON"),
        ("[1]", "expected an object with sample_id"),
        ('[{"sample_id": "a", "conversation": {}}]', "no messages"),
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
