"""What planning a study takes by count, and what keeping its books costs, beside an older commit. Prints JSON.

Both sides run the same study in one go, the older one from a worktree of its commit:

gradient_passes        over calibration batches, for all runs of the study at the rates that its results name
short_runs             adapters trained before there is a plan
planning_seconds       for all plans
repeated               gradient passes and short runs when the runs of the first evaluation seed are planned again, as
                       after an interrupt between planning and training
status_seconds         `study_status` of a ledger of 2,862 runs; median of five
bookkeeping_seconds    what is done when a run of that study has ended: its result recorded, the study's runs counted;
                       median of fifteen

Counts do not depend on the length of training, which is two steps here.

    python bench/planning_phase.py [--study alpaca-stories260k] [--before d19e3d6] [--seeds N] [--parts planning,books]
        [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptive_lora.files import write_atomically

ROOT = Path(__file__).parent.parent
RUNS = 2862

COMMON = """\
import contextlib, json, statistics, sys, tempfile, time, warnings
from collections import Counter
from pathlib import Path
warnings.simplefilter("ignore")
study_file, rates_file, bench = (Path(argument) for argument in sys.argv[1:4])
rates = {(arm, budget): rate for arm, budget, rate in json.loads(rates_file.read_text())}
sys.path.insert(0, str(bench))
import ledger as maker
def median(do, rounds):
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
RUNS = int(sys.argv[4])
synthetic = maker.study_of(maker.Size(5, 1, max(2, RUNS // 5 - maker.RATES * maker.TUNING_SEEDS)))
folder = Path(tempfile.mkdtemp())
counts = Counter()
found = {}
"""

BEFORE_PLANNING = """\
from adaptive_lora import material as prepared
from adaptive_lora.record.runs import evaluation_runs, tuning_runs
from adaptive_lora.record.spec import load_study
from adaptive_lora.scores import adalora, agreement, one_pass
from adaptive_lora.training.bank import Bank

def counted_pass(asked, real=one_pass.take):
    found, facts = real(asked)
    counts["gradient_passes" if asked.backward else "forward_passes"] += facts["passes"]
    return found, facts

def counted_agreement(*arguments, real=agreement.listening, **options):
    counts["gradient_passes"] += 1
    return real(*arguments, **options)

def counted_adalora(short, real=adalora.adalora_ranks):
    counts["short_runs"] += 1
    return real(short)

def counted_bank(base, members, **options):
    counts["short_runs"] += len(members)
    return Bank(base, members, **options)

one_pass.take, adalora.adalora_ranks, agreement.listening = counted_pass, counted_adalora, counted_agreement
practice = prepared.Practice
prepared.Practice = lambda options: practice(options, bank=counted_bank)

study = load_study(study_file)
material = prepared.prepare(study)
runs = [*tuning_runs(study.spec), *evaluation_runs(study.spec, rates)]
def plan(some):
    for run in some:
        material.plan(run, material.training_examples(run.seed))
began = time.perf_counter()
plan(runs)
seconds, first = time.perf_counter() - began, dict(counts)
counts.clear()
plan([run for run in runs if run.phase == "evaluation" and run.seed == study.spec.seeds.evaluation[0]])
repeated = dict(counts)
found |= {"planned_runs": len(runs), **first, "planning_seconds": seconds, "repeated": repeated}
"""

BEFORE_BOOKS = """\
from adaptive_lora.judging.rates import outcome_of
from adaptive_lora.record.ledger import create_or_open
from adaptive_lora.record.status import study_status
with contextlib.closing(create_or_open(folder)) as ledger:
    total = maker.fill(ledger, synthetic)
    [run_id] = [run["run_id"] for run in ledger.runs() if run["status"] == "completed"][:1]
    plan_json, curve = ledger.plan(run_id), ledger.curve(run_id)
    results = {split: ledger.by_record(run_id, split) for split in ("validation",)}
    def after():
        ledger.complete(run_id, plan_json, curve, results, {"plan": 0.1, "train": 9.0})
        outcome_of(synthetic.spec, ledger)
    bookkeeping = median(after, 15)
"""

NOW_PLANNING = """\
from adaptive_lora.study.open_ledger import create_or_open
from adaptive_lora.study.planning_phase import plan_runs
from adaptive_lora.study.prepare import prepare
from adaptive_lora.study.progress import Silent
from adaptive_lora.study.study_file import load_study

study = load_study(study_file)
prepared = prepare(study, "cpu")
runs = [*study.matrix.tuning_runs(), *study.matrix.evaluation_runs(rates)]
by_id = {run.run_id(prepared.context): run for run in runs}
planned = Path(tempfile.mkdtemp())
with contextlib.closing(create_or_open(planned)) as ledger:
    ledger.register(by_id)
    began = time.perf_counter()
    assert not plan_runs(prepared, ledger, by_id, Silent(), lambda: False)
    seconds = time.perf_counter() - began
    first = {name: count for name, count in ledger.facts()["planning"].items() if name != "seconds"}
    distinct = len(ledger.planning.measurements())
    plan_runs(prepared, ledger, by_id, Silent(), lambda: False)
    after_all = ledger.facts()["planning"]
    repeated = {name: after_all[name] - count for name, count in first.items()}
found |= {"planned_runs": len(runs), "measurements": distinct, **first}
found |= {"planning_seconds": seconds, "repeated": repeated}
"""

NOW_BOOKS = """\
from adaptive_lora.study.engines.engine import Engine, Tally
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.open_ledger import create_or_open
from adaptive_lora.study.progress import Silent
from adaptive_lora.study.status import study_status
with contextlib.closing(create_or_open(folder)) as ledger:
    total = maker.fill(ledger, synthetic)
    [run_id] = [run["run_id"] for run in ledger.runs() if run["status"] == "completed"][:1]
    run = next(iter(synthetic.matrix.tuning_runs()))
    plan_json, curve = ledger.plan(run_id), ledger.curve(run_id)
    results = {split: ledger.by_record(run_id, split) for split in ("validation",)}
    engine = Engine(None, ledger, StudyPaths(folder), Silent(), lambda: False, 30.0, tally=Tally(0, total))
    def after():
        ledger.complete(run_id, plan_json, curve, results, {"plan": 0.1, "train": 9.0})
        engine.finished(run, "validation loss 2.0")
    bookkeeping = median(after, 15)
"""

LAST = """\
found |= {
    "ledger_runs": total, "status_seconds": median(lambda: study_status(folder), 5), "bookkeeping_seconds": bookkeeping,
}
"""


def side(source: Path, scripts: Mapping[str, str], arguments: list[str], parts: Sequence[str]) -> dict[str, Any]:
    """One side's numbers, in a process of its own with that side's code."""
    environment = {**os.environ, "PYTHONPATH": str(source / "src"), "HF_HUB_OFFLINE": "1"}
    script = COMMON + "".join(scripts[part] for part in parts) + "print(json.dumps(found))\n"
    command = [sys.executable, "-c", script, *arguments[:2], str(source / "bench"), *arguments[2:]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{source}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


BEFORE = {"planning": BEFORE_PLANNING, "books": BEFORE_BOOKS + LAST}
NOW = {"planning": NOW_PLANNING, "books": NOW_BOOKS + LAST}


def measure(study: str, before: str, seeds: int | None, runs: int, parts: Sequence[str]) -> dict[str, Any]:
    """Both sides, and their ratios."""
    text = (ROOT / "studies" / f"{study}.yaml").read_text()
    text = re.sub(r"\bsteps: \d+", "steps: 2", text)
    if seeds is not None:
        text = re.sub(r"evaluation: \d+", f"evaluation: {seeds}", text)
        text = re.sub(r"tuning: \d+", f"tuning: {min(seeds, 3)}", text)
        text = re.sub(r"primary: \[.*?\]", "primary: []", text)
    facts = json.loads((ROOT / "results" / study / "facts.json").read_text())
    # A control's name has its length in it, which is another with two steps: any rate will do, the first one does.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "study.yaml").write_text(text)
        (folder / "rates.json").write_text(json.dumps(facts["chosen_rates"]))
        arguments = [str(folder / "study.yaml"), str(folder / "rates.json"), str(runs)]
        old = folder / "before"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(old), before], cwd=ROOT, check=True)
        try:
            found = {"before": side(old, BEFORE, arguments, parts), "now": side(ROOT, NOW, arguments, parts)}
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], cwd=ROOT, check=True)
    ratios = {
        f"{name}_ratio": found["now"][name] / found["before"][name]
        for name in ("gradient_passes", "short_runs", "planning_seconds", "status_seconds", "bookkeeping_seconds")
        if name in found["before"]
    }
    return {"study": study, "before_commit": before, "evaluation_seeds": seeds or "the study's", **found, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="alpaca-stories260k", help="a recipe with committed results")
    parser.add_argument("--before", default="d19e3d6", help="the commit to measure beside this checkout")
    parser.add_argument("--seeds", type=int, help="evaluation seeds instead of the study's, for a quick look")
    parser.add_argument("--runs", type=int, default=RUNS, help="of the ledger whose books are kept")
    parser.add_argument("--parts", default="planning,books", help="what to measure; one of them for a quick look")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    asked = parser.parse_args()
    if "ADAPTIVE_LORA_ASSETS" not in os.environ and asked.study != "demo":
        raise SystemExit("skipped: ADAPTIVE_LORA_ASSETS is not set, which the study's model and data need")
    text = json.dumps(measure(asked.study, asked.before, asked.seeds, asked.runs, asked.parts.split(",")), indent=2)
    print(text)
    if asked.out:
        write_atomically(asked.out, text + "\n")


if __name__ == "__main__":
    main()
