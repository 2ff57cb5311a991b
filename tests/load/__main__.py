"""The command line of the load generator."""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from personae_client import PersonaeError as ClientError
from personae_runtime.errors import PersonaeError
from personae_serve.interpreter import hand_over_quickly
from tests.load.drivers import Driver, GatewayDriver, GrpcDriver, OpenAIDriver
from tests.load.plot import plot
from tests.load.runner import run
from tests.load.scenario import Conversation, Scenario, arrivals, burst, held_open, load_scenario


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    made = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    made.add_argument("--target", required=True, help="HOST:PORT of the server")
    made.add_argument("--driver", choices=("gateway", "openai", "grpc"), default="gateway")
    made.add_argument("--mode", choices=("arrivals", "open", "burst"), default="arrivals")
    made.add_argument("--rate", type=float, default=5.0, help="arrivals: conversations per second")
    made.add_argument("--conversations", type=int, default=100, help="open, burst: how many")
    made.add_argument("--streaming-share", type=float, default=0.15, help="open: part that streams at any time")
    made.add_argument("--hold", action="store_true", help="keep a stream open between turns (gateway)")
    made.add_argument("--at-once", type=int, default=0, help="burst: turns in flight at most (a closed loop)")
    made.add_argument("--duration", type=float, default=30.0, help="seconds in which turns are sent")
    made.add_argument("--warmup", type=float, default=0.0, help="first seconds, not measured")
    made.add_argument("--drain", type=float, default=60.0, help="seconds for the last turns to end")
    made.add_argument("--scenario", type=Path, help="TOML or JSON; see tests/load/scenario.py")
    made.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="one value of the scenario")
    made.add_argument("--key", default=os.environ.get("PERSONAE_API_KEY", ""), help="API key (PERSONAE_API_KEY)")
    made.add_argument("--model", default="synthetic", help="openai: name of the model")
    made.add_argument("--metadata", action="append", default=[], metavar="NAME=VALUE", help="gRPC metadata")
    made.add_argument("--coalesce", type=int, default=0, help="grpc: tokens to ask for in a message")
    made.add_argument("--prefix", default="", help="of session ids; drawn if not given")
    made.add_argument("--reattach", type=float, default=0.0, help="seconds to attach again when the server goes away")
    made.add_argument("--gate", action="store_true", help="say READY when prepared, start on a line of stdin")
    made.add_argument("--json", type=Path, help="write the report here, else to stdout")
    made.add_argument("--plot", type=Path, help="write a plot here")
    return made


def plan(args: argparse.Namespace, scenario: Scenario) -> list[Conversation]:
    """The conversations of a mode."""
    if args.mode == "arrivals":
        return arrivals(scenario, args.rate, args.duration)
    if args.mode == "open":
        return held_open(scenario, args.conversations, args.streaming_share)
    return burst(scenario, args.conversations)


async def drive(args: argparse.Namespace) -> dict[str, Any]:
    """Run the load that the arguments ask for; the report.

    Raises:
        ConfigError: the scenario is not valid.
    """
    values = dict(pair.split("=", 1) for pair in args.set)
    scenario = load_scenario(args.scenario, **{name: _value(text) for name, text in values.items()})
    conversations = plan(args, scenario)
    driver: Driver
    if args.driver == "openai":
        driver = OpenAIDriver(args.target, scenario, model=args.model, key=args.key)
    else:
        kind = GatewayDriver if args.driver == "gateway" else GrpcDriver
        driver = kind(
            args.target,
            scenario,
            key=args.key,
            conversations=len(conversations),
            reattach_s=args.reattach,
            prefix=args.prefix or f"load-{uuid.uuid4().hex[:8]}",
            metadata=[(name, value) for name, _, value in (pair.partition("=") for pair in args.metadata)],
        )

        if isinstance(driver, GrpcDriver):
            driver.coalesce = args.coalesce

    async def gate() -> None:
        print("READY", file=sys.stderr, flush=True)
        sys.stdin.readline()

    try:
        report = await run(
            driver,
            conversations,
            duration_s=args.duration,
            warmup_s=args.warmup,
            drain_s=args.drain,
            hold=args.hold,
            at_once=args.at_once,
            parse_last=args.mode == "burst",
            on_start=gate if args.gate else None,
        )
    finally:
        await driver.close()
    settings = scenario.model_dump(exclude={"tenants": {"__all__": {"key"}}, "messages": True})
    return {"driver": args.driver, "mode": args.mode, "scenario": settings} | report


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when nothing failed, 1 when something did, 2 when it could not start."""
    args = parser().parse_args(arguments)
    hand_over_quickly()
    report: dict[str, Any] | None = None
    try:
        report = uvloop.run(drive(args))
    except* (PersonaeError, ClientError) as errors:
        print(*errors.exceptions, sep="\n", file=sys.stderr)
    if report is None:
        return 2
    text = json.dumps(report)
    if args.json is None:
        print(text)
    else:
        args.json.write_text(text + "\n", encoding="utf-8")
    if args.plot is not None:
        plot(report, args.plot)
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.exit(main())
