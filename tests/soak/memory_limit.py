"""A bank under limits of memory that the system sets: it backs off and trains the same, or ends with a clear error.

    python tests/soak/memory_limit.py [--out FILE]   prints JSON; exits with 1 where a process does otherwise

Each limit (RLIMIT_AS, what `ulimit -v` sets) has a process of its own, in which a bank of eight adapters takes three
updates and evaluates, once with the compiled kernels and once by torch, whose oneDNN allocates for itself.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

LIMITS = (100, 200, 400, 420, 500, 700)
"""MiB beyond what the process has when training begins."""


def train(extra: int) -> dict[str, Any]:
    """Losses of the last evaluation under a limit, or of none (0); what ran out of memory on the way."""
    import torch

    from adaptive_lora import demo
    from adaptive_lora.data.encoding import Encoder
    from adaptive_lora.data.sources import from_dicts
    from adaptive_lora.demo.tasks import generate
    from adaptive_lora.planning.plan import RankPlan, Scaling
    from adaptive_lora.training import bank as engine
    from adaptive_lora.training.bank import Bank, Member
    from adaptive_lora.training.base import load_base
    from adaptive_lora.training.options import TrainingOptions

    torch.set_num_threads(1)
    base = load_base(demo.MODEL, demo.model_folder())
    modules = base.outline.modules
    ranks = dict.fromkeys((m.name for m in modules), 4)
    plan = RankPlan("ranks", sum(4 * m.params_per_rank for m in modules), modules, ranks, Scaling())
    records = from_dicts(generate("fine-tuning", 64), "demo").records
    examples = list(Encoder(base.tokenizer, 512).encode_all(records))
    options = TrainingOptions(learning_rate=1e-3, steps=3, batch_size=64)
    members = [Member(plan=plan, options=options, seed=seed, examples=examples) for seed in range(8)]
    raised: dict[str, int] = {}
    judged = engine.is_out_of_memory

    def noted(error: BaseException) -> bool:
        words = str(error)[:60].split(":")[0]
        raised[words] = raised.get(words, 0) + 1
        return judged(error)

    engine.is_out_of_memory = noted
    with Bank(base, members, workers=1, chunk_tokens=100_000) as bank:
        if extra:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + extra * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
        while bank.running:
            bank.step()
        losses = [own.loss for own in bank.evaluate(examples)]
        return {"losses": losses, "raised": raised, "chunk_tokens": bank.chunk_tokens}


def tried(extra: int, kernels: str) -> dict[str, Any]:
    """The same in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ADAPTIVE_LORA_KERNEL": kernels}
    done = subprocess.run([sys.executable, __file__, "--train", str(extra)], env=environment, capture_output=True,
                          text=True, check=False)  # fmt: skip
    if done.returncode:
        return {"exit": done.returncode, "said": (done.stderr.strip().splitlines() or [""])[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Prints what every limit did; exits with 1 where a bank did not back off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--train", type=int)
    asked = parser.parse_args()
    if asked.train is not None:
        print(json.dumps(train(asked.train)))
        return
    found: dict[str, dict[str, Any]] = {}
    for kernels in ("on", "off"):
        free = tried(0, kernels)["losses"]
        for extra in LIMITS:
            own = tried(extra, kernels)
            losses = own.pop("losses", None)
            apart = losses and max(abs(a - b) / b for a, b in zip(losses, free, strict=True))
            found.setdefault(f"kernels {kernels}", {})[f"{extra} MiB"] = {**own, "largest_difference": apart}
            print(kernels, extra, own, apart, file=sys.stderr, flush=True)
    good = all(own["largest_difference"] is not None and own["largest_difference"] < 1e-5
               for limits in found.values() for own in limits.values())  # fmt: skip
    told = json.dumps({"limits": found, "right": good}, indent=2) + "\n"
    print(told, end="")
    if asked.out:
        asked.out.write_text(told)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
