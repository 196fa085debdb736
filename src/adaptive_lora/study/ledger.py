"""study.db: every run's spec, state, curve and results. SQLite, one writer, readable at any moment.

A result is written in one transaction with the status that makes it count, so that a kill at any
moment leaves a run either finished with all its numbers or not finished.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptive_lora.redaction import redacted
from adaptive_lora.stats.metrics import TEST_LOSS, Metric
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.ledger_place import PlacedConnection
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.plan_store import PlanStore
from adaptive_lora.study.score_store import ScoreStore
from adaptive_lora.study.sealed import TABLES, Rows
from adaptive_lora.study.tuning import TuningResult

BASE = "base"
"""The frozen model's place among the evaluations."""
GENERAL = "general"
"""The split of a general text, in a study that names one; nothing rests on it."""
_THEN = "; then "


@dataclass(frozen=True)
class SplitResult:
    """Per-record numbers of one model on one split."""

    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    exact: NDArray[np.bool_]
    score: NDArray[np.float64] | None = None
    """By a metric that is made after training, whose records need not be these; None where it has none."""


class Ledger:
    """The open record of one study; use `create_or_open` to write and `open_to_read` to read."""

    def __init__(self, connection: PlacedConnection) -> None:
        self._db = connection
        self._rows = Rows(connection)
        self.planning = PlanStore(connection, self._rows)
        """Plans and measurements, kept as soon as they are made."""
        self.scores = ScoreStore(connection, self._rows)
        """What every adapter was given by a metric that is made after training."""

    def close(self) -> None:
        """Closes; the last writer folds its log into the one file."""
        self._db.close()

    def check_place(self) -> None:
        """FolderLostError where the ledger is not the file at its path any more; every transaction asks it too."""
        self._db.check_place()

    def facts(self) -> dict[str, Any]:
        """What is known of the study as a whole: identity, spec, versions, model, data."""
        with self._rows.explained("study"):
            if not self._db.execute("PRAGMA user_version").fetchone()[0]:
                return {}
            return {row["key"]: json.loads(row["value"]) for row in self._rows.all("study")}

    def rows(self, table: str) -> list[dict[str, Any]]:
        """A table as it is stored, in the order it was written."""
        return [_plain(row) for row in self._rows.all(table, packed=True)]

    def check(self) -> None:
        """LedgerDamaged unless every row is what was written, with all that it holds."""
        for table in TABLES:
            if self._rows.has(table):
                self._rows.all(table, packed=True)

    def copy_to(self, path: Path) -> None:
        """Writes the ledger into a file that is not there yet: page by page, as digests are of the places of rows too,
        which VACUUM does not promise to keep."""
        with contextlib.closing(sqlite3.connect(path)) as copy:
            self._db.backup(copy)

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """Adds or replaces facts."""
        with self._db:
            self._db.executemany(
                "INSERT OR REPLACE INTO study VALUES (?, ?)", [(k, json.dumps(v)) for k, v in facts.items()]
            )

    def register(self, runs: Mapping[str, Run]) -> None:
        """Adds runs that are not there yet, as pending; those that are get the labels that they have now.

        A run that was for tuning and is now to be evaluated lacks its test, and is to be done again. What is registered
        is asked for, and set aside no more.
        """
        aside = self._set_aside()
        rows = [
            (
                run_id, run.phase.value, run.arm.name, run.arm.strategy or "ranks", run.budget, run.cell.scaling.rule,
                run.learning_rate, run.seed, run.replica, Status.PENDING.value,
            )
            for run_id, run in runs.items()
        ]  # fmt: skip
        with self._db:
            self._db.executemany(
                "INSERT INTO runs (run_id, phase, arm, strategy, budget, scaling, learning_rate, seed, replica, status)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run_id) DO UPDATE SET arm = excluded.arm,"
                " status = CASE phase WHEN excluded.phase THEN status ELSE excluded.status END, phase = excluded.phase",
                rows,
            )
        if aside & runs.keys():
            self.set_facts({"set_aside": sorted(aside - runs.keys())})

    def _set_aside(self) -> set[str]:
        kept = self._rows.one("study", "set_aside")
        return set(json.loads(kept["value"])) if kept else set()

    def status_of(self, run_id: str) -> Status:
        """PENDING for a run that is not there."""
        row = self._rows.one("runs", run_id)
        return Status(row["status"]) if row else Status.PENDING

    def begin(self, run_id: str, engine: str, device: str, steps: int, kernels: str | None = None) -> None:
        """Marks a run as running; `kernels` says what computes attention and adapters.

        Of a run that goes on with others than it began with, the ledger has both: `A; then B`.
        """
        with self._db:
            before = self._db.execute("SELECT kernels FROM runs WHERE run_id = ? AND step > 0", (run_id,)).fetchone()
            if before and before["kernels"] and kernels:
                same = before["kernels"].split(_THEN)[-1] == kernels
                kernels = before["kernels"] if same else f"{before['kernels']}{_THEN}{kernels}"
            self._db.execute(
                "UPDATE runs SET status = ?, engine = ?, device = ?, steps = ?, kernels = ?, error = NULL, started = ?"
                " WHERE run_id = ?",
                (Status.RUNNING.value, engine, device, steps, kernels, time.time(), run_id),
            )

    def record_step(self, run_id: str, step: int) -> None:
        """How far a run has come, for `status`."""
        with self._db:
            self._db.execute("UPDATE runs SET step = ? WHERE run_id = ?", (step, run_id))

    def fail(self, run_id: str, status: Status, error: str, step: int | None = None) -> None:
        """Records a run that gave no result, with the reason."""
        with self._db:
            self._db.execute(
                "UPDATE runs SET status = ?, error = ?, step = ?, finished = ? WHERE run_id = ?",
                (status.value, redacted(error), step, time.time(), run_id),
            )

    def complete(
        self,
        run_id: str,
        plan: Mapping[str, Any],
        curve: Mapping[str, Sequence[float]],
        results: Mapping[str, SplitResult],
        seconds: Mapping[str, float],
    ) -> None:
        """Records a finished run whole: plan, curve, evaluations by split, `plan` and `train` seconds."""
        columns = list(curve)
        points = np.array([curve[column] for column in columns], dtype=np.float64)
        with self._db:
            self._db.execute(
                "UPDATE runs SET status = ?, step = steps, error = NULL, trainable_parameters = ?,"
                " plan_seconds = ?, train_seconds = ?, finished = ? WHERE run_id = ?",
                (
                    Status.COMPLETED.value, plan["trainable_parameters"], seconds["plan"], seconds["train"],
                    time.time(), run_id,
                ),
            )  # fmt: skip
            self.planning.write_plan(run_id, plan, seconds["plan"])
            self._db.execute(
                "INSERT OR REPLACE INTO curves VALUES (?, ?, ?)",
                (run_id, json.dumps(columns), zlib.compress(points.tobytes())),
            )
            for split, result in results.items():
                self._store(run_id, split, result)

    def store_base(self, results: Mapping[str, SplitResult]) -> None:
        """Records the frozen model's own evaluations."""
        with self._db:
            for split, result in results.items():
                self._store(BASE, split, result)

    def _store(self, run_id: str, split: str, result: SplitResult) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                run_id, split, float(result.nll.sum()), int(result.tokens.sum()), int(result.exact.sum()),
                len(result.nll), zlib.compress(result.nll.astype("<f8").tobytes()),
                zlib.compress(result.tokens.astype("<i8").tobytes()),
                zlib.compress(result.exact.astype("u1").tobytes()),
            ),
        )  # fmt: skip

    def runs(self, every: bool = False, status: Sequence[Status] = tuple(Status)) -> list[dict[str, Any]]:
        """The runs in the order they were registered; `every`: those set aside by a deviation too."""
        aside = set() if every else self._set_aside()
        rows = self._rows.all("runs")
        return [_plain(row) for row in rows if row["status"] in status and row["run_id"] not in aside]

    def statuses(self, every: bool = False) -> dict[str, Status]:
        """run_id -> status, likewise."""
        with self._rows.explained("runs"):
            return {run["run_id"]: Status(run["status"]) for run in self.runs(every)}

    def counts(self) -> dict[tuple[str, str], int]:
        """(phase, status) -> runs, of those that are not set aside."""
        return Counter((run["phase"], run["status"]) for run in self.runs())

    def tuning_results(self) -> list[TuningResult]:
        """Of every finished tuning run."""
        totals, done = self.totals(), self.runs(status=(Status.COMPLETED, Status.DIVERGED))
        found: list[TuningResult] = []
        for run in done:
            if run["phase"] == Phase.TUNING:
                own = totals.get((run["run_id"], "validation"))
                loss = own["nll"] / own["tokens"] if own and own["tokens"] else None
                found.append(((run["arm"], run["budget"]), run["learning_rate"], run["seed"], loss))
        return found

    def totals(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(run_id or `base`, split) -> summed nll, tokens, exact answers and records."""
        return {(row["run_id"], row["split"]): _plain(row) for row in self._rows.all("evaluations")}

    def by_record(self, run_id: str, split: str, metric: Metric = TEST_LOSS) -> SplitResult | None:
        """Per-record results, with the scores by a `metric` that is made after training; None where there are none."""
        row = self._rows.one("evaluations", run_id, split)
        if row is None:
            return None
        scores = self.scores.values(run_id, metric.key) if metric.is_scored and split == "test" else None
        with self._rows.explained("evaluations", run_id):
            return SplitResult(
                np.frombuffer(zlib.decompress(row["nll_by_record"]), dtype="<f8"),
                np.frombuffer(zlib.decompress(row["tokens_by_record"]), dtype="<i8"),
                np.frombuffer(zlib.decompress(row["exact_by_record"]), dtype="u1").astype(np.bool_),
                scores,
            )

    def plan(self, run_id: str) -> dict[str, Any] | None:
        """The plan of a finished run, as JSON values."""
        found = self.planning.plan(run_id) if self.status_of(run_id) is Status.COMPLETED else None
        return found[0] if found else None

    def plans(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(run_id, plan) of every finished run, in the order they were registered, one at a time."""
        for run in self.runs(every=True, status=(Status.COMPLETED,)):
            if (found := self.planning.plan(run["run_id"])) is not None:
                yield run["run_id"], found[0]

    def curve(self, run_id: str) -> dict[str, list[float]] | None:
        """Column -> value per step of a finished run."""
        found = self._points(run_id)
        return {name: values.tolist() for name, values in found.items()} if found is not None else None

    def curves(self, phase: str) -> Iterator[tuple[str, dict[str, NDArray[np.float64]]]]:
        """(run_id, column -> value per step) of a phase's finished runs, as registered, one at a time."""
        for run in self.runs(every=True):
            if run["phase"] == phase and (found := self._points(run["run_id"])) is not None:
                yield run["run_id"], found

    def _points(self, run_id: str) -> dict[str, NDArray[np.float64]] | None:
        row = self._rows.one("curves", run_id)
        if row is None:
            return None
        with self._rows.explained("curves", run_id):
            columns = json.loads(row["columns"])
            points = np.frombuffer(zlib.decompress(row["points"]), dtype=np.float64).reshape(len(columns), -1)
            return dict(zip(columns, points, strict=True))


def _plain(row: sqlite3.Row) -> dict[str, Any]:
    """Without the place of the row in its table."""
    found = dict(row)
    del found["place"]
    return found
