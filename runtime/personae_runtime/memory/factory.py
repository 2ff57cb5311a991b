"""From settings to indexes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from personae_runtime.config import MemorySettings, QdrantSettings
from personae_runtime.memory.edge import EdgeMemoryIndex
from personae_runtime.memory.index import MemoryIndex
from personae_runtime.memory.indexer import DEFAULT_NAME
from personae_runtime.memory.passages import INDEX_NAME
from personae_runtime.memory.qdrant import QdrantMemoryIndex


class Part(StrEnum):
    """What an index is of: they never share one."""

    MEMORIES = "memories"
    """What personas remember of people."""
    PASSAGES = "passages"
    """What personas have said and written."""


def build_index(memory: MemorySettings, data_dir: Path, part: Part) -> MemoryIndex:
    """The index that these settings name, not opened yet: on a Qdrant server, or in the data directory."""
    if memory.qdrant.url is None:
        return EdgeMemoryIndex(index_directory(data_dir, part))
    return QdrantMemoryIndex(server_settings(memory, part))


def index_directory(data_dir: Path, part: Part) -> Path:
    """Where the embedded index lies."""
    return data_dir / {Part.MEMORIES: "memory-index", Part.PASSAGES: "corpus-index"}[part]


def server_settings(memory: MemorySettings, part: Part) -> QdrantSettings:
    """The server's settings with the part's own collection."""
    if part is Part.MEMORIES:
        return memory.qdrant
    return memory.qdrant.model_copy(update={"collection": f"{memory.qdrant.collection}_corpus"})


def cursor_name(memory: MemorySettings, part: Part) -> str:
    """Under which the ledger keeps how far the index is: another one for each place that points can lie in."""
    if memory.qdrant.url is None:
        return {Part.MEMORIES: DEFAULT_NAME, Part.PASSAGES: INDEX_NAME}[part]
    return f"qdrant-v1:{server_settings(memory, part).collection}"
