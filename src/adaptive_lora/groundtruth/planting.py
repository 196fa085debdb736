"""Puts low-rank updates of chosen ranks into a frozen model, every direction with the same effect on its outputs.

W_l + c Σ_i s_li u_li v_liᵀ,   u and v orthonormal by chance, s_li such that one direction alone changes the
outputs by the same KL divergence as any other, c such that all together change them by `effect`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.groundtruth.students import CHUNK, Answers, StudentBank, answers_of, divergences
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.streams import derive_seed
from adaptive_lora.training.adapter import attached, lora_layers
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.options import TrainingOptions

_ONCE = TrainingOptions(learning_rate=1.0, steps=1)
_ROUNDS = 2
"""Times that scales are measured anew: an effect grows with the square of a small scale alone."""

_WIDEST = 12.0
"""Base-2 logarithm of the largest and smallest common factor that is tried."""

Directions = Mapping[str, tuple[Tensor, Tensor]]
"""By module A (r, d_in) and B transposed (r, d_out)."""


@dataclass(frozen=True)
class Planted:
    """A model with known ranks: the frozen base and an update."""

    plan: RankPlan
    """The planted ranks; modules without are left out."""
    directions: Directions
    """Scaled: the update is Bᵀ A."""


def planted_plan(modules: Sequence[ModuleShape], ranks: Mapping[str, int]) -> RankPlan:
    """Planted ranks as a plan of scaling 1."""
    covered = tuple(m for m in modules if ranks.get(m.name))
    chosen = {m.name: ranks[m.name] for m in covered}
    cost = sum(m.params_per_rank * chosen[m.name] for m in covered)
    return RankPlan("planted", cost, covered, chosen, Scaling("constant", 1.0, 1.0))


def random_directions(plan: RankPlan, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Orthonormal rows by chance, from a stream of (seed, module)."""
    found = {}
    for m in plan.modules:
        generator = torch.Generator().manual_seed(derive_seed(seed, "planted", m.name))
        a, b = (
            torch.linalg.qr(torch.randn(width, plan.ranks[m.name], generator=generator))[0].t().contiguous()
            for width in (m.d_in, m.d_out)
        )
        found[m.name] = (a, b)
    return found


def plant(
    base: FrozenBase,
    plan: RankPlan,
    directions: Directions,
    probes: Sequence[Example],
    effect: float,
    equal: bool = True,
) -> Planted:
    """Directions scaled to equal effects, unless told otherwise, and all of them to `effect` nats per token on the
    probes."""
    found = dict(directions)
    with Bank(base, [_member(plan)], chunk_tokens=CHUNK) as bank:
        bank.slots[0].parameters.zero_()
        frozen = answers_of(bank, 0, probes)
    for _ in range(_ROUNDS if equal else 0):
        effects = _alone(base, plan, found, probes, frozen)
        typical = math.exp(sum(math.log(e) for own in effects.values() for e in own) / sum(map(len, effects.values())))
        for name, own in effects.items():
            a, b = found[name]
            found[name] = a, b * (typical / torch.tensor(own)).sqrt()[:, None]
    return Planted(plan, _scaled(base, plan, found, probes, frozen, effect))


def open_planted(bank: Bank, planted: Planted, factor: float = 1.0) -> None:
    """Writes the planted update into the only slot of a bank."""
    for name, pair in bank.slots[0].pairs.items():
        a, b = planted.directions[name]
        pair.a.copy_(a)
        pair.b.copy_(factor * b)


def _member(plan: RankPlan) -> Member:
    return Member(plan=plan, options=_ONCE, seed=0, examples=())


def _alone(
    base: FrozenBase, plan: RankPlan, directions: Directions, probes: Sequence[Example], frozen: Answers
) -> dict[str, list[float]]:
    """The divergence from the frozen model's answers that each direction causes by itself."""
    places = [(m, i) for m in plan.modules for i in range(plan.ranks[m.name])]
    members = [_member(planted_plan([m], {m.name: 1})) for m, _ in places]
    with StudentBank(base, members, frozen) as bank:
        for slot, (m, i) in zip(bank.slots, places, strict=True):
            pair, (a, b) = slot.pairs[m.name], directions[m.name]
            pair.a.copy_(a[i : i + 1])
            pair.b.copy_(b[i : i + 1])
        found = divergences(bank, probes, frozen)
    effects: dict[str, list[float]] = {m.name: [] for m in plan.modules}
    for (m, _), value in zip(places, found, strict=True):
        effects[m.name].append(max(value, 1e-9))
    return effects


def _scaled(
    base: FrozenBase, plan: RankPlan, directions: Directions, probes: Sequence[Example], frozen: Answers, effect: float
) -> Directions:
    """The common factor by bisection on its logarithm; TrainingError where no factor has the effect."""
    low, high = -_WIDEST, _WIDEST
    with StudentBank(base, [_member(plan)], frozen) as bank:
        for _ in range(14):
            middle = (low + high) / 2
            open_planted(bank, Planted(plan, directions), 2.0**middle)
            low, high = (low, middle) if divergences(bank, probes, frozen)[0] > effect else (middle, high)
    if low == -_WIDEST or high == _WIDEST:
        raise TrainingError(
            f"The planted update cannot change the outputs by {effect:g} nats per token, whatever its size. Choose "
            f"another `effect`, a larger budget or more modules."
        )
    return {name: (a, b * 2.0**low) for name, (a, b) in directions.items()}


@torch.no_grad()
def sample_texts(
    base: FrozenBase, planted: Planted, beginnings: Sequence[tuple[int, ...]], length: int, seed: int
) -> list[Example]:
    """Texts of `length` tokens drawn from the planted model, each going on from a beginning; all beginnings are
    equally long, and all tokens but the first count."""
    generator = torch.Generator(base.device).manual_seed(derive_seed(seed, "planted-texts"))
    with attached(base, planted.plan, 0) as model:
        for name, layer in lora_layers(model).items():
            a, b = planted.directions[name]
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(b.t())
        ids = torch.tensor(list(beginnings), device=base.device)
        out, past = model(input_ids=ids, use_cache=True), None
        while ids.shape[1] < length:
            past = out.past_key_values
            drawn = torch.multinomial(out.logits[:, -1].float().softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, drawn], 1)
            out = model(input_ids=drawn, past_key_values=past, use_cache=True)
    return [Example(tuple(row), 1, False) for row in ids.tolist()]
