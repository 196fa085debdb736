"""Where a bank's updates spend their time on a CPU, and what floor that sets. Prints JSON.

Updates of a bank are recorded by torch's profiler in all of its threads. `parts` are shares of their time, by what is
computed, and add up to 1:

    products      frozen weights with activations and with gradients, the output layer's too
    losses        log-likelihoods of logits and their gradients
    lora          A, B and their gradients
    masks         drawing what LoRA dropout drops
    attention
    pointwise     norms, gates, rotations
    optimizer
    other         torch's own operations: residual additions, copies, views, new memory
    between       Python, the autograd engine, and waiting: for the interpreter, or for the pass of the other thread

`floor` says how far an engine could get that did nothing but these products: `products_alone` is their time as
`products.py` takes it, a share of an update's (recorded by no profiler), at as many rows as a pass has;
`products_in_passes` is the time that they take between everything else, likewise; `recording` is how many times as
long an update takes that is recorded.

    python bench/pass_profile.py --model smollm2 --data FILE --max-length 384 --adapters 4 --steps 3 [--out FILE]

The options are those of `throughput.py`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, record_function

from adaptive_lora.training import bank as bank_module
from adaptive_lora.training import fused_layers, head, lora_layer
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.dropout import DropoutMasks
from adaptive_lora.training.lora_ops import FusedCpu
from products import seconds_of_products
from throughput import DROPOUT, WARM_UP, Bench, arguments, machine_facts, model_facts, open_bench, silence, tokens_of

PLACES: tuple[tuple[object, str, str], ...] = (
    (fused_layers, "frozen_linear", "products"),
    (lora_layer, "frozen_linear", "products"),
    (head, "token_costs", "losses"),
    (FusedCpu, "forward", "lora"),
    (FusedCpu, "backward", "lora"),
    (DropoutMasks, "_draw", "masks"),
    (bank_module, "checked_updates", "optimizer"),
)
"""Functions of the engine that are recorded under the name of a part."""
KERNELS = {"_CompiledAttention": "attention"} | {
    f"_{name}": "pointwise" for name in ("RMSNorm", "Gate", "GELU", "Rotation")
}
"""Autograd functions, whose own time is a kernel's."""
PARTS = ("products", "losses", "lora", "masks", "attention", "pointwise", "optimizer", "other")


def _recorded(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def recorded(*given: Any, **named: Any) -> Any:
        with record_function(f"part {part}"):
            return function(*given, **named)

    return recorded


@contextlib.contextmanager
def recorded_parts() -> Iterator[None]:
    """The engine with its `PLACES` recorded."""
    with contextlib.ExitStack() as stack:
        for home, name, part in PLACES:
            stack.enter_context(mock.patch.object(home, name, _recorded(part, getattr(home, name))))
        yield


def updates(bench: Bench, record: bool) -> tuple[float, int, dict[str, float]]:
    """Seconds of the measured updates of a fresh bank, the most rows of its passes, and the seconds of each part, all
    threads together."""
    members = [
        Member(plan=j.plan, options=bench.options(DROPOUT), seed=j.seed, examples=j.examples) for j in bench.jobs
    ]
    everywhere = _ExperimentalConfig(profile_all_threads=True)
    with contextlib.ExitStack() as stack:
        if record:
            stack.enter_context(recorded_parts())
        bank = stack.enter_context(Bank(bench.base, members))
        for _ in range(WARM_UP):
            bank.step()
        profiler = profile(activities=[ProfilerActivity.CPU], experimental_config=everywhere)
        if record:
            stack.enter_context(profiler)
        began = time.perf_counter()
        for _ in range(bench.steps):
            bank.step()
        seconds = time.perf_counter() - began
    return seconds, bank.chunk_tokens, _parts(profiler) if record else {}


def _parts(profiler: profile) -> dict[str, float]:
    """Part -> seconds of its own, without what is recorded within it."""
    seconds: Counter[str] = Counter()
    for event in profiler.key_averages():
        name, own = event.key.removesuffix("Backward"), event.self_cpu_time_total / 1e6
        if name.startswith("part "):
            seconds[name.removeprefix("part ")] += own
        elif name in KERNELS:
            seconds[KERNELS[name]] += own
        elif name.startswith("aten::"):
            seconds["other"] += own
    return dict(seconds)


def report(bench: Bench) -> dict[str, Any]:
    """What `bench/pass_profile.py` prints, but for the circumstances."""
    threads, count = torch.get_num_threads(), bench.steps * len(bench.jobs)
    plain, most, _ = updates(bench, record=False)
    recorded, _, seconds = updates(bench, record=True)
    parts = {part: seconds.get(part, 0.0) / (recorded * threads) for part in PARTS}
    tokens = tokens_of(bench, bench.jobs)
    rows = min(most, round(tokens["real"] * len(bench.jobs) / threads))
    alone = seconds_of_products(bench.base, tokens["real"], tokens["completion"], threads, rows=rows)
    torch.set_num_threads(threads)
    return {
        "seconds_per_adapter_step": plain / count,
        "parts": {**parts, "between": 1 - sum(parts.values())},
        "floor": {
            "products_alone": alone * count / plain,
            "products_in_passes": parts["products"],
            "recording": recorded / plain,
        },
        "rows_of_a_pass": rows,
        "tokens_per_step": tokens,
        "adapters": len(bench.jobs),
        "threads": threads,
    }


def main() -> None:
    asked = arguments()
    silence()
    bench = open_bench(asked, asked.adapters)
    facts = {"model": model_facts(bench, asked), "machine": machine_facts(bench.device, asked.load_before)}
    text = json.dumps({**report(bench), **facts}, indent=2)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
