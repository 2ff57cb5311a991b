"""What gateways tell each other of who does how much: keyed hashes and counts, kept for minutes."""

from __future__ import annotations

import time
from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Any, Final

import orjson

from personae_runtime.abuse.guard import AbuseGuard
from personae_runtime.ledger.database import Database

_LATE_S: Final = 10.0
"""A report may become visible so long after it was numbered."""
_TIDY_S: Final = 60.0


class UsageExchange:
    """Reports of one process, and those that it hears.

    Args:
        gateway: this process's name among those on the ledger.
        keep_s: seconds for which reports are of use to a process that starts.
    """

    def __init__(self, database: Database, guard: AbuseGuard, *, gateway: str, keep_s: float) -> None:
        self._database = database
        self._guard = guard
        self._gateway = gateway
        self._keep = timedelta(seconds=keep_s)
        self._heard: OrderedDict[int, None] = OrderedDict()
        self._from: datetime | None = None
        self._tidied: float | None = None

    async def exchange(self, *, alone: bool) -> None:
        """Report what happened here and hear what did elsewhere, since the last time; forget what is old.

        Args:
            alone: there is nobody to tell or to hear.

        Raises:
            LedgerUnavailable: what was to be reported is lost, and counts here alone.
        """
        counts, sightings = self._guard.report()
        if self._tidied is None or time.monotonic() - self._tidied > _TIDY_S:
            await self._database.execute(
                "DELETE FROM usage_reports WHERE reported_at < now() - $1::interval", self._keep
            )
            self._tidied = time.monotonic()
        if alone:
            return
        if counts or sightings:
            await self._database.execute(
                "INSERT INTO usage_reports (gateway, report) VALUES ($1, $2)",
                self._gateway,
                orjson.dumps({"counts": counts, "sightings": sightings}).decode(),
            )
        rows = await self._database.fetch(
            "SELECT report_id, report, now() AS at FROM usage_reports WHERE gateway <> $1"
            " AND reported_at > coalesce($2, now() - $3::interval) ORDER BY report_id",
            self._gateway,
            self._from,
            self._keep,
        )
        for row in rows:
            self._from = row["at"] - timedelta(seconds=_LATE_S)
            if row["report_id"] not in self._heard:
                self._heard[row["report_id"]] = None
                report: dict[str, Any] = orjson.loads(row["report"])
                self._guard.hear([tuple(one) for one in report["counts"]], report["sightings"])
        while len(self._heard) > 100_000:
            self._heard.popitem(last=False)
