"""How stably every run trained: what came of it, divergence, loss spikes, gradients, clipping, sizes of updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from adaptive_lora.stats.estimators import Floats, Interval, mean_interval
from adaptive_lora.stats.loss_spikes import count_spikes, rises, row_medians, spikes
from adaptive_lora.stats.outcomes import Outcome, gains, outcomes
from adaptive_lora.stats.run_table import Status

PAIRED_BY = ["phase", "budget", "learning_rate", "seed"]
"""Runs that differ in nothing but the arm."""

STABILITY_COLUMNS = (
    "run_id", "phase", "arm", "budget", "scaling", "learning_rate", "seed", "diverged", "diverged_at", "spikes",
    "largest_spike", "gradient_norm", "largest_gradient_norm", "clipped", "validation_loss", "excess", "update",
    "largest_update", "outcome", "gain",
)  # fmt: skip
"""`diverged_at`: the step, from 0. `spikes`: how many (`stats.loss_spikes`); `largest_spike`: rise of the largest, nats
per token. `gradient_norm`: median over steps, before clipping. `clipped`: share of steps with a norm above the limit.
`excess`: validation loss less the baseline's at the same phase, budget, rate and seed, nats per token. `update`: median
over modules of the update's Frobenius norm over the frozen weight's. `outcome` and `gain` over the frozen model, nats
per token, on the split of the phase: `stats.outcomes`. What does not exist is empty."""


@dataclass(frozen=True)
class StabilitySummary:
    """The finished runs of an arm at one budget and rate."""

    arm: str
    scaling: str
    budget: str
    learning_rate: float
    seeds: int
    diverged: int
    no_better: int
    """Runs that ended no better than the frozen model."""
    first_divergence: int | None
    """The earliest step at which a run diverged, from 0; None where none did or the step is not known."""
    excess: Interval | None
    """Mean over the seeds that have one, with a t interval; None for the baseline."""
    clipped: float | None
    """Median share of clipped steps."""
    spikes: float | None
    """Mean number a run."""
    gradient_norm: float | None
    """Median over runs."""
    largest_update: float | None
    """Of any module in any run."""

    @property
    def unlearned(self) -> int:
        """Runs that diverged or ended no better than the frozen model."""
        return self.diverged + self.no_better


def stability_table(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    max_grad_norm: float | None,
    baseline: str,
    ranks: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row with `STABILITY_COLUMNS` for every run that completed or diverged, twins left out, in the given order.

    `runs` and `curves` are of all phases (`runs_table`, `curves_table`); `ranks` has the column `update` by run and
    module. The baseline itself has no `excess`.
    """
    finished = runs["status"].isin([Status.COMPLETED, Status.DIVERGED])
    table = runs[finished & (runs["replica"] == 0)].reset_index(drop=True)
    table["diverged"] = table["status"] == Status.DIVERGED
    table["diverged_at"] = table["step"].where(table["diverged"]).astype("Int64")
    table["validation_loss"] = _numbers(table["validation_loss"])
    table["excess"] = _excess(table, baseline)
    table = with_outcomes(table, runs)
    measured = [_of_curves(table, curves, max_grad_norm), _of_updates(ranks)]
    table = pd.concat([table, *(part.reindex(table["run_id"]).set_axis(table.index) for part in measured)], axis=1)
    return table.astype({"spikes": "Int64"})[list(STABILITY_COLUMNS)]


def with_outcomes(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The table with `outcome` and `gain` of the `runs_table`, by run_id; an export may be older than they are."""
    known = pd.DataFrame({"outcome": outcomes(runs), "gain": gains(runs)}).set_index(runs["run_id"])
    found = known[~known.index.duplicated()].reindex(table["run_id"]).set_axis(table.index)
    return table.assign(outcome=found["outcome"], gain=found["gain"].astype("float64"))


def summaries(table: pd.DataFrame, alpha: float = 0.05) -> list[StabilitySummary]:
    """One for every arm, scaling, budget and rate of a `stability_table`, both phases together; rates rising.

    Intervals are of level 1 - alpha.
    """
    keys = ["arm", "scaling", "budget", "learning_rate"]
    ordered = table.sort_values(keys, key=lambda values: values if values.name == keys[-1] else _as_first_seen(values))
    return [_summary(key, group, alpha) for key, group in ordered.groupby(keys, sort=False)]


def _as_first_seen(values: pd.Series) -> pd.Series:
    return pd.Series(pd.factorize(values)[0], index=values.index)


def _summary(key: Sequence[object], group: pd.DataFrame, alpha: float) -> StabilitySummary:
    arm, scaling, budget, rate = key
    excess, diverged_at = group["excess"].dropna().tolist(), group["diverged_at"].dropna()
    return StabilitySummary(
        arm=str(arm),
        scaling=str(scaling),
        budget=str(budget),
        learning_rate=float(str(rate)),
        seeds=len(group),
        diverged=int(group["diverged"].sum()),
        no_better=int((group["outcome"] == Outcome.NO_BETTER).sum()),
        first_divergence=int(diverged_at.min()) if len(diverged_at) else None,
        excess=mean_interval(excess, 1 - alpha) if excess else None,
        clipped=_or_none(group["clipped"].median()),
        spikes=_or_none(group["spikes"].mean()),
        gradient_norm=_or_none(group["gradient_norm"].median()),
        largest_update=_or_none(group["largest_update"].max()),
    )


def _or_none(value: float) -> float | None:
    return None if pd.isna(value) else float(value)


def _numbers(values: pd.Series) -> pd.Series:
    """As floats; missing where there is no finite number."""
    return pd.to_numeric(values).astype("float64").where(lambda found: np.isfinite(found))


def _excess(table: pd.DataFrame, baseline: str) -> pd.Series:
    theirs = table[table["arm"] == baseline].groupby(PAIRED_BY)["validation_loss"].first()
    beside = theirs.reindex(pd.MultiIndex.from_frame(table[PAIRED_BY])).set_axis(table.index)
    found: pd.Series = (table["validation_loss"] - beside).where(table["arm"] != baseline)
    return found


def _of_curves(table: pd.DataFrame, curves: pd.DataFrame, max_grad_norm: float | None) -> pd.DataFrame:
    """By run_id, what is read off its curve; runs without a curve are not in it."""
    mine = curves[curves["run_id"].isin(table["run_id"])]
    losses = mine.pivot(index="run_id", columns="step", values="loss").astype("float64")
    norms = mine.pivot(index="run_id", columns="step", values="gradient_norm").astype("float64").to_numpy()
    norms = np.where(np.isfinite(norms), norms, np.nan)
    owners = table.set_index("run_id").loc[losses.index]
    # The seed alone decides which batches a run sees.
    batches = np.asarray(owners.groupby(["phase", "seed"]).ngroup(), dtype=np.int64)
    rise = rises(losses.to_numpy(dtype=np.float64), batches)
    spiking = spikes(rise)
    return pd.DataFrame(
        {
            "spikes": np.where(np.isfinite(rise).any(axis=1), count_spikes(spiking), np.nan),
            "largest_spike": _largest(np.where(spiking, rise, np.nan)),
            "gradient_norm": row_medians(norms),
            "largest_gradient_norm": _largest(norms),
            "clipped": _share_above(norms, max_grad_norm),
        },
        index=losses.index,
    )


def _largest(values: Floats) -> Floats:
    """Of each row; missing where the row is."""
    found: Floats = np.fmax.reduce(values, axis=1, initial=np.nan)
    return found


def _share_above(norms: Floats, limit: float | None) -> Floats:
    if limit is None:
        return np.full(len(norms), np.nan)
    there = (~np.isnan(norms)).sum(axis=1)
    above: Floats = (norms > limit).sum(axis=1) / np.where(there > 0, there, np.nan)
    return above


def _of_updates(ranks: pd.DataFrame | None) -> pd.DataFrame:
    """By run_id, the median and the largest relative update of its modules."""
    if ranks is None or "update" not in ranks:
        return pd.DataFrame(columns=["update", "largest_update"], dtype="float64")
    sizes = _numbers(ranks["update"]).groupby(ranks["run_id"])
    return pd.DataFrame({"update": sizes.median(), "largest_update": sizes.max()})
