"""The parameters of a bank's adapters: per adapter one flat vector each of parameters, gradient and AdamW's moments.

K adapters, P parameters of one, r its rank in a module. A module's slice of a vector is A (r, d_in) and
then B transposed (r, d_out), row by row, so that products with both read memory in order. Clipping and AdamW
then are a few operations on whole vectors, whatever the number of modules.
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
from adaptive_lora.training.dropout import DropoutMasks
from adaptive_lora.training.options import DataOrder, TrainingOptions, initial_a, rate_factors


@dataclass(frozen=True, kw_only=True)
class Member:
    """One adapter of a bank: what determines its training."""

    plan: RankPlan
    options: TrainingOptions
    seed: int
    examples: Sequence[Example]

    @cached_property
    def order(self) -> DataOrder:
        """Which examples each update sees."""
        return DataOrder(self.seed, len(self.examples), self.options.batch_size)

    def batch(self, step: int) -> list[Example]:
        """The examples of update `step`."""
        return [self.examples[i] for i in self.order.batch(step)]


@dataclass(frozen=True)
class LoraPair:
    """A and B of one module of one adapter; views into the adapter's vectors."""

    a: Tensor
    """(r, d_in)"""
    b: Tensor
    """(r, d_out), B transposed."""
    a_gradient: Tensor
    b_gradient: Tensor
    scaling: float

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """Rank, and the addresses of A, B and their gradients, which never move."""
        return (self.a.shape[0], *(x.data_ptr() for x in (self.a, self.b, self.a_gradient, self.b_gradient)))


@dataclass
class Slot:
    """One adapter in training."""

    member: Member
    parameters: Tensor
    """(P,)"""
    gradient: Tensor
    exp_avg: Tensor
    """AdamW's first moment."""
    exp_avg_sq: Tensor
    """AdamW's second moment."""
    pairs: Mapping[str, LoraPair]
    """By full module name; modules of rank 0 have none."""
    factors: Tensor | None
    """(P,) by which the rate of each parameter is multiplied; None where all are 1."""
    row: int
    """The adapter's index in the bank."""
    masks: DropoutMasks
    step: int = 0
    """Updates done."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint saves: parameters and moments by PEFT's parameter names, B as PEFT has it (d_out, r)."""
        found = {}
        for kind, vector in self._saved():
            for name, pair in self.pairs.items():
                a, b = (_same_slice(vector, self.parameters, view) for view in (pair.a, pair.b))
                found[f"{kind}/{name}/A"], found[f"{kind}/{name}/B"] = _copy(a), _copy(b.t())
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what `tensors` returned; KeyError or RuntimeError if it is of another plan."""
        if more := {name.split("/")[1] for name in tensors} - self.pairs.keys():
            raise RuntimeError(f"{sorted(more)[0]} has no adapter here")
        for kind, vector in self._saved():
            for name, pair in self.pairs.items():
                for view, saved in ((pair.a, tensors[f"{kind}/{name}/A"]), (pair.b, tensors[f"{kind}/{name}/B"].t())):
                    # Checked here: `copy_` would broadcast a rank of 1.
                    if view.shape != saved.shape:
                        raise RuntimeError(f"{name} has shape {tuple(saved.shape)}, not {tuple(view.shape)}")
                    _same_slice(vector, self.parameters, view).copy_(saved)

    def _saved(self) -> tuple[tuple[str, Tensor], ...]:
        return ("parameter", self.parameters), ("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq)

    def reset(self) -> None:
        """Starts over: A as the seed says, B and moments 0."""
        for vector in (self.parameters, self.gradient, self.exp_avg, self.exp_avg_sq):
            vector.zero_()
        self.step = 0
        for name, pair in self.pairs.items():
            pair.a.copy_(torch.from_numpy(initial_a(self.member.seed, name, *pair.a.shape)))

    def weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A (r, d_in) and B (d_out, r) by module name, on the CPU."""
        return {name: (_copy(pair.a), _copy(pair.b.t())) for name, pair in self.pairs.items()}


@dataclass
class Adapters:
    """All adapters of a bank."""

    slots: tuple[Slot, ...]
    stacks: Mapping[str, LoraStack] = field(default_factory=dict)
    """By module, where the bank multiplies all adapters in one call."""
    parameters: Tensor | None = None
    """(K, P) of all slots, where there are stacks."""
    _compute: Tensor | None = None
    """(K, P) in the base model's dtype, where that is another: what the stacks compute with."""

    def refresh(self, dtype: torch.dtype) -> None:
        """Copies the parameters to the stacks in the base model's dtype; needed after every update."""
        if self.parameters is None or self.parameters.dtype == dtype:
            return  # they compute with the parameters themselves
        if self._compute is None or self._compute.dtype != dtype:
            self._compute = torch.empty_like(self.parameters, dtype=dtype)
            for stack in self.stacks.values():
                stack.a_compute, stack.b_compute = (_same_view(self._compute, x) for x in (stack.a, stack.b))
        self._compute.copy_(self.parameters)  # one launch, always to the same memory


@dataclass
class LoraStack:
    """A and B of one module of all adapters, ranks padded with zeros to the largest, R: the zeros remain, since
    the gradient of a padded row of A is a product with a padded row of B, and vice versa."""

    a: Tensor
    """(K, R, d_in), views of the vectors."""
    b: Tensor
    """(K, R, d_out)"""
    a_gradient: Tensor
    b_gradient: Tensor
    scaling: Tensor
    """(K,)"""
    a_compute: Tensor
    """In the base model's dtype."""
    b_compute: Tensor


def make_adapters(
    members: Sequence[Member],
    modules: Mapping[str, ModuleShape],
    widths: Mapping[str, int],
    device: torch.device,
    dtype: torch.dtype,
    stacked: bool = False,
) -> Adapters:
    """Fresh adapters: A nested (`initial_a`), B 0.

    `widths` is d_in of all linear modules of the model, `modules` those that some member adapts.
    Each vector has its own length, or, if `stacked`, all share one layout with every module at its largest rank.
    """
    largest = {name: max(m.plan.ranks.get(name, 0) for m in members) for name in modules}
    if stacked:
        sizes = [sum(largest[name] * (shape.d_in + shape.d_out) for name, shape in modules.items())] * len(members)
    else:
        sizes = [m.plan.trainable_parameters for m in members]
    vectors = [torch.zeros(4, size, device=device, dtype=dtype) for size in ([] if stacked else sizes)]
    # One block of memory, so that the same module of all adapters is one strided view: (K, R, d).
    shared = torch.zeros(4, len(members), sizes[0], device=device, dtype=dtype) if stacked else None
    slots = []
    for k, member in enumerate(members):
        own = shared[:, k] if shared is not None else vectors[k]
        capacity = largest if stacked else {name: member.plan.ranks.get(name, 0) for name in modules}
        masks = DropoutMasks(member.seed, member.options.dropout, widths)
        slots.append(_make_slot(member, modules, capacity, own, k, masks))
    if shared is None:
        return Adapters(tuple(slots))
    return Adapters(tuple(slots), _make_stacks(members, modules, largest, shared), shared[0])


def _make_slot(
    member: Member,
    modules: Mapping[str, ModuleShape],
    capacity: Mapping[str, int],
    vectors: Tensor,
    row: int,
    masks: DropoutMasks,
) -> Slot:
    """Lays the member's modules out in its four vectors, each with `capacity` ranks."""
    parameters, gradient, exp_avg, exp_avg_sq = vectors
    factors, pairs, at = torch.ones_like(parameters), {}, 0
    by_module = rate_factors(member.plan, member.options)
    if unknown := member.plan.ranks.keys() - modules.keys():
        raise TrainingError(f"The plan names modules that the bank's model does not have: {sorted(unknown)[:4]}.")
    # In the model's order, for every member alike: a bank's neighbours do not change where a module is.
    for name, shape in modules.items():
        rank = member.plan.ranks.get(name, 0)
        middle, end = at + capacity[name] * shape.d_in, at + capacity[name] * (shape.d_in + shape.d_out)
        if rank:
            # The first `rank` rows; those up to the capacity stay 0, since no view reaches them.
            views = [
                vector[begin : begin + rank * width].view(rank, width)
                for vector in (parameters, gradient)
                for begin, width in ((at, shape.d_in), (middle, shape.d_out))
            ]
            pairs[name] = LoraPair(views[0], views[1], views[2], views[3], member.plan.scaling_of(name))
            factors[at:middle], factors[middle:end] = by_module[name]
        at = end
    multiplied = factors if (factors != 1).any() else None
    slot = Slot(member, parameters, gradient, exp_avg, exp_avg_sq, pairs, multiplied, row, masks)
    slot.reset()
    return slot


def _make_stacks(
    members: Sequence[Member], modules: Mapping[str, ModuleShape], largest: Mapping[str, int], shared: Tensor
) -> dict[str, LoraStack]:
    """Per module one view of the layout of `_make_slot`, over all members."""
    stacks, at = {}, 0
    for name, shape in modules.items():
        rank, count = largest[name], len(members)
        middle, end = at + rank * shape.d_in, at + rank * (shape.d_in + shape.d_out)
        if rank:
            a, a_gradient = (shared[i, :, at:middle].view(count, rank, shape.d_in) for i in (0, 1))
            b, b_gradient = (shared[i, :, middle:end].view(count, rank, shape.d_out) for i in (0, 1))
            # A member without the module has zeros for A and B, and scaling 0: it gets neither update nor gradient.
            scaling = [m.plan.scaling_of(name) if m.plan.ranks.get(name, 0) else 0.0 for m in members]
            factors = torch.tensor(scaling, dtype=a.dtype, device=a.device)
            stacks[name] = LoraStack(a, b, a_gradient, b_gradient, factors, a, b)
        at = end
    return stacks


def _copy(x: Tensor) -> Tensor:
    """A contiguous copy on the CPU."""
    return x.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _same_view(vectors: Tensor, view: Tensor) -> Tensor:
    """The view of other vectors, (K, P) from the start of their memory, that `view` is of the parameters."""
    return vectors.as_strided(view.shape, view.stride(), view.storage_offset())


def _same_slice(vector: Tensor, parameters: Tensor, view: Tensor) -> Tensor:
    """The slice of another vector that `view` is of `parameters`."""
    begin = view.storage_offset() - parameters.storage_offset()
    return vector[begin : begin + view.numel()].view(view.shape)
