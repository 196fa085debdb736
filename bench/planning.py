"""What planning by measures costs, against what people would do without it. Prints JSON.

    planning_overhead           all measures of a calibration pass together, over plain forward and backward passes with
                                the gradients of all target weights on the same batches
    planning_share_of_training  the same measures, over one run of a study by the reference engine
    speedup_vs_peft_eva         PEFT's `get_eva_state_dict`, the measuring part of its EVA, over our inputs' spectra
    explained_variance_ratio    the variance that our leading components explain, over that of as many of PEFT's
    peak_memory_ratio           the most memory over the loaded model while planning, over that of training steps

The sides take turns, forwards and backwards; every ratio is the median over rounds of the ratio within a
round. Memory is that of a fresh process for each side.

    python bench/planning.py [--model FOLDER --data FILE] [--study alpaca-babyllama] [--rounds 5] [--out FILE]
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.splits import calibration_subset, make_splits
from adaptive_lora.measures.calibration_pass import GROUP, Pass, Quantity, run_pass
from adaptive_lora.measures.request import PlannedTraining
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.recipes import recipe
from adaptive_lora.study.plan_task import make_plan
from adaptive_lora.study.prepare import open_base, open_records
from adaptive_lora.study.schema import ArmPart, ScalingPart
from adaptive_lora.study.study_file import Study, load_study
from adaptive_lora.training.adapter import attached
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.batches import collate, sequence_losses
from adaptive_lora.training.options import TrainingOptions
from adaptive_lora.training.reference import train

RANK, RHO = 8, 2.0
COMPONENTS = round(RHO * RANK)
BATCHES, BATCH_SIZE = 8, 4
"""The calibration that strategies take by default."""
SHORT_RUNS = ("posthoc-svd", "lora-drop", "adalora", "marginal-gain")
"""Strategies that train before they plan."""
TIMED_STEPS = 20
"""Updates that a round times of a training run; the run's time is theirs by the number of its steps."""


@dataclass(frozen=True)
class Bench:
    """What all sides share."""

    base: FrozenBase
    study: Study
    examples: tuple[Example, ...]
    """The training records of a seed."""

    @property
    def modules(self) -> tuple[ModuleShape, ...]:
        return self.base.outline.modules

    @property
    def batches(self) -> list[list[Example]]:
        """The calibration batches."""
        chosen = calibration_subset(self.examples, BATCHES * BATCH_SIZE, 0)
        return [chosen[at : at + BATCH_SIZE] for at in range(0, len(chosen), BATCH_SIZE)]

    @property
    def steps(self) -> int:
        """Updates of one run of the study."""
        asked = self.study.spec.train
        per_epoch = -(-self.study.spec.data.train // asked.batch_size)
        return asked.steps or max(1, round((asked.epochs or 1) * per_epoch))

    def request(self, *measures: str, mode: Any = "auto") -> Pass:
        """A pass over the calibration batches."""
        sizes = {"b-gradient": RANK, "input-spectrum": COMPONENTS}
        quantities = frozenset(Quantity(measure, sizes.get(measure)) for measure in measures)
        return Pass(
            quantities=quantities, base=self.base, modules=self.modules, batches=self.batches, seed=0, mode=mode
        )


def open_bench(asked: argparse.Namespace) -> Bench:
    """The study's model and data, unless others are named."""
    study = load_study(recipe(asked.study))
    data = study.spec.data
    base = open_base(asked.model or study.locate(study.spec.model.name))
    encoder = Encoder(base.tokenizer, base.outline.within(data.max_length), data.template)
    source = open_records(asked.data or study.locate(data.source))
    splits = make_splits(source, encoder, data.train, 0, 1)
    return Bench(base, study, splits.training_subset(data.train, 0))


# The sides


def plan_all(bench: Bench) -> None:
    """Every measure of one calibration pass."""
    run_pass(bench.request(*GROUP.inputs))


def plain_passes(bench: Bench) -> None:
    """Forward and backward passes with the gradient of every target weight, summed in place by autograd."""
    weights = [bench.base.model.get_submodule(m.name).weight for m in bench.modules]
    for weight in weights:
        weight.requires_grad_(True)
    for examples in bench.batches:
        batch = collate(examples)
        logits = bench.base.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits
        losses = sequence_losses(logits, batch.labels)
        (losses.nll.sum() / losses.tokens.sum()).backward()
    for weight in weights:
        weight.requires_grad_(False)
        weight.grad = None


def train_steps(bench: Bench, steps: int = TIMED_STEPS) -> None:
    """Updates of one uniform adapter by the reference engine."""
    arm, budget = ArmPart(name="uniform", strategy="uniform"), resolve_budget(f"rank:{RANK}", bench.modules)
    plan = make_plan(None, bench.modules, arm, budget, ScalingPart(), 0)
    options = TrainingOptions(learning_rate=1e-3, steps=steps, batch_size=bench.study.spec.train.batch_size)
    with attached(bench.base, plan, 0) as model:
        train(model, bench.examples, options, 0)


def our_eva(bench: Bench) -> dict[str, Any]:
    """Explained-variance ratios of all modules' inputs."""
    return run_pass(bench.request("input-spectrum"))[0][Quantity("input-spectrum", COMPONENTS)]


def eva_of_peft(bench: Bench) -> dict[str, torch.Tensor]:
    """PEFT's components by module, before any adapter is built; `bench.base` is left as it was."""
    from peft import LoraConfig
    from peft.tuners.lora.config import EvaConfig
    from peft.tuners.lora.eva import get_eva_state_dict

    config = LoraConfig(
        r=RANK, target_modules=[m.name for m in bench.modules], init_lora_weights="eva",
        eva_config=EvaConfig(rho=RHO, use_label_mask=False),
    )  # fmt: skip
    given: list[dict[str, Any]] = [
        {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask} for batch in map(collate, bench.batches)
    ]
    with torch.random.fork_rng(devices=[]):
        return dict(get_eva_state_dict(bench.base.model, given, config, show_progress_bar=False))


SIDES: Mapping[str, Callable[[Bench], Any]] = {
    "planning": plan_all, "plain": plain_passes, "training": train_steps, "eva": our_eva, "peft_eva": eva_of_peft,
}  # fmt: skip


# Measuring


def timed(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Seconds of every side in every round, the order turned round every other time; one round more warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for index in range(rounds + 1):
        for name in list(SIDES)[:: 1 if index % 2 else -1]:
            gc.collect()
            began = time.perf_counter()
            SIDES[name](bench)
            if index:
                seconds[name].append(time.perf_counter() - began)
            print(f"round {index} {name} {time.perf_counter() - began:.3f} s", file=sys.stderr, flush=True)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], over: str, under: str, factor: float = 1.0) -> float:
    """The median over rounds."""
    return statistics.median(factor * a / b for a, b in zip(seconds[over], seconds[under], strict=True))


def explained_of_ours(bench: Bench) -> dict[str, float]:
    """Our explained variance over PEFT's with as many components, lowest and median of the modules.

    PEFT keeps as many components as the module got rank; both sides are judged by the whole covariance.
    """
    theirs, spectra = eva_of_peft(bench), our_eva(bench)
    found = []
    for m in bench.modules:
        basis = theirs[m.name].double()
        if not len(basis):
            continue
        covariance = covariance_of(bench, m.name)
        share = float((basis @ covariance @ basis.T).trace() / covariance.trace())
        found.append(sum(spectra[m.name][: len(basis)]) / share)
    return {"lowest": min(found), "median": statistics.median(found)}


def covariance_of(bench: Bench, name: str) -> torch.Tensor:
    """The centred covariance of a module's inputs, from all rows at once."""
    rows: list[torch.Tensor] = []
    masks: list[torch.Tensor] = []
    hook = bench.base.model.get_submodule(name).register_forward_hook(lambda _, x, y: rows.append(x[0]))
    with torch.no_grad():
        for batch in map(collate, bench.batches):
            bench.base.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
            masks.append(batch.attention_mask.bool())
    hook.remove()
    return torch.cov(torch.cat([x[mask] for x, mask in zip(rows, masks, strict=True)]).double().T, correction=0)


def memory_of(side: str) -> int:
    """The most bytes over the loaded model that a side took, in a fresh process."""
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--memory-child", side]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure_memory(bench: Bench, side: str) -> int:
    """In this process: the rise of the resident set's high-water mark."""
    import peft  # noqa: F401  (so that its code counts in neither side)

    SIDES["plain"](replace(bench, examples=tuple(e for e in bench.examples[:1])))  # libraries' own working space
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    train_steps(bench, BATCHES) if side == "training" else SIDES[side](bench)
    return high_water() - before


def high_water() -> int:
    """VmHWM in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def short_run_costs(bench: Bench, run_seconds: float) -> dict[str, dict[str, float]]:
    """Seconds and trained tokens of every strategy that trains before it plans, and its seconds over a run's."""
    budget, train = resolve_budget(f"rank:{RANK}", bench.modules), bench.study.spec.train
    rates = train.learning_rate
    options = TrainingOptions(
        learning_rate=rates[len(rates) // 2], steps=bench.steps, batch_size=train.batch_size, schedule=train.schedule
    )
    found = {}
    for name in SHORT_RUNS:
        began, arm = time.perf_counter(), ArmPart(name=name, strategy=name)
        training = PlannedTraining(options)
        plan = make_plan(bench.base, bench.modules, arm, budget, ScalingPart(), 0, bench.examples, training)
        seconds, facts = time.perf_counter() - began, plan.provenance["measured"]
        tokens = facts["short_run_tokens"] + facts.get("race_tokens", 0)
        found[name] = {"seconds": seconds, "tokens_trained": tokens, "share_of_training": seconds / run_seconds}
        print(f"{name} {seconds:.1f} s", file=sys.stderr, flush=True)
    return found


def report(bench: Bench, asked: argparse.Namespace) -> dict[str, Any]:
    """Everything, measured."""
    memory = {side: memory_of(side) for side in ("planning", "training")}
    seconds = timed(bench, asked.rounds)
    tokens = [len(e.ids) for batch in bench.batches for e in batch]
    facts = run_pass(bench.request(*GROUP.inputs))[1]
    run_seconds = statistics.median(seconds["training"]) * bench.steps / TIMED_STEPS
    return {
        "planning_overhead": ratio(seconds, "planning", "plain"),
        "planning_share_of_training": ratio(seconds, "planning", "training", TIMED_STEPS / bench.steps),
        "speedup_vs_peft_eva": ratio(seconds, "peft_eva", "eva"),
        "explained_variance_ratio": explained_of_ours(bench),
        "peak_memory_ratio": memory["planning"] / memory["training"],
        "short_run_strategies": short_run_costs(bench, run_seconds),
        "training_run_seconds": run_seconds,
        "memory_bytes": memory,
        "seconds": {name: {"median": statistics.median(each), "rounds": each} for name, each in seconds.items()},
        "training_steps": {"timed": TIMED_STEPS, "of_a_run": bench.steps},
        "calibration": {"records": len(tokens), "tokens": sum(tokens), **facts},
        "study": asked.study,
        "model": Path(bench.base.name).name,
        "target_modules": len(bench.modules),
        "rounds": asked.rounds,
        "threads": torch.get_num_threads(),
        "load_before": asked.load_before,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in ("torch", "transformers", "peft")},
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="alpaca-babyllama", help="a recipe: model, data, steps of a run")
    parser.add_argument("--model", help="a folder or hub name in place of the study's")
    parser.add_argument("--data", help="a source in place of the study's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-child", choices=["planning", "training"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    asked = parser.parse_args()
    asked.load_before = os.getloadavg()[0]
    return asked


def main() -> None:
    asked = arguments()
    warnings.filterwarnings("ignore")
    bench = open_bench(asked)
    if asked.memory_child:
        print(measure_memory(bench, asked.memory_child))
        return
    text = json.dumps(report(bench, asked), indent=2)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
