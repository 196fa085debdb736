"""How long exact planning takes on a large network, and what it leaves unspent. Prints JSON.

560 modules with the shapes of an 80-block Llama of width 8192, ranks up to 256, random weights of very
different spread, and budgets from rank 4 to rank 128, some of them no whole multiple of anything.

    python bench/budget.py [--vectors 40]
"""

from __future__ import annotations

import argparse
import json
import platform
import time

from adaptive_lora.planning.budget import resolve_budget, spend
from adaptive_lora.planning.modules import ModuleShape, kind_of, total_cost
from adaptive_lora.streams import numpy_stream

BLOCK = {
    "self_attn.q_proj": (8192, 8192), "self_attn.k_proj": (8192, 1024), "self_attn.v_proj": (8192, 1024),
    "self_attn.o_proj": (8192, 8192), "mlp.gate_proj": (8192, 28672), "mlp.up_proj": (8192, 28672),
    "mlp.down_proj": (28672, 8192),
}  # fmt: skip
UNIT = 1024
"""Greatest common divisor of the costs: no plan can spend a remainder below it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=40)
    vectors = parser.parse_args().vectors
    modules = [
        ModuleShape(name, kind_of(name), block, *size)
        for block in range(80)
        for role, size in BLOCK.items()
        for name in (f"model.layers.{block}.{role}",)
    ]
    seconds, unspent = [], []
    for index in range(vectors):
        draw = numpy_stream(index, "bench-budget")
        weights = dict(zip([m.name for m in modules], draw.lognormal(0, 0.5 + index % 4, len(modules)), strict=True))
        budget = resolve_budget(f"rank:{2 ** (2 + index % 6)}", modules).parameters + int(draw.integers(10**6))
        began = time.perf_counter()
        ranks = spend(modules, weights, budget, min_rank=1, max_rank=256)
        seconds.append(time.perf_counter() - began)
        unspent.append(budget - total_cost(modules, ranks))
    print(
        json.dumps(
            {
                "modules": len(modules),
                "vectors": vectors,
                "seconds": max(seconds),
                "seconds_median": sorted(seconds)[vectors // 2],
                "unspent": max(rest // UNIT * UNIT for rest in unspent),
                "unspendable_remainder": max(rest % UNIT for rest in unspent),
                "python": platform.python_version(),
                "machine": platform.machine(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
