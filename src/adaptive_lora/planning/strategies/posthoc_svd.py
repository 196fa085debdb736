"""Rank where a short over-ranked run put its largest directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import OverRankOptions, Scores, Strategy


class Options(OverRankOptions):
    """Options of `posthoc-svd`."""

    of: Literal["update", "update-on-inputs"] = "update"
    """Whose singular values count: those of ΔW (PARA), or of ΔW C^½, the update as the inputs see it."""


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: Options) -> dict[str, int]:
    """r_l = #{i : σ_li >= τ}, the singular values of all modules' ΔW in one pool, τ where the budget is spent.

    PARA (arXiv 2604.27796) cuts a trained adapter this way; here a short run is cut and its ranks are
    trained afresh.
    """
    counts = pooled(modules, scores[_measure(options)], budget, options.min_rank, options.max_rank)
    weights = {name: float(n) for name, n in counts.items()}
    return spend(modules, weights, budget, options.min_rank, options.max_rank, options.power)


def pooled(
    modules: Sequence[ModuleShape],
    spectra: Mapping[str, Sequence[float]],
    budget: int,
    min_rank: int,
    max_rank: int | None,
) -> dict[str, int]:
    """How many of each module's values are among the largest that the budget pays for, beyond `min_rank` each.

    The pool is cut at the first value that cannot be paid for; ties go by name.
    """
    caps = {m.name: min(m.largest_rank, max_rank or m.largest_rank) for m in modules}
    counts = {m.name: min(min_rank, caps[m.name]) for m in modules}
    left = budget - sum(m.params_per_rank * counts[m.name] for m in modules)
    pool = sorted(
        (-value, m.name, m.params_per_rank) for m in modules for value in spectra[m.name][counts[m.name] : caps[m.name]]
    )
    for _, name, price in pool:
        if price > left:
            break
        counts[name] += 1
        left -= price
    return counts


def _measure(options: Options) -> str:
    return "update-spectrum" if options.of == "update" else "update-spectrum-on-inputs"


STRATEGY = Strategy(
    "posthoc-svd",
    "rank where a short over-ranked run has its largest singular values, one threshold for all",
    "PARA, arXiv 2604.27796",
    allocate,
    Options,
    needs=lambda options: (_measure(options),),
)
