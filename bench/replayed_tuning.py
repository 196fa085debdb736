"""What tuning by the protocol costs, replayed on the tuning runs of a committed study, for `efficiency.py`.

Committed studies tried every arm at the baseline's rate and one step to either side, and the baseline there once
more. Now an arm is tried at two rates where the baseline has been anyhow, and at a third where these two leave a doubt.
So the search is run again, on the losses that there are: an arm's loss at a rate beside those of the study's own check
is that at the nearest of them and the baseline's own difference between the two, by seed. What an arm differs in stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from adaptive_lora.stats.rate_choice import Losses
from adaptive_lora.stats.robustness import tuning_losses
from adaptive_lora.study.baseline_tuning import BaselineSearch
from adaptive_lora.study.matrix import StudyMatrix
from adaptive_lora.study.tuning import TuningResult


def replayed_steps(matrix: StudyMatrix, runs: pd.DataFrame) -> int:
    """Adapter-steps of all tuning runs that the search asks for."""
    losses, frozen = tuning_losses(runs), float(runs["base_loss"].median())
    finished: list[TuningResult] = []
    while True:
        search = BaselineSearch(matrix, finished, frozen)
        asked = [(key, rate) for key, rates in search.asked.items() for rate in rates]
        more = [found for key, rate in asked for found in _results(key, rate, losses, matrix.baseline.name)]
        if len(more) == len(finished):
            return sum(run.cell.steps for run in matrix.tuning_runs(search.asked))
        finished = more


def _results(key: tuple[str, str], rate: float, losses: dict[tuple[str, str], Losses], base: str) -> list[TuningResult]:
    own, beside = losses[key], losses[base, key[1]]
    if rate in own:
        return [(key, rate, seed, loss) for seed, loss in own[rate].items()]
    near = min(set(own) & set(beside), key=lambda other: abs(math.log(other / rate)))
    return [(key, rate, seed, _moved(loss, beside[rate][seed], beside[near][seed])) for seed, loss in own[near].items()]


def _moved(*losses: float | None) -> float | None:
    """An arm's loss where the baseline's is the second rather than the third; None where a run of them diverged."""
    known: Sequence[float] = [loss for loss in losses if loss is not None]
    return known[0] + known[1] - known[2] if len(known) == len(losses) else None
