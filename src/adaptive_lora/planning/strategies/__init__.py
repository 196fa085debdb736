"""The package's own strategies, one idea a file, and `registry`, which knows others too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies import (
    adalora,
    averaged,
    chance,
    coverage,
    depth,
    empirical,
    eva,
    family,
    fim,
    gora,
    hindsight,
    kappa,
    last_blocks,
    lora_drop,
    marginal_gain,
    nested,
    only,
    page,
    posthoc_svd,
    search,
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
    last_blocks.STRATEGY,
    only.STRATEGY,
    empirical.STRATEGY,
    gora.STRATEGY,
    fim.STRATEGY,
    page.SPREAD,
    page.TOP_K,
    spectral.STRATEGY,
    eva.STRATEGY,
    stable_rank.STRATEGY,
    kappa.STRATEGY,
    posthoc_svd.STRATEGY,
    lora_drop.STRATEGY,
    nested.STRATEGY,
    adalora.STRATEGY,
    marginal_gain.STRATEGY,
    hindsight.STRATEGY,
    search.STRATEGY,
    averaged.BY_KIND,
    averaged.BY_DEPTH,
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
    names = list(dict.fromkeys(strategies))
    for name in names:
        favoured = {"attention-heavy": "attention", "mlp-heavy": "mlp"}.get(name) or find_strategy(name).covers
        if favoured and kinds[favoured] in (0, len(modules)):
            some = "all" if kinds[favoured] else "none"
            found.append(f"{name} is the same as uniform here: {some} of the target modules are {favoured}.")
    depths = {m.depth for m in modules}
    if "last-blocks" in names and len(find_strategy("last-blocks").covered(modules)) == len(modules):
        found.append(
            f"last-blocks is the same as uniform here: all of the target modules are in the last {len(depths)} blocks."
        )
    return found


__all__ = ["STRATEGIES", "Strategy", "StrategyOptions", "check_options", "coverage_warnings", "find_strategy"]
