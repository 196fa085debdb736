"""A study of this package, or its export, as one source more: its arms by another metric or beside other results.

Its budgets are tasks. `test_loss` is in nats per token; `exact_match`, where the data have one right answer each, is
the share of records whose whole completion the model would have chosen; a study's own metric goes by its name, and
shares of right answers are shares here, as other tools have them. Without a word it is the one that the study was
judged by. Verdicts that a study locked are those of its report.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adaptive_lora.errors import UsageError
from adaptive_lora.foreign.scores import Item, Question, Run
from adaptive_lora.stats.arms import evaluations
from adaptive_lora.stats.metrics import EXACT_MATCH, TEST_LOSS, Metric, metric_of
from adaptive_lora.stats.run_table import Status
from adaptive_lora.study.archive import open_recorded
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.results import read_export, runs_table

_ALWAYS = {metric.name: metric for metric in (TEST_LOSS, EXACT_MATCH)}


def is_study(path: Path) -> bool:
    """Whether a folder is a study's, or an export."""
    return StudyPaths(path).ledger.is_file() or StudyPaths(path).facts.is_file()


def read_study(folder: Path, metric: str | None = None) -> list[Run]:
    """Its evaluation runs, one an arm and seed; by record as far as these are known."""
    ledger = open_recorded(folder)
    if ledger is None:
        facts, table = read_export(folder)
        return _runs(folder, table, lambda run_id: None, _chosen(folder, facts, metric))
    with contextlib.closing(ledger):
        chosen = _chosen(folder, ledger.facts(), metric)
        return _runs(folder, runs_table(ledger), lambda run_id: ledger.by_record(run_id, "test", chosen), chosen)


def _chosen(folder: Path, facts: Mapping[str, Any], name: str | None) -> Metric:
    own = metric_of(facts["spec"]["analysis"])
    known = {**_ALWAYS, own.name: own}
    if name not in (None, *known):
        raise UsageError(f"{folder} is a study, whose metrics are {' and '.join(known)}; got {name!r}.")
    return known[name or own.name]


def _runs(folder: Path, table: pd.DataFrame, by_record: Callable[[str], Any], metric: Metric) -> list[Run]:
    unit = metric.unit if metric.is_loss else ""
    found: dict[tuple[str, int], Run] = {}
    for row in evaluations(table).to_dict("records"):
        arm, seed = str(row["arm"]), int(row["seed"])
        run = found.setdefault((arm, seed), Run(arm, seed, str(folder), {}, {}, diverged=set()))
        question = Question(str(row["budget"]), metric.name, metric.higher_is_better, unit)
        mean = row[metric.column]
        if row["status"] == Status.DIVERGED:
            run.diverged.add(question)
        elif row["status"] == Status.COMPLETED and pd.notna(mean):
            records = by_record(str(row["run_id"]))
            if records is None:
                run.means[question] = float(mean) / metric.scale
            else:
                run.items[question] = _items(records, metric)
    if not any(run.questions for run in found.values()):
        why = "its data have no single right answers" if metric == EXACT_MATCH else "no run has finished"
        raise UsageError(f"{folder} has no {metric.name} to judge: {why}.")
    return list(found.values())


def _items(records: Any, metric: Metric) -> dict[str, Item]:
    if not metric.is_loss:
        values = records.score if metric.is_scored else records.exact
        return {str(i): Item(float(value)) for i, value in enumerate(values)}
    # In single precision, as `stats.evidence` and archives have them, so that a study's report says the same.
    losses = records.nll.astype(np.float32).tolist()
    pairs = enumerate(zip(losses, records.tokens.tolist(), strict=True))
    return {str(i): Item(nll / tokens, float(tokens)) for i, (nll, tokens) in pairs}
