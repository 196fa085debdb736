"""Memory and files of `run` over many runs: flat, whatever the number of runs that are done.

    python tests/soak/flat_memory.py [--runs 500] [--bank 10] [--out FILE]   prints JSON; exits with 1 where it grows

A real study of the embedded model in this process, in banks of `--bank` runs. Resident memory is read when the last
result of a bank is in. Growth is the slope of a line through the second half of the banks: the first ones warm caches.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from adaptive_lora.study.progress import Silent
from adaptive_lora.study.runner import Limits, run_study
from adaptive_lora.study.study_file import parse_study
from adaptive_lora.training.memory import peak_bytes, resident_bytes

STUDY = """\
name: many
model: {{name: demo}}
data: {{source: "demo:fine-tuning", train: 8, validation: 4, test: 4, max_length: 64}}
budgets: ["rank:1"]
arms: [uniform, linear-decay]
seeds: {{evaluation: 5, tuning: 5}}
train: {{steps: 2, batch_size: 2, learning_rate: {rates}}}
analysis: {{primary: [], margin: 0.01}}
controls: none
report: {{answers: 0, keep_adapters: best}}
"""
LARGEST_GROWTH = 0.02
"""MiB a run that count as flat: 10 MiB over 500 runs."""


class Watching(Silent):
    """Reads memory and counts adapters at the end of every bank."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.done: list[int] = []
        self.resident: list[float] = []
        self.adapters: list[int] = []

    def runs(self, done: int, total: int) -> None:
        if done and done % self.every == 0 and done not in self.done:
            self.done.append(done)
            self.resident.append(resident_bytes(torch.device("cpu")) / 2**20)
            kept = self.folder / "adapters"
            self.adapters.append(sum(1 for _ in kept.iterdir()) if kept.is_dir() else 0)
            print(f"{done} of {total} runs, {self.resident[-1]:.0f} MiB", file=sys.stderr, flush=True)


def measure(runs: int, bank: int) -> dict[str, object]:
    """The whole study, and what it took."""
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "out"
        watching = Watching(out, bank)
        rates = [round(1e-4 * 1.1**n, 8) for n in range(runs // 10 - 1)]  # of two arms and five seeds; five evaluate
        study = parse_study(STUDY.format(rates=rates), Path(work) / "study.yaml")
        status = run_study(study, out, watching, "cpu", limits=Limits(largest_bank=bank))
        left = sum(1 for _ in (out / "adapters").iterdir())
        ledger = (out / "study.db").stat().st_size
    half = len(watching.done) // 2
    slope = float(np.polyfit(watching.done[half:], watching.resident[half:], 1)[0])
    mib = {"first_bank": watching.resident[0], "half_way": watching.resident[half], "last_bank": watching.resident[-1],
           "peak": peak_bytes(torch.device("cpu")) / 2**20}  # fmt: skip
    return {
        "runs": status.completed, "largest_bank": bank, "finished": status.finished,
        "resident_mib": {when: round(value, 1) for when, value in mib.items()},
        "growth_mib_per_run": round(slope, 4), "flat": slope <= LARGEST_GROWTH,
        "adapters": {"most_at_once": max(watching.adapters), "left": left},
        "ledger_bytes_per_run": round(ledger / runs),
    }  # fmt: skip


def main() -> None:
    """Prints the figures; exits with 1 where memory is not flat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--bank", type=int, default=10)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = measure(asked.runs, asked.bank)
    told = json.dumps(found, indent=2) + "\n"
    print(told, end="")
    if asked.out:
        asked.out.write_text(told)
    sys.exit(0 if found["flat"] and found["finished"] else 1)


if __name__ == "__main__":
    main()
