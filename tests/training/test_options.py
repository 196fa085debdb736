"""Schedules, data order and initialisation: the arithmetic both engines share."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_lora.data.encoding import Example
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.streams import derive_seed, numpy_stream, python_stream
from adaptive_lora.training import options as options_module
from adaptive_lora.training.options import DataOrder, Schedule, TrainingOptions, initial_a
from adaptive_lora.training.slots import Member


def rates(schedule: Schedule, steps: int, warmup: float) -> list[float]:
    options = TrainingOptions(learning_rate=1.0, steps=steps, schedule=schedule, warmup=warmup)
    return [options.rate_at(step) for step in range(steps)]


def test_schedules_by_hand() -> None:
    assert rates("constant", 4, 2) == [0.5, 1, 1, 1]
    assert rates("linear", 6, 2) == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert rates("cosine", 4, 0) == pytest.approx(
        [1, 0.5 + 0.5 * math.cos(math.pi / 4), 0.5, 0.5 - 0.5 * math.cos(math.pi / 4)]
    )


@given(st.sampled_from(["linear", "cosine", "constant"]), st.integers(1, 60), st.floats(0, 0.9))
def test_no_update_is_wasted_and_none_exceeds_the_rate(schedule: Schedule, steps: int, warmup: float) -> None:
    assert all(0 < rate <= 1 for rate in rates(schedule, steps, warmup))


def test_warmup_is_a_share_or_a_number() -> None:
    assert TrainingOptions(learning_rate=1, steps=100, warmup=0.03).warmup_steps == 3
    assert TrainingOptions(learning_rate=1, steps=100, warmup=7).warmup_steps == 7


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 5))
def test_every_epoch_sees_every_example_once(examples: int, batch_size: int, seed: int) -> None:
    order = DataOrder(seed, examples, batch_size)
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        assert sorted(np.concatenate([order.batch(step) for step in steps])) == list(range(examples))


def test_data_order_depends_on_seed_and_epoch() -> None:
    order = DataOrder(0, 50, 50)
    assert list(order.batch(0)) == list(DataOrder(0, 50, 50).batch(0))
    assert list(order.batch(0)) != list(order.batch(1))
    assert list(order.batch(0)) != list(DataOrder(1, 50, 50).batch(0))


def test_an_epochs_permutation_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `DataOrder` and by a bank's members; the batches are those of the stream."""
    drawn = []

    def counted(seed: int, *names: str | int) -> np.random.Generator:
        drawn.append(names)
        return numpy_stream(seed, *names)

    modules = (ModuleShape("h.0.attn.q", "attention", 0, 3, 5, False),)
    plan = RankPlan("ranks", 8, modules, {"h.0.attn.q": 1}, Scaling())
    examples = [Example((i, 1), 1, False) for i in range(10)]
    member = Member(plan=plan, options=TrainingOptions(learning_rate=1, steps=9), seed=3, examples=examples)
    monkeypatch.setattr(options_module, "numpy_stream", counted)
    found = [[example.ids[0] for example in member.batch(step)] for step in range(9)]
    assert drawn == [("data", 0), ("data", 1), ("data", 2)]
    orders = [numpy_stream(3, "data", epoch).permutation(10) for epoch in range(3)]
    assert found == [list(order[at : at + 4]) for order in orders for at in (0, 4, 8)]
    order = DataOrder(3, 10, 4)
    order.batch(0)[:] = 0  # a caller's copy
    assert [list(order.batch(step)) for step in (8, 0, 1)] == [found[8], found[0], found[1]]


@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 40))
def test_initialisation_nests(rank: int, more: int, d_in: int) -> None:
    small, large = initial_a(3, "h.0.attn", rank, d_in), initial_a(3, "h.0.attn", rank + more, d_in)
    np.testing.assert_array_equal(small, large[:rank])


def test_initialisation_is_pefts_distribution_and_the_seeds_own() -> None:
    a = initial_a(0, "m", 64, 100)
    assert np.abs(a).max() <= 0.1
    assert a.std() == pytest.approx(0.2 / math.sqrt(12), rel=0.02)
    assert not np.array_equal(a, initial_a(1, "m", 64, 100))
    assert not np.array_equal(a, initial_a(0, "n", 64, 100))


def test_streams_are_named() -> None:
    assert derive_seed(0, "a", "b") != derive_seed(0, "ab")
    assert numpy_stream(0, "x").random() == numpy_stream(0, "x").random() != numpy_stream(0, "y").random()
    assert python_stream(0, "x").random() == python_stream(0, "x").random() != python_stream(1, "x").random()
    assert 0 <= derive_seed(5, "x") < 2**63
