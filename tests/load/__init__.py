"""An open-loop load generator for the gateway and for what a user would pick instead.

    python -m tests.load --target 127.0.0.1:7400 --driver gateway --key KEY --mode arrivals --rate 20 --duration 60

It runs in a process of its own and measures every server alike: the same
arrival process, the same percentiles. `docs/benchmarks.md` says how to read it.
"""
