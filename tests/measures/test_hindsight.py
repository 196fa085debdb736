"""What directions of a fat run are worth: the whole fall of the loss, shared out; rounds that concentrate."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.attribution import Trained, attributed, descending
from adaptive_lora.measures.hindsight import Hindsight, looked_back
from adaptive_lora.measures.short_run import ShortRun
from adaptive_lora.planning.strategies.base import HindsightOptions
from adaptive_lora.training.adapter import ADAPTER, attached, lora_layers
from adaptive_lora.training.bank import Bank
from adaptive_lora.training.base import FrozenBase
from tests.measures.conftest import (
    RANK,
    Recorder,
    assert_clean,
    failing_bank,
    in_threes,
    inner_state,
    short_of,
    trained,
)
from tests.training.conftest import demo_examples


def loss_with(short: ShortRun, weights: object, batches: object, share: float) -> float:
    """Mean loss a token with the update at a share of itself."""
    nll = tokens = 0.0
    with attached(short.base, short.plan(), 0) as model, torch.no_grad():
        for name, layer in lora_layers(model).items():
            a, b = weights[name]  # type: ignore[index]
            layer.lora_A[ADAPTER].weight.copy_(share * a)
            layer.lora_B[ADAPTER].weight.copy_(b)
        for examples in batches:  # type: ignore[attr-defined]
            for example in examples:
                ids = torch.tensor([example.ids])
                found = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
                own = -found.gather(1, ids[0, 1:, None])[torch.from_numpy(example.learnt) - 1, 0]
                nll, tokens = nll + float(own.sum()), tokens + len(own)
    return nll / tokens


def test_values_add_up_to_the_fall_of_the_loss(base: FrozenBase) -> None:
    """Without dropout, whatever the runs had."""
    short, batches = short_of(base, steps=12, learning_rate=4e-3, dropout=0.3), in_threes(demo_examples(base, 40)[31:])
    before = inner_state(base)
    (weights,) = trained(short, [3])
    (found,) = attributed(short, [Trained(short.plan(), weights, batches)])
    assert_clean(base, before)
    fall = loss_with(short, weights, batches, 0) - loss_with(short, weights, batches, 1)
    assert abs(fall) > 0.01
    assert sum(map(sum, found.values())) == pytest.approx(fall, rel=2e-2)
    assert {len(values) for values in found.values()} == {RANK}


def test_a_bank_as_on_accelerators_finds_the_same_values(base: FrozenBase) -> None:
    """Its segments are filled up, and what fills them is no token."""
    short, batches = short_of(base, steps=8), in_threes(demo_examples(base, 9))
    runs = [Trained(short.plan(), weights, batches) for weights in trained(short, [3, 4])]
    stacked = replace(short, training=replace(short.training, bank=partial(Bank, stacked=True)))
    for plain, ours in zip(attributed(short, runs), attributed(stacked, runs), strict=True):
        for name, values in plain.items():
            assert ours[name] == pytest.approx(values, rel=1e-3, abs=1e-6)


def test_a_module_that_does_nothing_is_worth_nothing(gpt2: FrozenBase) -> None:
    short, batches = short_of(gpt2, steps=6), in_threes(demo_examples(gpt2, 9))
    (weights,) = trained(short, [3])
    quiet = short.modules[2].name
    silent = {**weights, quiet: (weights[quiet][0], torch.zeros_like(weights[quiet][1]))}
    (found,) = attributed(short, [Trained(short.plan(), silent, batches)])
    assert found[quiet] == [0.0] * RANK
    assert all(any(values) for name, values in found.items() if name != quiet)


def test_descending_keeps_the_sum_of_each_pool() -> None:
    assert descending([5.0, 1.0, 2.0, 3.0, 0.0]) == [5.0, 2.0, 2.0, 2.0, 0.0]
    assert descending([1.0, 1.0]) == [1.0, 1.0]
    assert descending([-1.0, 0.5]) == [0.0, 0.0]
    assert descending([]) == []


def hindsight(short: ShortRun, budget_rank: int = 2, **changes: int | float) -> Hindsight:
    options = HindsightOptions(**{"runs": 2, "rounds": 2, **changes})  # type: ignore[arg-type]
    budget = budget_rank * sum(m.params_per_rank for m in short.modules)
    return Hindsight(short, options, in_threes(demo_examples(short.base, 9)), budget)


def test_the_second_round_trains_what_the_first_would_cut(gpt2: FrozenBase) -> None:
    record = Recorder()
    short = short_of(gpt2, bank=record.bank())
    search = hindsight(short)
    (found,) = looked_back([search])
    first, valued, second, _ = ({member.plan.ranks == short.plan().ranks for member in own} for own in record.members)
    assert first == valued == {True} and second == {False}
    (plan,) = {tuple(member.plan.ranks.items()) for member in record.members[2]}
    assert sum(m.params_per_rank * dict(plan)[m.name] for m in short.modules) <= short.budget
    assert {name: len(values) for name, values in found.values.items()} == dict(plan)  # type: ignore[union-attr]
    assert found.facts["short_runs"] == 4 and found.facts["rounds"] == 2  # type: ignore[union-attr]
    assert found.facts["short_run_tokens"] == sum(record.tokens)  # type: ignore[union-attr]
    for values in found.values.values():  # type: ignore[union-attr]
        assert values == sorted(values, reverse=True) and values[-1] >= 0  # type: ignore[arg-type]


def test_searches_of_two_seeds_share_a_bank_and_are_what_each_is_alone(gpt2: FrozenBase) -> None:
    shorts = [short_of(gpt2), replace(short_of(gpt2), seed=6)]
    together = looked_back([hindsight(short) for short in shorts])
    alone = [looked_back([hindsight(short)])[0] for short in shorts]
    assert [found.values for found in together] == [found.values for found in alone]  # type: ignore[union-attr]
    assert alone[0].values != alone[1].values  # type: ignore[union-attr]


def test_a_run_that_diverges_is_an_error_of_its_own(gpt2: FrozenBase) -> None:
    (found,) = looked_back([hindsight(short_of(gpt2, learning_rate=1e30))])
    assert isinstance(found, TrainingError) and "diverged" in str(found)
    with pytest.raises(OSError, match="cut"):
        looked_back([hindsight(short_of(gpt2, bank=failing_bank))])
