"""From runs and their losses by record to the tables that comparisons are judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from adaptive_lora.planning.budget_text import halved
from adaptive_lora.stats.arms import evaluations
from adaptive_lora.stats.crossed import PairedTable, of_seed_means
from adaptive_lora.stats.divergence import diverged_pairs
from adaptive_lora.stats.effect_sizes import ByRecord
from adaptive_lora.stats.estimators import Floats
from adaptive_lora.stats.run_table import Comparison, Status
from adaptive_lora.stats.verdicts import Evidence, Judgement, Rule, judge_family

Cell = tuple[str, str]
"""(arm, budget)."""


class StudyTables:
    """Paired tables of any two cells of a study; each run's losses are read once."""

    def __init__(self, runs: pd.DataFrame, by_record: ByRecord, split: str = "test") -> None:
        self.by_record, self._split = by_record, split
        counting = evaluations(runs)
        self._runs: dict[Cell, pd.DataFrame] = {
            (str(arm), str(budget)): own for (arm, budget), own in counting.groupby(["arm", "budget"], sort=False)
        }
        self._read: dict[str, Any] = {}

    @property
    def cells(self) -> list[Cell]:
        """Every arm at every budget that has runs, in their order."""
        return list(self._runs)

    def of(self, cell: Cell) -> pd.DataFrame:
        """Its evaluation runs; no rows where it has none."""
        empty = pd.DataFrame(columns=["seed", "run_id", "status", f"{self._split}_loss"])
        return self._runs.get(cell, empty)

    def finished(self, *cells: Cell) -> frozenset[int]:
        """Seeds on which all of them have a result, be it divergence."""
        ends = (Status.COMPLETED, Status.DIVERGED)
        found = [set(own.loc[own["status"].isin(ends), "seed"].astype(int)) for own in map(self.of, cells)]
        return frozenset(set.intersection(*found)) if found else frozenset()

    def paired(self, first: Cell, second: Cell) -> PairedTable | None:
        """First less second, over the seeds that both completed; None where there is none.

        Where losses by record are not known, of seeds alone.
        """
        done = [own[own["status"] == Status.COMPLETED].set_index("seed") for own in map(self.of, (first, second))]
        seeds = [int(seed) for seed in done[0].index if seed in done[1].index]
        if not seeds:
            return None
        pairs = [[self._losses(str(own.loc[seed, "run_id"])) for own in done] for seed in seeds]
        if any(losses is None for pair in pairs for losses in pair):
            loss = f"{self._split}_loss"
            by_seed = [own[loss].astype(float) for own in done]
            return of_seed_means({s: float(by_seed[0][s]) - float(by_seed[1][s]) for s in seeds})
        differences = np.stack([_single(one.nll) - _single(two.nll) for one, two in pairs])
        return PairedTable(differences, pairs[0][0].tokens.astype(np.float64), tuple(seeds))

    def _losses(self, run_id: str) -> Any:
        if run_id not in self._read:
            self._read[run_id] = self.by_record(run_id, self._split)
        return self._read[run_id]


def _single(losses: Floats) -> Floats:
    """As an archive keeps them, so that a ledger and its export give the same verdicts to the last digit."""
    return losses.astype(np.float32).astype(np.float64)


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
    """A judgement for each primary comparison, one family over all budgets.

    One whose arm has no finished pair of runs keeps its place in the family.
    """
    rule, baseline = rule_of(spec), spec["analysis"]["baseline"]
    family = [Comparison(part["arm"], part["budget"]) for part in primary]
    if not family:
        return {}
    found = {c: evidence_of(tables, c, baseline, rule) for c in family}
    others = [cell for cell in tables.cells if Comparison(*cell) not in found and cell[0] != baseline]
    pool = [tables.paired(cell, (baseline, cell[1])) for cell in others]
    return judge_family(found, rule, [table for table in pool if table is not None])
