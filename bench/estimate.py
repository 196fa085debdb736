"""What `run --dry-run` says of a study, against the study itself. Prints JSON.

The dry run and then the run are processes of their own, as people start them. `seconds` are those on the clock from
start to end; `memory_bytes` the most that was resident (`RES` of `top`). `libraries_bytes` is what a process takes that
only imports what a run imports; `error_beyond_libraries` is of what comes on top of it. Errors are what was said by
what was true, less 1.

    python bench/estimate.py [--study smollm2-alpaca] [--steps 10] [--seeds 1] [--arms uniform,empirical] [--out FILE]

`--study` is a recipe's name or a study file; `--steps`, `--seeds` and `--records` make it short, the latter the records
of each split at the most.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_lora.files import write_atomically
from adaptive_lora.recipes import recipe

LIBRARIES = """
import adaptive_lora.cli.main, adaptive_lora.study.runner, peft, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
"""


@dataclass(frozen=True)
class Spent:
    """What a process took."""

    seconds: float
    peak_bytes: int
    stdout: str


def spent_by(arguments: Sequence[str]) -> Spent:
    """Of Python with these arguments; RuntimeError where it failed."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen([sys.executable, *arguments], stdout=file)
        _, status, usage = os.wait4(process.pid, 0)  # of this child alone, which getrusage does not tell
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise RuntimeError(f"{' '.join(arguments)} ended with exit code {process.returncode}")
        file.seek(0)
        text = file.read().decode()
    return Spent(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), text)


def short_study(asked: argparse.Namespace) -> dict[str, Any]:
    """The study file's content, shortened as asked."""
    from ruamel.yaml import YAML

    path = Path(asked.study)
    named = path if path.suffix in (".yaml", ".yml") else recipe(asked.study)
    study: dict[str, Any] = YAML(typ="safe").load(named.read_text())
    if asked.steps:
        study["train"].pop("epochs", None)
        study["train"]["steps"] = asked.steps
    if asked.seeds:
        study["seeds"] = {"evaluation": asked.seeds}
        study["analysis"]["primary"] = []  # which so few seeds do not decide
        study["controls"] = "none"
    if asked.arms:
        study["arms"] = asked.arms.split(",")
    for split in ("train", "validation", "test") if asked.records else ():
        study["data"][split] = min(study["data"][split], asked.records)
    return study


def error(said: float, true: float) -> float:
    return said / true - 1


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    study = short_study(asked)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.yaml"
        file.write_text(json.dumps(study))  # which YAML reads
        command = ["-m", "adaptive_lora.cli.main", "run", str(file), "--device", "cpu"]
        libraries = spent_by(["-c", LIBRARIES])
        dry = spent_by([*command, "--dry-run", "--json"])
        said = json.loads(dry.stdout)
        run = spent_by([*command, "--out", str(Path(folder) / "out")])
    memory, beyond = said["memory_bytes"], libraries.peak_bytes
    return {
        "study": Path(asked.study).stem,
        "runs": said["runs"],
        "steps": said["steps"],
        "dry_run_seconds": dry.seconds,
        "seconds": {"said": said["seconds"], "true": run.seconds, "error": error(said["seconds"], run.seconds)},
        "planning_seconds": said["planning_seconds"],
        "memory_bytes": {
            "said": memory,
            "true": run.peak_bytes,
            "error": error(memory, run.peak_bytes),
            "error_beyond_libraries": error(memory - beyond, run.peak_bytes - beyond),
        },
        "libraries_bytes": beyond,
        "asked": {name: getattr(asked, name) for name in ("steps", "seeds", "arms", "records")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="demo")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--arms", help="comma list; the baseline must be among them")
    parser.add_argument("--records", type=int)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    load_before = os.getloadavg()[0]
    found = measure(asked)
    import torch  # not before: a child begins with its parent's peak

    from throughput import machine_facts

    found["machine"] = machine_facts(torch.device("cpu"), load_before)
    text = json.dumps(found, indent=2)
    if asked.out:
        write_atomically(asked.out, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
