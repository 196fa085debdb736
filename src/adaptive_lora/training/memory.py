"""How much memory is free and in use, and how many adapters and positions fit into it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.gathering import is_shared

_STATES, _ACTIVATIONS = 0.4, 0.4
"""Shares of the free memory for adapters and for activations; the rest is for logits, workspaces, other programs."""

_VECTORS = 4
"""Per trainable parameter: itself, its gradient and two moments."""

_OUT_OF_MEMORY = (
    "can't allocate memory",  # torch's CPU allocator
    "not enough memory",  # the same on Windows
    "could not create a primitive",  # oneDNN, which multiplies matrices
    "could not create a memory",
    "std::bad_alloc",  # any library in C++, by its compiler
    "bad allocation",
    "CUDA error: out of memory",  # CUDA outside torch's allocator
    "_STATUS_ALLOC_FAILED",  # CUDA's libraries
    "MPS backend out of memory",
    "Cannot allocate memory",  # the system, told by torch where it maps a checkpoint
    "can't start new thread",  # Python, where there is no room for its stack
    "failed to map segment",  # the dynamic linker, of a library that is imported late
)
"""In messages of those that have no exception of their own for it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | ImportError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def free_bytes(device: torch.device) -> int:
    """Memory available on a device without swapping; in a container, at most what its limit leaves."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [4 << 30]  # where /proc cannot be read: a low guess
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found = [int(lines["MemAvailable"].split()[0]) * 1024]
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, KeyError, ValueError):
        pass
    return max(0, min(found))


def give_back() -> None:
    """Returns what is free within torch and the C library to the system: oneDNN and others have allocators of their own
    and find nothing otherwise, however small the next pass is.
    """
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library that is not glibc
            ctypes.CDLL(None).malloc_trim(0)


def saved_bytes(model: torch.nn.Module, run: Callable[[], object]) -> int:
    """Bytes that autograd saves for the backward pass while `run` runs, except for the model's own weights."""
    saved: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters() if not is_shared(p)}
    # Sizes now and not when they were saved: the weights that a sharded base gathered are gone again.
    return sum(storage.nbytes() for address, storage in saved.items() if address not in weights)


def state_bytes(base: FrozenBase, plan: RankPlan) -> int:
    """Memory of an adapter without activations: parameters, gradients, moments."""
    return _VECTORS * plan.trainable_parameters * (8 if base.model.dtype == torch.float64 else 4)


def members_at_once(base: FrozenBase, plans: Sequence[RankPlan]) -> int:
    """How many adapters fit into the free memory; at least one, which is tried whatever the estimate.

    On accelerators every module is padded to its largest rank, and has a copy in the model's dtype.
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


def positions_at_once(device: torch.device, bytes_per_position: int, passes: int) -> int:
    """How many positions a pass may hold so that `passes` at a time fit."""
    return max(1, int(_ACTIVATIONS * free_bytes(device) / max(bytes_per_position, 1) / passes))


def resident_bytes(device: torch.device) -> int:
    """In use now: of this process as `top` shows it (RES); on CUDA what torch has allocated on the device."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return _of_process("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """The most that was in use since `forget_peak`, or where the system cannot forget, since the process began."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _of_process("VmHWM")


def forget_peak(device: torch.device) -> None:
    """`peak_bytes` begins anew where the system allows it: on CUDA and Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _of_process(field: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    import resource  # which Windows has not

    # The highest so far is all that other systems tell.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
