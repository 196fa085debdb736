"""What workers cost: two processes of one core each against one process on the same two cores. Prints JSON.

    python bench/executors.py [--steps 200 --rounds 3] [--out results/bench/executors.json]

Each side is the whole command, `adaptive-lora run`, in a process of its own on the same two cores: libraries, model and
data are loaded in it, by each worker again, and the ledger, checkpoints and adapters are written. The sides take turns;
the ratio is the median over rounds of the ratio within a round. `training` is the same without what comes before the
first bank: the time from the first message about training to the end; `processor` is processor time, all processes of
a side together, which other programs on the machine disturb less. `equal` is true where both sides ended in the same
bits.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from adaptive_lora.study.merged_rows import numbers_of
from adaptive_lora.study.open_ledger import open_to_read

STUDY = """\
name: executors
model: {name: demo}
data: {source: "demo:fine-tuning", train: 200, validation: 60, test: 200, max_length: 64}
budgets: ["rank:4"]
arms: [uniform, linear-decay, attention-only, mlp-only]
seeds: {evaluation: 6}
train: {steps: STEPS, batch_size: 8, learning_rate: 3e-3, dropout: 0.05}
analysis: {margin: 0.01, primary: []}
controls: none
report: {answers: 0}
"""
BANK_SIZE = 12
SIDES = {"one_process": [], "two_workers": ["--executor", "processes", "--workers", "2"]}


def timed(study: Path, out: Path, options: list[str], cores: set[int]) -> dict[str, float]:
    """Seconds of one side: the whole command, and from the first bank on."""
    command = [
        sys.executable, "-m", "adaptive_lora.cli.main", "run", str(study), "--out", str(out), "--device", "cpu",
        "--bank-size", str(BANK_SIZE), *options,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    began, training, used = time.monotonic(), None, cpu_seconds()
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if training is None and re.search(r"\] training ", line):
                training = time.monotonic()
    ended = time.monotonic()
    if process.returncode or training is None:
        raise SystemExit(f"{' '.join(command)} failed; run it to see why")
    return {"whole": ended - began, "training": ended - training, "processor": cpu_seconds() - used}


def cpu_seconds() -> float:
    """Processor time of all processes that this one has started and that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def results_of(folder: Path) -> dict[str, str]:
    """Run -> a hash of all its numbers."""
    with contextlib.closing(open_to_read(folder)) as ledger:
        return {run["run_id"]: numbers_of(ledger, run["run_id"]) for run in ledger.runs()}


def measure(steps: int, rounds: int, cores: set[int]) -> dict[str, Any]:
    """All rounds, one side after the other, and in the next round the other way."""
    seconds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as temporary:
        folder, ends = Path(temporary), []
        study = folder / "study.yaml"
        study.write_text(STUDY.replace("STEPS", str(steps)))
        for number in range(rounds):
            for side, options in list(SIDES.items())[:: 1 if number % 2 == 0 else -1]:
                out = folder / f"{side}-{number}"
                seconds[side].append(timed(study, out, options, cores))
                ends.append(results_of(out))
                print(f"round {number + 1} of {rounds}, {side}: {seconds[side][-1]}", file=sys.stderr, flush=True)
        equal = all(end == ends[0] for end in ends)
    found: dict[str, Any] = {"equal": equal, "runs": len(ends[0]), "steps": steps, "bank_size": BANK_SIZE}
    for part in ("whole", "training", "processor"):
        ratios = [
            two[part] / one[part] for one, two in zip(seconds["one_process"], seconds["two_workers"], strict=True)
        ]
        found[part] = {
            "ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios],
            **{side: [round(own[part], 1) for own in every] for side, every in seconds.items()},
        }  # fmt: skip
    return found


def main() -> None:
    """Prints JSON, and writes it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    if len(cores) < 2:
        raise SystemExit("Two cores are compared with two cores, and this machine has one.")
    before = os.getloadavg()[0]
    found = measure(asked.steps, asked.rounds, cores)
    machine = {
        "load_before": round(before, 2), "cores": os.cpu_count(), "machine": platform.machine(),
        "torch": importlib.metadata.version("torch"), "python": platform.python_version(),
    }  # fmt: skip
    text = json.dumps({**found, "machine": machine}, indent=2) + "\n"
    if asked.out:
        asked.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
