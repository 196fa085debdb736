"""Whole runs from one ledger into another, by whatever tables hold rows of a run."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from typing import Any

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.stats.metrics import metric_of
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.ledger import Ledger

_OF_A_RUN = ("plans", "evaluations", "curves")
"""Tables with rows of a run, beside `runs` itself."""
_RESULTS = ("evaluations", "curves")


def numbers_of(ledger: Ledger, run_id: str) -> str:
    """All results of a run, losses by record and every step of its curve, in one hash."""
    digest = 0
    for table in _RESULTS:
        for row in _rows(ledger, table, run_id):
            for name, value in row.items():
                content = zlib.decompress(value) if isinstance(value, bytes) else json.dumps(value).encode()
                digest = zlib.crc32(name.encode() + content, digest)
    return f"{digest:08x}"


def take_runs(target: Ledger, source: Ledger) -> None:
    """Brings every run into `target` that it does not know, and every result that it lacks, each run in one
    transaction."""
    known = {run["run_id"]: run for run in target.runs(every=True)}
    planned = target.planning.planned()
    for run in source.runs(every=True):
        run_id, own = run["run_id"], known.get(run["run_id"])
        finished = Status(run["status"]).is_finished
        if own is not None and _is_further(own, run):
            _replace(target, source, run)
        elif own is None:
            plain = run if finished else {**run, "status": Status.PENDING.value, "error": None, "step": None}
            _insert(target, source, plain)
        elif run_id not in planned:
            _write(target, "plans", _rows(source, "plans", run_id))


def take_measurements(target: Ledger, source: Ledger) -> None:
    """What was measured for plans, where the target has not measured it."""
    known = {row["key"] for row in target.rows("measurements")}
    _write(target, "measurements", [row for row in source.rows("measurements") if row["key"] not in known])


def take_base(target: Ledger, source: Ledger, base: str) -> None:
    """The frozen model's own evaluations, likewise."""
    known = {row["split"] for row in _rows(target, "evaluations", base)}
    _write(target, "evaluations", [r for r in _rows(source, "evaluations", base) if r["split"] not in known])


def take_scores(target: Ledger, source: Ledger) -> None:
    """What a command of the study's own gave, where it has one."""
    metric = metric_of(source.facts().get("spec", {}).get("analysis", {}))
    if not metric.is_scored:
        return
    names, known = source.scores.records(metric.key) or [], target.scores.means(metric.key)
    ordered = target.scores.records(metric.key) or names
    if sorted(names) != sorted(ordered) and source.scores.means(metric.key):
        raise StudyFolderError(f"The folders have {metric.name} of different records, so that runs cannot be compared.")
    order = [names.index(name) for name in ordered] if names else []
    for run_id in source.scores.means(metric.key):
        values = source.scores.values(run_id, metric.key)
        if run_id not in known and values is not None:
            target.scores.store(run_id, metric.key, ordered, values[order])


def _is_further(own: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether another ledger has a result that this one lacks: a run that was for tuning and then for evaluation lacks
    its test where it is still for tuning."""
    if not Status(other["status"]).is_finished:
        return False
    later = own["phase"] != other["phase"] and other["phase"] == Phase.EVALUATION
    return later or not Status(own["status"]).is_finished


def _replace(target: Ledger, source: Ledger, run: dict[str, Any]) -> None:
    """A run that is registered stays at its place: tables are in the order of registration."""
    with target._db:
        names = [name for name in run if name != "run_id"]
        columns = ", ".join(f"{name} = :{name}" for name in names)
        target._db.execute(f"UPDATE runs SET {columns} WHERE run_id = :run_id", run)
        for table in _OF_A_RUN:
            target._db.execute(f"DELETE FROM {table} WHERE run_id = ?", (run["run_id"],))
            _add(target, table, _rows(source, table, run["run_id"]))


def _insert(target: Ledger, source: Ledger, run: dict[str, Any]) -> None:
    with target._db:
        _add(target, "runs", [run])
        for table in _OF_A_RUN:
            _add(target, table, _rows(source, table, run["run_id"]))


def _write(target: Ledger, table: str, rows: Iterable[dict[str, Any]]) -> None:
    with target._db:
        _add(target, table, rows)


def _add(target: Ledger, table: str, rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        columns = ", ".join(f":{column}" for column in row)
        target._db.execute(f"INSERT INTO {table} ({columns.replace(':', '')}) VALUES ({columns})", row)


def _rows(ledger: Ledger, table: str, run_id: str) -> list[dict[str, Any]]:
    query = f"SELECT * FROM {table} WHERE run_id = ? ORDER BY rowid"
    return [dict(row) for row in ledger._db.execute(query, (run_id,))]
