"""The persona runtime: the turn, and everything a turn needs.

No module here imports grpc or ray: the same classes run in one process on a
laptop and behind deployments in a cluster.
"""
