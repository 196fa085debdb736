"""The part of study.db that planning writes: plans of runs, and what was measured for them.

Both are kept as soon as they are made, so that a study that was cut plans nothing twice. A measurement is found by the
hash of all that it depends on; a plan belongs to its run.
"""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import Mapping
from typing import Any

from adaptive_lora.study.sealed import Rows

PLAN_TABLES = """\
CREATE TABLE plans (run_id TEXT PRIMARY KEY, plan BLOB NOT NULL, seconds REAL NOT NULL);
CREATE TABLE measurements (key TEXT PRIMARY KEY, description TEXT NOT NULL, content BLOB NOT NULL, taken REAL NOT NULL);
"""


class PlanStore:
    """Plans and measurements in an open ledger."""

    def __init__(self, connection: sqlite3.Connection, rows: Rows) -> None:
        self._db, self._rows = connection, rows

    def store_plan(self, run_id: str, plan: Mapping[str, Any], seconds: float) -> None:
        """Keeps the plan of a run; `seconds` is what making it took."""
        with self._db:
            self.write_plan(run_id, plan, seconds)

    def write_plan(self, run_id: str, plan: Mapping[str, Any], seconds: float) -> None:
        """`store_plan` inside the caller's transaction."""
        self._db.execute("INSERT OR REPLACE INTO plans VALUES (?, ?, ?)", (run_id, packed(plan), seconds))

    def plan(self, run_id: str) -> tuple[dict[str, Any], float] | None:
        """(plan, seconds that it took) of a run, finished or not; None before it is planned."""
        row = self._rows.one("plans", run_id)
        with self._rows.explained("plans", run_id):
            return (unpacked(row["plan"]), row["seconds"]) if row else None

    def planned(self) -> set[str]:
        """The ids of all runs that have a plan."""
        return {row["run_id"] for row in self._rows.all("plans")}

    def store_measurement(self, key: str, description: Mapping[str, Any], content: Mapping[str, Any]) -> None:
        """Keeps a measurement under the hash of all that it depends on; `description` spells that out."""
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO measurements VALUES (?, ?, ?, ?)",
                (key, json.dumps(description), packed(content), time.time()),
            )

    def measurement(self, key: str) -> dict[str, Any] | None:
        """The content that was stored under a key; None where there is none."""
        row = self._rows.one("measurements", key)
        with self._rows.explained("measurements", key):
            return unpacked(row["content"]) if row else None

    def measurements(self) -> list[dict[str, Any]]:
        """The descriptions of all measurements, in the order they were taken."""
        return [json.loads(row["description"]) for row in self._rows.all("measurements")]


def packed(value: Mapping[str, Any]) -> bytes:
    """JSON, compressed: a plan shrinks to a tenth."""
    return zlib.compress(json.dumps(value).encode(), 1)


def unpacked(content: bytes) -> dict[str, Any]:
    """What `packed` made, floats to the last bit."""
    found: dict[str, Any] = json.loads(zlib.decompress(content))
    return found
