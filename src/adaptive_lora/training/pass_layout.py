"""What all layers of a bank's pass share, made once a pass and on its device: which adapter each block of positions
belongs to and how its update is scaled, and which inputs are dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_lora.training.packing import BLOCK, Pack
from adaptive_lora.training.slots import LoraStack, Slot


@dataclass(frozen=True)
class BlockLayout:
    """A pack of K adapters, each with a whole number of blocks, n together."""

    rows: Tensor
    """(n,) the adapter of each block, as a row of the stacks."""
    adapters: Tensor
    """(K,) those of the pack, in its order."""
    lengths: Tensor
    """(K,) their numbers of blocks."""
    scaling: Mapping[str, Tensor]
    """By module (n, 1, 1): what the update of each block is multiplied with, dropout's share included."""


def block_layout(pack: Pack, slots: Sequence[Slot], stacks: Mapping[str, LoraStack], training: bool) -> BlockLayout:
    """The layout of a pack whose segments are multiples of BLOCK.

    Two copies to the device and a handful of launches, however many modules and adapters there are.
    """
    device, some = pack.ids.device, next(iter(stacks.values()))
    counts = [(end - begin) // BLOCK for begin, end in pack.segments]
    adapters, lengths = torch.tensor([[slot.row for slot in slots], counts]).to(device)
    kept = [1 - slot.masks.p if training else 1.0 for slot in slots]
    scaling = torch.stack([stack.scaling for stack in stacks.values()])[:, adapters]  # (modules, K)
    scaling /= torch.tensor(kept, dtype=scaling.dtype).to(device)
    # The size is given, so that nothing waits for the device to count.
    by_block = scaling.repeat_interleave(lengths, 1, output_size=sum(counts)).to(some.a_compute.dtype)
    rows = adapters.repeat_interleave(lengths, output_size=sum(counts))
    return BlockLayout(rows, adapters, lengths, dict(zip(stacks, by_block[:, :, None, None].unbind(), strict=True)))


def dropped_inputs(pack: Pack, slots: Sequence[Slot]) -> dict[str, Tensor] | None:
    """By module which inputs are dropped, (N, d_in) bool, views of one tensor; None where no adapter has dropout.

    An adapter's flags are a function of its seed, step and tokens, whatever else is in the pack.
    """
    if not any(slot.masks.p for slot in slots):
        return None
    some = slots[0].masks
    flags = torch.zeros(pack.size, sum(some.widths.values()), dtype=torch.bool, device=pack.ids.device)
    for slot, (begin, _), tokens, real in zip(slots, pack.segments, pack.tokens, pack.real, strict=True):
        if not slot.masks.p:
            continue
        own = flags[begin : begin + tokens]
        if not slot.masks.as_flags(flags.device):
            _from_indices(own, slot, tokens)
        elif real is None:
            slot.masks.draw_(own, slot.step)
        else:
            flags[begin + real] = slot.masks.draw_(torch.empty_like(own), slot.step)
    return some.by_module(flags)


def _from_indices(flags: Tensor, slot: Slot, tokens: int) -> None:
    """The CPU's masks as flags of an adapter whose tokens lie end to end."""
    views = slot.masks.by_module(flags)
    for name in slot.pairs:
        own = torch.zeros(views[name].numel(), dtype=torch.bool, device=flags.device)
        own[slot.masks.dropped(name, slot.step, tokens, flags.device)] = True
        views[name].copy_(own.view_as(views[name]))
