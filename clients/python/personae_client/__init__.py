"""The Python SDK of Personae."""
