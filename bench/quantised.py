"""What a base in 4 or 8 bits costs and saves: both engines on the same batches, each way in a process. Prints JSON.

    reference   one adapter through PEFT, the loop of the reference engine
    bank        several adapters at once on one base

By way (`float32`, `nf4`, `int8`, `bfloat16`, `nf4-bfloat16`): seconds an adapter-step of both engines by the clock and
of the processor (medians, the first left out), bytes of the weights, resident memory after loading and at the most in
training by the bank, the frozen model's loss on the first batch, and how far the two engines' training losses lie apart
at the most, relative. Resident memory counts the pages of the weights' file, which stays mapped while embeddings are
read from it and which the system can drop, and what the heap has freed.

    python bench/quantised.py [--model smollm2 --data FILE] [--adapters 4] [--steps 3] [--ways nf4 int8] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.splits import make_splits
from adaptive_lora.files import write_atomically
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.study.plan_task import make_plan
from adaptive_lora.study.prepare import open_base, open_records, targets_of
from adaptive_lora.study.schema import ArmPart, ScalingPart
from adaptive_lora.training.adapter import attached, trainable
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.checkpoint import StepRecord
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.options import TrainingOptions
from adaptive_lora.training.quantised import model_bytes
from adaptive_lora.training.reference import update
from throughput import machine_facts, silence

WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "nf4": {"quantise": "nf4"},
    "int8": {"quantise": "int8"},
    "bfloat16": {"dtype": "bfloat16"},
    "nf4-bfloat16": {"dtype": "bfloat16", "quantise": "nf4"},
}


def members_of(base: FrozenBase, examples: Sequence[Example], asked: argparse.Namespace) -> list[Member]:
    modules = targets_of(base.outline, "all-linear")
    arm = ArmPart(name="uniform", strategy="uniform")
    plan = make_plan(None, modules, arm, resolve_budget("rank:8", modules), ScalingPart(), 0)
    options = TrainingOptions(learning_rate=2e-4, steps=asked.steps, batch_size=4, schedule="constant")
    return [Member(plan=plan, options=options, seed=seed, examples=examples) for seed in range(asked.adapters)]


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """One way, in this process."""
    began = time.perf_counter()
    base = open_base(asked.model, **WAYS[asked.way])
    loading = time.perf_counter() - began
    resident, encoder = memory("VmRSS"), Encoder(base.tokenizer, base.outline.within(asked.max_length), "auto")
    examples = make_splits(open_records(asked.data), encoder, 4 * asked.steps, 1, 1).training_subset(4 * asked.steps, 0)
    members, seconds, losses = members_of(base, examples, asked), dict[str, list[float]](), dict[str, list[float]]()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    with Bank(base, members) as bank:
        times, records = timed(lambda: bank.step()[0], asked.steps)
        seconds["bank"], losses["bank"] = [of / len(members) for of in times], [record.loss for record in records]
    peak = memory("VmHWM")
    member, options = members[0], members[0].options
    with attached(base, member.plan, member.seed) as model:
        optimizer = torch.optim.AdamW(trainable(model).values(), weight_decay=options.weight_decay)
        steps = iter(range(asked.steps))

        def one_update() -> StepRecord:
            return update(model, optimizer, member.batch(at := next(steps)), options, at)

        seconds["reference"], records = timed(one_update, asked.steps)
        losses["reference"] = [record.loss for record in records]
    return {
        "seconds_per_adapter_step": {engine: found[0] for engine, found in seconds.items()},
        "cpu_seconds_per_adapter_step": {engine: found[1] for engine, found in seconds.items()},
        "loading_seconds": loading,
        "weight_bytes": model_bytes(base.model),
        "resident_bytes": resident,
        "peak_bytes_training": peak,
        "frozen_loss": evaluate(base.model, member.batch(0), base.device).loss,
        "losses": losses,
        "max_loss_difference": max(abs(a / b - 1) for a, b in zip(*losses.values(), strict=True)),
    }


def timed(step: Callable[[], Any], count: int) -> tuple[list[float], list[Any]]:
    """Seconds of a call by the clock and of the processor (medians, the first call left out), and what all return."""
    found, times = [], []
    for _ in range(count):
        began = time.perf_counter(), time.process_time()
        found.append(step())
        times.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return [statistics.median(own) for own in zip(*times[1:], strict=True)], found


def memory(key: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at the most."""
    return 1024 * int(re.findall(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo:fine-tuning")
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    load_before = os.getloadavg()[0]
    silence()
    if asked.way:
        print(json.dumps(measure(asked)))
        return
    report: dict[str, Any] = {
        "ways": {},
        "model": asked.model,
        "adapters": asked.adapters,
        "steps": asked.steps,
        "threads": torch.get_num_threads(),
        "machine": machine_facts(torch.device("cpu"), load_before),
    }
    for way in asked.ways:
        print(way, file=sys.stderr)
        command = [sys.executable, *sys.argv, "--way", way]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        report["ways"][way] = json.loads(told)
        if asked.out:  # after each, so that a cut loses one
            write_atomically(asked.out, json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
