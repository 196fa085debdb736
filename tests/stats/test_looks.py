"""Looks: levels against another integration and against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from adaptive_lora.stats.looks import STEPS_OF_T, decided_at, levels, spending, spent
from adaptive_lora.streams import numpy_stream


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("plan", [(5, 10), (4, 8, 12), (4, 5, 12), (4, 6, 8, 10)])
def test_every_look_spends_what_was_planned_by_another_integration(plan: tuple[int, ...], alpha: float) -> None:
    """The scores of the looks are normal with correlations sqrt(n / m): none is out with what is not spent yet."""
    bounds = -stats.norm.ppf(np.array(levels(plan, alpha)) / 2)
    for looks in range(1, len(plan) + 1):
        sizes = np.array(plan[:looks], dtype=float)
        cov = np.sqrt(np.minimum.outer(sizes, sizes) / np.maximum.outer(sizes, sizes))
        at = bounds[:looks]
        inside = stats.multivariate_normal.cdf(at, cov=cov, lower_limit=-at, rng=0)
        assert 1 - inside == pytest.approx(spending(alpha, plan[looks - 1] / plan[-1]), abs=1e-4)


def test_the_first_look_is_that_of_the_spending_function() -> None:
    # Jennison and Turnbull (2000), section 7.2: 2 - 2 Phi(1.96 / sqrt(t)) at t = 1/5, 1/2, 1.
    assert [round(spending(0.05, t), 5) for t in (0.2, 0.5, 1.0)] == [0.00001, 0.00557, 0.05]
    assert levels((2, 10), 0.05)[0] == spending(0.05, 0.2)


def test_all_looks_together_err_at_alpha() -> None:
    """200,000 normal walks with looks after 4, 6, 8, 10 and 12 seeds."""
    plan = (4, 6, 8, 10, 12)
    walks = numpy_stream(0, "walks").normal(size=(200_000, 12)).cumsum(axis=1)
    scores = np.abs(walks[:, np.array(plan) - 1]) / np.sqrt(plan)
    crossed = scores >= -stats.norm.ppf(np.array(levels(plan, 0.05)) / 2)
    assert float(crossed.any(axis=1).mean()) == pytest.approx(0.05, abs=0.0015)
    first = np.where(crossed.any(axis=1), crossed.argmax(axis=1), len(plan))
    for look, n in enumerate(plan):  # and what is spent by then is what was planned
        assert float((first <= look).mean()) == pytest.approx(spending(0.05, n / 12), abs=0.0015)


@pytest.mark.parametrize("look", [0, 1, 2])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_spent_is_the_alpha_at_which_a_look_decides(look: int, alpha: float) -> None:
    plan = (4, 7, 10)
    assert spent(levels(plan, alpha)[look], plan, look) == pytest.approx(STEPS_OF_T * alpha, rel=0.01)
    one_sided = levels(plan, 2 * alpha)[look] / 2
    assert spent(one_sided, plan, look, sided=1) == pytest.approx(STEPS_OF_T * alpha, rel=0.01)


@pytest.mark.parametrize("plan", [(4, 7, 10), (12,)])
def test_a_page_names_the_p_at_which_a_look_decides(plan: tuple[int, ...]) -> None:
    for look, level in enumerate(decided_at(plan, 0.05)):
        assert spent(level, plan, look) == pytest.approx(0.05, rel=0.01)


def test_spent_rises_with_p_and_costs_nothing_with_one_look() -> None:
    plan = (4, 8, 12)
    p = np.geomspace(1e-6, 1.0, 40)
    for look in range(3):
        found = [spent(float(value), plan, look) for value in p]
        assert found == sorted(found) and all(s >= value * 0.99 for s, value in zip(found, p, strict=True))
    assert spent(0.03, (12,), 0) == 0.03 and spent(0.0, plan, 1) == 0.0


@pytest.mark.parametrize("plan", [(4, 6, 8, 10, 12), (6, 9, 12)])
def test_t_tests_at_normal_levels_err_a_tenth_too_often_and_pay_for_it(plan: tuple[int, ...]) -> None:
    """100,000 studies without a difference; the simulation's error is 0.0007."""
    draws = numpy_stream(0, "t-looks", *plan).standard_normal((100_000, plan[-1]))
    scores = [draws[:, :n].mean(axis=1) / draws[:, :n].std(axis=1, ddof=1) * np.sqrt(n) for n in plan]
    p = [2 * stats.t.sf(np.abs(score), n - 1) for score, n in zip(scores, plan, strict=True)]
    unpaid, paid = (
        float(np.mean(np.any([own <= level for own, level in zip(p, at, strict=True)], axis=0)))
        for at in (levels(plan, 0.05), decided_at(plan, 0.05))
    )
    assert 1.04 < unpaid / 0.05 < 1.16
    assert 0.045 < paid < 0.052
