"""Runs every study of the paper that is not finished, and exports its results: what `make studies` does.

    python scripts/studies.py [--list] [NAME ...]

Says beforehand how long each takes, by the seconds that its committed results record, and what of it is done. Every
study resumes where it stopped, and so does the script. Needs ADAPTIVE_LORA_ASSETS, the folder with the models and data
that the studies name, and ADAPTIVE_LORA_REASONING, what `scripts/reasoning_tasks.py` has written. Planted ranks
(`recovery`) come last and take longest.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

STUDIES = (
    "demo", "alpaca-original", "alpaca-babyllama", "alpaca-babyllama-full", "stability", "gsm8k-stories260k",
    "alpaca-stories260k", "ceiling-smollm2-reasoning", "ladder-smollm2", "ladder-babyllama",
    "ceiling-babyllama-alpaca", "ceiling-babyllama-reasoning", "ceiling-stories260k-alpaca",
    "ceiling-stories260k-gsm8k", "ceiling-stories260k-reasoning",
)  # fmt: skip
ON_REASONING = (
    "ceiling-smollm2-reasoning", "ladder-smollm2", "ceiling-babyllama-reasoning", "ceiling-stories260k-reasoning",
)  # fmt: skip
"""Studies on records that `scripts/reasoning_tasks.py` writes."""
REASONING = "ADAPTIVE_LORA_REASONING"
QUOTED = ("demo", "gsm8k-stories260k")
"""Studies whose data may be copied, and so quoted in what is committed; Alpaca may not."""
RECOVERY = "recovery"
PLANTED = Path("results/bench/recovery-babyllama.json")
ASSETS = "ADAPTIVE_LORA_ASSETS"
PLANTING = (
    "--budget", "rank:4", "--steps", "800", "--batch-size", "4", "--learning-rate", "3e-3", "--length", "64",
    "--first-seed", "3000", "--out", str(PLANTED),
)  # fmt: skip


def seconds_of(name: str) -> float | None:
    """What the committed results say that planning and training took, evaluations not counted."""
    path = Path("results", name, "runs.csv")
    if not path.exists():
        return None
    with path.open(newline="") as text:
        return sum(float(run[k] or 0) for run in csv.DictReader(text) for k in ("plan_seconds", "train_seconds"))


def done(name: str) -> str:
    """Runs that this checkout has finished."""
    if not Path("runs", name, "study.db").exists():
        return "not begun here"
    found = subprocess.run([*CLI, "status", f"runs/{name}", "--json"], capture_output=True, text=True, check=True)
    said = json.loads(found.stdout)
    return f"{said['expected'] - said['left']} of {said['expected']} runs done here"


def tell(names: list[str]) -> None:
    """One line a study, and the sum."""
    known = {name: seconds_of(name) for name in names if name != RECOVERY}
    for name, seconds in known.items():
        took = f"{seconds / 60:6.1f} min" if seconds is not None else "     not known"
        print(f"{name:24s} {took}  {done(name)}")
    if RECOVERY in names:
        print(f"{RECOVERY:24s} about 5 to 10 min for each truth and seed  {PLANTED}")
    total = sum(seconds or 0 for seconds in known.values())
    print(f"{'together':24s} {total / 60:6.1f} min of planning and training on the machine of the results", flush=True)


def run(name: str) -> None:
    """One study to its end, and its export."""
    if name == RECOVERY:
        assets = os.environ[ASSETS]
        where = (
            "--model",
            f"{assets}/models/babyllama-tok361",
            "--data",
            f"{assets}/data/alpaca/alpaca_random_9k.json",
        )
        subprocess.run([sys.executable, "bench/recovery.py", *where, *PLANTING], check=True)
        subprocess.run([sys.executable, "bench/recovery_figure.py", str(PLANTED)], check=True)
        return
    if name in ON_REASONING:
        subprocess.run([*CLI, "fetch", "smollm2"], check=True)
    subprocess.run([*CLI, "run", f"studies/{name}.yaml", "--out", f"runs/{name}"], check=True)
    quoted = "--answers" if name in QUOTED else "--no-answers"
    subprocess.run([*CLI, "results", f"runs/{name}", "--out", f"results/{name}", quoted], check=True)


CLI = (sys.executable, "-m", "adaptive_lora.cli.main")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*STUDIES, RECOVERY, []], help="default: all")
    parser.add_argument("--list", action="store_true", help="say how long, and stop")
    asked = parser.parse_args()
    names = asked.names or [*STUDIES, RECOVERY]
    tell(names)
    if asked.list:
        return
    if ASSETS not in os.environ and names != ["demo"]:
        raise SystemExit(f"Set {ASSETS} to the folder with the models and data that the studies name.")
    if REASONING not in os.environ and set(names) & set(ON_REASONING):
        raise SystemExit(f"Set {REASONING} to a file that `python scripts/reasoning_tasks.py FILE` has written.")
    for name in names:
        print(f"\n{name}", flush=True)
        try:
            run(name)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"{name} stopped ({error.returncode}); the same command goes on with it.") from None


if __name__ == "__main__":
    main()
