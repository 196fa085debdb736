"""One row an arm: what its seeds say together, beside the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from adaptive_lora.stats.divergence import NONE_DIVERGED, DivergedPairs, diverged_pairs
from adaptive_lora.stats.estimators import Interval, mean_interval, perplexity
from adaptive_lora.stats.metrics import TEST_LOSS, Metric
from adaptive_lora.stats.outcomes import count_no_better
from adaptive_lora.stats.run_table import Phase, Status


@dataclass(frozen=True)
class ArmSummary:
    """An arm on a budget over its finished evaluation runs."""

    arm: str
    strategy: str
    budget: str
    scaling: str
    learning_rate: float
    is_baseline: bool
    loss: Interval | None
    """Test loss, nats per completion token; None where no run has finished."""
    difference: Interval | None
    """Paired by seed, arm minus baseline by the study's metric, test loss unless it says another; None for the
    baseline."""
    differences: tuple[tuple[int, float], ...]
    """(seed, difference) behind it."""
    exact_match: float | None
    trainable_parameters: tuple[int, ...]
    """The different sizes of its runs; one, unless something is amiss."""
    plan_seconds: float | None
    train_seconds: float | None
    """Medians over runs."""
    diverged: int
    no_better: int
    """Runs that ended no better than the frozen model; their losses count."""
    unfinished: int
    diverged_pairs: DivergedPairs
    """Seeds that `differences` lacks because one of the two diverged."""
    score: Interval | None = None
    """Of the study's metric over seeds, where that is another than test loss."""
    of_loss: tuple[tuple[int, float], ...] | None = None
    """(seed, difference in test loss), where `differences` are of another metric."""

    @property
    def same(self) -> int:
        """Seeds on which its loss is the baseline's to the last bit: there its plan came out as the baseline's own."""
        return sum(difference == 0 for _, difference in (self.differences if self.of_loss is None else self.of_loss))

    @property
    def perplexity(self) -> float | None:
        """exp of the mean loss."""
        return perplexity(self.loss.mean) if self.loss else None


def summarise(runs: pd.DataFrame, baseline: str, metric: Metric = TEST_LOSS) -> list[ArmSummary]:
    """Arms in the order of the study, budget by budget, from the table of runs."""
    evaluation = having(evaluations(runs), metric)
    return [
        _summary(evaluation, (arm, budget), baseline, metric)
        for budget in _in_order(evaluation["budget"])
        for arm in _in_order(evaluation[evaluation["budget"] == budget]["arm"])
    ]


def evaluations(runs: pd.DataFrame, completed: bool = False) -> pd.DataFrame:
    """The runs that count, or those with a loss; twins are a check and not a sample."""
    counting = runs[(runs["phase"] == Phase.EVALUATION) & (runs["replica"] == 0)]
    return counting[counting["status"] == Status.COMPLETED] if completed else counting


def having(runs: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """With the metric's column, which is empty where the runs are another study's and have none of it."""
    return runs if metric.column in runs else runs.assign(**{metric.column: float("nan")})


def frozen_loss(runs: pd.DataFrame) -> float | None:
    """The frozen model's test loss; None where it is not known."""
    found = evaluations(runs)["base_loss"].dropna()
    return None if found.empty else float(found.iloc[0])


def frozen_score(runs: pd.DataFrame, metric: Metric) -> float | None:
    """The frozen model's mean by a metric that is made after training, in its unit; None where it was not scored."""
    name = f"base_{metric.name}"
    found = runs[name].dropna() if metric.is_scored and name in runs else pd.Series(dtype=float)
    return None if found.empty else float(found.iloc[0])


def _summary(runs: pd.DataFrame, cell: tuple[str, str], baseline: str, metric: Metric) -> ArmSummary:
    arm, budget = cell
    mine = runs[(runs["arm"] == arm) & (runs["budget"] == budget)]
    theirs = runs[(runs["arm"] == baseline) & (runs["budget"] == budget)]
    done = mine[mine["status"] == Status.COMPLETED]
    base = theirs[theirs["status"] == Status.COMPLETED]
    differences, scores = _differences(done, base, metric.column), done[metric.column].dropna()
    first = mine.iloc[0]
    is_baseline = arm == baseline
    return ArmSummary(
        arm=arm,
        strategy=str(first["strategy"]),
        budget=budget,
        scaling=str(first["scaling"]),
        learning_rate=float(first["learning_rate"]),
        is_baseline=is_baseline,
        loss=mean_interval(done["test_loss"].tolist()) if len(done) else None,
        difference=mean_interval([d for _, d in differences]) if differences and not is_baseline else None,
        differences=() if is_baseline else differences,
        exact_match=_median(done["test_exact_match"], mean=True),
        trainable_parameters=tuple(sorted({int(n) for n in done["trainable_parameters"]})),
        plan_seconds=_median(done["plan_seconds"]),
        train_seconds=_median(done["train_seconds"]),
        diverged=int((mine["status"] == Status.DIVERGED).sum()),
        no_better=count_no_better(mine),
        unfinished=int((~mine["status"].isin([Status.COMPLETED, Status.DIVERGED])).sum()),
        diverged_pairs=NONE_DIVERGED if is_baseline else diverged_pairs(mine, theirs),
        score=None if metric.is_loss or scores.empty else mean_interval(scores.astype(float).tolist()),
        of_loss=None if metric.is_loss else () if is_baseline else _differences(done, base, "test_loss"),
    )


def _differences(done: pd.DataFrame, base: pd.DataFrame, column: str) -> tuple[tuple[int, float], ...]:
    """(seed, difference) of the runs that both have a value."""
    paired = done.merge(base, on="seed", suffixes=("", "_baseline"))
    if column != "test_loss":
        paired = paired.dropna(subset=[column, f"{column}_baseline"])
    both = zip(paired["seed"], paired[column], paired[f"{column}_baseline"], strict=True)
    return tuple((int(seed), float(value - base)) for seed, value, base in both)


def _in_order(values: pd.Series) -> Sequence[str]:
    return list(dict.fromkeys(values))


def _median(values: pd.Series, mean: bool = False) -> float | None:
    present = values.dropna()
    if present.empty:
        return None
    return float(present.astype(float).mean() if mean else present.astype(float).median())
