"""Benchmarks, each a module that is run by itself."""

import os

# They start processes while gRPC has threads, and none of those goes on with gRPC's state. Read when gRPC loads.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
