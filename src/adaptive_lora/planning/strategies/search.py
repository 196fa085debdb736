"""The best of some plans by chance: what trying alone is worth."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import Scores, SearchOptions, Strategy


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: SearchOptions) -> dict[str, int]:
    """r_l of the plan with the lowest loss among `draws` plans as `random` draws them.

    All are trained as the planned training is, from one beginning, and compared on training records that none of them
    sees. `power` below 1 pulls the winner's ranks towards uniform, as far as luck has chosen it. With as many draws as
    another strategy trains runs, it says what that strategy's training would have been worth without its idea.
    """
    return spend(modules, scores["random-search"], budget, options.min_rank, options.max_rank, options.power)


STRATEGY = Strategy(
    "search",
    "the best of some plans by chance, each trained and compared on records held back",
    "control; random search, Bergstra and Bengio 2012",
    allocate,
    SearchOptions,
    needs=lambda options: ("random-search",),
)
