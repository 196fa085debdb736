"""What the two processes of `test_sharded` do, in a module of its own, so that a fork server can import it once."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # this and transformers' models, so that the server has them and no process imports them again
import torch.distributed as dist
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama  # noqa: F401

from adaptive_lora.training.activation_checkpointing import blocks_of
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase, load_base
from adaptive_lora.training.checkpoint import StepRecord
from adaptive_lora.training.ranks import joined
from adaptive_lora.training.sharded import ShardedBank, share
from adaptive_lora.training.sharded_base import load_in_turn, sharded_bytes
from tests.conftest import mixed_plan
from tests.training.conftest import demo_examples, seven_members, snapshot

CASES: dict[str, dict[str, Any]] = {
    "many passes": {"chunk_tokens": 100},
    "one adapter": {"checkpointing": True},
    "upper half": {"stacked": True},
}
PAIRS = [("gpt2", "many passes"), ("gpt2", "upper half"), ("llama", "many passes"), ("llama", "one adapter")]
"""Model and case."""


def members_of(case: str, base: FrozenBase) -> list[Member]:
    """Different numbers of updates and passes, twins; a rank without adapters; a rank with none in the first block."""
    every = seven_members(base, steps=4)
    if case == "many passes":
        return [*every, every[1]]
    if case == "one adapter":
        return every[1:2]
    upper = mixed_plan(tuple(m for m in base.outline.modules if m.depth == 2))
    return [replace(every[2], plan=upper), every[4]]


def layers_of(base: FrozenBase) -> set[str]:
    """Kinds of the layers inside an open bank's blocks."""
    return {type(m).__name__ for name, m in base.model.named_modules() if re.search(r"\.\d+\.", name)}


def results_of(bank: Bank, members: Sequence[int], base: FrozenBase) -> dict[int, dict[str, Any]]:
    """By member its records, state and losses, after training."""
    records: list[list[Any]] = [[] for _ in bank.slots]
    while bank.anywhere_running() if isinstance(bank, ShardedBank) else bank.running:
        for own, result in zip(records, bank.step(), strict=True):
            own += [result] if isinstance(result, StepRecord) else []
    evaluated = bank.evaluate(demo_examples(base)[:12])
    return {
        i: {"records": records[k], "state": snapshot(bank.slots[k].tensors()), "nll": evaluated[k].nll}
        for k, i in enumerate(members)
    }


class CountedGather:
    """FSDP2's own gather, counted."""

    def __init__(self) -> None:
        self.count = 0

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool) -> Any:
        self.count += 1
        return dist.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)


def gathers_of(bank: ShardedBank, base: FrozenBase) -> tuple[int, int]:
    """How often blocks are gathered in a pass that evaluates and in one that trains right after it."""
    counted, counts = CountedGather(), [0]
    for block in blocks_of(base.model).values():
        block.set_custom_all_gather(counted)
    for training in (False, True):
        bank._pass_idly(training)
        counts.append(counted.count)
    return counts[1], counts[2] - counts[1]


def work(rank: int, world: int, port: int, folders: dict[str, Path], out: Path) -> None:
    """One process: all cases on all models; writes what became of its own members."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    found: dict[str, Any] = {}
    with joined("cpu", minutes=5) as ranks:
        for kind, folder in folders.items():
            base = load_in_turn(lambda kind=kind, folder=folder: load_base(kind, folder), ranks)  # type: ignore[misc]
            found[kind] = {"bytes": asdict(sharded_bytes(base.model, ranks))}
            for case in (case for model, case in PAIRS if model == kind):
                members = members_of(case, base)
                own = share(members, world)[rank]
                with ShardedBank(base, [members[i] for i in own], ranks, **CASES[case]) as bank:
                    layers = layers_of(base)
                    results = results_of(bank, own, base)
                    found[kind][case] = {"results": results, "idle": bank.idle_passes, "layers": layers}
                    found[kind][case]["gathers"] = gathers_of(bank, base)
    torch.save(found, out / f"{rank}.pt")
