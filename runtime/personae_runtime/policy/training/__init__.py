"""How the n-gram head is made: `python -m personae_runtime.policy.training --help`."""
