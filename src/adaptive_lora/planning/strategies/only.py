"""Adapters on some modules alone, by name: the choice of targets, at what adapters on all of them would cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field

from adaptive_lora.errors import StrategyError, nearest_hint
from adaptive_lora.planning.modules import TARGET_GROUPS, ModuleShape, matches, role_labels, role_of
from adaptive_lora.planning.strategies.base import Scores, Strategy, StrategyOptions
from adaptive_lora.planning.strategies.coverage import equal_in

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


def named(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options) -> list[ModuleShape]:
    """The modules that `modules` names; StrategyError with every entry that names none, and what there is."""
    if unknown := [entry for entry in options.modules if not any(matches(m, entry) for m in modules)]:
        labels = role_labels(list(dict.fromkeys(role_of(m.name) for m in modules)))
        hint = nearest_hint(unknown[0], [*labels, *TARGET_GROUPS])
        raise StrategyError(
            f"only: `modules` names {', '.join(map(repr, unknown))}, and none of the {len(modules)} target modules is "
            f"called so{hint}. They are: {', '.join(labels)}; or write attention or mlp."
        )
    return [m for m in modules if any(matches(m, entry) for entry in options.modules)]


def only(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options) -> dict[str, int]:
    """r_l = r for the modules that the option `modules` names and r_l = 0, no adapter, for all others.

    The whole budget goes to the named ones, so that their rank is higher than uniform's and the plan costs the same:
    a choice of target modules is compared with all of them at equal parameters. Caps may leave some of a large budget
    unspent: a module holds rank min(d_in, d_out) at the most.
    """
    return equal_in(named(modules, scores, budget, options), modules, budget, options)


STRATEGY = Strategy(
    "only",
    "the same rank in the modules that `modules` names, no adapter elsewhere",
    "Hu et al. 2021, arXiv 2106.09685: query and value projections",
    only,
    Options,
    picks=named,
)
