"""The bank's update against torch's own AdamW."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.training import optimizer
from adaptive_lora.training.optimizer import adamw_update, checked_updates
from adaptive_lora.training.options import TrainingOptions, rate_factors
from adaptive_lora.training.slots import Member, Slot, make_adapters

SHAPES = (
    ModuleShape("h.0.attn.q", "attention", 0, 3, 5, False),
    ModuleShape("h.0.mlp.up", "mlp", 0, 4, 2, False),
    ModuleShape("h.1.mlp.up", "mlp", 1, 4, 2, False),
)
WIDTHS = {shape.name: shape.d_in for shape in SHAPES}


def slot_of(ranks: tuple[int, int, int], options: TrainingOptions, stacked: bool = False) -> Slot:
    """A fresh adapter in double precision; stacked, in a layout for larger ranks."""
    members = []
    for own in (ranks, (4, 4, 4)):
        plan = RankPlan("ranks", 0, SHAPES, dict(zip(WIDTHS, own, strict=True)), Scaling(reference_rank=3.0))
        members.append(Member(plan=plan, options=options, seed=0, examples=[]))
    modules = {shape.name: shape for shape in SHAPES}
    return make_adapters(members, modules, WIDTHS, torch.device("cpu"), torch.float64, stacked).slots[0]


OPTIONS = st.fixed_dictionaries(
    {
        "learning_rate": st.floats(1e-5, 1.0),
        "steps": st.integers(1, 6),
        "schedule": st.sampled_from(["linear", "cosine", "constant"]),
        "warmup": st.sampled_from([0, 2, 0.5]),
        "weight_decay": st.sampled_from([0.0, 0.01, 0.5]),
        "max_grad_norm": st.sampled_from([None, 1e-3, 1.0, 100.0]),
        "betas": st.sampled_from([(0.9, 0.999), (0.5, 0.9)]),
        "epsilon": st.sampled_from([1e-8, 1e-3]),
        "b_multiplier": st.sampled_from([1.0, 16.0]),
        "rank_exponent": st.sampled_from([0.0, 0.5]),
        "module_multipliers": st.sampled_from([{}, {"mlp": 0.25, "h.0.mlp.up": 3.0}]),
    }
)


@settings(max_examples=60)
@given(OPTIONS, st.tuples(*[st.integers(1, 4)] * 3), st.integers(0, 99), st.floats(-6, 3), st.booleans())
def test_every_update_is_torchs(
    given_options: dict[str, Any], ranks: tuple[int, int, int], seed: int, size: float, stacked: bool
) -> None:
    """Random gradients of every size, factors as torch's parameter groups; parameters and moments to 1e-12."""
    options = TrainingOptions(**given_options)
    slot, generator = slot_of(ranks, options, stacked), torch.Generator().manual_seed(seed)
    factors = rate_factors(slot.member.plan, options)
    pairs, groups = [], []
    for name, part in slot.pairs.items():
        for view, gradient, factor in zip(
            (part.a, part.b), (part.a_gradient, part.b_gradient), factors[name], strict=True
        ):
            view.copy_(torch.randn(view.shape, generator=generator))
            pairs.append((view, gradient, torch.nn.Parameter(view.clone())))
            groups.append({"params": [pairs[-1][2]], "factor": factor})
    adamw = torch.optim.AdamW(
        groups, lr=0.0, betas=options.betas, eps=options.epsilon, weight_decay=options.weight_decay
    )
    for step in range(options.steps):
        for _, gradient, parameter in pairs:
            parameter.grad = 10**size * torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
            gradient.copy_(parameter.grad)
        limit = float("inf") if options.max_grad_norm is None else options.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_([parameter for _, _, parameter in pairs], limit)
        for group in adamw.param_groups:
            group["lr"] = options.rate_at(step) * group["factor"]
        adamw.step()
        assert adamw_update(slot, float(torch.linalg.vector_norm(slot.gradient))) == options.rate_at(step)
        assert float(norm) >= 0 and slot.step == step + 1
    kept = slot.tensors()
    for k, (view, _, parameter) in enumerate(pairs):
        torch.testing.assert_close(view, parameter.data, rtol=1e-12, atol=1e-12)
        name, letter = list(slot.pairs)[k // 2], "AB"[k % 2]
        for moment in ("exp_avg", "exp_avg_sq"):
            ours, theirs = kept[f"{moment}/{name}/{letter}"], adamw.state[parameter][moment]
            torch.testing.assert_close(ours.t() if letter == "B" else ours, theirs, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("b_multiplier", [1.0, 4.0])
def test_the_padding_of_a_stacked_layout_remains_0(b_multiplier: float) -> None:
    options = TrainingOptions(learning_rate=0.1, steps=3, weight_decay=0.5, b_multiplier=b_multiplier)
    slot = slot_of((1, 2, 3), options, stacked=True)
    for part in slot.pairs.values():
        part.a_gradient.fill_(1.0), part.b_gradient.fill_(1.0)
    own = torch.zeros_like(slot.parameters)
    own[slot.gradient != 0] = 1
    for _ in range(3):
        adamw_update(slot, 1.0)
    assert own.sum() == slot.member.plan.trainable_parameters < own.numel()
    for vector in (slot.parameters, slot.exp_avg, slot.exp_avg_sq):
        assert (vector[own == 0] == 0).all() and (vector[own == 1] != 0).all()


MIXED: tuple[dict[str, Any], ...] = (
    {"weight_decay": 0.1, "max_grad_norm": 0.5},
    {"betas": (0.5, 0.9), "epsilon": 1e-3},
    {"b_multiplier": 4.0, "weight_decay": 0.1},  # has factors
    {"max_grad_norm": None, "schedule": "cosine", "weight_decay": 0.0},
    {"betas": (0.5, 0.9), "warmup": 2, "epsilon": 1e-6},
    {},
)


@pytest.mark.parametrize("at_once", [1, 1 << 26])
def test_updates_of_several_together_are_those_of_each(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """To the bit; the fourth's loss and the last's gradient are not finite at the second update."""
    monkeypatch.setattr(optimizer, "_AT_ONCE", at_once)
    found = []
    for together in (False, True):
        slots = [
            slot_of((1, 2, 3), TrainingOptions(learning_rate=0.1, steps=5, **own), stacked=i % 2 == 0)
            for i, own in enumerate(MIXED)
        ]
        generator, records = torch.Generator().manual_seed(0), []
        for step in range(4):
            for slot in slots:
                slot.gradient.copy_(torch.randn(slot.gradient.shape, generator=generator, dtype=torch.float64))
            norms = [float(torch.linalg.vector_norm(slot.gradient)) for slot in slots]
            losses = [(math.nan if (step, i) == (1, 3) else 2.0 + i, 7) for i in range(6)]
            norms[5] = math.inf if step == 1 else norms[5]
            records.append([str(r) for r in checked_updates(slots, losses, norms, together)])
        found.append((records, slots))
    (one, each), (other, together_slots) = found
    assert one == other and sum("not finite" in text for texts in one for text in texts) == 2
    for a, b in zip(each, together_slots, strict=True):
        assert a.step == b.step
        for name in ("parameters", "exp_avg", "exp_avg_sq"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
