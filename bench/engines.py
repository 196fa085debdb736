"""A whole study by both engines: how far their test losses lie apart, and how long each took. Prints JSON.

The reference engine trains one adapter after another through PEFT; the bank trains all at once. Both take
the same study file, here a recipe's with so many seeds, in single precision, dropout as the study says.

    python bench/engines.py [--study alpaca-babyllama] [--seeds 4] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptive_lora.recipes import recipe
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.study_file import load_study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="alpaca-babyllama", help="a recipe's name")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    asked = parser.parse_args()
    results, seconds = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for engine in ("bank", "reference"):
            results[engine], seconds[engine] = run(asked.study, asked.seeds, engine, Path(folder) / engine)
    report = compare(asked, results, seconds)
    text = json.dumps(report, indent=2)
    if asked.out:
        asked.out.write_text(text + "\n")
    print(text)


def run(name: str, seeds: int, engine: str, folder: Path) -> tuple[dict[str, float], float]:
    """Test loss by arm, budget and seed, and the seconds of the study from start to end."""
    study = load_study(recipe(name))
    more = {"engine": engine, "seeds": study.spec.seeds.model_copy(update={"evaluation": list(range(seeds))})}
    began = time.perf_counter()
    run_study(replace(study, spec=study.spec.model_copy(update=more)), folder)
    took = time.perf_counter() - began
    table = load_results(folder)
    return {f"{r.arm} {r.budget} {r.seed}": r.test_loss for r in table.itertuples()}, took


def compare(
    asked: argparse.Namespace, results: dict[str, dict[str, float]], seconds: dict[str, float]
) -> dict[str, Any]:
    """The largest relative difference, and all losses."""
    bank, reference = results["bank"], results["reference"]
    apart = {run: abs(bank[run] - loss) / loss for run, loss in reference.items()}
    return {
        "study": asked.study,
        "adapters": len(reference),
        "max_relative_difference": max(apart.values()),
        "median_relative_difference": sorted(apart.values())[len(apart) // 2],
        "study_seconds": seconds,
        "test_loss": {run: [bank[run], loss] for run, loss in reference.items()},
    }


if __name__ == "__main__":
    main()
