"""The load generator against a real host: cut, cancelled and resumed, and nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from personae_runtime.engines.synthetic import SyntheticEngine
from tests.e2e.conftest import KEY, StartHost
from tests.load.drivers import GatewayDriver
from tests.load.plot import plot
from tests.load.runner import run
from tests.load.scenario import Scenario, arrivals, burst, held_open

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def start(start_host: StartHost) -> str:
    engine = SyntheticEngine(profile="development", ttft_ms=5, itl_ms=5, tokens=48)
    hosted = await start_host(engine=engine, sessions={"turns_per_minute": 100_000}, profile="development")
    return f"127.0.0.1:{hosted.port}"


async def test_conversations_with_cuts_and_cancels_are_seen_exactly_once(start_host: StartHost, tmp_path: Path) -> None:
    target = await start(start_host)
    scenario = Scenario(
        resume_share=0.4, cancel_share=0.3, think_median_s=0.1, tokens_per_s=200, reply_tokens=48, turns_mean=3
    )
    planned = arrivals(scenario, rate=8, duration_s=2.0)
    driver = GatewayDriver(target, scenario, key=KEY, conversations=len(planned))

    report = await run(driver, planned, duration_s=2.0)
    await driver.close()

    assert report["failures_by_reason"] == {}
    assert report["violations"] == {}
    assert report["resumes"] > 0
    assert report["turns"]["cancelled"] > 0
    assert report["turns"]["completed"] > 0
    assert report["admission_ms"]["count"] == sum(report["turns"].values())
    assert report["lateness_ms"]["count"] == report["text_messages"] > 0
    assert report["cancel_ms"]["count"] == report["turns"]["cancelled"]
    plot({"driver": "gateway", "mode": "arrivals", **report}, tmp_path / "load.png")
    assert (tmp_path / "load.png").stat().st_size > 10_000


async def test_conversations_are_held_open_between_their_turns(start_host: StartHost) -> None:
    target = await start(start_host)
    scenario = Scenario(resume_share=0.0, cancel_share=0.0, tokens_per_s=200, reply_tokens=48)
    planned = held_open(scenario, 12, 0.3)
    driver = GatewayDriver(target, scenario, key=KEY, conversations=len(planned))

    report = await run(driver, planned, duration_s=2.0, hold=True)
    await driver.close()

    assert report["failures_by_reason"] == {}
    assert report["conversations"] == 12
    assert report["turns"]["completed"] >= 12
    assert report["reattached"] == 0


async def test_a_burst_is_parsed_once_it_is_over(start_host: StartHost) -> None:
    target = await start(start_host)
    scenario = Scenario(resume_share=0.3, cancel_share=0.0, reply_tokens=48)
    planned = burst(scenario, 10)
    driver = GatewayDriver(target, scenario, key=KEY, conversations=len(planned))

    report = await run(driver, planned, duration_s=1.0, at_once=4, parse_last=True)
    await driver.close()

    assert report["failures_by_reason"] == {}
    assert report["turns"] == {"completed": 10}
    assert report["output_tokens"] == 480
    assert report["resumes"] > 0
