"""The bias audit: pairs by file, the paired figures, and the command on the gate that ships."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from personae_runtime.errors import InvalidArgument
from personae_runtime.evals import bias
from personae_runtime.evals.bias import Judged
from personae_serve.cli import build_app

TEMPLATES = [f"{{who}} says {word}." for word in ("yes", "no", "so", "well", "hm", "aha", "right", "there", "indeed")]
AXIS: dict[str, Any] = {
    "id": "names",
    "reference": "one",
    "groups": {"one": ["Ann", "Bo"], "other": ["Cy", "Di"]},
    "templates": TEMPLATES,
}


def pairs(**changed: Any) -> bias.Pairs:
    return bias.Pairs.model_validate({"axes": [{**AXIS, **changed}]})


async def audit(refuse: str = "", dearer: str = "", by: float = 0.0) -> dict[str, Any]:
    """The one comparison of `AXIS` by a gate that refuses a name and scores another higher."""

    async def judge(text: str) -> Judged:
        return Judged(bool(refuse) and refuse in text, 0.2 + (by if dearer and dearer in text else 0.0))

    report = await bias.evaluate(pairs(), judge)
    [comparison] = report["comparisons"]
    return {**report, **comparison}


async def test_a_gate_that_treats_all_alike_shows_no_difference() -> None:
    found = await audit()
    assert found["refused_difference"] == found["score_difference"] == 0.0
    assert (found["refused_p_holm"], found["score_p_holm"]) == (1.0, 1.0)
    assert (found["refused_differ"], found["scores_differ"]) == (0, 0)


async def test_a_name_that_is_refused_shows_with_its_interval() -> None:
    found = await audit(refuse="Cy")
    assert found["group"] == "other"
    assert (found["refused_difference"], found["refused_reference"]) == (0.5, 0.0)
    assert found["refused_ci"] == [0.5, 0.5]
    assert found["refused_differs"]
    assert not found["score_differs"]
    assert len(found["refused_texts"]) == len(TEMPLATES)


async def test_a_score_that_shifts_shows_though_nothing_is_refused() -> None:
    found = await audit(dearer="Di", by=0.3)
    assert found["score_difference"] == pytest.approx(0.15)
    assert found["score_differs"]
    assert found["largest_refused_difference"] == 0.0


async def test_one_template_of_many_is_no_proof() -> None:
    async def judge(text: str) -> Judged:
        return Judged(text == "Cy says yes.", 0.0)

    [found] = (await bias.evaluate(pairs(), judge))["comparisons"]
    assert found["refused_difference"] > 0
    assert not found["refused_differs"]


async def test_sentences_side_by_side_are_pairs_too() -> None:
    row = {"standard": "I am tired.", "other": "Me tired."}
    rows = [{group: f"{text} {number}" for group, text in row.items()} for number in range(8)]
    axis = {"id": "dialect", "reference": "standard", "parallel": rows}

    async def judge(text: str) -> Judged:
        return Judged(text.startswith("Me"), 0.0)

    report = await bias.evaluate(bias.Pairs.model_validate({"axes": [axis]}), judge)
    [found] = report["comparisons"]
    assert (found["pairs"], found["refused_difference"], report["texts"]) == (8, 1.0, 16)
    assert found["refused_differs"]


def test_a_filler_begins_a_sentence_as_one() -> None:
    [axis] = pairs(groups={"one": ["a baker"], "other": ["a cook"]}, templates=[*TEMPLATES, "I know {who}."]).axes
    texts = [text for pair in axis.pairs() for texts in pair.values() for text in texts]
    assert "A baker says yes." in texts
    assert "I know a cook." in texts


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"reference": "third"}, "reference"),
        ({"templates": ["Hello."] * 9}, "{who}"),
        ({"templates": TEMPLATES[:5]}, "at least 6"),
        ({"groups": {"one": ["Ann"]}}, "two groups"),
        ({"groups": {"one": ["Ann"], "other": []}}, "needs words"),
        ({"parallel": [{"one": "a", "other": "b"}]}, "or parallel"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path: Path, changed: dict[str, Any], problem: str) -> None:
    path = tmp_path / "pairs.yaml"
    path.write_text(yaml.safe_dump({"axes": [{**AXIS, **changed}]}))
    with pytest.raises(InvalidArgument) as refused:
        bias.read(path)
    assert problem in str(refused.value)


@pytest.mark.parametrize("content", ["{", "- 1", "\x00"])
def test_what_is_no_file_of_pairs_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pairs.yaml"
    path.write_text(content)
    with pytest.raises(InvalidArgument, match=r"pairs\.yaml"):
        bias.read(path)


def test_the_pairs_that_ship_cover_the_axes_and_stay_powerful() -> None:
    axes = {axis.id: axis for axis in bias.read(bias.SHIPPED).axes}
    assert {"names", "dialect", "gender", "religion", "disability"} <= set(axes)
    assert set(axes["dialect"].pairs()[0]) == {"standard", "aave_like", "indian_english"}
    assert all(len(axis.pairs()) >= 24 for axis in axes.values())


def test_the_command_audits_the_gate_that_ships(tmp_path: Path) -> None:
    path = tmp_path / "pairs.yaml"
    path.write_text(yaml.safe_dump({"axes": [AXIS]}))
    done = CliRunner().invoke(build_app(), ["eval", "bias", "--pairs", str(path), "--scorers", "ngram", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["texts"], report["stage"], report["age_band"]) == (36, "input", "unknown")
    assert report["scorers"] == ["ngram"]
    assert report["operating_point"]["bundle_digest"]
