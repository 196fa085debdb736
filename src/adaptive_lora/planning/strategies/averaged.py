"""One rank for all modules of a type, or of a block: another strategy's plan, averaged.

Whether a plan's worth lies in *which type* or *which block* gets rank is a question of its own, and the plans it gives
can be written in tools that know a rank per type or per layer and none per module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import model_validator

from adaptive_lora.errors import StrategyError
from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape, total_cost
from adaptive_lora.planning.strategies.base import Allocate, Scores, Strategy
from adaptive_lora.planning.strategies.transforms import SourceOptions, needs_of_source

GroupOf = Callable[[ModuleShape], str]
"""A module's group: modules of one group share a rank."""


class Options(SourceOptions):
    """Options of strategies that average another one's plan; its `source` may not do so itself."""

    rest: Literal["spend", "leave"] = "spend"
    """What becomes of the parameters that equal ranks cannot spend: single modules get them, or they stay unspent."""

    @model_validator(mode="after")
    def _of_a_plan_by_module(self) -> Options:
        if issubclass(self.strategy.options, Options):
            raise StrategyError(f"`source` cannot be {self.source}: it averages another plan itself; name that plan's")
        return self


@dataclass(frozen=True)
class _Group:
    """Modules that share a rank, priced as one; narrow ones stop at their own cap and cost less than that."""

    name: str
    params_per_rank: int
    largest_rank: int


def averaging(group_of: GroupOf) -> Allocate:
    """r_g ∝ Σ c_l w_l / Σ c_l over the modules l of a group g, w the source's ranks and c = d_in + d_out.

    That is the one rank which costs what the source spends on the group. Whole ranks by group come first, exactly on
    the budget wherever equal ranks allow. Where they do not (a budget `params:N` that no equal ranks cost, groups
    whose prices leave a rest, modules narrower than their group's rank), exactness goes before equality: single modules
    of a group then differ, nearly always by one. With `rest: leave` equality goes first, and the plan costs less.
    """

    def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options) -> dict[str, int]:
        own = options.source_ranks(modules, scores, budget)
        groups: dict[str, list[ModuleShape]] = {}
        for m in modules:
            groups.setdefault(group_of(m), []).append(m)
        ranks = _equal_ranks(groups, own, budget, options)
        if options.rest == "leave" or total_cost(modules, ranks) == budget:
            return ranks
        weights = {name: float(rank) for name, rank in ranks.items()}
        return spend(modules, weights, budget, options.min_rank, options.max_rank)

    return allocate


def _equal_ranks(
    groups: Mapping[str, Sequence[ModuleShape]], own: Mapping[str, int], budget: int, options: Options
) -> dict[str, int]:
    """Ranks that are equal within each group, but for modules too narrow for their group's."""
    priced = [
        _Group(name, sum(m.params_per_rank for m in group), max(m.largest_rank for m in group))
        for name, group in groups.items()
    ]
    weights = {name: total_cost(group, own) / sum(m.params_per_rank for m in group) for name, group in groups.items()}
    # A group's least rank is priced as if no module were too narrow for it; the source has seen that there is enough.
    least = sum(group.params_per_rank * min(options.min_rank, group.largest_rank) for group in priced)
    found = spend(priced, weights, max(budget, least), options.min_rank, options.max_rank)
    return {m.name: min(found[name], m.largest_rank) for name, group in groups.items() for m in group}


def _type_of(module: ModuleShape) -> str:
    """The last part of the path, behind the kind: `mlp.c_proj` and `attn.c_proj` are two types."""
    return f"{module.kind} {module.name.rpartition('.')[2]}"


def _block_of(module: ModuleShape) -> str:
    return f"{module.depth:06d}"


BY_KIND = Strategy(
    "by-kind",
    "one rank per type of module (q_proj, down_proj, ...): the mean of another strategy's plan (`source`)",
    "this project",
    averaging(_type_of),
    Options,
    needs_of_source,
)
BY_DEPTH = Strategy(
    "by-depth",
    "one rank per block: the mean of another strategy's plan (`source`)",
    "this project",
    averaging(_block_of),
    Options,
    needs_of_source,
)
