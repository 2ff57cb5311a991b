"""What the Edge backend does beyond the contract: unreadable directories, leftovers, rights."""

from __future__ import annotations

import os
import shutil
import stat
import textwrap
from pathlib import Path
from uuid import uuid4

import pytest

from personae_runtime.errors import ConfigError, FailedPrecondition, Unavailable
from personae_runtime.memory import edge
from personae_runtime.memory.edge import CorruptIndex, EdgeMemoryIndex
from personae_runtime.memory.index import DENSE_DIM, MemoryPoint, SparseVector
from tests.conftest import run_python


def points(count: int) -> list[MemoryPoint]:
    dense = [1.0, *[0.0] * (DENSE_DIM - 1)]
    return [MemoryPoint(uuid4(), "a", SparseVector((1,), (1.0,)), dense) for _ in range(count)]


async def fill(directory: Path) -> None:
    index = EdgeMemoryIndex(directory)
    await index.open()
    await index.upsert(points(3))
    await index.close()


def empty_the_files(shard: Path) -> None:
    for path in shard.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\0" * min(64, path.stat().st_size))


async def test_a_second_opener_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    first = EdgeMemoryIndex(tmp_path)
    await first.open()
    with pytest.raises(ConfigError, match="another process"):
        await EdgeMemoryIndex(tmp_path).open()
    code = textwrap.dedent(
        f"""
        import asyncio
        from pathlib import Path
        from personae_runtime.memory.edge import EdgeMemoryIndex
        from personae_runtime.errors import ConfigError
        try:
            asyncio.run(EdgeMemoryIndex(Path({str(tmp_path)!r})).open())
        except ConfigError as error:
            print(error.reason)
        """
    )
    assert run_python(code).strip() == "INDEX_IN_USE"
    await first.close()
    await fill(tmp_path)


@pytest.mark.parametrize("harm", ["zeroed", "no configuration", "no segments", "a file"])
async def test_an_unreadable_shard_names_the_command_and_can_be_recreated(tmp_path: Path, harm: str) -> None:
    await fill(tmp_path)
    shard = tmp_path / "shard"
    match harm:
        case "zeroed":
            empty_the_files(shard)
        case "no configuration":
            shutil.rmtree(shard)
            shard.mkdir()
        case "no segments":
            for segment in (shard / "segments").iterdir():
                empty_the_files(segment)
        case "a file":
            shutil.rmtree(shard)
            shard.write_text("not a shard")
    index = EdgeMemoryIndex(tmp_path)
    with pytest.raises(CorruptIndex, match="personae memory reindex"):
        await index.open()
    # The failed attempt holds nothing: the same directory opens again.
    await index.recreate()
    assert await index.count() == 0
    await index.upsert(points(2))
    assert await index.count() == 2
    await index.close()


async def test_recreate_discards_a_readable_shard_too(tmp_path: Path) -> None:
    await fill(tmp_path)
    index = EdgeMemoryIndex(tmp_path)
    await index.recreate()
    assert await index.count() == 0
    await index.close()


async def test_leftovers_of_an_interrupted_create_or_clear_are_removed(tmp_path: Path) -> None:
    await fill(tmp_path)
    for name in ("shard.new", "shard.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x")
    index = EdgeMemoryIndex(tmp_path)
    await index.open()
    assert await index.count() == 3
    await index.close()
    assert set(os.listdir(tmp_path)) == {"layout", "lock", "shard"}


def segments(directory: Path) -> set[str]:
    return set(os.listdir(directory / "shard" / "segments"))


async def test_what_was_written_is_made_compact_at_the_next_start_and_stays_so(tmp_path: Path) -> None:
    kept, dropped, late = points(40), points(20), points(5)
    index = EdgeMemoryIndex(tmp_path, compact_from_kb=30)
    await index.open()
    await index.upsert([*kept, *dropped])
    written = segments(tmp_path)
    await index.close()
    await index.open()
    compact = segments(tmp_path)
    assert compact.isdisjoint(written)
    await index.delete([point.memory_id for point in dropped])
    await index.upsert(late)
    await index.close()
    await index.open()
    # What is written since is too little to be worth it.
    assert segments(tmp_path) & compact
    found = await index.search("a", SparseVector((1,), (1.0,)), None, limit=100, now=0)
    assert {hit.memory_id for hit in found} == {point.memory_id for point in [*kept, *late]}
    await index.close()


async def test_an_index_of_an_older_layout_is_discarded(tmp_path: Path) -> None:
    await fill(tmp_path)
    (tmp_path / "layout").write_text("1")
    for expected in (0, 3):
        index = EdgeMemoryIndex(tmp_path)
        await index.open()
        assert await index.count() == expected
        await index.upsert(points(3))
        await index.close()


async def test_only_the_owner_may_read_the_directory(tmp_path: Path) -> None:
    await fill(tmp_path / "index")
    for path in (tmp_path / "index", tmp_path / "index" / "shard"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


async def test_a_closed_index_says_so(tmp_path: Path) -> None:
    index = EdgeMemoryIndex(tmp_path)
    with pytest.raises(FailedPrecondition, match="not open"):
        await index.count()
    await index.open()
    await index.close()
    with pytest.raises(FailedPrecondition, match="not open"):
        await index.search("a", SparseVector((1,), (1.0,)), None, limit=1, now=0)


async def test_many_writes_go_to_the_disk_now_and_then_without_losing_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "SYNC_EVERY", 30)
    index = EdgeMemoryIndex(tmp_path)
    await index.open()
    for _ in range(5):
        written = points(20)
        await index.upsert(written)
        await index.delete([item.memory_id for item in written[:5]])
        await index.flush()
    assert await index.count("a") == 75
    assert len(await index.search("a", SparseVector((1,), (1.0,)), None, limit=100, now=0)) == 75
    await index.close()


async def crash_while_open(directory: Path) -> None:
    """Leave the directory as a killed process would, which had three points in the index."""
    copy = directory.with_name("copy")
    index = EdgeMemoryIndex(directory)
    await index.open()
    await index.upsert(points(3))
    await index.flush()
    shutil.copytree(directory, copy)
    await index.close()
    shutil.rmtree(directory)
    shutil.copytree(copy, directory)


async def test_an_index_left_open_by_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    await crash_while_open(tmp_path / "index")
    index = EdgeMemoryIndex(tmp_path / "index")
    await index.open()
    assert await index.count() == 3
    await index.close()


async def test_an_index_left_open_by_a_machine_that_went_down_starts_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await crash_while_open(tmp_path / "index")
    (tmp_path / "boot_id").write_text("the next boot")
    monkeypatch.setattr(edge, "BOOT_ID", tmp_path / "boot_id")
    index = EdgeMemoryIndex(tmp_path / "index")
    await index.open()
    assert await index.count() == 0
    await index.upsert(points(2))
    await index.close()
    # Closed in order, it is kept whatever the boot.
    (tmp_path / "boot_id").write_text("one more")
    await index.open()
    assert await index.count() == 2
    await index.close()


async def test_where_boots_have_no_name_an_index_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "BOOT_ID", tmp_path / "absent")
    await crash_while_open(tmp_path / "index")
    index = EdgeMemoryIndex(tmp_path / "index")
    await index.open()
    assert await index.count() == 3
    await index.close()


async def test_a_failure_of_the_engine_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = EdgeMemoryIndex(tmp_path)
    await index.open()
    await index.upsert(points(1))
    # It knows no vector of this name.
    monkeypatch.setattr(edge, "LEXICAL", "unknown")
    with pytest.raises(Unavailable, match="memory index") as caught:
        await index.search("a", SparseVector((1,), (1.0,)), None, limit=1, now=0)
    assert caught.value.reason == "INDEX_UNAVAILABLE"
    await index.close()
