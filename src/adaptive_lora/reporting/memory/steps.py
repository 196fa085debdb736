"""What to do next, by rules from the results: first what makes a result hold, then what decides more, then its use.

No step claims more than the verdicts. What changes a study that has been looked at is a new study, with seeds and a
lock of its own: a verdict that rests on seeds seen before is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.formatting import counted
from adaptive_lora.reporting.memory.standing import AGAIN, Standing
from adaptive_lora.reporting.memory.words import few, grouped
from adaptive_lora.stats.assays import untested_budgets
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.power import MOST as MOST_SEEDS
from adaptive_lora.stats.power import POWER
from adaptive_lora.stats.run_table import Comparison, Status
from adaptive_lora.stats.seeds import seeds_needed
from adaptive_lora.stats.verdicts import Judgement, Verdict

Rule = Callable[[Findings, Standing], Iterator[str]]


def next_steps(found: Findings, standing: Standing) -> list[str]:
    """Ranked, the first first; each a sentence or two."""
    if standing.left:  # what a half-done study says may change
        return list(_finish(found, standing))
    return [step for rule in _RULES for step in rule(found, standing)] or ["Nothing is open that the rules know of."]


def _finish(found: Findings, standing: Standing) -> Iterator[str]:
    failed = standing.count(Status.FAILED)
    open_runs = standing.left - failed
    if standing.in_use:
        yield f"Wait for {counted(standing.left, 'run')}; then `adaptive-lora report .`."
        return
    if open_runs:
        yield f"Finish {counted(open_runs, 'run')} that {'is' if open_runs == 1 else 'are'} missing: {AGAIN}."
    if failed:
        yield (
            f"Mend what made {counted(failed, 'run')} fail, as said above, and try again: {AGAIN} repeats failed runs "
            "and no others."
        )
    yield "Then `adaptive-lora report .`; further steps follow from a finished study."


def _rates(found: Findings, standing: Standing) -> Iterator[str]:
    """An arm that was not tuned to its best is not compared fairly."""
    if edges := found.edges:
        beyond = sorted({edge.beyond for edge in edges})
        best, none = ([found.named(e.arm, e.budget) for e in edges if e.trained is kind] for kind in (True, False))
        why = [f"{few(best, 3)} did best at the edge of the grid"] if best else []
        why += [f"no rate trained {few(none, 3)}"] if none else []
        yield (
            f"Widen `train.learning_rate` by {few([f'{rate:g}' for rate in beyond])}, or write `auto` in it, in a new "
            f"study: {' and '.join(why)}."
        )


def _sensitivity(found: Findings, standing: Standing) -> Iterator[str]:
    """Where ranks make no difference, arms cannot."""
    blunt = [assay for assay in found.assays if assay.sensitive is False]
    if blunt:
        yield (
            f"Choose a harder task, more training records, or a budget below {few([a.budget for a in blunt])}: half of "
            "it is not shown to be worse there by more than the margin, so that equivalence says little."
        )
    same = list(dict.fromkeys(c.budget for c in _of(found, Verdict.EQUIVALENT)))
    if untested := untested_budgets(same, found.assays):
        yield f"Add `half` to `controls`: whether this task can tell ranks apart was not tested at {few(untested)}."
    if unknown := [a.half for a in found.assays if a.sensitive is None and a.budget in same]:
        yield (
            f"Train {found.baseline} at {few(unknown)} with more seeds: whether this task can tell ranks apart is not "
            "known where arms are equivalent."
        )


def _hypotheses(found: Findings, standing: Standing) -> Iterator[str]:
    if not found.judged:
        others = max(1, len({(arm.arm, arm.budget) for arm in found.arms if arm.difference is not None}))
        yield (
            "For a verdict, name hypotheses under `analysis.primary` in a new study: to decide one takes at least "
            f"{seeds_needed(found.analysis['alpha'], 1)} evaluation seeds, {counted(others, 'comparison')} "
            f"{seeds_needed(found.analysis['alpha'], others)}."
        )


def _seeds(found: Findings, standing: Standing) -> Iterator[str]:
    """Where seeds would decide, how many; where they would not, why not."""
    every = _of(found, Verdict.UNDECIDED)
    lost = [c for c, j in every.items() if j.diverged_pairs.any]
    if lost:
        yield f"Find out why runs diverge in the comparison of {grouped(lost)}: more seeds would not decide it."
    undecided = {c: j for c, j in every.items() if not j.diverged_pairs.any}
    reachable = {c: j.needed for c, j in undecided.items() if j.needed is not None}
    if reachable:
        counts = [f"{found.named(c.arm, c.budget)} ({n:,})" for c, n in sorted(reachable.items(), key=lambda x: x[1])]
        seeds = len(found.facts["spec"]["seeds"]["evaluation"])
        yield (
            f"Decide what is open in a new study with fresh evaluation seeds, more than the {seeds} here; by mean "
            f"and spread as found, so many decide in {100 * POWER:.0f} % of studies: {few(counts, 4)}."
        )
    alone = [found.named(c.arm, c.budget) for c, j in undecided.items() if j.n < 2]
    if alone:
        yield f"Find out why {few(alone)} has fewer than two pairs of runs: diverged runs leave none to compare."
    hopeless = [found.named(c.arm, c.budget) for c, j in undecided.items() if j.needed is None and j.n > 1]
    if hopeless:
        yield (
            f"Leave {few(hopeless)} open, or ask with another margin: not even {MOST_SEEDS:,} seeds would do in "
            f"{100 * POWER:.0f} % of studies, were mean and spread as found."
        )


def _records(found: Findings, standing: Standing) -> Iterator[str]:
    """Seeds cannot make up for test records that vary more than the margin."""
    margin = found.analysis["margin"]
    asked = [s for s in found.sizes if not found.judged or Comparison(s.arm, s.budget) in found.judged]
    widths = [(half, size) for size in asked if (half := _half(size.over_records)) is not None and half > margin]
    if widths:
        half, size = max(widths, key=lambda width: width[0])
        records: int = found.facts["spec"]["data"]["test"]
        wanted = _two_digits(records * (half / margin) ** 2)
        yield (
            f"Raise `data.test` from {records:,} to about {wanted:,} records: over "
            f"test records the difference of {found.named(size.arm, size.budget)} is known to ±{half:.4f} only, and "
            f"the margin is {margin:g}."
        )


def _use(found: Findings, standing: Standing) -> Iterator[str]:
    """What a verdict is good for, here."""
    better, worse, same = (_of(found, v) for v in (Verdict.BETTER, Verdict.WORSE, Verdict.EQUIVALENT))
    sharp = {assay.budget for assay in found.assays if assay.sensitive}
    if better:
        yield (
            f"Try {grouped(better)} on another model or data set, with {found.baseline} beside it: what is "
            "better here has been seen on one of each."
        )
    firm = {c: j for c, j in same.items() if c.budget in sharp}
    if firm:
        yield (
            f"Use {found.baseline} where {grouped(firm)} would be the choice: no difference beyond the "
            "margin, on a task that tells ranks apart."
        )
    if worse:
        yield f"Leave {grouped(worse)} out of what follows on this model and data."


_RULES: tuple[Rule, ...] = (_rates, _sensitivity, _hypotheses, _seeds, _records, _use)


def _of(found: Findings, verdict: Verdict) -> dict[Comparison, Judgement]:
    return {c: j for c, j in found.judged.items() if j.verdict is verdict}


def _half(interval: Interval | None) -> float | None:
    if interval is None or interval.low is None or interval.high is None:
        return None
    return (interval.high - interval.low) / 2


def _two_digits(number: float) -> int:
    """Rounded up to two digits: a spread found once says no more.

    >>> _two_digits(1234.0), _two_digits(99.0)
    (1300, 99)
    """
    step: int = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / step) * step
