"""The load as it is planned: arrivals, pauses, the mix, and what a file may say."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from pathlib import Path

import pytest

from personae_runtime.errors import ConfigError
from tests.load.scenario import Scenario, Tenant, arrivals, burst, held_open, load_scenario


def test_arrivals_keep_their_rate_and_have_exponential_gaps() -> None:
    begun = [conversation.first_due_s for conversation in arrivals(Scenario(seed=3), rate=20, duration_s=500)]
    gaps = [after - before for before, after in itertools.pairwise(begun)]

    assert len(begun) == pytest.approx(20 * 500, rel=0.05)
    assert begun == sorted(begun)
    assert max(begun) < 500
    # An exponential's mean and deviation are equal.
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)


def test_the_same_seed_plans_the_same_load_and_another_does_not() -> None:
    def plans(seed: int) -> list[object]:
        return [
            (conversation.persona, conversation.user, list(conversation.plan()))
            for conversation in arrivals(Scenario(seed=seed), rate=5, duration_s=20)
        ]

    assert plans(1) == plans(1)
    assert plans(1) != plans(2)


def test_conversations_have_the_mean_number_of_turns() -> None:
    planned = arrivals(Scenario(turns_mean=4), rate=20, duration_s=500)

    assert statistics.mean(conversation.turns or 0 for conversation in planned) == pytest.approx(4, rel=0.05)


def test_pauses_between_turns_are_log_normal_around_their_median() -> None:
    scenario = Scenario(think_median_s=15, think_sigma=1.0, turns_mean=50)
    pauses = [
        after.due_s - before.due_s - scenario.reply_s
        for conversation in arrivals(scenario, rate=1, duration_s=200)
        for before, after in itertools.pairwise(conversation.plan())
    ]

    assert statistics.median(pauses) == pytest.approx(15, rel=0.05)
    # The mean of a log-normal is exp(sigma² / 2) times its median.
    assert statistics.mean(pauses) == pytest.approx(15 * 1.6487, rel=0.1)


@pytest.mark.parametrize("share", [0.05, 0.15, 0.5])
def test_the_asked_share_of_open_conversations_streams_from_the_start(share: float) -> None:
    scenario = Scenario(reply_tokens=64, tokens_per_s=10)
    planned = held_open(scenario, 4000, share)

    for moment in (scenario.reply_s, 60.0):
        streaming = 0
        for conversation in planned:
            for turn in conversation.plan():
                if turn.due_s > moment:
                    break
                streaming += moment - turn.due_s < scenario.reply_s
        assert streaming / len(planned) == pytest.approx(share, rel=0.12)


def test_tenants_get_their_share_and_sessions_their_personas_and_users() -> None:
    tenants = (Tenant(name="big", share=3, personas=4, users=10), Tenant(name="small", share=1, personas=1, users=5))
    planned = burst(Scenario(tenants=tenants), 4000)
    share = Counter(conversation.tenant.name for conversation in planned)

    assert share["big"] / len(planned) == pytest.approx(0.75, abs=0.03)
    assert {c.persona for c in planned if c.tenant.name == "big"} == {f"load-64-0-{index}" for index in range(4)}
    assert {c.persona for c in planned if c.tenant.name == "small"} == {"load-64-0-0"}
    assert {c.user for c in planned if c.tenant.name == "small"} == {f"u{index}" for index in range(5)}


def test_the_shares_of_cut_and_cancelled_turns_are_kept_and_never_meet() -> None:
    scenario = Scenario(resume_share=0.2, cancel_share=0.1)
    turns = [turn for conversation in burst(scenario, 5000) for turn in conversation.plan()]

    assert sum(turn.cut_after is not None for turn in turns) / len(turns) == pytest.approx(0.2, abs=0.02)
    assert sum(turn.cancel_after is not None for turn in turns) / len(turns) == pytest.approx(0.1, abs=0.02)
    assert not any(turn.cut_after is not None and turn.cancel_after is not None for turn in turns)


def test_scenarios_are_read_from_toml_and_json(tmp_path: Path) -> None:
    (tmp_path / "load.toml").write_text('seed = 7\n[[tenants]]\nname = "acme"\nkey = "k"\npersonas = 3\n')
    (tmp_path / "load.json").write_text('{"seed": 7, "tenants": [{"name": "acme", "key": "k", "personas": 3}]}')

    read = load_scenario(tmp_path / "load.toml")

    assert read == load_scenario(tmp_path / "load.json")
    assert read.tenants == (Tenant(name="acme", key="k", personas=3),)
    assert load_scenario(tmp_path / "load.toml", seed=9).seed == 9


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.toml", "seed = ", "not valid TOML"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "[1]", "table of settings"),
        ("a.toml", "sed = 1", "sed: Extra inputs"),
        ("a.toml", "resume_share = 2", "resume_share: Input should be less than or equal to 1"),
        ("a.toml", "tenants = []", "tenants: "),
        ("a.toml", '[[tenants]]\nname = "A b"', "tenants.0.name: "),
        ("a.toml", "think_median_s = nan", "think_median_s: "),
    ],
)
def test_a_scenario_that_is_not_valid_says_what_is_wrong(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)

    with pytest.raises(ConfigError, match="scenario") as failed:
        load_scenario(tmp_path / name)
    assert told in failed.value.message


def test_a_scenario_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        load_scenario(tmp_path / "none.toml")


def test_a_key_is_never_told_in_an_error() -> None:
    with pytest.raises(ConfigError) as failed:
        load_scenario(tenants=[{"name": "NOT VALID", "key": "the-secret"}])
    assert "the-secret" not in failed.value.message
