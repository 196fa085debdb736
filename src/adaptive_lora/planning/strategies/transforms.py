"""Plans made from another strategy's plan: the same ranks in reversed order, or at random places.

They ask whether it matters *where* a strategy puts its rank: if the source is right, `inverted` must be
worse and `shuffled` must lose what the source wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, field_serializer, model_validator

from adaptive_lora.errors import StrategyError
from adaptive_lora.planning.budget import leaves_no_choice, spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import CalibrationOptions, Scores, Strategy, StrategyOptions, check_options
from adaptive_lora.planning.strategies.registry import find_strategy
from adaptive_lora.streams import numpy_stream

_DRAWS = 20
"""How many permutations are tried before a shuffled plan is refused."""


class Options(StrategyOptions):
    """`source` names the strategy whose plan is changed, `source_options` are its options.

    Bounds that `source_options` does not give are those of the changed plan.
    """

    source: str = "empirical"
    source_options: Annotated[dict[str, Any], Field(default_factory=dict)]

    @model_validator(mode="after")
    def _of_a_source(self) -> Options:
        try:
            source = self.strategy
        except StrategyError as error:
            raise StrategyError(f"`source`: {error}") from None
        if reason := why_no_source(source):
            raise StrategyError(f"`source` cannot be {source.name}: {reason}")
        _ = self.of_source  # complaints about its options belong here
        return self

    @field_serializer("source_options")
    def _in_full(self, given: dict[str, Any]) -> dict[str, Any]:
        return self.of_source.model_dump(mode="json")  # a record must not depend on what the defaults are later

    @property
    def strategy(self) -> Strategy:
        """The source."""
        return find_strategy(self.source)

    @property
    def of_source(self) -> StrategyOptions:
        """The source's options."""
        bounds = {"min_rank": self.min_rank, "max_rank": self.max_rank}
        return check_options(self.strategy, {**bounds, **self.source_options})

    def measuring(self) -> CalibrationOptions:
        """The source's measures are taken as for the source."""
        return self.of_source.measuring()

    def source_ranks(self, modules: Sequence[ModuleShape], scores: Scores, budget: int) -> dict[str, int]:
        """w_l: the ranks of the source's own plan on the same budget."""
        return self.strategy.allocate(modules, scores, budget, self.of_source)


class ShuffledOptions(Options):
    """As `inverted`, and the draw."""

    seed: int = 0
    """Of the draw; a study gives every run its own."""
    must_differ: bool = True
    """Whether half of the modules must get another rank than from the source; if not, the first draw counts whatever
    it changes, as is right for a mean over many draws (equal ranks stay equal)."""


def inverted(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options) -> dict[str, int]:
    """r_(i) ∝ w_(n+1-i), w the source's ranks and (i) their ascending order, ties by name.

    The module with the largest rank is given the smallest and so on inwards. Modules differ in price,
    so the reversed ranks are weights, spent again on the budget.
    """
    own = options.source_ranks(modules, scores, budget)
    ascending = sorted(own, key=lambda name: (own[name], name))
    weights = {name: float(own[mirror]) for name, mirror in zip(ascending, reversed(ascending), strict=True)}
    return spend(modules, weights, budget, options.min_rank, options.max_rank)


def shuffled(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: ShuffledOptions) -> dict[str, int]:
    """r_l ∝ w_π(l), w the source's ranks and π a permutation of all modules drawn from the seed.

    Spent again on the budget, as modules differ in price. The first of some draws that changes the rank
    of at least half of the modules counts; StrategyError where none does, since such a plan would test nothing.
    Without `must_differ` it is the first draw.
    """
    return _elsewhere(modules, options.source_ranks(modules, scores, budget), budget, options)


def _elsewhere(
    modules: Sequence[ModuleShape], own: Mapping[str, int], budget: int, options: ShuffledOptions
) -> dict[str, int]:
    """`shuffled` from the source's `own` ranks."""
    names = sorted(own)
    ranks = [own[name] for name in names]
    if options.must_differ and len(set(ranks)) == 1:
        raise StrategyError(
            f"`shuffled` cannot change the plan of {options.source}: it gives rank {ranks[0]} to every module. "
            "Name a `source` whose ranks differ, or raise the budget."
        )
    stream = numpy_stream(options.seed, "shuffled-ranks")
    for _ in range(_DRAWS):
        weights = {name: float(ranks[at]) for name, at in zip(names, stream.permutation(len(names)), strict=True)}
        found = spend(modules, weights, budget, options.min_rank, options.max_rank)
        if not options.must_differ or 2 * sum(found[name] != own[name] for name in names) >= len(names):
            return found
    raise StrategyError(
        f"`shuffled` changes fewer than half of the ranks of {options.source} in each of {_DRAWS} draws: they are too "
        "much alike. Name a `source` whose ranks differ more (an option may sharpen it), or raise the budget."
    )


def _check_known(modules: Sequence[ModuleShape], budget: int, options: ShuffledOptions) -> None:
    """As `shuffled` itself, where the source's ranks are known without its scores: the budget leaves it no choice."""
    least, most = options.of_source.min_rank, options.of_source.max_rank
    if leaves_no_choice(modules, budget, least, most):
        _elsewhere(modules, spend(modules, {m.name: 1.0 for m in modules}, budget, least, most), budget, options)


def why_no_source(strategy: Strategy) -> str | None:
    """Why the plans of a strategy are not to be changed; None where they can be."""
    if issubclass(strategy.options, Options):
        return "it changes another plan itself; name that plan's strategy"
    if strategy.leaves_out:
        return "it leaves modules out, which is another question than how much rank each gets"
    return "its ranks are drawn by chance, and changed they would be chance again" if strategy.chance else None


def _needs(options: Options) -> tuple[str, ...]:
    return options.strategy.needs(options.of_source)


INVERTED = Strategy(
    "inverted",
    "the plan of another strategy (`source`) upside down: most rank where it puts least",
    "control",
    inverted,
    Options,
    _needs,
)
SHUFFLED = Strategy(
    "shuffled",
    "the ranks of another strategy (`source`) at places drawn by chance",
    "control",
    shuffled,
    ShuffledOptions,
    _needs,
    chance=True,
    check_known=_check_known,
)
