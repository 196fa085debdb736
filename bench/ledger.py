"""What reading a large study costs. Prints JSON.

runs                  in a synthetic ledger: plans of 42 modules, curves of --steps steps, 400 test records
status_seconds        the verb `status` on it, a process of its own from start to end, median of three
results_seconds       the verb `results --json`, likewise
report_seconds        report, figures and tables from it, in a fresh process, from start to end
peak_bytes            the most memory that this process held
small_report_seconds  the same for a study of 200 runs
page_bytes            the size of the page of the large one
study_report_seconds  with --study: the verb `report` on that finished study, median of five; all five beside it

python bench/ledger.py [--runs 10000] [--small 200] [--steps 1000] [--study FOLDER] [--out FILE] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaptive_lora.files import write_atomically
from adaptive_lora.planning.budget_text import parse_budget
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.stats.run_table import Status
from adaptive_lora.streams import numpy_stream
from adaptive_lora.study.ledger import Ledger, SplitResult
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.study_file import Study, parse_study

BLOCKS, ROLES, RECORDS = 6, ("q", "k", "v", "o", "gate", "up", "down"), 400
RATES, TUNING_SEEDS = 4, 5
ROUNDS = 5
REPORT = """\
import json, resource, sys, time
started = time.perf_counter()
from pathlib import Path
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.reporting.html.build import write_report
folder = Path(sys.argv[1])
path = write_report(open_to_read(folder), folder)
scale = 1 if sys.platform == "darwin" else 1024
print(json.dumps({"seconds": time.perf_counter() - started, "page_bytes": path.stat().st_size,
                  "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale}))
"""


@dataclass(frozen=True)
class Size:
    """How a study's runs are made up: every arm at every budget, tuned and evaluated."""

    arms: int
    budgets: int
    seeds: int
    steps: int

    @property
    def runs(self) -> int:
        """All of them."""
        return self.arms * self.budgets * (self.seeds + RATES * TUNING_SEEDS)


def size_of(runs: int, steps: int) -> Size:
    """Five budgets of twenty arms for thousands of runs, one of five for hundreds; the seeds make up the number."""
    arms, budgets = (20, 5) if runs >= 4000 else (5, 1)
    return Size(arms, budgets, max(2, math.ceil(runs / (arms * budgets)) - RATES * TUNING_SEEDS), steps)


def study_of(size: Size) -> Study:
    """A study of that size; its arms differ in an option."""
    decays = range(1, size.arms)
    slopes = [f"{{name: decay-{i:02d}, strategy: linear-decay, options: {{slope: {i / 100}}}}}" for i in decays]
    arms = ["uniform", *slopes]
    return parse_study(
        f"""\
name: synthetic
model: {{name: demo}}
data: {{source: "demo:fine-tuning", train: 100, validation: 100, test: {RECORDS}}}
budgets: {json.dumps([f"rank:{2**i}" for i in range(2, 2 + size.budgets)])}
arms: [{", ".join(arms)}]
seeds: {{evaluation: {size.seeds}, tuning: {TUNING_SEEDS}}}
train: {{steps: {size.steps}, learning_rate: [1e-4, 3e-4, 1e-3, 3e-3]}}
analysis: {{margin: 0.01, primary: [decay-01, decay-02]}}
controls: none
""",
        Path("synthetic.yaml"),
    )


def shapes() -> tuple[ModuleShape, ...]:
    """Forty-two modules of a small Llama."""
    return tuple(
        ModuleShape(f"model.layers.{depth}.{'self_attn' if i < 4 else 'mlp'}.{role}_proj",
                    "attention" if i < 4 else "mlp", depth, 128, 128 if i < 4 else 384)
        for depth in range(BLOCKS)
        for i, role in enumerate(ROLES)
    )  # fmt: skip


def fill(ledger: Ledger, study: Study) -> int:
    """Records every run of the study, one in two hundred of them diverged; returns their number."""
    matrix, rng, steps = study.matrix, numpy_stream(0, "ledger"), study.spec.train.steps
    assert steps is not None
    runs = [*matrix.tuning_runs(), *matrix.evaluation_runs({cell.key: 1e-3 for cell in matrix.cells})]
    named = {f"{i:016x}": run for i, run in enumerate(runs)}
    ledger.set_facts(facts_of(study, len(runs)))
    ledger.register(named)
    ledger.store_base({split: result_of(rng, 3.0) for split in ("validation", "test")})
    for (run_id, run), kind in zip(named.items(), rng.random(len(runs)), strict=True):
        ledger.begin(run_id, "bank", "cpu", steps)
        if kind < 0.005:
            ledger.fail(run_id, Status.DIVERGED, "loss is not finite at step 12", 12)
            continue
        loss = 2.0 + 0.01 * int(run.arm.name[-2:] if run.arm.name[-2:].isdigit() else 0) / 20
        splits = ("validation",) if run.phase == "tuning" else ("validation", "test")
        results = {split: result_of(rng, loss) for split in splits}
        ledger.complete(run_id, plan_of(run, rng).to_json(), curve_of(rng, steps), results, {"plan": 0.1, "train": 9.0})
    return len(runs)


def plan_of(run: Run, rng: np.random.Generator) -> RankPlan:
    """Ranks about the budget's, of one size for all arms, with a score for every module."""
    modules, rank = shapes(), parse_budget(run.budget)[1]
    spread = 1 + np.arange(len(modules)) % (2 * rank - 1)
    ranks = {}
    for price in dict.fromkeys(m.params_per_rank for m in modules):  # modules of one price trade ranks
        own = [i for i, m in enumerate(modules) if m.params_per_rank == price]
        ranks |= {modules[i].name: int(r) for i, r in zip(own, rng.permutation(spread[own]), strict=True)}
    cost = sum(m.params_per_rank * ranks[m.name] for m in modules)
    scores = dict(zip(ranks, rng.random(len(ranks)).tolist(), strict=True))
    return RankPlan("linear-decay", cost, modules, ranks, Scaling("constant", 2.0, float(rank)), scores=scores)


def curve_of(rng: np.random.Generator, count: int) -> dict[str, Any]:
    """A loss that falls, with the noise of batches."""
    steps = np.arange(count, dtype=float)
    loss = 2 + np.exp(-steps / 30) + 0.1 * rng.standard_normal(count)
    return {"step": steps, "loss": loss, "gradient_norm": loss, "learning_rate": 1e-3 * (1 - steps / count),
            "tokens": np.full(count, 512.0)}  # fmt: skip


def result_of(rng: np.random.Generator, loss: float) -> SplitResult:
    """Losses of records about a mean."""
    tokens = numpy_stream(0, "tokens").integers(5, 60, RECORDS)  # every run is tested on the same records
    nll = tokens * (loss + 0.3 * rng.standard_normal(RECORDS))
    return SplitResult(nll, tokens, rng.random(RECORDS) < 0.3)


def facts_of(study: Study, runs: int) -> dict[str, Any]:
    """As a run would record them."""
    spec = study.spec.model_dump(mode="json")
    return {
        "name": "synthetic", "identity": study.identity, "spec": spec, "text": study.text,
        "versions": {"python": "3"}, "expected_runs": {"evaluation": runs},
        "model": {"name": "demo", "revision": "none", "dtype": "float32", "total_parameters": 1_000_000,
                  "context": 128, "target_modules": len(shapes())},
        "data": {"source": "demo:fine-tuning", "form": "alpaca", "revision": None, "fingerprint": "0" * 64,
                 "records": 4000, "duplicates": 0, "unusable": 0, "licence": None, "exact_answers": True,
                 "truncated_test": 0},
        "budgets": {text: sum(m.params_per_rank for m in shapes()) * parse_budget(text)[1] for text in spec["budgets"]},
        "lock": {"primary": [{"arm": f"decay-{i:02d}", "budget": spec["budgets"][0]} for i in (1, 2)],
                 "controls": {"arms": {}, "baseline_alone_at": [], "compute": {}, "twin": False}, "deviations": [],
                 "locked": "2026-01-02T03:04:05+00:00"},
    }  # fmt: skip


@contextlib.contextmanager
def folder_for(keep: Path | None, name: str) -> Iterator[Path]:
    """A place for a ledger: one that stays, or one that goes."""
    if keep is not None:
        (keep / name).mkdir(parents=True, exist_ok=True)
        yield keep / name
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def verb_seconds(verb: str, folder: Path, rounds: int) -> list[float]:
    """Of the verb on the folder, `rounds` times, each in a process of its own, from its start to its end."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        command = [sys.executable, "-m", "adaptive_lora.cli.main", verb, str(folder), "--json"]
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(round(time.perf_counter() - began, 2))
    return seconds


def measure(size: Size, keep: Path | None) -> dict[str, Any]:
    """Makes a ledger of that size, and reads it in processes of their own."""
    with folder_for(keep, str(size.runs)) as folder:
        with contextlib.closing(create_or_open(folder)) as ledger:
            ledger._db.execute("PRAGMA synchronous = OFF")  # a measurement's ledger need not survive a power cut
            made = fill(ledger, study_of(size))
        done = subprocess.run([sys.executable, "-c", REPORT, str(folder)], check=True, capture_output=True, text=True)
        verbs = {f"{verb}_seconds": statistics.median(verb_seconds(verb, folder, 3)) for verb in ("status", "results")}
        return {"runs": made, **verbs, **json.loads(done.stdout)}


def measure_study(folder: Path) -> dict[str, Any]:
    """The verb, from its start to its end, on a study that was really trained."""
    seconds = verb_seconds("report", folder, ROUNDS)
    with contextlib.closing(open_to_read(folder)) as ledger:
        runs = len(ledger.runs())
    middle = statistics.median(seconds)
    return {"study": folder.name, "study_runs": runs, "study_report_seconds": middle, "study_rounds": seconds}


def main() -> None:
    """Both sizes, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--small", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1000, help="Points of every curve.")
    parser.add_argument("--study", type=Path, help="A finished study, to make the report of.")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", type=Path, help="Leave ledgers and reports here.")
    asked = parser.parse_args()
    study = measure_study(asked.study) if asked.study else {}
    small, large = (measure(size_of(runs, asked.steps), asked.keep) for runs in (asked.small, asked.runs))
    found = {
        "runs": large["runs"], "steps": asked.steps, "status_seconds": large["status_seconds"],
        "results_seconds": large["results_seconds"], "report_seconds": round(large["seconds"], 2),
        "peak_bytes": large["peak_bytes"], "page_bytes": large["page_bytes"], "small_runs": small["runs"],
        "small_report_seconds": round(small["seconds"], 2), **study,
    }  # fmt: skip
    text = json.dumps(found, indent=2) + "\n"
    if asked.out:
        write_atomically(asked.out, text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
