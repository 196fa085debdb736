"""What a difference is worth: parameters of the baseline, or compute."""

from __future__ import annotations

import math

import pytest

from adaptive_lora.stats.arms import summarise
from adaptive_lora.stats.cost_equivalents import LossCurve, at_equal_compute, baseline_curve, parameter_equivalents
from tests.stats.tables import BASE, diverge, moved, table

SIZES = {"rank:4": 400, "rank:8": 800, "rank:16": 1600}


def runs(apart: float, curve: tuple[float, float] = (0.03, -0.02)):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """An arm so far from the baseline, which loses and gains so much at half and double its budget."""
    found = table({("uniform", "rank:8"): BASE, ("arm", "rank:8"): moved(apart),
                   ("uniform", "rank:4"): [loss + curve[0] for loss in BASE],
                   ("uniform", "rank:16"): [loss + curve[1] for loss in BASE]})  # fmt: skip
    return found.assign(trainable_parameters=found["budget"].map(SIZES))


def test_parameters_follow_the_curve_between_its_ends() -> None:
    curve = LossCurve((100, 200, 400), (3.0, 2.0, 1.5))
    assert curve.parameters_at(2.0) == pytest.approx(200)
    assert curve.parameters_at(2.5) == pytest.approx(100 * math.sqrt(2))
    assert curve.parameters_at(1.5) == pytest.approx(400) and curve.parameters_at(3.0) == pytest.approx(100)
    assert curve.parameters_at(1.4) is None and curve.parameters_at(3.1) is None


def test_a_better_arm_is_worth_more_parameters() -> None:
    (match,) = parameter_equivalents(summarise(runs(-0.01), "uniform"))
    assert (match.arm, match.budget) == ("arm", "rank:8") and match.ends == (-50.0, 100.0)
    assert match.percent == pytest.approx(100 * (math.sqrt(2) - 1), rel=1e-6)  # half of the way to double
    assert match.low is not None and match.high is not None and match.low < match.percent < match.high


def test_a_worse_arm_is_worth_fewer() -> None:
    (match,) = parameter_equivalents(summarise(runs(0.015), "uniform"))
    assert match.percent == pytest.approx(100 * (2**-0.5 - 1), rel=1e-6)


def test_beyond_the_curve_nothing_is_claimed() -> None:
    (match,) = parameter_equivalents(summarise(runs(-0.05), "uniform"))
    assert match.percent is None
    (match,) = parameter_equivalents(summarise(runs(-0.0199), "uniform"))
    assert match.percent is not None and match.high is None


@pytest.mark.parametrize("curve", [(-0.01, -0.02), (0.03, 0.01)], ids=["half is better", "double is worse"])
def test_a_curve_that_does_not_fall_names_no_size(curve: tuple[float, float]) -> None:
    arms = summarise(runs(-0.01, curve), "uniform")
    assert not baseline_curve(arms).falls and parameter_equivalents(arms) == []


def test_a_baseline_at_one_budget_is_no_curve() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("arm", "rank:8"): moved(0.0)})
    assert parameter_equivalents(summarise(runs, "uniform")) == []


def test_equal_compute_pairs_an_arm_with_its_own_longer_baseline() -> None:
    found = table({("uniform", "rank:8"): BASE, ("arm", "rank:8"): moved(-0.02),
                   ("uniform-x2", "rank:8"): [loss - 0.03 for loss in BASE], ("arm", "rank:4"): BASE})  # fmt: skip
    (equal,) = at_equal_compute(found, {"arm": "uniform-x2"}, "uniform")
    assert (equal.arm, equal.budget, equal.control) == ("arm", "rank:8", "uniform-x2")
    assert equal.difference.mean == pytest.approx(0.01, abs=1e-3) and equal.difference.n == len(BASE)
    assert equal.stopped == 0  # no validation losses: nothing to stop by


def longer(validation: dict[str, list[float]]):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """Three seeds of an arm, the baseline, and a longer baseline that is worse on test by 0.1, then better."""
    found = table({("uniform", "rank:8"): [2.0, 2.0, 2.0], ("arm", "rank:8"): [1.9, 1.9, 1.9],
                   ("uniform-x2", "rank:8"): [2.1, 2.1, 1.8]})  # fmt: skip
    return found.assign(validation_loss=[loss for arm in found["arm"].unique() for loss in validation[arm]])


def test_more_compute_is_spent_as_validation_says() -> None:
    """Training on into overfitting is nobody's best use of compute, and no opponent."""
    own = {"uniform": [2.0, 2.0, 2.0], "arm": [1.0] * 3, "uniform-x2": [2.2, 1.9, 1.8]}
    (equal,) = at_equal_compute(longer(own), {"arm": "uniform-x2"}, "uniform")
    # By hand: seed 0 stops (2.0), seed 1 goes on though its test loss is worse (2.1), seed 2 goes on (1.8).
    assert equal.difference.mean == pytest.approx(((1.9 - 2.0) + (1.9 - 2.1) + (1.9 - 1.8)) / 3)
    assert (equal.stopped, equal.difference.n) == (1, 3)


def test_a_baseline_without_use_for_more_compute_is_the_baseline() -> None:
    own = {"uniform": [2.0, 2.0, 2.0], "arm": [1.0] * 3, "uniform-x2": [2.2, 2.2, 2.2]}
    runs = longer(own)
    (equal,) = at_equal_compute(runs, {"arm": "uniform-x2"}, "uniform")
    assert equal.difference.mean == pytest.approx(-0.1) and (equal.stopped, equal.difference.n) == (3, 3)


def test_a_longer_run_that_diverged_is_not_chosen_and_one_that_is_missing_is_no_pair() -> None:
    own = {"uniform": [2.0, 2.0, 2.0], "arm": [1.0] * 3, "uniform-x2": [1.9, 1.9, 1.9]}
    runs = longer(own)
    diverge(runs, "uniform-x2", [0])
    (equal,) = at_equal_compute(runs, {"arm": "uniform-x2"}, "uniform")
    assert (equal.difference.n, equal.stopped) == (3, 1)
    runs.loc[(runs["arm"] == "uniform-x2") & (runs["seed"] == 0), "status"] = "pending"
    (equal,) = at_equal_compute(runs, {"arm": "uniform-x2"}, "uniform")
    assert (equal.difference.n, equal.stopped) == (2, 0)
