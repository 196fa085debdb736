"""Tables of runs for tests: evaluation losses by arm and budget, seed after seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

BASE = [2.0, 2.1, 1.9, 2.05, 1.95, 2.02, 1.98, 2.03]
ANALYSIS = {"margin": 0.01, "alpha": 0.05}
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
