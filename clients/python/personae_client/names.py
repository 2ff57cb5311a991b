"""Resource names, built: `tenants/{t}/personas/{p}/users/{u}/memories/{m}`."""

from __future__ import annotations


def tenant_name(tenant: str) -> str:
    """`tenants/{tenant}`"""
    return f"tenants/{tenant}"


def persona_name(tenant: str, persona: str) -> str:
    """`tenants/{tenant}/personas/{persona}`"""
    return f"{tenant_name(tenant)}/personas/{persona}"


def user_name(persona: str, user: str) -> str:
    """`{persona}/users/{user}`, of a persona's full name; a full user name stays as it is."""
    return user if "/" in user else f"{persona}/users/{user}"


def session_name(persona: str, session: str) -> str:
    """`{persona}/sessions/{session}`, of a persona's full name."""
    return f"{persona}/sessions/{session}"


def turn_name(session: str, turn_id: str) -> str:
    """`{session}/turns/{turn_id}`, of a session's full name."""
    return f"{session}/turns/{turn_id}"
