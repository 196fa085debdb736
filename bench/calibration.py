"""Whether the verdicts err as seldom as they say. Prints JSON.

Simulated studies of ten seeds and five comparisons with one baseline, judged by the functions that judge real ones.
The noise is that of real runs: every comparison draws its standard deviation of paired differences from those of the
studies in results/, and comparisons of a study are correlated as there, since they share the baseline. Half of them
have normal noise, the others draw from the pooled standardised residuals of the real differences. Residuals of few
seeds have lighter tails than the noise they come from (of three, an excess kurtosis of -1.5, whatever the noise), so
`by_noise` holds the same figures for each kind alone, and for heavy tails and for skew that no run has shown.

    python bench/calibration.py [--studies 1000] [--out FILE]

Figures: `false_positive_rate`, the share of studies without any true difference in which something is called better or
worse, and `false_difference_rate`, of those with any adjusted p at most alpha, so that "equivalent (lower by ...)"
counts as well; `coverage_95` of the 95 % interval over seeds, with true differences spread as the real arms' means;
`power_at_smallest_detectable`, the share of arms found that truly differ by what the power calculation says can be
found; `false_equivalence_rate`, the share of arms called equivalent that truly differ by just the margin. That last
is hardest where the margin is wide for the noise, so there the margin is ten standard errors; the rate at the
default margin stands beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from adaptive_lora.files import write_atomically
from adaptive_lora.stats.arms import summarise
from adaptive_lora.stats.power import smallest_detectable
from adaptive_lora.stats.verdicts import Judgement, Verdict, judge_family
from adaptive_lora.streams import numpy_stream

RESULTS = Path(__file__).parent.parent / "results"
BASELINE = "uniform"
SEEDS, COMPARISONS = 10, 5
MARGIN, ALPHA, POWER = 0.01, 0.05, 0.8
FEWEST_SEEDS = 3
"""Real comparisons of fewer paired seeds say too little about spread."""


@dataclass(frozen=True)
class Noise:
    """What real paired differences look like."""

    sources: dict[str, int]
    """Comparisons taken from each study."""
    deviations: np.ndarray
    residuals: np.ndarray
    """Standardised, pooled over all comparisons, sorted."""
    correlation: float
    """Between two comparisons with one baseline."""
    spread: float
    """Standard deviation of the arms' mean differences, about that of their study."""


def read_noise(folder: Path) -> Noise:
    """From every table of runs below a folder of studies."""
    sources, tables = {}, []
    for path in sorted(folder.glob("*/runs.csv")):
        families = [family for family in differences_of(path) if len(family)]
        if families:
            sources[path.parent.name] = sum(len(family) for family in families)
            tables += families
    if not tables:
        raise SystemExit(f"No study in {folder} has {FEWEST_SEEDS} paired seeds beside {BASELINE}.")
    standard = [scaled(family) for family in tables]
    middle = [family.mean(axis=1) - family.mean() for family in tables]
    return Noise(
        sources=sources,
        deviations=np.concatenate([family.std(axis=1, ddof=1) for family in tables]),
        residuals=np.sort(np.concatenate([family.ravel() for family in standard])),
        correlation=correlation_of(standard),
        spread=math.sqrt(sum(float((m**2).sum()) for m in middle) / max(1, sum(len(m) - 1 for m in middle))),
    )


def differences_of(path: Path) -> list[np.ndarray]:
    """For each budget of a study the paired differences, (arms, seeds), over the seeds that all arms have."""
    arms = [a for a in summarise(pd.read_csv(path), BASELINE) if len(a.differences) >= FEWEST_SEEDS]
    families = []
    for budget in dict.fromkeys(arm.budget for arm in arms):
        found = [dict(arm.differences) for arm in arms if arm.budget == budget]
        seeds = sorted(set.intersection(*(set(one) for one in found)))
        family = np.array([[one[seed] for seed in seeds] for one in found])
        if len(seeds) >= FEWEST_SEEDS:
            families.append(family[np.ptp(family, axis=1) > 0])
    return families


def scaled(family: np.ndarray) -> np.ndarray:
    """Residuals of every arm with mean 0 and mean square 1, so that resampling them gives unit variance."""
    centred = family - family.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True))


def correlation_of(standard: list[np.ndarray]) -> float:
    """Mean over pairs of arms of one family; at least 0, as a shared baseline can only make it positive."""
    pairs = [float((family[i] * family[j]).mean()) for family in standard for i in range(len(family)) for j in range(i)]
    return min(0.95, max(0.0, sum(pairs) / len(pairs))) if pairs else 0.0


QUANTILES: dict[str, Callable[[Noise, np.ndarray], np.ndarray]] = {
    "real": lambda noise, u: noise.residuals[
        np.minimum((u * len(noise.residuals)).astype(int), len(noise.residuals) - 1)
    ],
    "heavy": lambda noise, u: special.stdtrit(3, u) / math.sqrt(3),
    "skewed": lambda noise, u: -np.log1p(-u) - 1,
}
"""Noise of unit variance from uniform numbers: real residuals, Student's t(3), exponential."""


class Simulator:
    """Draws studies with one kind of noise and judges them."""

    def __init__(self, noise: Noise, kind: str, scenario: str) -> None:
        self.noise, self.kind = noise, kind
        self.draw = numpy_stream(0, "bench-calibration", kind, scenario)

    def deviations(self) -> np.ndarray:
        return self.draw.choice(self.noise.deviations, COMPARISONS)

    def study(self, true: np.ndarray, sd: np.ndarray, margin: float = MARGIN) -> dict[int, Judgement]:
        """The judgements on comparisons with these true differences and standard deviations."""
        differences = true[:, None] + sd[:, None] * self.standard()
        return judge_family(dict(enumerate(differences)), margin, ALPHA)

    def standard(self) -> np.ndarray:
        """Noise of unit variance, (comparisons, seeds): correlated normals, exchanged for the value of the same
        probability where the noise is of another kind."""
        shared = math.sqrt(self.noise.correlation) * self.draw.standard_normal((1, SEEDS))
        own = math.sqrt(1 - self.noise.correlation) * self.draw.standard_normal((COMPARISONS, SEEDS))
        normal = shared + own
        if self.kind == "normal":
            return normal
        other = QUANTILES["real" if self.kind == "mixed" else self.kind](self.noise, special.ndtr(normal))
        return np.where(self.draw.random((COMPARISONS, 1)) < 0.5, other, normal) if self.kind == "mixed" else other


def false_positives(simulator: Simulator) -> list[bool]:
    found = simulator.study(np.zeros(COMPARISONS), simulator.deviations())
    return [any(j.verdict in (Verdict.BETTER, Verdict.WORSE) for j in found.values())]


def false_differences(simulator: Simulator) -> list[bool]:
    found = simulator.study(np.zeros(COMPARISONS), simulator.deviations())
    return [any(j.adjusted_p <= ALPHA for j in found.values())]


def unadjusted(simulator: Simulator) -> list[bool]:
    """The negative control: what the same studies would say without Holm."""
    found = simulator.study(np.zeros(COMPARISONS), simulator.deviations())
    return [any(j.p <= ALPHA for j in found.values())]


def covered(simulator: Simulator) -> list[bool]:
    true = simulator.noise.spread * simulator.draw.standard_normal(COMPARISONS)
    intervals = [j.interval for j in simulator.study(true, simulator.deviations()).values()]
    return [i.low <= t <= i.high for i, t in zip(intervals, true, strict=True)]


def detected(simulator: Simulator) -> list[bool]:
    """The first arm is the one that differs; the four others do not."""
    sd = simulator.deviations()
    true = np.zeros(COMPARISONS)
    true[0] = smallest_detectable(sd[0], SEEDS, ALPHA, COMPARISONS, POWER)
    return [simulator.study(true, sd)[0].adjusted_p <= ALPHA]


def falsely_equivalent(simulator: Simulator) -> list[bool]:
    """With a margin of ten standard errors, one of noise for all comparisons."""
    sd = np.full(COMPARISONS, simulator.deviations()[0])
    margin = 10 * sd[0] / math.sqrt(SEEDS)
    found = simulator.study(np.full(COMPARISONS, margin), sd, margin)
    return [j.verdict is Verdict.EQUIVALENT for j in found.values()]


def falsely_equivalent_at_default(simulator: Simulator) -> list[bool]:
    found = simulator.study(np.full(COMPARISONS, MARGIN), simulator.deviations())
    return [j.verdict is Verdict.EQUIVALENT for j in found.values()]


SCENARIOS: dict[str, Callable[[Simulator], list[bool]]] = {
    "false_positive_rate": false_positives,
    "false_difference_rate": false_differences,
    "false_positive_rate_without_holm": unadjusted,
    "coverage_95": covered,
    "power_at_smallest_detectable": detected,
    "false_equivalence_rate": falsely_equivalent,
    "false_equivalence_rate_default_margin": falsely_equivalent_at_default,
}


def figures(noise: Noise, kind: str, studies: int) -> dict[str, float]:
    """Each scenario's share over all studies, with its simulation standard error: studies are independent, their
    comparisons are not."""
    found = {}
    for name, scenario in SCENARIOS.items():
        simulator = Simulator(noise, kind, name)
        shares = np.array([np.mean(scenario(simulator)) for _ in range(studies)])
        found[name] = round(float(shares.mean()), 6)
        found[f"{name}_error"] = round(float(shares.std(ddof=1) / math.sqrt(studies)), 6)
    return found


def circumstances(noise: Noise, studies: int) -> dict[str, Any]:
    return {
        "studies": studies,
        "seeds": SEEDS,
        "comparisons": COMPARISONS,
        "margin": MARGIN,
        "alpha": ALPHA,
        "power": POWER,
        "noise": "mixed: normal for half of the comparisons, resampled real standardised residuals for the others",
        "real_comparisons": noise.sources,
        "real_deviations": [round(float(sd), 6) for sd in np.sort(noise.deviations)],
        "real_residuals": len(noise.residuals),
        "real_residuals_excess_kurtosis": round(float((noise.residuals**4).mean() - 3), 6),
        "real_residuals_skewness": round(float((noise.residuals**3).mean()), 6),
        "real_correlation": round(noise.correlation, 6),
        "real_spread_among_arms": round(noise.spread, 6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    noise = read_noise(RESULTS)
    began = time.perf_counter()
    report = {
        **circumstances(noise, asked.studies),
        **figures(noise, "mixed", asked.studies),
        "by_noise": {kind: figures(noise, kind, asked.studies) for kind in ("normal", *QUANTILES)},
        "seconds": round(time.perf_counter() - began, 1),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    text = json.dumps(report, indent=2)
    if asked.out:
        write_atomically(asked.out, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
