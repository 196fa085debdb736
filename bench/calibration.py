"""Whether the verdicts err as seldom as they say, with seeds and records both drawn. Prints JSON.

Studies simulated from real ones (`simulated.py`: variances, tails and correlations of the tables in results/ that have
losses by record) are judged by the function that judges real ones: seeds come in looks of 4, 6, 8, 10 and 12, what is
decided stays, and a study errs if any look does. Beside it in the same run stands the old rule: sign flips of ten
seeds' differences, Holm, t intervals over seeds on the records there are, equivalence within a fixed margin.

    python bench/calibration.py [--studies 1000] [--results FOLDER] [--out FILE]

At the top, the worst of families of 1, 5 and 10 comparisons: `false_positive_rate`, studies without any true difference
in which something is called better or worse at any look, with no margin or where others are called equivalent before;
`coverage_95` of the intervals where each comparison stopped;
`false_equivalence_rate`, studies in which an arm is called equivalent that truly differs by just the margin, which is
measured, a quarter of what half the budget costs (twenty standard errors here: the wider the margin, the harder);
`power_at_planned`, found differences of the size that the plan says are found four times in five. `by_shape` has the
same for seeds' effects with heavy tails and with skew that no study has shown. There, `caution_skewed` says beside
which share of comparisons without a difference the caution on skew stands, and `cautioned_of_...` the same of false
positives, of intervals that miss, and of planned differences that were found; absent where there was none. `methods`:
how the ways to estimate a variance of few seeds did at one look, so that the choice can be seen.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from adaptive_lora.files import write_atomically
from adaptive_lora.stats.cautions import Caution
from adaptive_lora.stats.crossed import Components, Crossed, PairedTable, crossed
from adaptive_lora.stats.estimators import equivalence_interval, holm, mean_interval, sign_flip_p
from adaptive_lora.stats.moderation import FEWEST, MOST_PRIOR, moderated, prior
from adaptive_lora.stats.power import Design, smallest_detectable
from adaptive_lora.stats.step_down import Family, correlation_of, step_down
from adaptive_lora.stats.verdicts import Judgement, Rule, Verdict, judge_family
from adaptive_lora.streams import numpy_stream
from simulated import SHAPES, Array, Simulated, Simulator, read_tables

RESULTS = Path(__file__).parent.parent / "results"
LOOKS = (4, 6, 8, 10, 12)
FIXED_SEEDS = (4, 8)
OLD_SEEDS, OLD_MARGIN = 10, 0.01
RECORDS, OTHER_RECORDS, ALPHA = 500, 100, 0.05
FAMILIES = (1, 5, 10)
ERRORS = 20.0
"""What half the budget costs in the hardest case of equivalence, in standard errors of a margin."""
LEAVING = 4.0
"""The margin of studies without a true difference, in standard errors: most arms are called equivalent early."""
RULE = Rule(alpha=ALPHA, seeds=tuple(range(LOOKS[-1])), looks=LOOKS)
NO_MARGIN = replace(RULE, margin=1e-12)
DIFFERENT = (Verdict.BETTER, Verdict.WORSE)

Shares = dict[str, list[float]]


def null_study(sim: Simulator, family: int) -> Shares:
    """No true difference. Without a margin, as an arm that is called equivalent early can be called nothing else later;
    and with one, as those that are left then are not just any."""
    like = sim.chosen(family)
    half = 4 * LEAVING * math.sqrt(_variance(sim, int(like[0]), LOOKS[-1]))
    drawn = sim.study(like, np.zeros(family), LOOKS[-1], RECORDS, half=half)
    judged = judge_family(drawn.family, NO_MARGIN)
    leaving = judge_family(drawn.family, RULE).values()
    old = old_rule(drawn, margin=0.0)
    return {
        "caution_skewed": [_cautioned(j) for j in judged.values()],
        "cautioned_of_false_positives": [_cautioned(j) for j in judged.values() if j.verdict in DIFFERENT],
        "false_positive_rate": [float(any(j.verdict in DIFFERENT for j in judged.values()))],
        "false_positive_rate_with_margin": [float(any(j.verdict in DIFFERENT for j in leaving))],
        "equivalent_with_margin": [float(j.verdict is Verdict.EQUIVALENT) for j in leaving],
        "old_false_positive_rate": [float(any(v in DIFFERENT for v in old))],
    }


def spread_study(sim: Simulator, family: int) -> Shares:
    """True differences as the real arms' means: what the intervals cover where each comparison stopped."""
    like = sim.chosen(family)
    truth = sim.real.means[like] * sim.draw.choice([-1.0, 1.0], family)
    drawn = sim.study(like, truth, LOOKS[-1], RECORDS, half=_half(sim))
    judged = list(judge_family(drawn.family, RULE).values())
    covers = [_covers(j.interval, t) for j, t in zip(judged, truth, strict=True)]
    missed = [j for j, covered in zip(judged, covers, strict=True) if not covered]
    tables = [own.table.of_seeds(range(OLD_SEEDS)) for own in drawn.family.values()]
    old = [_covers(mean_interval(t.by_seed.tolist()), true) for t, true in zip(tables, truth, strict=True)]
    fixed = [_covers(own.interval(), t) for own, t in zip(moderated([crossed(t) for t in tables]), truth, strict=True)]
    return {
        "coverage_95": covers,
        "cautioned_of_misses": [_cautioned(j) for j in missed],
        "coverage_95_fixed_seeds": fixed,
        "old_coverage_95": old,
    }


def _cautioned(found: Judgement) -> float:
    return float(Caution.SKEWED in found.cautions)


def _covers(found: Any, truth: float) -> float:
    return float(found.low <= truth <= found.high)


def at_margin(sim: Simulator, family: int) -> Shares:
    """Every arm differs by just the margin, which is wide for the noise."""
    like = np.full(family, sim.chosen(1)[0])
    error = math.sqrt(_variance(sim, int(like[0]), LOOKS[-1]))
    half = 4 * ERRORS / 2 * error
    drawn = sim.study(like, np.full(family, half / 4), LOOKS[-1], RECORDS, half=half)
    judged = judge_family(drawn.family, RULE)
    old = old_rule(drawn, margin=half / 4)
    return {
        "false_equivalence_rate": [float(any(j.verdict is Verdict.EQUIVALENT for j in judged.values()))],
        "old_false_equivalence_rate": [float("equivalent" in old)],
        "old_false_equivalence_rate_each": [float(np.mean([v == "equivalent" for v in old]))],
    }


def planned(sim: Simulator, family: int) -> Shares:
    """The first arm differs by what a study of so many seeds and records is planned to find, the others do not."""
    like = sim.chosen(family)
    truth = np.zeros(family)
    truth[0] = _planned_difference(sim, int(like[0]), family)
    drawn = sim.study(like, truth, LOOKS[-1], RECORDS)
    found = judge_family(drawn.family, NO_MARGIN)[0]
    old = old_rule(drawn, margin=0.0)
    return {
        "power_at_planned": [float(found.verdict is Verdict.WORSE)],
        "cautioned_of_found": [_cautioned(found)] if found.verdict is Verdict.WORSE else [],
        "seeds_when_found": [float(found.n)] if found.verdict is Verdict.WORSE else [],
        "old_power_at_planned": [float(old[0] == "worse")],
    }


def two_sets(sim: Simulator, family: int) -> Shares:
    """The same runs on two disjoint sets of records: how often two intervals for one quantity exclude each other."""
    like = sim.chosen(family)
    drawn = sim.study(like, sim.real.means[like], OLD_SEEDS, RECORDS + OTHER_RECORDS)
    tables = [own.table for own in drawn.family.values() if own.table is not None]
    cut = [(_of_records(t, slice(None, RECORDS)), _of_records(t, slice(RECORDS, None))) for t in tables]
    sides = [moderated([crossed(pair[i]) for pair in cut]) for i in (0, 1)]
    new = [(one.interval(), two.interval()) for one, two in zip(*sides, strict=True)]
    old = [tuple(mean_interval(t.by_seed.tolist()) for t in pair) for pair in cut]
    return {"disjoint_intervals": [_disjoint(*p) for p in new], "old_disjoint_intervals": [_disjoint(*p) for p in old]}


def _of_records(table: PairedTable, which: slice) -> PairedTable:
    return PairedTable(table.differences[:, which], table.tokens[which], table.seeds)


def _disjoint(one: Any, other: Any) -> float:
    return float(one.high < other.low or other.high < one.low)


def old_rule(drawn: Simulated, margin: float = OLD_MARGIN, alpha: float = ALPHA) -> list[str]:
    """Verdicts of the rule before: ten seeds, each comparison by its own sign flips, records as if they were all."""
    rows = [own.table.of_seeds(range(OLD_SEEDS)).by_seed.tolist() for own in drawn.family.values()]
    found = []
    for row, p in zip(rows, holm([sign_flip_p(row) for row in rows]), strict=True):
        within = equivalence_interval(row, alpha)
        if -margin <= within.low <= within.high <= margin:
            found.append("equivalent")
        else:
            found.append("undecided" if p > alpha else "worse" if within.mean > 0 else "better")
    return found


def one_look(sim: Simulator, family: int, seeds: int) -> Shares:
    """Ways to a variance of few seeds, on studies without a true difference and with one look: family-wise errors."""
    drawn = sim.study(sim.chosen(family), np.zeros(family), seeds, RECORDS)
    tables = {key: own.table for key, own in drawn.family.items()}
    own = [crossed(t) for t in tables.values()]
    rho, with_satterthwaite = correlation_of(tables), [_satterthwaite_p(c) for c in own]
    ways: Mapping[str, list[Crossed]] = {
        "own": own,
        "moderated": moderated(own),
        "moderated_twice": moderated(own, most=2.0),
        "pooled": moderated(own, most=1e9),
    }
    p = {"satterthwaite": with_satterthwaite, **{name: [c.p() or 0.0 for c in way] for name, way in ways.items()}}
    shares: Shares = {f"{name}_false_positive_rate": [float(min(step_down(p[name], rho)) <= ALPHA)] for name in p}
    for name, found in ways.items():
        shares[f"{name}_coverage_95"] = [_covers(c.interval(), 0.0) for c in found]
        shares[f"{name}_half_width"] = [(c.interval().high - c.mean) for c in found]
    return shares


def _satterthwaite_p(found: Crossed) -> float:
    """With the degrees of freedom that the formula gives to a sum of two variances (Satterthwaite 1946)."""
    assert found.error is not None and found.seed_variance is not None
    total, own = found.error[0] ** 2, found.seed_variance / found.n
    spread = own**2 / found.seed_freedom + (total - own) ** 2 / (found.records - 1)
    return float(2 * special.stdtr(total**2 / spread, -abs(found.mean) / found.error[0]))


def _half(sim: Simulator) -> float:
    return float(sim.real.means[sim.real.half]) if sim.real.half is not None else 0.03


def _variance(sim: Simulator, arm: int, seeds: int) -> float:
    """Of a simulated comparison's mean, by its true components."""
    real = sim.real
    records, both = float(real.records[arm].var()), float(real.both[arm].var())
    return float(real.deviations[arm]) ** 2 / seeds + records / RECORDS + both / (seeds * RECORDS)


def _planned_difference(sim: Simulator, arm: int, family: int) -> float:
    """At the level that the last look has; other comparisons' variances lend as much as theirs resemble each other, and
    nothing in a family that is too small."""
    real = sim.real
    own = Components(float(real.deviations[arm]) ** 2, float(real.records[arm].var()), float(real.both[arm].var()))
    shared = Family(Design(LOOKS[-1], ALPHA, family, None, RECORDS, LOOKS).final_alpha, family, real.correlation)
    freedom = prior([(float(d) ** 2, real.both.shape[1] - 1) for d in real.deviations])[0]
    factor = 1 + min(freedom / (LOOKS[-1] - 1), MOST_PRIOR) if family >= FEWEST else 1.0
    return float(smallest_detectable(own, LOOKS[-1], RECORDS, shared, freedom_factor=factor))


SCENARIOS: Mapping[str, Callable[[Simulator, int], Shares]] = {
    "null": null_study,
    "spread": spread_study,
    "margin": at_margin,
    "planned": planned,
    "two-sets": two_sets,
}


def shares(tables: list[Any], shape: str, family: int, studies: int, name: str) -> dict[str, float]:
    """Means over studies with their simulation standard errors; comparisons of one study are one draw."""
    fixed = {f"{n} seeds": functools.partial(one_look, seeds=n) for n in FIXED_SEEDS}
    scenario = {**SCENARIOS, **fixed}[name]
    sims = [Simulator(t, shape, numpy_stream(0, "calibration", shape, name, family, t.name)) for t in tables]
    drawn: dict[str, list[float]] = {}
    for index in range(studies):
        for key, values in scenario(sims[index % len(sims)], family).items():
            if values:
                drawn.setdefault(key, []).append(float(np.mean(values)))
    found: dict[str, float] = {}
    for key, values in drawn.items():
        found[key] = round(float(np.mean(values)), 6)
        if len(values) > 1:
            found[f"{key}_error"] = round(float(np.std(values, ddof=1)) / math.sqrt(len(values)), 6)
    return found


def of_shape(tables: list[Any], shape: str, studies: int) -> dict[str, dict[str, float]]:
    """Family -> all scenarios' figures."""
    return {
        str(family): {k: v for name in SCENARIOS for k, v in shares(tables, shape, family, studies, name).items()}
        for family in FAMILIES
    }


def methods(tables: list[Any], studies: int) -> dict[str, dict[str, dict[str, float]]]:
    """Seeds -> family -> how each way to a variance did."""
    return {
        f"{n} seeds": {str(f): shares(tables, "normal", f, studies, f"{n} seeds") for f in FAMILIES}
        for n in FIXED_SEEDS
    }


def worst(by_family: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figure furthest from what is promised, over the families."""
    coverages = [own["coverage_95"] for own in by_family.values()]
    powers = [own["power_at_planned"] for own in by_family.values()]
    return {
        "false_positive_rate": max(
            own[key] for own in by_family.values() for key in ("false_positive_rate", "false_positive_rate_with_margin")
        ),
        "coverage_95": max(coverages, key=lambda c: abs(c - 0.95)),
        "false_equivalence_rate": max(own["false_equivalence_rate"] for own in by_family.values()),
        "power_at_planned": max(powers, key=lambda p: abs(p - 0.8)),
        "old_false_positive_rate": max(own["old_false_positive_rate"] for own in by_family.values()),
        "old_false_equivalence_rate": max(own["old_false_equivalence_rate"] for own in by_family.values()),
    }


def circumstances(tables: list[Any], studies: int) -> dict[str, Any]:
    return {
        "records_drawn": RECORDS,
        "studies": studies,
        "looks": LOOKS,
        "alpha": ALPHA,
        "old": {"seeds": OLD_SEEDS, "margin": OLD_MARGIN},
        "tables": {
            t.name: {
                "comparisons": len(t.arms),
                "seeds": t.both.shape[1],
                "records": len(t.tokens),
                "seed_deviations": [round(float(d), 6) for d in t.deviations],
                "record_deviations": [round(float(r.std()), 6) for r in t.records],
                "both_deviations": [round(float(b.std()), 6) for b in t.both],
                "record_skewness": [_skew(r) for r in t.records],
                "correlation": round(t.correlation, 3),
            }
            for t in tables
        },
    }


def _skew(values: Array) -> float | None:
    """None where records were found to vary by no more than chance."""
    spread = float(values.std())
    return round(float(((values - values.mean()) ** 3).mean()) / spread**3, 3) if spread else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--results", type=Path, default=RESULTS, help="studies whose losses by record are drawn from")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    tables = read_tables(asked.results)
    if not tables:
        raise SystemExit(f"No study in {asked.results} has losses by record of enough seeds.")
    began = time.perf_counter()
    by_shape = {shape: of_shape(tables, shape, asked.studies) for shape in SHAPES}
    report = {
        **worst(by_shape["normal"]),
        **circumstances(tables, asked.studies),
        "by_shape": by_shape,
        "methods": methods(tables, asked.studies),
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
