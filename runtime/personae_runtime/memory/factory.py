"""From settings to an index."""

from __future__ import annotations

from pathlib import Path

from personae_runtime.config import MemorySettings
from personae_runtime.memory.edge import EdgeMemoryIndex
from personae_runtime.memory.index import MemoryIndex
from personae_runtime.memory.indexer import DEFAULT_NAME
from personae_runtime.memory.qdrant import QdrantMemoryIndex


def build_index(memory: MemorySettings, data_dir: Path) -> MemoryIndex:
    """The index that these settings name, not opened yet: on a Qdrant server, or in the data directory."""
    if memory.qdrant.url is None:
        return EdgeMemoryIndex(index_directory(data_dir))
    return QdrantMemoryIndex(memory.qdrant)


def index_directory(data_dir: Path) -> Path:
    """Where the embedded index lies."""
    return data_dir / "memory-index"


def cursor_name(memory: MemorySettings) -> str:
    """Under which the ledger keeps how far the index is: another one for each place that points can lie in."""
    return DEFAULT_NAME if memory.qdrant.url is None else f"qdrant-v1:{memory.qdrant.collection}"
