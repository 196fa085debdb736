"""The pure part of choosing a rate: steps, parabola, cliffs, and preferences beyond the noise."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_lora.stats.rate_choice import (
    MOST_STEPS,
    STEP,
    Climb,
    Losses,
    Noise,
    around,
    beyond_cliff,
    climb,
    lowest,
    mean_loss,
    next_tried,
    paired,
    pooled,
    preferred,
    refined,
    stepped,
    vertex,
)
from adaptive_lora.streams import numpy_stream


def parabola(rates: tuple[float, ...], best: float, curvature: float = 0.3) -> Losses:
    return {
        rate: {seed: 2 + 0.01 * seed + curvature * math.log(rate / best) ** 2 for seed in range(3)} for rate in rates
    }


@given(st.floats(1e-5, 1e-1), st.floats(-0.5, 0.5), st.floats(0.01, 3))
def test_the_vertex_of_a_parabola_is_found(guess: float, off: float, curvature: float) -> None:
    rates = around(guess)
    best = guess * STEP**off
    losses = parabola(rates, best, curvature)
    points = [(rate, mean_loss(losses[rate]) or 0.0) for rate in rates]
    found = vertex(points)
    assert found == pytest.approx(min(max(best, rates[0]), rates[2]), rel=0.02)


def test_the_vertex_stays_within_its_three_and_needs_a_bowl() -> None:
    assert vertex([(1.0, 3.0), (2.0, 2.0), (4.0, 1.9)]) == pytest.approx(2 ** (0.5 + 1 / 0.9))
    assert vertex([(1.0, 3.0), (2.0, 2.0), (4.0, 1.01)]) == pytest.approx(4.0)
    assert vertex([(1.0, 2.0), (2.0, 2.0), (4.0, 2.0)]) is None
    assert vertex([(1.0, 1.0), (2.0, 2.0), (4.0, 1.0)]) is None


def tried(start: tuple[float, ...], best: float) -> tuple[Losses, Climb]:
    """Climbs by trying whatever is asked for."""
    losses: Losses = {}
    while not (found := climb(start, losses, functools.partial(lowest, losses))).done:
        losses = parabola(found.asked, best)
    return losses, found


def test_climbing_adds_one_step_at_a_time_until_the_best_lies_inside() -> None:
    _, found = tried(around(1e-3), 1.1e-3)
    assert found.asked == around(1e-3) and found.best == 1e-3 and not found.edge
    _, found = tried(around(1e-3), 3.1e-3)
    assert found.asked == (5.6e-4, 1e-3, 1.8e-3, 3.2e-3, 5.8e-3) and not found.edge
    _, found = tried((3e-4, 1e-3, 3e-3), 1e-3)  # a coarse grid gets the best one's neighbours
    assert found.asked == (3e-4, 5.6e-4, 1e-3, 1.8e-3, 3e-3)


def test_climbing_ends_at_an_edge() -> None:
    losses, found = tried(around(1e-3), 1.0)
    assert len(found.asked) == 3 + MOST_STEPS and found.edge and found.best == max(losses)


def test_where_nothing_trains_lower_rates_are_tried_and_then_none_is_left() -> None:
    losses: Losses = {}
    while not (found := climb(around(1e-3), losses, functools.partial(lowest, losses))).done:
        losses = {rate: {0: None, 1: 2.0} for rate in found.asked}
    assert found.best is None and found.edge and min(found.asked) == pytest.approx(1e-3 / STEP**5, rel=0.05)


def test_below_a_cliff_no_higher_rate_is_taken() -> None:
    low, middle, high = around(1e-3)
    steep: Losses = {low: {0: 2.4}, middle: {0: 2.0}, high: {0: 2.15}}
    assert not beyond_cliff(middle, steep, frozen=3.0) and (refined(middle, steep, cliff=False) or 0) > middle
    assert beyond_cliff(middle, steep, frozen=2.25)
    assert refined(middle, steep, cliff=True) is None
    wall: Losses = {low: {0: 2.05}, middle: {0: 2.0}, high: {0: 2.9}}
    assert beyond_cliff(middle, wall, frozen=3.0) and (refined(middle, wall, cliff=True) or 1) < middle
    diverging: Losses = {low: {0: 2.05}, middle: {0: 2.0}, high: {0: None}}
    assert beyond_cliff(middle, diverging, frozen=None) and refined(middle, diverging, cliff=True) is None


def test_rates_a_little_apart_are_one_as_far_as_steps_go() -> None:
    assert stepped(1.05e-3, True, [1.8e-3]) == 1.8e-3 and stepped(1.3e-3, True, [1.8e-3]) == 2.3e-3
    assert next_tried(1e-3, [1e-3, 3e-3, 1e-2], up=True) == 3e-3
    assert next_tried(1e-3, [1e-3, 3e-3], up=False) is None
    # What `stepped` takes for a neighbour, `next_tried` finds.
    for centre in np.geomspace(1e-3, 1.8e-3, 50):
        near = stepped(float(centre), True, [1e-3, 1.8e-3, 3.2e-3])
        assert next_tried(float(centre), [centre, near], up=True) == near


def test_noise_is_pooled_about_each_sets_own_mean() -> None:
    assert pooled([[1.0, 3.0], [10.0, 14.0], [5.0]]) == Noise(variance=(2 + 8) / 2, freedom=2)
    assert pooled([[1.0], []]) is None
    assert paired({0: 3.0, 1: None, 2: 4.0}, {2: 1.0, 0: 1.0, 1: 0.0}) == [2.0, 3.0]


def test_a_centre_that_diverges_is_left_without_asking_the_noise() -> None:
    losses: Losses = {1.0: {0: 2.0, 1: 2.0}, 1.8: {0: None, 1: 1.0}, 3.2: {0: None, 1: None}}
    assert preferred(losses, (1.0, 1.8, 3.2), 1.8, None) == 1.0
    losses = {1.0: {0: 1.0, 1: 1.0}, 1.8: {0: 2.0, 1: 2.0}}
    assert preferred(losses, (1.0, 1.8), 1.8, None) == 1.8  # nothing is known of the noise


def shares(gain: float, arms: int = 5, studies: int = 1500, seeds: int = 3) -> float:
    """How often the first of some arms prefers a certain rate, by which it alone gains, with normal noise."""
    rng = numpy_stream(0, "rate preference", str(gain))
    count = 0
    for _ in range(studies):
        losses = [{rate: dict(enumerate(rng.normal(2, 0.01, seeds))) for rate in (1.0, 1.8, 3.2)} for _ in range(arms)]
        losses[0][3.2] = {seed: loss - gain for seed, loss in losses[0][3.2].items()}
        noise = pooled(paired(own[1.8], own[side]) for own in losses for side in (1.0, 3.2))
        count += preferred(losses[0], (1.8, 3.2), 1.8, noise) == 3.2
    return count / studies


def test_noise_is_rarely_taken_for_a_preference_and_a_gain_is_found() -> None:
    assert 0.035 < shares(0.0) < 0.065  # one-sided 5 %
    assert shares(0.04) > 0.95
