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
    agrees,
    around,
    beyond_cliff,
    bowl_around,
    climb,
    lowest,
    mean_loss,
    next_tried,
    paired,
    parabola,
    pooled,
    preferred,
    stepped,
    tilts,
)
from adaptive_lora.streams import numpy_stream


def curve(rates: tuple[float, ...], best: float, curvature: float = 0.3) -> Losses:
    return {
        rate: {seed: 2 + 0.01 * seed + curvature * math.log(rate / best) ** 2 for seed in range(3)} for rate in rates
    }


@given(st.floats(1e-5, 1e-1), st.floats(-0.5, 0.5), st.floats(0.01, 3))
def test_the_vertex_of_a_parabola_is_found(guess: float, off: float, curvature: float) -> None:
    rates = around(guess)
    best = guess * STEP**off
    losses = curve(rates, best, curvature)
    points = [(rate, mean_loss(losses[rate]) or 0.0) for rate in rates]
    found = parabola(points)
    assert found is not None and found.curvature == pytest.approx(curvature, rel=0.02)
    assert found.lowest == pytest.approx(min(max(best, rates[0]), rates[2]), rel=0.02)


def test_the_vertex_stays_within_its_three_and_needs_a_bowl() -> None:
    def lowest_point(*losses: float) -> float | None:
        found = parabola(list(zip((1.0, 2.0, 4.0), losses, strict=True)))
        return found.lowest if found else None

    assert lowest_point(3.0, 2.0, 1.9) == pytest.approx(2 ** (0.5 + 1 / 0.9))
    assert lowest_point(3.0, 2.0, 1.01) == pytest.approx(4.0)
    assert lowest_point(2.0, 2.0, 2.0) is None
    assert lowest_point(1.0, 2.0, 1.0) is None


def tried(start: tuple[float, ...], best: float) -> tuple[Losses, Climb]:
    """Climbs by trying whatever is asked for."""
    losses: Losses = {}
    while not (found := climb(start, losses, functools.partial(lowest, losses))).done:
        losses = curve(found.asked, best)
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
    above = bowl_around(middle, steep, cliff=False)
    assert not beyond_cliff(middle, steep, frozen=3.0) and above is not None and above.lowest > middle
    assert beyond_cliff(middle, steep, frozen=2.25)
    assert bowl_around(middle, steep, cliff=True) is None
    wall: Losses = {low: {0: 2.05}, middle: {0: 2.0}, high: {0: 2.9}}
    below = bowl_around(middle, wall, cliff=True)
    assert beyond_cliff(middle, wall, frozen=3.0) and below is not None and below.lowest < middle
    diverging: Losses = {low: {0: 2.05}, middle: {0: 2.0}, high: {0: None}}
    assert beyond_cliff(middle, diverging, frozen=None) and bowl_around(middle, diverging, cliff=True) is None


def test_rates_a_little_apart_are_one_as_far_as_steps_go() -> None:
    assert stepped(1.05e-3, True, [1.8e-3]) == 1.8e-3 and stepped(1.5e-3, True, [1.8e-3]) == 2.7e-3
    assert next_tried(1e-3, [1e-3, 3e-3, 1e-2], up=True) == 3e-3
    assert next_tried(1e-3, [1e-3, 3e-3], up=False) is None
    # A rate between two of a grid has the grid's on either side.
    grid = [3.1e-4, 5.6e-4, 1e-3, 1.8e-3, 3.2e-3]
    for centre in np.geomspace(7.6e-4, 1.31e-3, 50):
        assert around(float(centre), grid) == (5.6e-4, centre, 1.8e-3)
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


@given(st.floats(-2, 2), st.floats(0.01, 3))
def test_two_rates_tell_where_an_arms_best_lies(steps: float, curvature: float) -> None:
    low, middle, high = around(1e-3)
    base, arm = (curve((low, middle, high), best, curvature) for best in (1e-3, 1e-3 * STEP**steps))
    found = tilts(arm, base, low, high)
    shift, whole = math.log(STEP) * steps, math.log(high / low)
    assert found == pytest.approx([-2 * curvature * shift * whole] * 3, abs=1e-9)
    bowl = bowl_around(middle, base, cliff=False)
    assert bowl is not None and bowl.tilt_of_half_a_step(low, high) == pytest.approx(
        curvature * math.log(STEP) * whole, rel=0.02
    )


def test_a_tilt_needs_every_run_and_a_known_noise() -> None:
    base, broken = {1.0: {0: 2.0}, 2.0: {0: 2.0}}, {1.0: {0: 2.0}, 2.0: {0: None}}
    assert tilts(broken, base, 1.0, 2.0) is None and tilts(base, broken, 1.0, 2.0) is None
    assert not agrees([0.0, 0.0], None, 1.0)
    still = Noise(0.0, 5)
    assert agrees([-1.0, -1.0], still, 1.0) and not agrees([1.1, 1.1], still, 1.0)


def doubted(steps: float, studies: int = 1500, arms: int = 5, seeds: int = 2) -> dict[str, float]:
    """How often an arm whose best lies some steps higher is found to, by two rates and by three."""
    rng = numpy_stream(0, "tilt", f"{steps:g}")
    low, middle, high = around(1e-3)
    counts = {"two": 0, "three": 0}
    for _ in range(studies):
        every = [curve((low, middle, high), 1e-3 * STEP ** (steps if arm == 1 else 0)) for arm in range(arms + 1)]
        noisy = [{r: {s: x + rng.normal(0, 0.05) for s, x in own.items() if s < seeds} for r, own in losses.items()}
                 for losses in every]  # fmt: skip
        tilted = [tilts(own, noisy[0], low, high) or [] for own in noisy[1:]]
        allowed = 0.3 * math.log(STEP) * math.log(high / low)
        counts["two"] += not agrees(tilted[0], pooled(tilted), allowed)
        noise = pooled(paired(own[middle], own[side]) for own in noisy for side in (low, high))
        counts["three"] += preferred(noisy[1], (low, middle, high), middle, noise) != middle
    return {how: count / studies for how, count in counts.items()}


def test_two_rates_find_a_preference_as_often_as_three() -> None:
    assert 0.03 < doubted(0.5)["two"] < 0.075  # half a step is what is allowed: one-sided 5 %
    assert doubted(0.0)["two"] < 0.02
    far = doubted(2.0)
    assert far["two"] > far["three"] > 0.5
