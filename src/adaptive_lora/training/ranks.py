"""The processes that share one base, one on each device: who there is, and how they agree on what comes next."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from adaptive_lora.errors import UsageError

T = TypeVar("T")

_SET_BY_LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """A process among those that share a base. What these methods do is done by all of them, in one order."""

    rank: int
    """This process, from 0."""
    world: int
    """How many there are."""
    device: torch.device
    """This process's own."""
    mesh: DeviceMesh
    """All devices in one row; weights are gathered over it."""
    _control: Any
    """The group for the few numbers that are agreed on: on the CPU, so that no accelerator is waited for."""

    @property
    def is_first(self) -> bool:
        """Whether this one speaks for all."""
        return self.rank == 0

    def most(self, number: int) -> int:
        """The largest of the numbers that all of them ask with."""
        found = torch.tensor([number])
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._control)
        return int(found)

    def gather(self, value: T) -> list[T]:
        """What every rank gives, in their order."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self._control)
        return found

    def wait(self) -> None:
        """Until all of them are here."""
        self.most(0)


@contextlib.contextmanager
def joined(device: str | None = None, minutes: float = 30) -> Iterator[Ranks]:
    """This process among those that `torchrun` started, by the variables that it sets; they part at the end.

    `device` is `cpu` or `cuda`, by default the latter where there is one: the process takes that of its number on the
    machine (`LOCAL_RANK`). A rank that waits longer than `minutes` for another gives up. UsageError where the variables
    are missing or the machine has no such device.
    """
    if missing := [name for name in _SET_BY_LAUNCHER if name not in os.environ]:
        raise UsageError(
            f"Processes that share a base are started together, and {', '.join(missing)} is not set. Start them with "
            "`torchrun --nproc-per-node N -m adaptive_lora.sharded ...`, N being the number of devices."
        )
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"A base is shared over `cpu` or `cuda`, got {kind!r}: torchrun numbers the devices itself.")
    if kind == "cuda" and local >= torch.cuda.device_count():
        raise UsageError(
            f"Process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}. Start as "
            "many processes a machine (--nproc-per-node) as it has GPUs."
        )
    own = torch.device("cuda", local) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(own)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
    try:
        world = dist.get_world_size()
        mesh = init_device_mesh(kind, (world,))
        yield Ranks(dist.get_rank(), world, own, mesh, dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()
