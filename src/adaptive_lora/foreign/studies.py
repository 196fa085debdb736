"""A study of this package, or its export, as one source more: its arms by another metric or beside other results.

Its budgets are tasks. `test_loss` is in nats per token; `exact_match`, where the data have one right answer each, is
the share of records whose whole completion the model would have chosen. Verdicts that a study locked are those of its
report.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adaptive_lora.errors import UsageError
from adaptive_lora.foreign.scores import Item, Question, Run
from adaptive_lora.stats.arms import evaluations
from adaptive_lora.stats.run_table import Status
from adaptive_lora.study.archive import open_recorded
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.results import read_export, runs_table

_METRICS = {"test_loss": (False, "nats per token"), "exact_match": (True, "")}
_COLUMNS = {"test_loss": "test_loss", "exact_match": "test_exact_match"}


def is_study(path: Path) -> bool:
    """Whether a folder is a study's, or an export."""
    return StudyPaths(path).ledger.is_file() or StudyPaths(path).facts.is_file()


def read_study(folder: Path, metric: str | None = None) -> list[Run]:
    """Its evaluation runs, one an arm and seed; by record as far as these are known."""
    if metric not in (None, *_METRICS):
        raise UsageError(f"{folder} is a study, whose metrics are {' and '.join(_METRICS)}; got {metric!r}.")
    name = metric or "test_loss"
    ledger = open_recorded(folder)
    if ledger is None:
        return _runs(folder, read_export(folder)[1], lambda run_id: None, name)
    with contextlib.closing(ledger):
        return _runs(folder, runs_table(ledger), lambda run_id: ledger.by_record(run_id, "test"), name)


def _runs(folder: Path, table: pd.DataFrame, by_record: Callable[[str], Any], name: str) -> list[Run]:
    higher, unit = _METRICS[name]
    found: dict[tuple[str, int], Run] = {}
    for row in evaluations(table).to_dict("records"):
        arm, seed = str(row["arm"]), int(row["seed"])
        run = found.setdefault((arm, seed), Run(arm, seed, str(folder), {}, {}, diverged=set()))
        question = Question(str(row["budget"]), name, higher, unit)
        mean = row[_COLUMNS[name]]
        if row["status"] == Status.DIVERGED:
            run.diverged.add(question)
        elif row["status"] == Status.COMPLETED and pd.notna(mean):
            records = by_record(str(row["run_id"]))
            if records is None:
                run.means[question] = float(mean)
            else:
                run.items[question] = _items(records, name)
    if not any(run.questions for run in found.values()):
        why = "its data have no single right answers" if name == "exact_match" else "no run has finished"
        raise UsageError(f"{folder} has no {name} to judge: {why}.")
    return list(found.values())


def _items(records: Any, name: str) -> dict[str, Item]:
    if name == "exact_match":
        return {str(i): Item(float(right)) for i, right in enumerate(records.exact)}
    # In single precision, as `stats.evidence` and archives have them, so that a study's report says the same.
    losses = records.nll.astype(np.float32).tolist()
    pairs = enumerate(zip(losses, records.tokens.tolist(), strict=True))
    return {str(i): Item(nll / tokens, float(tokens)) for i, (nll, tokens) in pairs}
