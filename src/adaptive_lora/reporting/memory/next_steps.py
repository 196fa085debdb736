"""What to do next, by rules from the results: first what makes a result hold, then what decides more, then its use.

No step claims more than the verdicts. What changes a study that has been looked at is a new study, with seeds and a
lock of its own: a verdict that rests on seeds seen before is none. `templates/memory/steps.md` has the sentence of each
kind of step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from adaptive_lora.reporting.findings import Findings
from adaptive_lora.stats.assays import untested_budgets
from adaptive_lora.stats.power import width_with
from adaptive_lora.stats.run_table import Comparison
from adaptive_lora.stats.verdicts import Verdict
from adaptive_lora.study.status import StudyStatus

Step = tuple[str, Mapping[str, Any]]
"""The kind of a step that applies, which is the macro of its sentence, and the values that the sentence names."""


def next_steps(found: Findings, runs: StudyStatus) -> list[Step]:
    """Ranked, the most useful first; a study with open runs is finished before anything else."""
    left, failed = runs.left + runs.unscored, runs.failed
    steps: list[Step] = [("finish", {"runs": left - failed}), ("repeat", {"runs": failed}), ("report", {})]
    if left and runs.in_use:
        steps = [("wait", {"runs": left})]
    elif not left:
        steps = [step for rule in _RULES for step in rule(found)]
    return [step for step in steps if all(step[1].values())]


def _rates(found: Findings) -> Iterator[Step]:
    """An arm that was not tuned to its best is not compared fairly."""
    edges = found.edges
    best, untrained = ([found.named(e.arm, e.budget) for e in edges if e.trained is kind] for kind in (True, False))
    if edges:
        rates = sorted({edge.beyond for edge in edges})
        yield "widen", {"rates": rates, "why": {"best": best, "none": untrained}}


def _sensitivity(found: Findings) -> Iterator[Step]:
    """Where ranks make no difference, arms cannot."""
    yield "harder", {"budgets": [assay.budget for assay in found.assays if assay.sensitive is False]}
    equivalent = list(dict.fromkeys(c.budget for c in _of(found, Verdict.EQUIVALENT)))
    yield "add_half", {"budgets": untested_budgets(equivalent, found.assays)}
    unknown = [assay.half for assay in found.assays if assay.sensitive is None and assay.budget in equivalent]
    yield "more_at_half", {"halves": unknown}


def _hypotheses(found: Findings) -> Iterator[Step]:
    if not found.judged:
        others = max(1, len({(arm.arm, arm.budget) for arm in found.arms if arm.difference is not None}))
        yield "name_hypotheses", {"comparisons": others}


def _seeds(found: Findings) -> Iterator[Step]:
    """What more seeds would give; where they would give nothing, why not."""
    undecided = {c: found.judged[c] for c in _of(found, Verdict.UNDECIDED)}
    yield "why_diverged", {"comparisons": [c for c, j in undecided.items() if j.diverged_pairs.any]}
    open_ = {found.named(c.arm, c.budget): j for c, j in undecided.items() if not j.diverged_pairs.any}
    seeds = 2 * len(found.facts["spec"]["seeds"]["evaluation"])
    widths = {name: (width_with(j, j.n), width_with(j, seeds)) for name, j in open_.items()}
    yield "more_seeds", {"seeds": seeds, "widths": {name: own for name, own in widths.items() if None not in own}}
    yield "why_few_pairs", {"arms": [name for name, j in open_.items() if j.n < 2]}


def _records(found: Findings) -> Iterator[Step]:
    """Seeds cannot make up for test records that vary more than the margin."""
    if found.metric.has_own_records:  # whose records are its own
        return
    margins, records = found.margins, found.facts["spec"]["data"]["test"]
    asked = [s for s in found.sizes if not found.judged or Comparison(s.arm, s.budget) in found.judged]
    widths = [((i.high - i.low) / 2 / margins[size.budget], size) for size in asked if size.budget in margins
              if (i := size.over_records) is not None and i.low is not None and i.high is not None]  # fmt: skip
    times, size = max(widths, key=lambda width: width[0], default=(0.0, None))
    if size is not None and times > 1:
        margin, wanted = margins[size.budget], _two_digits(records * times**2)
        yield "more_records", {
            "arm": found.named(size.arm, size.budget), "half": times * margin, "margin": margin, "wanted": wanted
        }  # fmt: skip


def _use(found: Findings) -> Iterator[Step]:
    """What a verdict is good for, here."""
    yield "try_elsewhere", {"comparisons": _of(found, Verdict.BETTER)}
    sensitive = {assay.budget for assay in found.assays if assay.sensitive}
    yield "use_baseline", {"comparisons": [c for c in _of(found, Verdict.EQUIVALENT) if c.budget in sensitive]}
    yield "leave_out", {"comparisons": _of(found, Verdict.WORSE)}


_RULES: tuple[Callable[[Findings], Iterator[Step]], ...] = (
    _rates, _sensitivity, _hypotheses, _seeds, _records, _use
)  # fmt: skip


def _of(found: Findings, verdict: Verdict) -> list[Comparison]:
    return [c for c, j in found.judged.items() if j.verdict is verdict]


def _two_digits(number: float) -> int:
    """Rounded up to two digits: a spread found once says no more.

    >>> _two_digits(1234.0), _two_digits(99.0)
    (1300, 99)
    """
    step: int = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / step) * step
