"""`@strategy` and `@measure`: a strategy of one's own from one function, without an edit of the package."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeVar, get_args

from pydantic import create_model

from adaptive_lora.errors import StrategyError
from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import Kind, ModuleShape, total_cost
from adaptive_lora.planning.strategies.base import (
    MEASURES,
    AgreementOptions,
    CalibrationOptions,
    ComponentOptions,
    Effort,
    GradientOptions,
    OverRankOptions,
    ScoredOptions,
    Scores,
    ShortRunOptions,
    Strategy,
    StrategyOptions,
    bends_weights,
)
from adaptive_lora.planning.strategies.registry import (
    OutsideMeasure,
    code_of,
    explained,
    measure_key,
    register,
    register_measure,
)

Weights = Callable[..., Mapping[str, Any]]
"""(modules, scores, options) -> module -> weight or whole rank; with a fourth parameter `budget` where it takes one."""
F = TypeVar("F", bound=Callable[..., Mapping[str, Any]])
Needs = Sequence[str] | Callable[[Any], Sequence[str]]

_OPTIONS_BY_EFFORT: Mapping[Effort, type[StrategyOptions]] = {
    "none": StrategyOptions,
    "weights": ScoredOptions,
    "data": CalibrationOptions,
    "gradients": GradientOptions,
    "training": ShortRunOptions,
}
_OPTIONS_BY_MEASURE: Mapping[str, type[StrategyOptions]] = {
    "input-spectrum": ComponentOptions,
    "marginal-gain": AgreementOptions,
    "update-spectrum": OverRankOptions,
    "update-spectrum-on-inputs": OverRankOptions,
    "output-norm": OverRankOptions,
    "update-spectrum-on-loss": OverRankOptions,
}


def strategy(
    name: str,
    *,
    needs: Needs = (),
    options: type[StrategyOptions] | Mapping[str, Any] | None = None,
    source: str = "",
    chance: bool = False,
    covers: Kind | None = None,
) -> Callable[[Weights], Strategy]:
    """Decorates a function `(modules, scores, options)` that returns how much rank each module deserves.

    It returns, by module name, either weights (the planner makes whole ranks of them that cost the budget exactly) or
    whole ranks (all numbers integers), which must cost the budget themselves; a fourth parameter `budget` receives it.
    Its docstring's first line is the summary in lists.

    `needs` names measures, of the package or defined above with `@measure`: `scores[measure][module]`. `options` is a
    mapping of names to defaults, or a subclass of `StrategyOptions` with constraints; strategies that measure have
    `power` too, which needs no code (`ScoredOptions`). `chance`: the plan is drawn from
    `options.seed`. `covers`: the only kind of module that gets an adapter. `source` is the paper.

    The strategy is known by its name in this process, and by `file.py:name` from its file. Raises StrategyError.

    >>> @strategy("ends", options={"share": 3.0})
    ... def ends(modules, scores, options):
    ...     "More rank in the first block."
    ...     return {m.name: options.share if m.depth == 0 else 1.0 for m in modules}
    >>> ends.summary, ends.options().share
    ('More rank in the first block.', 3.0)
    """

    def decorate(function: Weights) -> Strategy:
        if not inspect.isfunction(function):
            raise StrategyError(f"@strategy({name!r}) decorates a function, got a {type(function).__name__}.")
        origin, digest = code_of(function)

        def resolved(options: Any) -> tuple[str, ...]:
            return tuple(measure_key(need, digest) for need in (needs(options) if callable(needs) else needs))

        fixed = () if callable(needs) else resolved(None)
        made = Strategy(
            name,
            (inspect.getdoc(function) or "").split("\n")[0],
            source or f"outside the package, {origin.rpartition('/')[2]}",
            lambda modules, scores, budget, options: _allocate(made, function, modules, scores, budget, options),
            _options(name, options, fixed, chance),
            needs=resolved,
            chance=chance,
            covers=covers,
            origin=origin,
            digest=digest,
        )
        return register(made)

    return decorate


def measure(name: str, *, effort: Effort) -> Callable[[F], F]:
    """Decorates a function `(base, modules)` or `(base, modules, batches)`: module name -> a number.

    `base` has the frozen `model`, its `tokenizer` and `device`; `batches` are lists of encoded training examples, drawn
    by the seed. `effort` says what it costs: `weights` (reads the frozen weights; no data), `data` (forward passes),
    `gradients` or `training`. What costs data is measured anew for every seed of a study. Raises StrategyError.
    """

    def decorate(function: F) -> F:
        if effort not in get_args(Effort)[1:]:
            raise StrategyError(f"The effort of {name!r} is one of {', '.join(get_args(Effort)[1:])}, got {effort!r}.")
        register_measure(OutsideMeasure(name, effort, function), *code_of(function))
        return function

    return decorate


def take_outside(
    measure: OutsideMeasure, base: Any, modules: Sequence[ModuleShape], batches: Sequence[Any]
) -> dict[str, Any]:
    """The values of an outside measure, a finite number for every module (or a sequence of them); StrategyError."""
    path = code_of(measure.function)[0]
    given = (base, modules, batches)[: len(inspect.signature(measure.function).parameters)]
    with explained(f"the measure {measure.name} failed", path):
        found = dict(measure.function(*given))
        values = {m.name: _number(found[m.name]) if m.name in found else None for m in modules}
    if bad := [f"{name}: {found.get(name)!r}" for name, value in values.items() if value is None]:
        raise StrategyError(
            f"{path}: the measure {measure.name} must give a finite number for each of {len(modules)} modules, got "
            f"{', '.join(bad[:3])}."
        )
    return values


def _number(value: Any) -> Any:
    """A float, or a list of floats; None where one is not finite."""
    if isinstance(value, Sequence):
        numbers = [_number(part) for part in value]
        return None if None in numbers else numbers
    return float(value) if math.isfinite(value) else None


def _options(
    name: str, given: type[StrategyOptions] | Mapping[str, Any] | None, needs: Sequence[str], chance: bool
) -> type[StrategyOptions]:
    """The options' type: what the measures go by, and the strategy's own."""
    asked = [_OPTIONS_BY_MEASURE.get(need, _OPTIONS_BY_EFFORT[MEASURES[need]]) for need in needs]
    bases = [t for t in dict.fromkeys(asked) if not any(o is not t and issubclass(o, t) for o in asked)]
    if isinstance(given, type):
        if missing := [base.__name__ for base in bases if not issubclass(given, base)]:
            raise StrategyError(
                f"The options of {name} must derive from {' and '.join(missing)}, which its measures go by; "
                f"got {given.__name__}."
            )
        return given
    fields = {**({"seed": 0} if chance else {}), **(given or {})}
    kinds: dict[str, Any] = {key: (Any if value is None else type(value), value) for key, value in fields.items()}
    return create_model("Options", __base__=tuple(bases) or StrategyOptions, **kinds)


def _allocate(
    made: Strategy, function: Weights, modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Any
) -> dict[str, int]:
    """Ranks from what the function returns; StrategyError with what is wrong with it."""
    own = {key.partition("@")[0]: scores[key] for key in made.needs(options)}
    more = {"budget": budget} if "budget" in inspect.signature(function).parameters else {}
    covered = made.covered(modules, options)
    power = options.power if bends_weights(type(options)) else 1.0
    with explained(f"the strategy {made.name} failed", made.origin or ""):
        found = function(modules, own, options, **more)
        missing = [m.name for m in covered if m.name not in found]
        values = {m.name: found[m.name] for m in covered if m.name in found}
        whole = all(isinstance(v, Integral) and not isinstance(v, bool) for v in values.values())
        weights = {name: float(value) for name, value in values.items()}
    bad = [f"{name}: {weight}" for name, weight in weights.items() if not 0 <= weight < math.inf]
    if missing:
        wrong = f"it must return a value for each of {len(covered)} modules by name, and has none for {missing[0]}"
    elif bad:
        wrong = f"weights must be finite and not negative, got {', '.join(bad[:3])}"
    elif whole and power == 1:
        ranks = {name: int(weight) for name, weight in weights.items()}
        wrong = _wrong_ranks(ranks, covered, budget, options)
    else:
        ranks, wrong = spend(covered, weights, budget, options.min_rank, options.max_rank, power), ""
    if wrong:
        raise StrategyError(f"The strategy {made.name} ({made.origin}): {wrong}.")
    return {m.name: ranks.get(m.name, 0) for m in modules}


def _wrong_ranks(ranks: Mapping[str, int], modules: Sequence[ModuleShape], budget: int, options: Any) -> str:
    """Why whole ranks cannot be the plan: their bounds, or a cost that is not the budget as nearly as can be."""
    tops = {m.name: min(m.largest_rank, options.max_rank or m.largest_rank) for m in modules}
    if bad := [f"{n}: {r}" for n, r in ranks.items() if not min(options.min_rank, tops[n]) <= r <= tops[n]]:
        return f"ranks must lie between `min_rank` and what a module can hold, got {', '.join(bad[:3])}"
    rest = budget - total_cost(modules, ranks)
    if rest < 0 or any(m.params_per_rank <= rest for m in modules if ranks[m.name] < tops[m.name]):
        return (
            f"whole numbers are ranks and must cost the budget: they cost {budget - rest:,} of {budget:,} parameters. "
            "Return floats for weights, which the planner turns into ranks"
        )
    return ""
