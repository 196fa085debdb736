"""GoRA's shares of the budget: mean |W·G|, divided by the price of a module."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import GradientOptions, Scores, Strategy

Price = Literal["sqrt", "log1p", "identity"]
_PRICES: Mapping[str, Callable[[float], float]] = {"sqrt": math.sqrt, "log1p": math.log1p, "identity": float}
_TEMPERATURE = 0.5


class Options(GradientOptions):
    """Options of `gora`."""

    share: Literal["linear", "softmax"] = "linear"
    """How importances become shares of the budget."""
    price: Price = "sqrt"
    """f, by which the price of a unit of rank, d_in + d_out, counts."""


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options) -> dict[str, int]:
    """r_l ∝ a_l / f(d_in + d_out), I_l = mean |W_l ⊙ G_l|, a_l = I_l / Σ I.

    With `share: softmax`, a = softmax((I - min I) / (max I - min I) / T) at T = 1/2. f is the square root
    in the paper (GoRA, arXiv 2502.12171). GoRA rounds down and clips, and misses its budget by up to a
    tenth; here the same targets are put exactly on it.
    """
    shares = shares_of({m.name: scores["weight-gradient"][m.name] for m in modules}, options.share)
    price = _PRICES[options.price]
    weights = {m.name: shares[m.name] / price(m.params_per_rank) for m in modules}
    return spend(modules, weights, budget, options.min_rank, options.max_rank, options.power)


def shares_of(importance: Mapping[str, float], share: Literal["linear", "softmax"]) -> dict[str, float]:
    """Importances as shares that sum to 1.

    >>> shares_of({"q": 1.0, "v": 3.0}, "linear")
    {'q': 0.25, 'v': 0.75}
    """
    low, high = min(importance.values()), max(importance.values())
    if share == "softmax":
        span = high - low or 1.0
        importance = {name: math.exp((value - low) / span / _TEMPERATURE) for name, value in importance.items()}
    total = math.fsum(importance.values()) or 1.0
    return {name: value / total for name, value in importance.items()}


STRATEGY = Strategy(
    "gora",
    "rank follows mean |W·G|, less for modules whose rank costs more",
    "GoRA, arXiv 2502.12171",
    allocate,
    Options,
    needs=lambda options: ("weight-gradient",),
)
