"""From runs and their values by record to the tables that comparisons are judged by: lower is better in all of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from adaptive_lora.planning.budget_text import halved
from adaptive_lora.stats.arms import evaluations, having
from adaptive_lora.stats.crossed import PairedTable, of_seed_means, with_two_more
from adaptive_lora.stats.divergence import diverged_pairs
from adaptive_lora.stats.effect_sizes import ByRecord
from adaptive_lora.stats.estimators import Floats
from adaptive_lora.stats.metrics import TEST_LOSS, Metric
from adaptive_lora.stats.run_table import Comparison, Status
from adaptive_lora.stats.verdicts import Evidence, Judgement, Rule, judge_family

Cell = tuple[str, str]
"""(arm, budget)."""


class StudyTables:
    """Paired tables of any two cells of a study by its metric; each run's values are read once."""

    def __init__(
        self, runs: pd.DataFrame, by_record: ByRecord, split: str = "test", metric: Metric = TEST_LOSS
    ) -> None:
        self.by_record, self.metric, self._split = by_record, metric, split
        self._column = f"{split}_loss" if metric.is_loss else metric.column
        counting = evaluations(runs)
        self._runs: dict[Cell, pd.DataFrame] = {
            (str(arm), str(budget)): own for (arm, budget), own in counting.groupby(["arm", "budget"], sort=False)
        }
        self._read: dict[str, tuple[Floats, Floats] | None] = {}

    @property
    def cells(self) -> list[Cell]:
        """Every arm at every budget that has runs, in their order."""
        return list(self._runs)

    def of(self, cell: Cell) -> pd.DataFrame:
        """Its evaluation runs; no rows where it has none."""
        empty = pd.DataFrame(columns=["seed", "run_id", "status", self._column])
        return self._runs.get(cell, empty)

    def finished(self, *cells: Cell) -> frozenset[int]:
        """Seeds on which all of them have a result, be it divergence."""
        found = []
        for cell in cells:
            own, done = self.of(cell), self._done(cell)
            found.append({*own.loc[own["status"] == Status.DIVERGED, "seed"].astype(int), *done["seed"].astype(int)})
        return frozenset(set.intersection(*found)) if found else frozenset()

    def _done(self, cell: Cell) -> pd.DataFrame:
        """Its runs that have a value; one that is still to be scored, or never is, has none."""
        own = self.of(cell)
        done = own[own["status"] == Status.COMPLETED]
        return done if self.metric.is_loss else done[done[self._column].notna()]

    def paired(self, first: Cell, second: Cell) -> PairedTable | None:
        """First less second, over the seeds that both completed; None where there is none.

        Where values by record are not known, of seeds alone.
        """
        done = [self._done(cell).set_index("seed") for cell in (first, second)]
        seeds = [int(seed) for seed in done[0].index if seed in done[1].index]
        if not seeds:
            return None
        values = [self._costs(str(own.loc[seed, "run_id"])) for seed in seeds for own in done]
        known = [found for found in values if found is not None]
        if len(known) < len(values):
            by_seed = [self.metric.sign * own[self._column].astype(float) for own in done]
            return of_seed_means({s: float(by_seed[0][s]) - float(by_seed[1][s]) for s in seeds})
        costs = np.stack([found for found, _ in known])
        table = PairedTable(costs[::2] - costs[1::2], known[0][1], tuple(seeds))
        return with_two_more(table, self.metric.scale) if self._right_or_wrong else table

    def _costs(self, run_id: str) -> tuple[Floats, Floats] | None:
        if run_id not in self._read:
            records = self.by_record(run_id, self._split)
            self._read[run_id] = None if records is None else self.metric.costs(records)
        return self._read[run_id]

    @functools.cached_property
    def _right_or_wrong(self) -> bool:
        """Whether all values of all runs are 0 or 1; of all, so that a study's tables have the same records."""
        if not self.metric.is_scored:
            return not self.metric.is_loss
        ids = [str(run_id) for cell in self.cells for run_id in self._done(cell)["run_id"]]
        return all(
            np.isin(abs(found[0]), (0.0, self.metric.scale)).all()
            for found in map(self._costs, ids)
            if found is not None
        )


def tables_of(runs: pd.DataFrame, source: Any, metric: Metric) -> StudyTables:
    """By a metric, of runs that may have none of it, as another study's; `source` is their ledger, if there is one."""
    runs = having(runs, metric)
    known: Any = getattr(source, "by_record", None)
    if known is None:
        return StudyTables(runs, lambda run_id, split: None, metric=metric)
    return StudyTables(runs, functools.partial(known, metric=metric) if metric.is_scored else known, metric=metric)


def rule_of(spec: Mapping[str, Any]) -> Rule:
    """How a study is judged, by its file."""
    analysis, seeds = spec["analysis"], spec["seeds"]
    margin = analysis["margin"]
    return Rule(
        alpha=analysis["alpha"],
        margin=margin if isinstance(margin, int | float) else None,
        seeds=tuple(seeds["evaluation"]),
        looks=tuple(seeds.get("looks") or ()),
    )


def evidence_of(tables: StudyTables, comparison: Comparison, baseline: str, rule: Rule) -> Evidence:
    """Of an arm against the baseline at a budget."""
    arm, base = (comparison.arm, comparison.budget), (baseline, comparison.budget)
    budget = halved(comparison.budget)
    half = (baseline, budget) if rule.margin is None and budget and tables.of((baseline, budget)).size else None
    needed = [arm, base, *([half] if half else [])]
    return Evidence(
        table=tables.paired(arm, base),
        half=tables.paired(half, base) if half else None,
        diverged=diverged_pairs(tables.of(arm), tables.of(base)),
        diverged_by_look=tuple(diverged_pairs(tables.of(arm), tables.of(base), rule.seeds[:n]) for n in rule.looks),
        finished=tables.finished(*needed),
    )


def judge_primary(
    tables: StudyTables, primary: Sequence[Mapping[str, str]], spec: Mapping[str, Any]
) -> dict[Comparison, Judgement]:
    """A judgement for each primary comparison, one family over all budgets; numbers in the metric's own unit and sign.

    One whose arm has no finished pair of runs keeps its place in the family.
    """
    rule, baseline = rule_of(spec), spec["analysis"]["baseline"]
    family = [Comparison(part["arm"], part["budget"]) for part in primary]
    if not family:
        return {}
    found = {c: evidence_of(tables, c, baseline, rule) for c in family}
    others = [cell for cell in tables.cells if Comparison(*cell) not in found and cell[0] != baseline]
    pool = [tables.paired(cell, (baseline, cell[1])) for cell in others]
    judged = judge_family(found, rule, [table for table in pool if table is not None])
    return {c: own.turned() for c, own in judged.items()} if tables.metric.higher_is_better else judged
