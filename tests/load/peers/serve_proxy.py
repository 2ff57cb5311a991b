"""A persona's stream behind Ray Serve's own gRPC proxy: what one gets without a gateway.

    python -m tests.load.peers.serve_proxy --tokens 400 [--itl-ms 0] [--direct]

The synthetic engine runs in the replica that the proxy calls, so that there is
one hop less than in the application; nothing is gated, remembered or recorded.
One message per engine delta, or one for as many tokens as the turn's id asks
for (`tests.load.drivers.GrpcDriver`). Prints `port`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from tests.load.peers import free_port, ready, stdin_closed

APPLICATION = "proxy"


class Streamer:
    """Converse, without what is around it.

    Args:
        engine: arguments of the synthetic engine.
    """

    def __init__(self, engine: dict[str, Any]) -> None:
        from personae_runtime.engines.synthetic import SyntheticEngine

        self._engine = SyntheticEngine(profile="development", **engine)
        self._started = False
        self._serial = 0

    async def Converse(self, request: Any) -> AsyncIterator[Any]:
        """Stream one reply."""
        from personae.v1 import event_pb2
        from personae_runtime.engines.engine import GenerateRequest, Message

        if not self._started:
            await self._engine.start()
            self._started = True
        self._serial += 1
        _, coalesce, limit = request.turn_id.rsplit("-", 2)
        asked = GenerateRequest(
            request_id=str(self._serial),
            messages=[Message("user", request.text)],
            max_tokens=int(limit),
            temperature=0.0,
        )
        event_id, held, held_tokens, tokens = 1, [], 0, 0
        yield event_pb2.SessionEvent(
            event_id=1, turn_id=request.turn_id, turn_started=event_pb2.TurnStarted(disclosure="An AI is speaking.")
        )
        async for delta in self._engine.generate(asked):
            tokens += delta.tokens
            held.append(delta.text)
            held_tokens += delta.tokens
            if held_tokens >= int(coalesce) or delta.finish is not None:
                event_id += 1
                yield event_pb2.SessionEvent(
                    event_id=event_id, turn_id=request.turn_id, text_delta=event_pb2.TextDelta(text="".join(held))
                )
                held, held_tokens = [], 0
        yield event_pb2.SessionEvent(
            event_id=event_id + 1, turn_id=request.turn_id, usage=event_pb2.Usage(output_tokens=tokens)
        )
        yield event_pb2.SessionEvent(
            event_id=event_id + 2,
            turn_id=request.turn_id,
            turn_completed=event_pb2.TurnCompleted(finish_reason=event_pb2.FINISH_REASON_STOP),
        )


async def main(args: argparse.Namespace) -> None:
    """Serve until stdin closes."""
    import ray
    from ray import serve
    from ray.serve.config import ProxyLocation, gRPCOptions

    port = args.port or free_port()
    ray.init(address="local", include_dashboard=False, num_cpus=args.num_cpus, log_to_driver=False)
    await asyncio.to_thread(
        serve.start,
        proxy_location=ProxyLocation.HeadOnly,
        http_options={"host": "127.0.0.1", "port": free_port()},
        grpc_options=gRPCOptions(
            port=port,
            grpc_servicer_functions=[
                "personae.v1.session_service_pb2_grpc.add_SessionServiceServicer_to_server",
            ],
        ),
    )
    engine = {
        "ttft_ms": args.ttft_ms,
        "itl_ms": args.itl_ms,
        "tokens": args.tokens,
        "max_tokens_per_delta": args.tokens_per_delta,
        "max_concurrent": 4096,
        "context_tokens": 1 << 20,
    }
    deployment = serve.deployment(max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0.1})(Streamer)
    app = deployment.bind(engine)
    await asyncio.to_thread(serve.run, app, name=APPLICATION, route_prefix="/")
    # With direct ingress each replica listens itself, from this port on.
    served = int(os.environ.get("RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT", "40000")) if args.direct else port
    ready(port=served)
    await stdin_closed()
    await asyncio.to_thread(serve.shutdown)
    ray.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--ttft-ms", type=float, default=0.0)
    parser.add_argument("--itl-ms", type=float, default=0.0)
    parser.add_argument("--tokens-per-delta", type=int, default=1)
    parser.add_argument("--num-cpus", type=float, default=4)
    parser.add_argument("--direct", action="store_true", help="direct ingress: past the proxy")
    asked = parser.parse_args()
    # These are read when Serve is imported, here and in every process that Ray starts.
    if asked.direct:
        os.environ["RAY_SERVE_ENABLE_DIRECT_INGRESS"] = "1"
        os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
    asyncio.run(main(asked))
