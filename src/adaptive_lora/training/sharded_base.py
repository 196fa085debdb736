"""A frozen base over several processes by FSDP2: each keeps a share of every block, and all gather a block to use it.

    bytes of a rank = outside the blocks + blocks / W;     received a pass = 2 · blocks · (W - 1) / W

W ranks; a pass gathers every block twice, for its forward and for its backward part (once where only losses are asked
for). Embeddings, the last norm and the output layer lie outside the blocks and are on every rank. Adapters are no
parameters of the model, so that FSDP never sees them: no gradient is ever sent.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_lora.errors import ModelError, UsageError
from adaptive_lora.training.activation_checkpointing import blocks_of
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.gathering import is_shared, local_of
from adaptive_lora.training.positions import decoder_of
from adaptive_lora.training.ranks import Ranks


@dataclass(frozen=True)
class ShardedBytes:
    """Memory of a rank's frozen weights, and what its passes move."""

    whole: int
    """Of the model in one process."""
    on_rank: int
    """What this rank keeps between passes: its share of the blocks, and all that lies outside them."""
    outside: int
    """Of it, what lies outside the blocks and is on every rank."""
    largest_block: int
    """While a pass runs, a block or two are whole beside it."""
    received: int
    """What the rank receives from the others where every block is gathered once: a forward pass; twice that in
    training."""


def shard_base(base: FrozenBase, ranks: Ranks) -> FrozenBase:
    """The base with its blocks shared among `ranks`, in place; what else it has is on every rank's device.

    Sends nothing. ModelError for quantised weights, and models without blocks or whose blocks share weights.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not hasattr(FSDPModule, "reset_iter_state"):
        raise UsageError(
            f"Sharing a base needs torch 2.13 (`FSDPModule.reset_iter_state`), here is {torch.__version__}."
        )
    decoder, blocks = decoder_of(base.model), list(blocks_of(base.model).values())
    outside = _outside(base, blocks)
    for block in blocks:
        fully_shard(block, mesh=ranks.mesh, reshard_after_forward=True, ignored_params=outside)
    # With no weights of its own: as the root it only makes the blocks one sequence, each gathered ahead of its turn.
    fully_shard(decoder, mesh=ranks.mesh, ignored_params=outside)
    # Of the decoder's output, which the bank reads and never changes; of a block's it would be worth knowing.
    view = rf"FSDP2-wrapped module \({type(decoder).__name__}\) returned a view tensor"
    warnings.filterwarnings("ignore", view, UserWarning)
    for module in base.model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(ranks.device)
    for parameter in outside:
        # Copied even on a CPU: as views of it they would keep the whole file of weights in memory.
        parameter.data = parameter.data.to(ranks.device, copy=True)
    return replace(base, device=ranks.device)


def load_in_turn(load: Callable[[], FrozenBase], ranks: Ranks) -> FrozenBase:
    """`shard_base` of what `load` loads on the CPU, one rank of a machine after the other: so that the machine's memory
    holds the whole base once, and not once a rank, however long that takes."""
    local, together = (int(os.environ.get(name, default)) for name, default in
                       (("LOCAL_RANK", ranks.rank), ("LOCAL_WORLD_SIZE", ranks.world)))  # fmt: skip
    base = None
    for turn in range(ranks.most(together)):
        if turn == local:
            base = shard_base(load(), ranks)
            gc.collect()
        ranks.wait()
    assert base is not None  # every rank has a turn
    return base


def sharded_bytes(model: Any, ranks: Ranks) -> ShardedBytes:
    """Of a sharded model, counted from its tensors."""
    outside = sum(_bytes(p) for p in model.parameters() if not is_shared(p))
    blocks = [[p for p in block.parameters() if is_shared(p)] for block in blocks_of(model).values()]
    own = [sum(_bytes(local_of(p)) for p in block) for block in blocks]
    whole = [sum(p.numel() * p.element_size() for p in block) for block in blocks]
    received = sum(whole) * (ranks.world - 1) // ranks.world
    return ShardedBytes(outside + sum(whole), outside + sum(own), outside, max(whole), received)


def _outside(base: FrozenBase, blocks: list[Any]) -> set[nn.Parameter]:
    """The parameters of no block; ModelError where the base cannot be shared block by block."""
    if base.quantised:
        raise ModelError(
            f"{base.name} has its weights in {base.quantised}, and quantised weights cannot be shared among processes. "
            "Load it without `quantise`, or in one process."
        )
    owners: dict[nn.Parameter, int] = {}
    for k, block in enumerate(blocks):
        for parameter in block.parameters():
            if owners.setdefault(parameter, k) != k:
                blocks = []
    if not blocks:
        raise ModelError(
            f"{base.name} cannot be shared among processes block by block: transformers marks no blocks in it, or they "
            "have weights in common. Train it in one process."
        )
    # A single number has nothing to share.
    return {p for p in base.model.parameters() if p not in owners or p.ndim == 0}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
