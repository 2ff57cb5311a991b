"""Evidence recall on LoCoMo: `python -m tests.bench.recall [--json]`.

Imports each conversation of the file through the history reader, the indexer and
the Qdrant Edge index, asks its questions of categories 1 to 4 through `Recall`,
and reports what share of a question's evidence turns is among the first 5, 10
and 20 (mean over questions). The last line is one JSON object.

Data: LoCoMo (Maharana et al., 2024, snap-research/LoCoMo, CC BY-NC 4.0), read
from PERSONAE_EVAL_DATA; for evaluation only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import tempfile
import time
import uuid
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from personae_runtime.config import default_models_dir
from personae_runtime.engines.models import path as model_path
from personae_runtime.memory.edge import EdgeMemoryIndex
from personae_runtime.memory.embedder import OnnxEmbedder
from personae_runtime.memory.history import read_history
from personae_runtime.memory.indexer import Indexer
from personae_runtime.memory.lexical import lexical_text, terms
from personae_runtime.memory.recall import Recall
from personae_runtime.memory.store import MemoryRecord, MemorySource
from tests.memory_store import DictMemoryStore

EMBEDDING_MODEL = "all-minilm-l6-v2-int8"
DEPTHS = (5, 10, 20)
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}


def eval_data() -> Path:
    """Where the evaluation data lies; see PERSONAE_EVAL_DATA."""
    default = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
    return Path(os.environ.get("PERSONAE_EVAL_DATA", default))


def load(path: Path, sample_id: str, scope: str) -> list[MemoryRecord]:
    """One conversation as memories of a scope."""
    now = datetime.now(UTC)
    return [
        MemoryRecord(
            memory_id=uuid.uuid5(uuid.NAMESPACE_OID, f"{item.thread}/{item.ordinal}"),
            scope=scope,
            text=item.text,
            speaker=item.speaker,
            occurred_at=item.occurred_at or now,
            thread=item.thread,
            ordinal=item.ordinal,
            source=MemorySource.API,
            created_at=now,
            external_id=item.external_id,
        )
        for item in read_history(path, select=sample_id).items
    ]


def questions(sample: dict[str, Any]) -> list[tuple[int, str, frozenset[str]]]:
    """(category, question, evidence ids); evidence strings vary in form, so a regular expression reads them."""
    found = []
    for row in sample["qa"]:
        evidence = frozenset(
            f"D{int(session)}:{int(turn)}"
            for session, turn in re.findall(r"D:?(\d+):(\d+)", " ".join(map(str, row.get("evidence", []))))
        )
        if row["category"] in CATEGORIES and evidence:
            found.append((row["category"], row["question"], evidence))
    return found


async def measure(path: Path, models: Path | None, conversations: int | None = None) -> dict[str, Any]:
    """Run the benchmark; see the module. `conversations` takes only the first so many."""
    samples = (await asyncio.to_thread(lambda: json.loads(path.read_bytes())))[:conversations]
    embedder = None
    if models is not None:
        embedder = OnnxEmbedder(
            *(model_path(EMBEDDING_MODEL, file, models) for file in ("model.onnx", "tokenizer.json"))
        )
        await embedder.start()
    store = DictMemoryStore()
    lengths: list[int] = []
    shares: dict[str, dict[int, list[list[float]]]] = {}
    search_ms: list[float] = []
    recall_ms: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        index = EdgeMemoryIndex(Path(folder))
        await index.open()
        indexer = Indexer(index, store, embedder)
        begun = time.perf_counter()
        turns = 0
        for sample in samples:
            records = load(path, sample["sample_id"], sample["sample_id"])
            turns += len(records)
            store.add(*records)
            around = await store.neighbours([record.memory_id for record in records])
            lengths += [len(terms(lexical_text(record, *around[record.memory_id]))) for record in records]
        await indexer.catch_up()
        index_s = time.perf_counter() - begun
        recall = Recall(index, store, embedder)
        for sample in samples:
            scope = sample["sample_id"]
            by_category = shares.setdefault(scope, defaultdict(list))
            for category, question, evidence in questions(sample):
                begun = time.perf_counter()
                result = await recall.recall(scope, question, limit=max(DEPTHS), dense_deadline_s=10)
                recall_ms.append((time.perf_counter() - begun) * 1e3)
                ids = [item.record.external_id for item in result.items]
                by_category[category].append(
                    [len(evidence.intersection(ids[:depth])) / len(evidence) for depth in DEPTHS]
                )
        lexical = Recall(index, store, None)
        for sample in samples[:1]:
            for _, question, _ in questions(sample):
                begun = time.perf_counter()
                await lexical.recall(sample["sample_id"], question, limit=5, dense_deadline_s=0)
                search_ms.append((time.perf_counter() - begun) * 1e3)
        await index.close()
    if embedder is not None:
        await embedder.close()

    def percent(rows: list[list[float]]) -> dict[str, float]:
        return {
            str(depth): round(100 * statistics.fmean(row[place] for row in rows), 1)
            for place, depth in enumerate(DEPTHS)
        }

    rows = [row for by_category in shares.values() for found in by_category.values() for row in found]
    by_conversation = {
        scope: percent([row for found in by_category.values() for row in found])
        for scope, by_category in shares.items()
    }
    return {
        "data": "LoCoMo dev, categories 1-4 (snap-research/LoCoMo, CC BY-NC 4.0)",
        "dense": embedder is not None,
        "turns": turns,
        "questions": len(rows),
        "recall": percent(rows),
        "recall_by_category": {
            f"{category} {name}": percent([row for by in shares.values() for row in by[category]])
            for category, name in CATEGORIES.items()
        },
        "recall_by_conversation": by_conversation,
        "spread_over_conversations": {
            str(depth): round(statistics.pstdev(found[str(depth)] for found in by_conversation.values()), 1)
            for depth in DEPTHS
        },
        "mean_terms": round(statistics.fmean(lengths), 1),
        "index_s": round(index_s, 2),
        "recall_ms_p50": round(float(np.percentile(recall_ms, 50)), 2),
        "recall_ms_p95": round(float(np.percentile(recall_ms, 95)), 2),
        "lexical_ms_p50": round(float(np.percentile(search_ms, 50)), 2),
        "lexical_ms_p95": round(float(np.percentile(search_ms, 95)), 2),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Evidence recall on LoCoMo.")
    parser.add_argument("--data", type=Path, default=eval_data() / "locomo_dev.json")
    parser.add_argument("--models", type=Path, default=default_models_dir(), help="models folder")
    parser.add_argument("--lexical", action="store_true", help="without the dense arm")
    parser.add_argument("--json", action="store_true", help="only the last line")
    options = parser.parse_args()
    if not options.data.is_file():
        raise SystemExit(f"{options.data} is absent; set PERSONAE_EVAL_DATA to the folder that holds it")
    result = asyncio.run(measure(options.data, None if options.lexical else options.models))
    if not options.json:
        for name in ("recall", "spread_over_conversations"):
            print(f"{name:28}", *(f"@{depth} {value:5}" for depth, value in result[name].items()))
        for name, found in {**result["recall_by_category"], **result["recall_by_conversation"]}.items():
            print(f"  {name:26}", *(f"@{depth} {value:5}" for depth, value in found.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
