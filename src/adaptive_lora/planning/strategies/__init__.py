"""The package's own strategies, one idea a file, and `registry`, which knows others too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies import (
    adalora,
    chance,
    coverage,
    depth,
    empirical,
    eva,
    family,
    fim,
    gora,
    lora_drop,
    marginal_gain,
    only,
    posthoc_svd,
    spectral,
    stable_rank,
    transforms,
    uniform,
)
from adaptive_lora.planning.strategies.base import Strategy, StrategyOptions, check_options
from adaptive_lora.planning.strategies.registry import STRATEGIES, find_strategy

_OWN = (
    uniform.STRATEGY,
    depth.LINEAR_DECAY,
    depth.LINEAR_GROWTH,
    depth.U_SHAPE,
    family.ATTENTION_HEAVY,
    family.MLP_HEAVY,
    coverage.ATTENTION_ONLY,
    coverage.MLP_ONLY,
    only.STRATEGY,
    empirical.STRATEGY,
    gora.STRATEGY,
    fim.STRATEGY,
    spectral.STRATEGY,
    eva.STRATEGY,
    stable_rank.STRATEGY,
    posthoc_svd.STRATEGY,
    lora_drop.STRATEGY,
    adalora.STRATEGY,
    marginal_gain.STRATEGY,
    chance.STRATEGY,
    transforms.INVERTED,
    transforms.SHUFFLED,
)
STRATEGIES.update((strategy.name, strategy) for strategy in _OWN)


def coverage_warnings(modules: Sequence[ModuleShape], strategies: Iterable[str]) -> list[str]:
    """What a user should know of how these strategies meet these target modules."""
    found = []
    kinds: Counter[str] = Counter(m.kind for m in modules)
    if kinds["other"]:
        example = next(m.name for m in modules if m.kind == "other")
        found.append(f"{kinds['other']} target modules are neither attention nor MLP by their path, e.g. {example}.")
    for name in dict.fromkeys(strategies):
        favoured = {"attention-heavy": "attention", "mlp-heavy": "mlp"}.get(name) or find_strategy(name).covers
        if favoured and kinds[favoured] in (0, len(modules)):
            some = "all" if kinds[favoured] else "none"
            found.append(f"{name} is the same as uniform here: {some} of the target modules are {favoured}.")
    return found


__all__ = ["STRATEGIES", "Strategy", "StrategyOptions", "check_options", "coverage_warnings", "find_strategy"]
