"""How long the frozen products of an update alone would take, for `throughput.py`: the floor of any engine on a CPU.

Each core multiplies chunks of its own, as the passes of the bank do: the input of every target layer with its weight,
the gradient of its output with the transpose, and the output layer likewise on what is learnt. Nothing else is done.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.fused_layers import frozen_linear

ROUNDS = 5
CHUNK = 4096
"""Rows of one product, as of a bank's pass on a CPU."""


def seconds_of_products(
    base: FrozenBase,
    tokens: float,
    learnt: float,
    threads: int,
    product: Callable[[Tensor, Tensor], Tensor] = frozen_linear,
    rows: int = CHUNK,
) -> float:
    """Of one update of one adapter with so many tokens, so many of them learnt, in products of `rows` rows; the median
    over rounds."""
    learnt_rows = max(1, round(rows * learnt / tokens))
    weights = [_weight(base, m.name, m.fan_in_fan_out) for m in base.outline.modules]
    head: Tensor = base.model.get_output_embeddings().weight.detach()

    def work(_: int) -> None:
        for weight, count in [*((w, rows) for w in weights), (head, learnt_rows)]:
            product(torch.ones(count, weight.shape[1], dtype=weight.dtype), weight)
            product(torch.ones(count, weight.shape[0], dtype=weight.dtype), weight.t())

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(work, range(threads)))
        rounds = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            list(pool.map(work, range(threads)))
            rounds.append(time.perf_counter() - began)
    return statistics.median(rounds) / (threads * rows) * tokens


def _weight(base: FrozenBase, name: str, transposed: bool) -> Tensor:
    weight: Tensor = base.model.get_submodule(name).weight.detach()
    return weight.t() if transposed else weight
