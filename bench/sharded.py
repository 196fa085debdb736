"""A base shared by two processes against a base in each of them: memory, bytes moved, seconds a pass. Prints JSON.

Both ways two processes of one thread train the same adapters, each half of them:

    sharded       each keeps half of every block, and both gather a block to use it (gloo, over the loopback device)
    replicated    each keeps the whole base, and nothing is sent

`received_bytes` are counted at the gathers themselves, by training pass and by pass that evaluates. `resident_bytes` is
what `top` shows (RES) with the base there, before the bank opens, less what the interpreter took before.
`gather_seconds` is what gathering all blocks once takes alone, and `bandwidth` what follows; on a CPU nothing is hidden
behind products, so that a training pass should take two of them more. Ways alternate by rounds, and medians are given;
`pass_cpu_seconds` are of a process's own threads, where others use the machine too. `break_even` is the cost model of
`training/sharded_cost.py` for devices that are assumed, not measured.

    python bench/sharded.py [--model smollm2 --data FILE] [--adapters 4] [--updates 3] [--rounds 2] [--out FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.files import write_atomically
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.study.prepare import open_base, open_records
from adaptive_lora.training.activation_checkpointing import blocks_of
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.memory import resident_bytes
from adaptive_lora.training.options import TrainingOptions
from adaptive_lora.training.ranks import Ranks, joined
from adaptive_lora.training.sharded import ShardedBank, share
from adaptive_lora.training.sharded_base import load_in_turn, sharded_bytes
from adaptive_lora.training.sharded_cost import break_even_positions, gathering_seconds
from throughput import machine_facts

WORLD = 2
ASSUMED = {"NVLink": 300e9, "PCIe 4 x16": 25e9, "network of 100 Gbit/s": 12e9, "network of 10 Gbit/s": 1.2e9}
"""Bytes a second that a rank receives."""
ASSUMED_FLOPS, ASSUMED_WORLD = 400e12, 8


class CountedGather:
    """FSDP2's own gather, counted."""

    def __init__(self) -> None:
        self.received = 0

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool = False
    ) -> Any:
        self.received += (output_tensor.numel() - input_tensor.numel()) * input_tensor.element_size()
        return dist.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo:fine-tuning")
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--budget", default="rank:4")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    return parser.parse_args()


def main() -> None:
    asked, load = arguments(), os.getloadavg()[0]
    rounds: dict[str, list[list[dict[str, Any]]]] = {"sharded": [], "replicated": []}
    for number in range(asked.rounds):
        for way, found in rounds.items():
            began = time.perf_counter()
            found.append(in_two_processes(asked, way))
            print(f"round {number + 1}, {way}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    text = json.dumps(report(asked, rounds, load), indent=2)
    if asked.out:
        write_atomically(asked.out, text + "\n")
    print(text)


def in_two_processes(asked: argparse.Namespace, way: str) -> list[dict[str, Any]]:
    """What each of them measured."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        torch.multiprocessing.spawn(work, (port, vars(asked), way, folder), nprocs=WORLD)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(WORLD)]


def work(rank: int, port: int, asked: dict[str, Any], way: str, folder: str) -> None:
    """One process, from the base to what it measured."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(WORLD), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with joined("cpu") as ranks:
        before = resident_bytes(ranks.device)
        base = load_in_turn(lambda: open_base(asked["model"]), ranks) if way == "sharded" else open_base(asked["model"])
        gc.collect()
        found: dict[str, Any] = {"resident_bytes": resident_bytes(ranks.device) - before}
        counted = CountedGather()
        if way == "sharded":
            found |= {"frozen": dataclasses.asdict(sharded_bytes(base.model, ranks))}
            for block in blocks_of(base.model).values():
                block.set_custom_all_gather(counted)
        found |= measured(base, ranks, asked, way, counted)
        Path(folder, f"{rank}.json").write_text(json.dumps(found))


def measured(base: FrozenBase, ranks: Ranks, asked: dict[str, Any], way: str, counted: CountedGather) -> dict[str, Any]:
    """Seconds and bytes of passes that train and of some that evaluate, after one of each."""
    encoder = Encoder(base.tokenizer, asked["max_length"])
    records = open_records(asked["data"]).records[:400]
    # The longest: every pass has about as many positions.
    texts = sorted(encoder.encode_all(records), key=lambda text: -len(text.ids))[: 4 * asked["batch_size"]]
    members = [member_of(base, asked, seed, texts) for seed in range(asked["adapters"])]
    own = [members[i] for i in share(members, WORLD)[ranks.rank]]
    passes: list[int] = []
    how: dict[str, Any] = {"chunk_tokens": 1024}
    with ShardedBank(base, own, ranks, **how) if way == "sharded" else Bank(base, own, workers=1, **how) as bank:
        bank.step()
        bank.model.head.decoder.register_forward_hook(lambda *_: passes.append(1))
        one, counts = texts[: asked["batch_size"]], (counted, passes)
        found: dict[str, Any] = {"train": timed(bank.step, ranks, asked["updates"], counts)}
        found["positions"] = sum(bank.tokens.values()) * asked["updates"] // len(passes)
        found |= {"evaluate": timed(lambda: bank.evaluate(one), ranks, asked["updates"], counts)}
    if way == "sharded":
        found["gather_seconds"] = gather_once(base, ranks)
    return found


def member_of(base: FrozenBase, asked: dict[str, Any], seed: int, texts: list[Example]) -> Member:
    """An adapter of one rank everywhere."""
    modules = base.outline.modules
    budget, rank = resolve_budget(asked["budget"], modules).parameters, int(asked["budget"].split(":")[1])
    ranks = {module.name: rank for module in modules}
    plan = RankPlan("uniform", budget, modules, ranks, Scaling("constant", 2.0, float(rank)))
    options = TrainingOptions(learning_rate=1e-4, steps=asked["updates"] + 1, batch_size=asked["batch_size"])
    return Member(plan=plan, options=options, seed=seed, examples=texts)


def timed(do: Any, ranks: Ranks, times: int, counts: tuple[CountedGather, list[int]]) -> dict[str, Any]:
    """Median seconds of a pass, from when all ranks are there, by the clock and of this process's threads; and the
    bytes that one received."""
    (gathers, passes), seconds, cpu = counts, [], []
    before, already = gathers.received, len(passes)
    for _ in range(times):
        ranks.wait()
        began, used = time.perf_counter(), time.process_time()
        do()
        cpu.append(time.process_time() - used)
        ranks.wait()
        seconds.append(time.perf_counter() - began)
    count = len(passes) - already
    return {
        "pass_seconds": statistics.median(seconds) * times / count,
        "pass_cpu_seconds": statistics.median(cpu) * times / count,
        "received_bytes": (gathers.received - before) / count,
    }


def gather_once(base: FrozenBase, ranks: Ranks) -> float:
    """Seconds to gather every block once and let it go; the least of three."""
    found = []
    for _ in range(3):
        ranks.wait()
        began = time.perf_counter()
        for block in blocks_of(base.model).values():
            block.unshard()
            block.reshard()
        found.append(time.perf_counter() - began)
    return min(found)


def report(asked: argparse.Namespace, rounds: dict[str, list[list[dict[str, Any]]]], load: float) -> dict[str, Any]:
    """Medians over rounds; a pass takes as long as the slower process."""

    def median(way: str, *keys: str) -> float:
        values = []
        for ranks in rounds[way]:
            found: Any = ranks
            for key in keys:
                found = [one[key] for one in found]
            values.append(max(found))
        return float(statistics.median(values))

    frozen = [one["frozen"] for one in rounds["sharded"][0]]
    gather = median("sharded", "gather_seconds")
    bandwidth = frozen[0]["received"] / gather
    train = {way: median(way, "train", "pass_seconds") for way in rounds}
    blocks = frozen[0]["whole"] - frozen[0]["outside"]
    return {
        "model": asked.model,
        "machine": machine_facts(torch.device("cpu"), load),
        "ranks": WORLD,
        "adapters": asked.adapters,
        "updates": asked.updates,
        "rounds": asked.rounds,
        "positions": rounds["sharded"][0][0]["positions"],
        "frozen_bytes": {"replicated": frozen[0]["whole"], "sharded": [one["on_rank"] for one in frozen]},
        "outside_blocks_bytes": frozen[0]["outside"],
        "largest_block_bytes": frozen[0]["largest_block"],
        "resident_bytes": {way: median(way, "resident_bytes") for way in rounds},
        "received_bytes": {
            "train": median("sharded", "train", "received_bytes"),
            "evaluate": median("sharded", "evaluate", "received_bytes"),
            "by_the_model": 2 * frozen[0]["received"],
        },
        "gather_seconds": gather,
        "bandwidth": bandwidth,
        "train_pass_seconds": train,
        "train_pass_cpu_seconds": {way: median(way, "train", "pass_cpu_seconds") for way in rounds},
        "evaluate_pass_seconds": {way: median(way, "evaluate", "pass_seconds") for way in rounds},
        "sharded_over_replicated": train["sharded"] / train["replicated"],
        "by_the_cost_model": 1 + gathering_seconds(blocks, WORLD, bandwidth) / train["replicated"],
        "break_even": {
            "assumed": {"flops": ASSUMED_FLOPS, "ranks": ASSUMED_WORLD, "bytes_per_parameter": 2},
            "positions": {
                name: round(break_even_positions(ASSUMED_FLOPS, ASSUMED_WORLD, speed))
                for name, speed in ASSUMED.items()
            },
            "bandwidth": ASSUMED,
        },
    }


if __name__ == "__main__":
    main()
