"""Tables of runs for tests: evaluation losses by arm and budget, seed after seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from adaptive_lora.stats.estimators import Floats
from adaptive_lora.stats.evidence import StudyTables, judge_primary
from adaptive_lora.stats.run_table import Comparison
from adaptive_lora.stats.verdicts import Judgement
from adaptive_lora.streams import numpy_stream

BASE = [2.0, 2.1, 1.9, 2.05, 1.95, 2.02, 1.98, 2.03]
ANALYSIS = {"margin": 0.01, "alpha": 0.05, "baseline": "uniform"}
WIGGLE = [0.001, -0.001, 0.002, -0.002, 0.001, -0.001, 0.0015, -0.0015]


def table(losses: Mapping[tuple[str, str], Sequence[float]]) -> pd.DataFrame:
    """Evaluation runs by (arm, budget), seed after seed."""
    rows = [
        {
            "run_id": f"{arm}{budget}{seed}", "phase": "evaluation", "arm": arm, "strategy": arm, "budget": budget,
            "seed": seed, "replica": 0, "learning_rate": 1e-3, "scaling": "constant", "trainable_parameters": 10,
            "status": "completed", "test_loss": loss, "test_exact_match": None, "plan_seconds": 0.0,
            "train_seconds": 1.0,
        }
        for (arm, budget), found in losses.items()
        for seed, loss in enumerate(found)
    ]  # fmt: skip
    return pd.DataFrame(rows)


class Losses:
    """Losses by record of one run."""

    def __init__(self, nll: Floats) -> None:
        self.nll = nll
        self.tokens = np.full(len(nll), 10)


def by_record(runs: pd.DataFrame, records: int = 50, noise: float = 0.002) -> StudyTables:
    """The runs with their `losses_by_record`."""
    return StudyTables(runs, losses_by_record(runs, records, noise))


def losses_by_record(runs: pd.DataFrame, records: int = 50, noise: float = 0.002) -> Callable[[str, str], Losses]:
    """Losses by record, whose means are the runs' own; the records' effects differ from arm to arm by `noise`."""

    def losses(run_id: str, split: str) -> Losses:
        run = runs.set_index("run_id").loc[run_id]
        own = numpy_stream(0, str(run["arm"]), str(run["budget"])).normal(size=records) * noise
        return Losses(10 * (float(run["test_loss"]) + own - own.mean()))

    return losses


def by_seed(runs: pd.DataFrame) -> StudyTables:
    """The runs, without their losses by record."""
    return StudyTables(runs, lambda run_id, split: None)


def judged(
    tables: StudyTables,
    named: Sequence[Mapping[str, str]],
    seeds: int = 8,
    looks: Sequence[int] = (),
    **analysis: object,
) -> dict[Comparison, Judgement]:
    """The verdicts of a study of so many seeds; `analysis` in place of `ANALYSIS`."""
    spec = {"analysis": {**ANALYSIS, **analysis}, "seeds": {"evaluation": list(range(seeds)), "looks": list(looks)}}
    return judge_primary(tables, named, spec)


def moved(by: float, wiggles: float = 1.0) -> list[float]:
    """The baseline's losses and so much more, with a spread over seeds."""
    return [loss + by + wiggles * wiggle for loss, wiggle in zip(BASE, WIGGLE, strict=True)]


def primary(*arms: str) -> list[dict[str, str]]:
    """Comparisons at rank:8, as a lock has them."""
    return [{"arm": arm, "budget": "rank:8"} for arm in arms]


def diverge(runs: pd.DataFrame, arm: str, seeds: Sequence[int]) -> None:
    """Turns runs of an arm into diverged ones."""
    gone = (runs["arm"] == arm) & runs["seed"].isin(seeds)
    runs.loc[gone, ["status", "test_loss"]] = ["diverged", float("nan")]
