"""The strategies there are; one idea a file, and this registry above them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from adaptive_lora.errors import StrategyError, nearest_hint
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies import chance, empirical, family, linear_decay, uniform
from adaptive_lora.planning.strategies.base import Strategy, StrategyOptions

STRATEGIES: Mapping[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        uniform.STRATEGY,
        linear_decay.STRATEGY,
        family.ATTENTION_HEAVY,
        family.MLP_HEAVY,
        empirical.STRATEGY,
        chance.STRATEGY,
    )
}


def find_strategy(name: str) -> Strategy:
    """The strategy called `name`; StrategyError with the nearest name otherwise."""
    if name not in STRATEGIES:
        raise StrategyError(
            f"There is no strategy {name!r}{nearest_hint(name, STRATEGIES)}. There are: {', '.join(STRATEGIES)}."
        )
    return STRATEGIES[name]


def check_options(strategy: Strategy, options: Mapping[str, Any]) -> StrategyOptions:
    """Options as the strategy's own type; StrategyError with all that is wrong with them."""
    try:
        return strategy.options(**options)
    except ValidationError as error:
        known = strategy.options.model_fields
        complaints = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"]))
            if problem["type"] == "extra_forbidden":
                complaints.append(f"no option `{key}`{nearest_hint(key, known)}; it has {', '.join(known)}")
            else:
                complaints.append(f"`{key}`: {problem['msg'].lower()}, got {problem['input']!r}")
        raise StrategyError(f"{strategy.name}: {'; '.join(complaints)}.") from None


def coverage_warnings(modules: Sequence[ModuleShape], strategies: Iterable[str]) -> list[str]:
    """What a user should know of how these strategies meet these target modules."""
    found = []
    kinds: Counter[str] = Counter(m.kind for m in modules)
    if kinds["other"]:
        example = next(m.name for m in modules if m.kind == "other")
        found.append(f"{kinds['other']} target modules are neither attention nor MLP by their path, e.g. {example}.")
    for name in dict.fromkeys(strategies):
        favoured = {"attention-heavy": "attention", "mlp-heavy": "mlp"}.get(name)
        if favoured and kinds[favoured] in (0, len(modules)):
            some = "all" if kinds[favoured] else "none"
            found.append(f"{name} is the same as uniform here: {some} of the target modules are {favoured}.")
    return found


__all__ = ["STRATEGIES", "Strategy", "StrategyOptions", "check_options", "coverage_warnings", "find_strategy"]
