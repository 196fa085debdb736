"""What products in bfloat16 (`model: {products: bfloat16}`) are worth and what they cost in quality. Prints JSON.

The same LoRA runs (plans x seeds), on the same records in the same order, go through

    float32   the bank on a float32 model
    rounded   the bank on the same model with its frozen products in bfloat16
    loop      PEFT and the bare loop of `training.reference` on the model in bfloat16, one adapter of them all

The sides take turns, forwards and backwards, a block of updates each; a ratio is the median over rounds of the ratio
within a round. Both banks train every adapter to its end, and what counts as quality is the loss of each on held-out
records: `loss_differences` are relative to float32's.

    python bench/rounded.py --model smollm2 --data FILE --adapters 8 --steps 60 --out results/bench/rounded-smollm2.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.splits import make_splits
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.study.prepare import open_base, open_records
from adaptive_lora.training.adapter import attached, set_training, trainable
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.options import DataOrder, TrainingOptions
from adaptive_lora.training.reference import Diverged, update
from throughput import STRATEGIES, machine_facts, make_jobs, say, silence

SIDES = ("float32", "rounded", "loop")
LOOP_SHARE = 2
"""Of a round's updates the loop does one in so many: an update of it costs as much whichever adapter it is of."""


@contextlib.contextmanager
def banked(base: FrozenBase, members: list[Member]) -> Iterator[tuple[Callable[[int], None], Bank]]:
    """An open bank and what does one update of all of it."""
    with Bank(base, members) as bank:

        def step(_: int) -> None:
            for result in bank.step():
                if isinstance(result, Diverged):
                    raise result

        yield step, bank


@contextlib.contextmanager
def looped(base: FrozenBase, member: Member) -> Iterator[Callable[[int], None]]:
    """What does one update of a single adapter in PEFT."""
    order = DataOrder(member.seed, len(member.examples), member.options.batch_size)
    with attached(base, member.plan, member.seed) as model:
        optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.0, weight_decay=member.options.weight_decay)
        set_training(model, True)

        def step(i: int) -> None:
            update(model, optimizer, [member.examples[k] for k in order.batch(i)], member.options, i)

        yield step


def take_turns(steps: dict[str, Callable[[int], None]], asked: argparse.Namespace) -> dict[str, list[float]]:
    """Side -> seconds of one of its updates, in each round."""
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    for turn in range(asked.steps // asked.block):
        for side in SIDES if turn % 2 == 0 else reversed(SIDES):
            count = max(1, asked.block // LOOP_SHARE) if side == "loop" else asked.block
            began = time.perf_counter()
            for i in range(count):
                steps[side](turn * count + i)
            seconds[side].append((time.perf_counter() - began) / count)
            say(f"round {turn + 1} {side}: {seconds[side][-1]:.3f} s an update")
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over the rounds but the first, in which kernels and caches are made."""
    pairs = list(zip(seconds[slow], seconds[fast], strict=True))
    return statistics.median(a / b for a, b in (pairs[1:] or pairs))


def compare(asked: argparse.Namespace) -> dict[str, Any]:
    """Everything, measured."""
    bases = {
        "float32": open_base(asked.model),
        "rounded": open_base(asked.model, products="bfloat16"),
        "loop": open_base(asked.model, dtype="bfloat16"),
    }
    base = bases["float32"]
    encoder = Encoder(base.tokenizer, base.outline.within(asked.max_length), asked.template)
    splits = make_splits(open_records(asked.data), encoder, asked.records, 0, asked.held_out)
    options = TrainingOptions(
        learning_rate=asked.learning_rate, steps=asked.steps, batch_size=asked.batch_size, warmup=0.1
    )
    members = [
        Member(plan=job.plan, options=options, seed=job.seed, examples=job.examples)
        for job in make_jobs(asked, base, splits, asked.adapters)
    ]
    with (
        banked(bases["float32"], members) as (exact, exact_bank),
        banked(bases["rounded"], members) as (rounded, rounded_bank),
        looped(bases["loop"], members[0]) as loop,
    ):
        seconds = take_turns({"float32": exact, "rounded": rounded, "loop": loop}, asked)
        losses = [[found.loss for found in bank.evaluate(splits.test)] for bank in (exact_bank, rounded_bank)]
    return {**speeds(seconds, len(members)), **quality(*losses), **facts(asked, base, members[0].plan, splits.test)}


def speeds(seconds: dict[str, list[float]], adapters: int) -> dict[str, Any]:
    """Ratios, and seconds of one update of one adapter."""
    each = {side: [s / (1 if side == "loop" else adapters) for s in found] for side, found in seconds.items()}
    return {
        "speedup_bf16_vs_float32": ratio(each, "float32", "rounded"),
        "speedup_bf16_vs_loop": ratio(each, "loop", "rounded"),
        "seconds_per_adapter_step": {
            side: {"median": statistics.median(found), "rounds": found} for side, found in each.items()
        },
    }


def quality(exact: list[float], rounded: list[float]) -> dict[str, Any]:
    """Losses of both banks; the mean relative difference with its standard error, and the largest."""
    apart = (np.array(rounded) - np.array(exact)) / np.array(exact)
    return {
        "losses": {"float32": exact, "rounded": rounded},
        "loss_differences": apart.tolist(),
        "largest_difference": float(np.abs(apart).max()),
        "mean_difference": float(apart.mean()),
        "standard_error": float(apart.std(ddof=1) / math.sqrt(len(apart))) if len(apart) > 1 else None,
        "lower_in": int((apart < 0).sum()),
    }


def facts(asked: argparse.Namespace, base: FrozenBase, plan: RankPlan, test: tuple[Example, ...]) -> dict[str, Any]:
    """What was run, and where."""
    return {
        "model": Path(asked.model).name,
        "data": Path(asked.data).name,
        "plans": list(STRATEGIES[: asked.plans]),
        "trainable_parameters": plan.trainable_parameters,
        "held_out_tokens": sum(len(example.ids) for example in test),
        **{name: getattr(asked, name) for name in ("adapters", "steps", "block", "batch_size", "learning_rate")},
        "loop_is_one_update_in": LOOP_SHARE,
        "threads": torch.get_num_threads(),
        "machine": machine_facts(base.device, asked.load_before),
    }


def arguments() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="demo", help="demo, smollm2, a folder or a hub name")
    add("--data", default="demo:fine-tuning", help="or a file of records")
    add("--template", default="auto")
    add("--max-length", type=int, default=256)
    add("--records", type=int, default=200, help="training records of a seed")
    add("--held-out", type=int, default=100)
    add("--adapters", type=int, default=8, help="plans x seeds")
    add("--plans", type=int, default=4, choices=range(1, len(STRATEGIES) + 1))
    add("--budget", default="rank:4")
    add("--batch-size", type=int, default=4)
    add("--learning-rate", type=float, default=3e-3)
    add("--steps", type=int, default=60, help="updates of every adapter, in whole blocks")
    add("--block", type=int, default=10, help="updates that a side does in its turn")
    add("--out", type=Path, help="file for the JSON")
    asked = parser.parse_args()
    if min(asked.adapters, asked.block) < 1 or asked.steps < asked.block or asked.steps % asked.block:
        parser.error("--adapters and --block start at 1, and --steps must be whole blocks")
    asked.load_before = os.getloadavg()[0]
    return asked


def main() -> None:
    asked = arguments()
    silence()
    text = json.dumps(compare(asked), indent=2)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
