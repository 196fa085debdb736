"""Adapters on some modules alone, by name: the choice of targets, at what adapters on all of them would cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import Scores, Strategy, StrategyOptions

Entry = Annotated[str, Field(min_length=1)]


def _as_entries(value: object) -> object:
    """`q_proj,v_proj`, as a command line writes it, is a list too."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class Options(StrategyOptions):
    """Which modules."""

    modules: Annotated[
        tuple[Entry, ...],
        BeforeValidator(_as_entries, json_schema_input_type=str | list[Entry]),
        Field(min_length=1),
    ] = ("q_proj", "v_proj")
    """The modules that get adapters, named as in `targets`: `attention`, `mlp`, or names or their endings."""


def only(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options) -> dict[str, int]:
    """r_l = r for the modules that the option `modules` names and r_l = 0, no adapter, for all others.

    The whole budget goes to the named ones, so that their rank is higher than uniform's and the plan costs the same:
    a choice of target modules is compared with all of them at equal parameters. Caps may leave some of a large budget
    unspent: a module holds rank min(d_in, d_out) at the most.
    """
    covered = STRATEGY.covered(modules, options)
    ranks = spend(covered, {m.name: 1.0 for m in covered}, budget, options.min_rank, options.max_rank)
    return {m.name: ranks.get(m.name, 0) for m in modules}


STRATEGY = Strategy(
    "only",
    "the same rank in the modules that `modules` names, no adapter elsewhere",
    "Hu et al. 2021, arXiv 2106.09685: query and value projections",
    only,
    Options,
    names=lambda options: options.modules,
)
