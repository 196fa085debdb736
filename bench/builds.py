"""How fast a bank trains and evaluates by this source, against an earlier commit's on the same machine. Prints JSON.

Each side runs in fresh processes of its own, in turn, on the same records and adapters: `before` by the source of a
commit, `now` by the source beside this file. Updates have LoRA dropout 0.05. `training` and `evaluation` are the
medians over rounds of how many times as long the earlier one took; `loss_difference` is what the last losses of all
adapters differ by at most, relative to them.

    python bench/builds.py --before COMMIT [--model demo --data demo:fine-tuning] [--adapters 20] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from adaptive_lora.data.encoding import Encoder
from adaptive_lora.data.splits import make_splits
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.study.plan_task import make_plan
from adaptive_lora.study.prepare import open_base, open_records, targets_of
from adaptive_lora.study.schema import ArmPart, ScalingPart
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.options import TrainingOptions
from throughput import machine_facts, silence

HERE = Path(__file__).resolve().parent
WARM_UP = 2
TRAINING_RECORDS, TEST_RECORDS = 200, 48


def one_side(asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of an adapter's update and of its evaluation, and the last losses; by the source on the path."""
    silence()
    base = open_base(asked.model)
    encoder = Encoder(base.tokenizer, base.outline.within(asked.max_length), asked.template)
    splits = make_splits(open_records(asked.data), encoder, TRAINING_RECORDS, 1, TEST_RECORDS)
    modules = targets_of(base.outline, "all-linear")
    arm = ArmPart(name="uniform", strategy="uniform")
    plan = make_plan(None, modules, arm, resolve_budget(asked.budget, modules), ScalingPart(), 0)
    steps = WARM_UP + asked.steps
    options = TrainingOptions(learning_rate=1e-3, steps=steps, batch_size=asked.batch_size, dropout=0.05)
    members = [
        Member(plan=plan, options=options, seed=seed, examples=splits.training_subset(TRAINING_RECORDS, seed))
        for seed in range(asked.adapters)
    ]
    updates = []
    with Bank(base, members, texts=splits.test) as bank:
        while bank.running:
            began = time.perf_counter()
            records = bank.step()
            updates.append((time.perf_counter() - began) / len(members))
        began = time.perf_counter()
        evaluated = bank.evaluate(splits.test, members=range(min(2, len(members))))
        evaluation = (time.perf_counter() - began) / len(evaluated)
    return {
        "training": statistics.median(updates[WARM_UP:]),
        "evaluation": evaluation,
        "losses": [getattr(record, "loss", None) for record in records] + [found.loss for found in evaluated],
    }


def run_side(source: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """`one_side` in a process of its own."""
    options = [f"--{name.replace('_', '-')}={getattr(asked, name)}" for name in PASSED_ON]
    paths = os.pathsep.join([str(source), str(HERE)])
    command = [sys.executable, __file__, "--child", *options]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{source}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


PASSED_ON = ("model", "data", "template", "max_length", "budget", "batch_size", "adapters", "steps")


def compare(asked: argparse.Namespace) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, Any]]] = {"before": [], "now": []}
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", str(HERE.parent), "archive", asked.before, "src"], capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        sources = {"before": Path(folder) / "src", "now": HERE.parent / "src"}
        for turn in range(asked.rounds):
            for side in ("before", "now") if turn % 2 == 0 else ("now", "before"):
                print(f"round {turn + 1} of {asked.rounds}: {side}", file=sys.stderr, flush=True)
                rounds[side].append(run_side(sources[side], asked))
    pairs = list(zip(rounds["before"], rounds["now"], strict=True))
    return {
        **{what: statistics.median(a[what] / b[what] for a, b in pairs) for what in ("training", "evaluation")},
        "loss_difference": max(abs(x / y - 1) for a, b in pairs for x, y in zip(a["losses"], b["losses"], strict=True)),
        "seconds": {
            side: {what: [found[what] for found in each] for what in ("training", "evaluation")}
            for side, each in rounds.items()
        },
        "before": asked.before,
        **{name: getattr(asked, name) for name in PASSED_ON if name not in ("data", "model")},
        "model": Path(asked.model).name,
        "data": Path(asked.data).name,
        "threads": torch.get_num_threads(),
        "machine": machine_facts(torch.device("cpu"), asked.load_before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--before", default="", help="commit of the other side")
    add("--model", default="demo")
    add("--data", default="demo:fine-tuning")
    add("--template", default="auto")
    add("--max-length", type=int, default=256)
    add("--budget", default="rank:8")
    add("--batch-size", type=int, default=4)
    add("--adapters", type=int, default=20)
    add("--steps", type=int, default=20)
    add("--rounds", type=int, default=5)
    add("--out", type=Path)
    add("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(one_side(asked)))
        return
    if not asked.before:
        parser.error("--before needs a commit, such as HEAD~3")
    asked.load_before = os.getloadavg()[0]
    text = json.dumps(compare(asked), indent=2)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
