"""Encryption per scope, and the keyed hashes."""

from __future__ import annotations

import base64
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.errors import ConfigError
from personae_runtime.ledger.database import Database
from personae_runtime.ledger.vault import Scope, ScopeErased, Vault, load_master_key

in_session = pytest.mark.asyncio(loop_scope="session")
words = st.text(max_size=20)


def scope(user: str = "ann") -> Scope:
    return Scope("acme", f"p-{uuid4().hex[:8]}", user)


@in_session
async def test_what_is_sealed_opens_in_its_place_only(database: Database) -> None:
    vault = Vault(bytes(32), database)
    mine, theirs = await vault.cipher(scope()), await vault.cipher(scope())
    sealed = mine.seal(b"words", "turn/1/1/user")
    assert b"words" not in sealed
    assert mine.open(sealed, "turn/1/1/user") == b"words"
    assert mine.seal(b"words", "turn/1/1/user") != sealed
    for cipher, place in ((mine, "turn/1/2/user"), (theirs, "turn/1/1/user")):
        with pytest.raises(ScopeErased):
            cipher.open(sealed, place)
    with pytest.raises(ScopeErased):
        mine.open(sealed[:-1] + bytes([sealed[-1] ^ 1]), "turn/1/1/user")


@in_session
async def test_a_scopes_key_is_made_once_and_outlives_the_process(database: Database) -> None:
    which = scope()
    first = await Vault(bytes(32), database).cipher(which)
    second = await Vault(bytes(32), database).cipher(which)
    assert second.open(first.seal(b"words", "x"), "x") == b"words"
    assert (first.scope, first.marker) == (second.scope, second.marker)


@in_session
async def test_a_destroyed_key_opens_nothing(database: Database) -> None:
    vault, which = Vault(bytes(32), database), scope()
    await vault.cipher(which)
    await database.execute(
        "UPDATE scopes SET wrapped_key = NULL, destroyed_at = now() WHERE scope = $1", vault.scope_key(which)
    )
    with pytest.raises(ScopeErased):
        await Vault(bytes(32), database).cipher(which)


@in_session
async def test_a_key_that_was_rolled_back_is_not_kept(database: Database) -> None:
    vault, which = Vault(bytes(32), database), scope()
    key = vault.scope_key(which)
    async with database.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        lost = await vault.cipher_by_key(key, connection)
        await transaction.rollback()
    kept = await vault.cipher(which)
    sealed = kept.seal(b"words", "x")
    assert (await Vault(bytes(32), database).cipher(which)).open(sealed, "x") == b"words"
    with pytest.raises(ScopeErased):
        lost.open(sealed, "x")


@in_session
async def test_another_master_key_is_told_apart(database: Database) -> None:
    await Vault(bytes(32), database).verify()
    await Vault(bytes(32), database).verify()
    other, which = Vault(b"x" * 32, database), scope()
    with pytest.raises(ConfigError, match="not the key"):
        await other.verify()
    key = Vault(bytes(32), database).scope_key(which)
    await Vault(bytes(32), database).cipher(which)
    with pytest.raises(ConfigError, match="does not unwrap"):
        await other.cipher_by_key(key)


@given(st.lists(words, min_size=1, max_size=4), st.lists(words, min_size=1, max_size=4))
def test_hashes_of_different_parts_differ(first: list[str], second: list[str]) -> None:
    vault = Vault(bytes(32), None)  # type: ignore[arg-type]
    assert (vault.body_mac(*first) == vault.body_mac(*second)) == (first == second)


def test_hashes_hang_on_the_key_and_on_their_purpose() -> None:
    one, two = Vault(bytes(32), None), Vault(b"x" * 32, None)  # type: ignore[arg-type]
    assert one.scope_key(Scope("t", "p", "u")) != two.scope_key(Scope("t", "p", "u"))
    assert one.scope_key(Scope("t", "p", "1")) != one.cache_salt("t", "p", 1)
    assert one.body_mac("t", "p", "1") != bytes.fromhex(one.scope_key(Scope("t", "p", "1")))


def test_a_development_key_is_made_once_and_is_its_owners(tmp_path: Path) -> None:
    key = load_master_key(None, tmp_path, development=True)
    assert len(key) == 32
    assert load_master_key(None, tmp_path, development=True) == key
    assert (tmp_path / "master.key").stat().st_mode & 0o777 == 0o600


def test_production_takes_the_configured_key_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="required"):
        load_master_key(None, tmp_path, development=False)
    key = bytes(range(32))
    assert load_master_key(base64.b64encode(key).decode(), tmp_path, development=False) == key
    for wrong in ("", "not base64!", base64.b64encode(b"short").decode()):
        with pytest.raises(ConfigError, match="base64 of 32 bytes"):
            load_master_key(wrong, tmp_path, development=False)
    assert not list(tmp_path.iterdir())
