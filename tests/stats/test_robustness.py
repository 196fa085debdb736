"""The line beside a verdict: the same comparison at the neighbouring learning rates."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest
from scipy import stats

from adaptive_lora.stats.cautions import Caution
from adaptive_lora.stats.robustness import RateLine, rate_cautions, rate_lines
from adaptive_lora.stats.run_table import RUN_COLUMNS, Comparison, Phase, Status

BUDGET = "rank:8"
GRID = (1e-3, 3e-3, 1e-2)
Difference = Callable[[str, float, int], float | None]


def table(difference: Difference, rates: dict[str, tuple[float, ...]], seeds: int = 3) -> pd.DataFrame:
    """Tuning runs whose losses are the baseline's and a difference; None where the run diverged."""
    rows = []
    for arm, own in rates.items():
        for rate in own:
            for seed in range(seeds):
                found = 0.0 if arm == "uniform" else difference(arm, rate, seed)
                loss = None if found is None else 2.0 + 0.1 * seed + rate + found
                status = Status.DIVERGED if found is None else Status.COMPLETED
                rows.append({"phase": Phase.TUNING, "arm": arm, "budget": BUDGET, "seed": 1000 + seed,
                             "learning_rate": rate, "status": status, "validation_loss": loss})  # fmt: skip
    return pd.DataFrame(rows, columns=list(RUN_COLUMNS))


def lines(difference: Difference, judged: float | None = -0.02, seeds: int = 3) -> dict[str, RateLine]:
    runs = table(difference, dict.fromkeys(("uniform", "a", "b"), GRID), seeds)
    chosen = {(arm, BUDGET): 3e-3 for arm in ("uniform", "a", "b")}
    found = rate_lines(runs, {Comparison(arm, BUDGET): judged for arm in ("a", "b")}, chosen, "uniform")
    return {c.arm: line for c, line in found.items()}


def wobble(seed: int) -> float:
    return (0.001, -0.002, 0.001)[seed]


def test_each_side_has_its_mean_and_the_pooled_noise() -> None:
    line = lines(lambda arm, rate, seed: -0.02 + wobble(seed) * (2 if arm == "b" else 1))["a"]
    assert line.lower is not None and line.higher is not None and line.chosen is not None
    assert (line.lower.rate, line.chosen.rate, line.higher.rate) == GRID
    found = line.lower.difference
    squares = sum(wobble(seed) ** 2 for seed in range(3)) * (1 + 4)
    half = stats.t.ppf(0.975, 4) * (squares / 4 / 3) ** 0.5
    assert found is not None and found.mean == pytest.approx(-0.02)
    assert (found.low, found.high) == pytest.approx((-0.02 - half, -0.02 + half))
    assert not line.changes_sign


def test_a_sign_that_changes_beyond_the_noise_is_told() -> None:
    turning: Difference = lambda arm, rate, seed: (0.02 if rate == 1e-2 and arm == "a" else -0.02) + wobble(seed)  # noqa: E731
    found = lines(turning)
    assert found["a"].changes_sign and not found["b"].changes_sign
    slight: Difference = lambda arm, rate, seed: (0.001 if rate == 1e-2 else -0.02) + wobble(seed)  # noqa: E731
    assert not lines(slight)["a"].changes_sign
    assert not lines(turning, judged=None)["a"].changes_sign


def test_an_arm_that_alone_diverges_one_rate_higher_is_no_better_there() -> None:
    breaking: Difference = lambda arm, rate, seed: None if (arm, rate) == ("a", 1e-2) else -0.02 + wobble(seed)  # noqa: E731
    found = lines(breaking)["a"]
    assert found.higher is not None and found.higher.difference is None and found.higher.diverged == (3, 0)
    assert found.changes_sign
    once: Difference = lambda arm, rate, seed: None if (arm, rate, seed) == ("a", 1e-2, 0) else -0.02 + wobble(seed)  # noqa: E731
    assert not lines(once)["a"].changes_sign


def test_each_arm_stands_beside_its_own_rate() -> None:
    runs = table(lambda arm, rate, seed: wobble(seed), {"uniform": GRID, "a": GRID})
    c = Comparison("a", BUDGET)
    line = rate_lines(runs, {c: 0.1}, {("a", BUDGET): 1e-2, ("uniform", BUDGET): 3e-3}, "uniform")[c]
    assert line.higher is None and line.lower is not None
    assert (line.lower.rate, line.lower.baseline_rate) == (3e-3, 1e-3)


def test_where_both_have_one_rate_they_are_compared_at_the_same() -> None:
    """The baseline was tried at more rates, on the way to its own."""
    runs = table(lambda arm, rate, seed: wobble(seed), {"uniform": (1e-3, 1.1e-3, 1.8e-3, 2e-3), "a": (1.1e-3, 2e-3)})
    c = Comparison("a", BUDGET)
    line = rate_lines(runs, {c: 0.1}, {("a", BUDGET): 1.1e-3, ("uniform", BUDGET): 1.1e-3}, "uniform")[c]
    assert line.higher is not None and (line.higher.rate, line.higher.baseline_rate) == (2e-3, 2e-3)


def test_without_tuning_there_is_no_line_and_one_seed_has_no_interval() -> None:
    assert rate_lines(table(lambda *_: 0.0, {}), {Comparison("a", BUDGET): 0.1}, {("a", BUDGET): 1e-3}, "uniform") == {}
    line = lines(lambda arm, rate, seed: 0.02, seeds=1)["a"]
    assert line.lower is not None and line.lower.difference is not None and line.lower.difference.low is None
    assert not line.changes_sign


def test_cautions_of_the_arm_and_of_the_baseline() -> None:
    turning: Difference = lambda arm, rate, seed: (0.02 if rate == 1e-2 and arm == "a" else -0.02) + wobble(seed)  # noqa: E731
    found = {Comparison(arm, BUDGET): line for arm, line in lines(turning).items()}
    family = [Comparison("a", BUDGET), Comparison("b", BUDGET)]
    assert rate_cautions(found, family, "uniform") == {family[0]: (Caution.RATE,), family[1]: ()}
    clipped = {("b", BUDGET): 1.0, ("uniform", BUDGET): 0.5}
    said = rate_cautions(found, family, "uniform", [("a", BUDGET)], clipped)
    assert said == {family[0]: (Caution.EDGE, Caution.RATE), family[1]: (Caution.CLIPPED,)}
    at_baseline = rate_cautions({}, family, "uniform", [("uniform", BUDGET)], {("uniform", BUDGET): 0.96})
    assert set(at_baseline.values()) == {(Caution.EDGE, Caution.CLIPPED)}
