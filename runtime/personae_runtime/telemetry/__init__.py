"""Traces, metrics and logs. `names` holds every name that leaves the process."""
