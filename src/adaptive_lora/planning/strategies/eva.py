"""Rank where the inputs' variance needs many components: EVA's counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaptive_lora.planning.budget import spend, uniform_rank
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies.base import ComponentOptions, Scores, Strategy


def component_counts(spectra: Mapping[str, Sequence[float]], total: int, most: int) -> dict[str, int]:
    """How many of the `total` largest explained-variance ratios of all modules belong to each, at most `most`.

    Modules that share an input have the same spectrum: ties go to the component first in its own module,
    then to the name, so that they differ by one at the most.

    >>> component_counts({"q": [0.6, 0.3, 0.1], "up": [0.4, 0.35, 0.25]}, total=4, most=2)
    {'q': 2, 'up': 2}
    """
    pooled = sorted((-ratio, j, name) for name, spectrum in spectra.items() for j, ratio in enumerate(spectrum[:most]))
    counts = dict.fromkeys(spectra, 0)
    for _, _, name in pooled[:total]:
        counts[name] += 1
    return counts


def allocate(modules: Sequence[ModuleShape], scores: Scores, budget: int, options: ComponentOptions) -> dict[str, int]:
    """r_l ∝ k_l, the number of module l's components among the R · r_ref that explain most in all R modules.

    ξ_lj = λ_lj / Σ_j λ_lj are the explained-variance ratios of the centred covariance of the inputs of
    module l; k_l counts those of the first ρ · r_ref that lie among the R · r_ref largest of all modules,
    r_ref the uniform rank of the budget. EVA (arXiv 2410.07170) takes k_l as rank, which fixes the sum of
    ranks and not of parameters; here the counts are weights on a budget of parameters, and every module
    keeps `min_rank`, where EVA drops those with k_l = 0. PEFT's EVA looks at completion tokens alone unless
    told otherwise: that is `tokens: completion`; all real tokens count by default.
    """
    rank = uniform_rank(modules, budget)
    spectra = {m.name: scores["input-spectrum"][m.name] for m in modules}
    counts = component_counts(spectra, rank * len(modules), round(options.rho * rank))
    return spend(modules, counts, budget, options.min_rank, options.max_rank, options.power)


STRATEGY = Strategy(
    "eva",
    "rank follows how many components the variance of a module's inputs needs",
    "EVA, arXiv 2410.07170",
    allocate,
    ComponentOptions,
    needs=lambda options: ("input-spectrum",),
)
