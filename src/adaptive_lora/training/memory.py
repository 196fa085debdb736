"""How much memory there is, what an adapter and a token take of it, and how many adapters that makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.training.base import FrozenBase

_STATES, _ACTIVATIONS = 0.4, 0.4
"""Shares of the free memory that adapters and activations may take; the rest is logits, working space, others."""

_VECTORS = 4
"""Kept of every trainable parameter: itself, its gradient and two moments."""

_OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
"""Of torch's allocator on processors, of CUDA outside torch's allocator, of its libraries."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on a device without swapping; of a container, what its limit leaves."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [4 << 30]  # where nothing can be read: what any machine of today has
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found = [int(lines["MemAvailable"].split()[0]) * 1024]
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, KeyError, ValueError):
        pass
    return max(0, min(found))


def state_bytes(base: FrozenBase, plan: RankPlan) -> int:
    """What an adapter takes however small its batches: parameters, gradients, moments."""
    return _VECTORS * plan.trainable_parameters * (8 if base.model.dtype == torch.float64 else 4)


def members_at_once(base: FrozenBase, plans: Sequence[RankPlan]) -> int:
    """How many adapters the free memory holds at once; at least one, since nothing less can be tried.

    Where an accelerator multiplies all adapters in one call every module is as wide as its largest rank.
    """
    if base.device.type == "cpu":
        each = max(state_bytes(base, plan) for plan in plans)
    else:
        ranks: dict[str, int] = {}
        for plan in plans:
            for name, rank in plan.ranks.items():
                ranks[name] = max(ranks.get(name, 0), rank)
        shapes = {shape.name: shape for plan in plans for shape in plan.modules}
        each = 4 * (_VECTORS + 1) * sum(shapes[name].params_per_rank * rank for name, rank in ranks.items())
    return max(1, min(len(plans), int(_STATES * free_bytes(base.device) / each)))


def tokens_at_once(device: torch.device, bytes_per_token: int, passes: int) -> int:
    """How many positions a pass may hold so that `passes` at a time fit."""
    return max(1, int(_ACTIVATIONS * free_bytes(device) / max(bytes_per_token, 1) / passes))
