"""Which strategies find where rank is needed, on models where it is known. Prints JSON.

Low-rank updates of known ranks are planted in a frozen model (`adaptive_lora.groundtruth`), every strategy plans
on texts of the planted model, and students of all plans learn its answers at equal parameters. Figures are shares
of the oracle's gain over uniform, with 95 % intervals over seeds; each seed draws its own planted directions,
texts, calibration and beginnings. On the uniform truth they are the excess over uniform, in units of the median
gain of the concentrated truths.

    python bench/recovery.py --model DIR --data FILE [--truths a,b] [--strategies a,b] [--seeds 5] [--out FILE]

What was done stands in --out after every planted model; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from adaptive_lora.data.encoding import Encoder
from adaptive_lora.errors import StrategyError
from adaptive_lora.files import write_atomically
from adaptive_lora.groundtruth.recovery import REAL, Setting, recover
from adaptive_lora.groundtruth.truths import TRUTHS
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.planning.strategies import STRATEGIES
from adaptive_lora.planning.strategies.registry import pinned, plain_strategy_name
from adaptive_lora.stats.recovery import CONCENTRATED, CONTROLS, summary
from adaptive_lora.study.prepare import open_base, open_records
from adaptive_lora.training.options import TrainingOptions


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo:fine-tuning", help="real texts, whose beginnings are used")
    parser.add_argument("--template", default="auto")
    parser.add_argument("--truths", default=",".join([*TRUTHS, REAL]))
    parser.add_argument("--strategies", default=",".join(name for name in STRATEGIES if name != "uniform"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--budget", default="rank:4")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--by-answers", action="store_true", help="gradients and AdaLoRA see distributions too")
    parser.add_argument("--equal-cost", action="store_true",
                        help="uniform and a search by chance get what strategies train to plan, too")  # fmt: skip
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    try:
        asked.references = [pinned(name) for name in asked.strategies.split(",") if name]
    except StrategyError as error:
        parser.error(f"--strategies: {error}")
    asked.strategies = ",".join(map(plain_strategy_name, asked.references))
    _refuse_unknown(parser, "--truths", asked.truths, [*TRUTHS, REAL])
    return asked


def _refuse_unknown(parser: argparse.ArgumentParser, option: str, asked: str, known: Collection[str]) -> None:
    if unknown := [name for name in asked.split(",") if name and name not in known]:
        parser.error(f"{option} names {', '.join(unknown)}, which is not known. Choose from {', '.join(known)}.")


def main() -> None:
    asked = arguments()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    setting = open_setting(asked)
    results = read_results(asked)
    done = {(r["truth"], r["seed"]) for r in results}
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        for truth in filter(None, asked.truths.split(",")):
            if (truth, seed) in done:
                continue
            began = time.perf_counter()
            results.append(recover(setting, truth, seed, asked.references))
            print(f"{truth}, seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            text = json.dumps(report(asked, results), indent=1)
            if asked.out:
                write_atomically(asked.out, text + "\n")
    print(json.dumps(report(asked, results), indent=1))


def open_setting(asked: argparse.Namespace) -> Setting:
    base = open_base(asked.model)
    modules = base.outline.modules
    encoder = Encoder(base.tokenizer, asked.length, asked.template)
    texts = [e for e in encoder.encode_all(open_records(asked.data).records[:2000]) if len(e.ids) >= asked.length // 2]
    training = TrainingOptions(
        learning_rate=asked.learning_rate, steps=asked.steps, batch_size=asked.batch_size, warmup=0.05
    )
    budget = resolve_budget(asked.budget, modules)
    return Setting(base=base, modules=modules, budget=budget, training=training, texts=texts, length=asked.length,
                   by_answers=asked.by_answers, equal_cost=asked.equal_cost)  # fmt: skip


def circumstances(asked: argparse.Namespace) -> dict[str, Any]:
    names = ("template", "budget", "steps", "batch_size", "learning_rate", "length", "strategies", "by_answers",
             "equal_cost")  # fmt: skip
    return {"model": Path(asked.model).name, "data": Path(asked.data).name, **{n: getattr(asked, n) for n in names}}


def read_results(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """What an earlier call left; SystemExit where that was another comparison."""
    if not asked.out or not asked.out.exists():
        return []
    before = json.loads(asked.out.read_text())
    now = circumstances(asked)  # files of earlier versions may say less
    if any(now.get(name) != value for name, value in before["circumstances"].items()):
        raise SystemExit(f"{asked.out} holds another comparison: {before['circumstances']}. Name another --out.")
    return list(before["results"])


def report(asked: argparse.Namespace, results: list[dict[str, Any]]) -> dict[str, Any]:
    """The best strategy is the one with the largest mean share over the concentrated truths that count."""
    found = summary(results, CONCENTRATED)
    counting = [t for t in CONCENTRATED if t in found and found[t]["counts"]]
    names = [n for n in asked.strategies.split(",") if n and n not in CONTROLS]
    means = {n: [found[t]["strategies"][n]["share_of_oracle_gain"]["mean"] for t in counting] for n in names}
    # A student that diverged leaves its strategy without a mean.
    shares = {n: sum(own) / len(own) for n, own in means.items() if own and None not in own}
    best = max(shares, key=lambda n: shares[n]) if shares else None
    uniform = found.get("uniform", {}).get("strategies", {})
    return {
        "circumstances": circumstances(asked),
        "best_strategy": best,
        "best_concentrated_share": shares.get(best or ""),
        "best_uniform_excess": uniform[best]["excess"]["mean"] if best in uniform else None,
        "concentrated_shares": dict(sorted(shares.items(), key=lambda item: -item[1])),
        "truths": found,
        "results": results,
    }


if __name__ == "__main__":
    main()
