"""Where a bank keeps its adapters: per adapter one flat vector of parameters, gradient and AdamW's moments.

K adapters, P parameters of one, r its rank in a module. A module's part of the vector is A (r, d_in) and
then B transposed (r, d_out), row by row, so that both products with it read memory in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.training.dropout import Masks
from adaptive_lora.training.options import DataOrder, TrainingOptions, initial_a, rate_factors


@dataclass(frozen=True, kw_only=True)
class Member:
    """One adapter of a bank: what determines its training."""

    plan: RankPlan
    options: TrainingOptions
    seed: int
    examples: Sequence[Example]

    def batch(self, step: int) -> list[Example]:
        """The examples of update `step`."""
        order = DataOrder(self.seed, len(self.examples), self.options.batch_size)
        return [self.examples[i] for i in order.batch(step)]


@dataclass(frozen=True)
class Part:
    """One module of one adapter; views into the adapter's vectors."""

    a: Tensor
    """(r, d_in)"""
    b: Tensor
    """(r, d_out), B transposed."""
    a_gradient: Tensor
    b_gradient: Tensor
    scaling: float

    @cached_property
    def places(self) -> tuple[int, ...]:
        """Rank, and where A, B and their gradients lie in memory: they stay there for life."""
        return (self.a.shape[0], *(x.data_ptr() for x in (self.a, self.b, self.a_gradient, self.b_gradient)))


@dataclass
class Slot:
    """One adapter in training."""

    member: Member
    parameters: Tensor
    """(P,)"""
    gradient: Tensor
    mean: Tensor
    """AdamW's first moment."""
    square: Tensor
    """AdamW's second moment."""
    parts: Mapping[str, Part]
    """By full module name; modules of rank 0 are not here."""
    factors: Tensor | None
    """(P,) by which the rate of each parameter is multiplied; nothing where all are 1."""
    row: int
    """Which adapter of the bank."""
    masks: Masks
    step: int = 0
    """Updates done."""

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and moments by PEFT's parameter names, B the right way round: what a checkpoint keeps."""
        found = {}
        for kind, vector in (("parameter", self.parameters), ("exp_avg", self.mean), ("exp_avg_sq", self.square)):
            for name, part in self.parts.items():
                a, b = (_within(vector, self.parameters, view) for view in (part.a, part.b))
                found[f"{kind}/{name}/A"], found[f"{kind}/{name}/B"] = _copy(a), _copy(b.t())
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what `tensors` gave; KeyError or RuntimeError if they are of another plan."""
        if more := {name.split("/")[1] for name in tensors} - self.parts.keys():
            raise RuntimeError(f"{sorted(more)[0]} has no adapter here")
        for kind, vector in (("parameter", self.parameters), ("exp_avg", self.mean), ("exp_avg_sq", self.square)):
            for name, part in self.parts.items():
                for view, kept in ((part.a, tensors[f"{kind}/{name}/A"]), (part.b, tensors[f"{kind}/{name}/B"].t())):
                    if view.shape != kept.shape:
                        raise RuntimeError(f"{name} has shape {tuple(kept.shape)}, not {tuple(view.shape)}")
                    _within(vector, self.parameters, view).copy_(kept)

    def reset(self) -> None:
        """Back to the beginning."""
        for vector in (self.parameters, self.gradient, self.mean, self.square):
            vector.zero_()
        self.step = 0
        for name, part in self.parts.items():
            part.a.copy_(torch.from_numpy(initial_a(self.member.seed, name, *part.a.shape)))

    def weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A (r, d_in) and B (d_out, r) by module name, on the CPU."""
        return {name: (_copy(part.a), _copy(part.b.t())) for name, part in self.parts.items()}


@dataclass(frozen=True)
class Slots:
    """All adapters of a bank."""

    slots: tuple[Slot, ...]
    stacks: Mapping[str, Stack] = field(default_factory=dict)
    """By module, where the bank multiplies all adapters in one call."""

    def refresh(self, dtype: torch.dtype) -> None:
        """Brings the stacks' compute copies up to date with the parameters."""
        for stack in self.stacks.values():
            stack.a_compute, stack.b_compute = stack.a.to(dtype), stack.b.to(dtype)


@dataclass
class Stack:
    """One module of all adapters, ranks filled up with zeros to the largest, R: the zeros stay zeros, since
    each of A and B is multiplied by the other's."""

    a: Tensor
    """(K, R, d_in), views of the vectors."""
    b: Tensor
    """(K, R, d_out)"""
    a_gradient: Tensor
    b_gradient: Tensor
    scaling: Tensor
    """(K,)"""
    a_compute: Tensor
    """In the base model's type."""
    b_compute: Tensor


def make_slots(
    members: Sequence[Member],
    modules: Mapping[str, ModuleShape],
    widths: Mapping[str, int],
    device: torch.device,
    dtype: torch.dtype,
    stacked: bool = False,
) -> Slots:
    """Fresh adapters: A nested (`initial_a`), B 0.

    `widths` is d_in of all linear modules of the model, `modules` those that some member adapts.
    Each vector has its own length, or, where `stacked`, all share one layout with every module at its largest rank.
    """
    largest = {name: max(m.plan.ranks.get(name, 0) for m in members) for name in modules}
    if stacked:
        sizes = [sum(largest[name] * (shape.d_in + shape.d_out) for name, shape in modules.items())] * len(members)
    else:
        sizes = [m.plan.trainable_parameters for m in members]
    vectors = [torch.zeros(4, size, device=device, dtype=dtype) for size in ([] if stacked else sizes)]
    whole = torch.zeros(4, len(members), sizes[0], device=device, dtype=dtype) if stacked else None
    slots = []
    for k, member in enumerate(members):
        own = whole[:, k] if whole is not None else vectors[k]
        room = largest if stacked else {name: member.plan.ranks.get(name, 0) for name in modules}
        masks = Masks(member.seed, member.options.dropout, widths)
        slots.append(_make_slot(member, modules, room, own, k, masks))
    stacks = _stacks(members, modules, largest, whole) if whole is not None else {}
    return Slots(tuple(slots), stacks)


def _make_slot(
    member: Member, modules: Mapping[str, ModuleShape], room: Mapping[str, int], vectors: Tensor, row: int, masks: Masks
) -> Slot:
    parameters, gradient, mean, square = vectors
    factors, parts, at = torch.ones_like(parameters), {}, 0
    by_module = rate_factors(member.plan, member.options)
    if unknown := member.plan.ranks.keys() - modules.keys():
        raise TrainingError(f"The plan names modules that the bank's model has not: {sorted(unknown)[:4]}.")
    for name, shape in modules.items():
        rank = member.plan.ranks.get(name, 0)
        middle, end = at + room[name] * shape.d_in, at + room[name] * (shape.d_in + shape.d_out)
        if rank:
            views = [
                vector[begin : begin + rank * width].view(rank, width)
                for vector in (parameters, gradient)
                for begin, width in ((at, shape.d_in), (middle, shape.d_out))
            ]
            parts[name] = Part(views[0], views[1], views[2], views[3], member.plan.scaling_of(name))
            factors[at:middle], factors[middle:end] = by_module[name]
        at = end
    multiplied = factors if (factors != 1).any() else None
    slot = Slot(member, parameters, gradient, mean, square, parts, multiplied, row, masks)
    slot.reset()
    return slot


def _stacks(
    members: Sequence[Member], modules: Mapping[str, ModuleShape], largest: Mapping[str, int], whole: Tensor
) -> dict[str, Stack]:
    stacks, at = {}, 0
    for name, shape in modules.items():
        rank, count = largest[name], len(members)
        middle, end = at + rank * shape.d_in, at + rank * (shape.d_in + shape.d_out)
        if rank:
            a, a_gradient = (whole[i, :, at:middle].view(count, rank, shape.d_in) for i in (0, 1))
            b, b_gradient = (whole[i, :, middle:end].view(count, rank, shape.d_out) for i in (0, 1))
            scaling = [m.plan.scaling_of(name) if m.plan.ranks.get(name, 0) else 0.0 for m in members]
            factors = torch.tensor(scaling, dtype=a.dtype, device=a.device)
            stacks[name] = Stack(a, b, a_gradient, b_gradient, factors, a, b)
        at = end
    return stacks


def _copy(x: Tensor) -> Tensor:
    """On the CPU, row by row, and of its own."""
    return x.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _within(vector: Tensor, home: Tensor, view: Tensor) -> Tensor:
    """The same place in another vector as `view` has in `home`."""
    begin = view.storage_offset() - home.storage_offset()
    return vector[begin : begin + view.numel()].view(view.shape)
