"""AdaLoRA's ranks: its own formulas by hand beside PEFT's allocator, its schedule, and what is left of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import AdaLoraModel

from adaptive_lora.errors import TrainingError
from adaptive_lora.measures import adalora
from adaptive_lora.measures.adalora import adalora_ranks, first_rank, parameters
from adaptive_lora.planning.plan import Scaling
from adaptive_lora.training.base import FrozenBase
from tests.measures.conftest import RANK, assert_clean, inner_state, short_of

STEPS = 20
FIRST, LAST = 2, 14
"""No masking up to the tenth of the steps, none but the final one after the last three tenths begin."""


def at_every_update(monkeypatch: pytest.MonkeyPatch, do: Callable[[Any, int, Callable[[], None]], None]) -> None:
    """Calls `do(model, step, original)` in the place of PEFT's `update_and_allocate`."""
    original = AdaLoraModel.update_and_allocate
    monkeypatch.setattr(
        AdaLoraModel, "update_and_allocate", lambda self, step: do(self, step, lambda: original(self, step))
    )


def values_of(model: Any) -> dict[str, torch.Tensor]:
    """Λ by module."""
    return {
        name.removesuffix(".lora_E.default"): p.detach().clone().flatten()
        for name, p in model.model.named_parameters()
        if "lora_E" in name
    }


class ByHand:
    """Ī_t = β Ī_{t-1} + (1-β)|w g|, U_t = β U_{t-1} + (1-β)|I_t - Ī_t|, s = Ī U; β = 0.85.

    S_lk = s(λ_k) + mean_j s(A_kj) + mean_j s(B_jk), and of all triplets the b(t) with the largest S are kept.
    """

    def __init__(self) -> None:
        self.mean: dict[str, torch.Tensor] = {}
        self.apart: dict[str, torch.Tensor] = {}

    def update(self, model: Any) -> None:
        for name, p in model.model.named_parameters():
            if ".lora_" in name:
                now = (p.detach() * p.grad).abs()
                zero = torch.zeros_like(now)
                self.mean[name] = 0.85 * self.mean.get(name, zero) + 0.15 * now
                self.apart[name] = 0.85 * self.apart.get(name, zero) + 0.15 * (now - self.mean[name]).abs()

    def kept(self, budget: int) -> dict[str, torch.Tensor]:
        s = {name: mean * self.apart[name] for name, mean in self.mean.items()}
        modules = [name.removesuffix(".lora_E.default") for name in s if "lora_E" in name]
        scores = {
            name: s[f"{name}.lora_E.default"].flatten()
            + s[f"{name}.lora_A.default"].mean(1)
            + s[f"{name}.lora_B.default"].mean(0)
            for name in modules
        }
        least = torch.cat(list(scores.values())).sort(descending=True).values[budget - 1]
        return {name: own >= least for name, own in scores.items()}


def budget_at(step: int, modules: int) -> int:
    """b(t) = b_T + (b_0 - b_T)(1 - (t - t_init)/(T - t_final - t_init))³, cut to a whole number."""
    first, last = 6 * modules, RANK * modules
    return int(last + (first - last) * (1 - (step - FIRST) / (LAST - FIRST)) ** 3)


def test_masks_are_those_of_the_formulas_by_hand(base: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand, compared = ByHand(), []

    def beside(model: Any, step: int, original: Callable[[], None]) -> None:
        if step < LAST:
            by_hand.update(model)
        before = values_of(model)
        original()
        found, budget = values_of(model), budget_at(step, len(before))
        if step <= FIRST:
            assert all(torch.equal(found[name], before[name]) for name in before)
            return
        kept = by_hand.kept(budget if step < LAST else RANK * len(before))
        assert {name: (own != 0).tolist() for name, own in found.items()} == {n: m.tolist() for n, m in kept.items()}
        compared.append(sum(int(m.sum()) for m in kept.values()))

    at_every_update(monkeypatch, beside)
    ranks = adalora_ranks(short_of(base, steps=STEPS))
    assert len(compared) == STEPS - FIRST - 1
    assert compared == sorted(compared, reverse=True) and compared[0] > compared[-1]
    kept = by_hand.kept(RANK * len(ranks))
    assert ranks == {name: float(own.sum()) for name, own in kept.items()}


@pytest.mark.parametrize("steps", [3, 10, STEPS])
def test_ranks_add_up_to_the_target_and_differ(base: FrozenBase, steps: int) -> None:
    short = short_of(base, steps=steps)
    ranks = adalora_ranks(short)
    assert ranks.keys() == {m.name for m in short.modules}
    assert sum(ranks.values()) == RANK * len(ranks)
    assert min(ranks.values()) < RANK < max(ranks.values()) <= first_rank(short) == 6


def test_it_is_trained_as_said(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    sizes: list[int] = []

    def note(model: Any, step: int, original: Callable[[], None]) -> None:
        asked.append(model.peft_config["default"])
        sizes.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
        layer = next(module for name, module in model.model.named_modules() if name.endswith("attn.c_attn"))
        assert layer.scaling["default"] == pytest.approx(0.1 * RANK)
        original()

    at_every_update(monkeypatch, note)
    short = short_of(gpt2, steps=STEPS, scaling=Scaling("constant", 0.1, 4.0))  # a scaling that rounds to nothing
    adalora_ranks(short)
    config = asked[0]
    assert len(asked) == STEPS and (config.init_r, config.target_r, config.total_step) == (6, RANK, STEPS)
    assert (config.tinit, config.tfinal, config.deltaT) == (FIRST, STEPS - LAST, 1)
    assert set(sizes) == {parameters(short)}


def test_rates_follow_the_planned_schedule(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    plain = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, *more: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return plain(self, *more)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    short = short_of(gpt2, steps=4, learning_rate=0.04)
    adalora_ranks(short)
    assert rates == pytest.approx([0.04, 0.03, 0.02, 0.01])  # the planned linear fall


def test_an_update_that_is_never_called_is_an_error(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    before = inner_state(gpt2)
    at_every_update(monkeypatch, lambda *_: None)
    with pytest.raises(TrainingError, match=r"every module at rank 6 after 20 steps.*`short_run_steps`"):
        adalora_ranks(short_of(gpt2, steps=STEPS))
    assert_clean(gpt2, before)


def test_one_module_keeps_the_whole_target(gpt2: FrozenBase) -> None:
    module = gpt2.outline.modules[:1]
    short = replace(short_of(gpt2, steps=5), modules=module, budget=RANK * module[0].params_per_rank)
    assert adalora_ranks(short) == {module[0].name: RANK}


def test_one_step_is_too_few(gpt2: FrozenBase) -> None:
    with pytest.raises(TrainingError, match="at least 2 steps, got 1"):
        adalora_ranks(short_of(gpt2, steps=1))


def test_modules_without_a_rank_are_an_error(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = adalora.ranks_of
    monkeypatch.setattr(adalora, "ranks_of", lambda model: dict(list(plain(model).items())[1:]))
    with pytest.raises(TrainingError, match="gave no rank to some target modules"):
        adalora_ranks(short_of(gpt2, steps=3))


def test_ranks_follow_from_the_seed_alone(gpt2: FrozenBase) -> None:
    short = short_of(gpt2)
    first = adalora_ranks(short)
    torch.manual_seed(123)
    assert adalora_ranks(short) == first
    assert adalora_ranks(replace(short, seed=6)) != first


def test_nothing_is_left_of_it(base: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    before, state, numpy_state = inner_state(base), torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    adalora_ranks(short_of(base))
    assert_clean(base, before)

    def cut(model: Any, step: int, original: Callable[[], None]) -> None:
        original()
        if step == 2:
            raise OSError("cut")

    at_every_update(monkeypatch, cut)
    with pytest.raises(OSError, match="cut"):
        adalora_ranks(short_of(base))
    assert_clean(base, before)
    monkeypatch.setattr(AdaLoraModel, "__init__", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        adalora_ranks(short_of(base))
    assert_clean(base, before)
    assert torch.equal(torch.get_rng_state(), state) and np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002


def test_a_base_in_float64_is_adapted_too(gpt2: FrozenBase) -> None:
    gpt2.model.double()
    short = short_of(gpt2, steps=3)
    assert sum(adalora_ranks(short).values()) == RANK * len(short.modules)
