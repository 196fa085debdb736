"""In study.db: what a metric that is made after training gave every adapter, record by record.

Tables are made with the first score, so that ledgers of studies without such a metric are what they always were.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptive_lora.study.sealed import Rows, seal

SCORE_TABLE = """
CREATE TABLE IF NOT EXISTS scores (
    run_id TEXT NOT NULL, metric TEXT NOT NULL, mean REAL NOT NULL, records INTEGER NOT NULL,
    value_by_record BLOB NOT NULL, PRIMARY KEY (run_id, metric)
)
"""
PARTS_TABLE = """
CREATE TABLE IF NOT EXISTS score_parts (
    run_id TEXT NOT NULL, metric TEXT NOT NULL, part TEXT NOT NULL, found TEXT NOT NULL,
    PRIMARY KEY (run_id, metric, part)
)
"""
"""What is known of a run whose scoring is under way: it stands nowhere else, and is gone when the score is whole."""
RECORDS = "scored_records"
"""The fact with the names of the records, by metric; values stand in their order."""


class ScoreStore:
    """Scores by run and by `Metric.key`; part of a `Ledger`."""

    def __init__(self, connection: sqlite3.Connection, rows: Rows) -> None:
        self._db, self._rows = connection, rows

    @property
    def there(self) -> bool:
        """Whether anything was ever scored."""
        return self._rows.has("scores")

    def _make(self, table: str) -> None:
        self._db.execute(table)
        if self._rows.sealed:
            seal(self._db)

    def records(self, key: str) -> list[str] | None:
        """The names of the records that a metric scores; None before the first score."""
        found: list[str] | None = self._records().get(key)
        return found

    def _records(self) -> dict[str, list[str]]:
        row = self._rows.one("study", RECORDS)
        return dict(json.loads(row["value"])) if row else {}

    def store(self, run_id: str, key: str, records: Sequence[str], values: NDArray[np.float64]) -> None:
        """Keeps a run's values, whole, with the names of its records where they are the first."""
        names = {key: list(records), **self._records()}
        self._make(SCORE_TABLE)
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)",
                (run_id, key, float(values.mean()), len(values), zlib.compress(values.astype("<f8").tobytes())),
            )
            self._db.execute("INSERT OR REPLACE INTO study VALUES (?, ?)", (RECORDS, json.dumps(names)))
            if self._rows.has("score_parts"):
                self._db.execute("DELETE FROM score_parts WHERE run_id = ? AND metric = ?", (run_id, key))

    def keep_part(self, run_id: str, key: str, part: str, found: Any) -> None:
        """Keeps what was found of a part of a run's records, JSON values, until its score is whole."""
        self._make(PARTS_TABLE)
        with self._db:
            row = (run_id, key, part, json.dumps(found))
            self._db.execute("INSERT OR REPLACE INTO score_parts VALUES (?, ?, ?, ?)", row)

    def part(self, run_id: str, key: str, part: str) -> Any:
        """What was found of a part, of a run whose scoring was cut; None where it is still to be made."""
        if not self._rows.has("score_parts"):
            return None
        row = self._rows.one("score_parts", run_id, key, part)
        return json.loads(row["found"]) if row else None

    def values(self, run_id: str, key: str) -> NDArray[np.float64] | None:
        """By record, in the order of `records`; None where the run was not scored."""
        if not self.there:
            return None
        row = self._rows.one("scores", run_id, key)
        with self._rows.explained("scores", run_id):
            return np.frombuffer(zlib.decompress(row["value_by_record"]), dtype="<f8") if row else None

    def means(self, key: str) -> dict[str, float]:
        """run_id -> its mean, of every run that was scored."""
        if not self.there:
            return {}
        return {row["run_id"]: row["mean"] for row in self._rows.all("scores") if row["metric"] == key}
