"""What a study decides: a verdict for every primary comparison, and whether its task can tell ranks apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pandas as pd

from adaptive_lora.planning.budget_text import halved
from adaptive_lora.stats.arms import ArmSummary, evaluations
from adaptive_lora.stats.estimators import Interval, interval_of
from adaptive_lora.stats.run_table import Comparison, Status
from adaptive_lora.stats.verdicts import Judgement, Verdict, judge_family
from adaptive_lora.stats.words import listed, number


class Half(StrEnum):
    """What the baseline at half of a budget does beside the whole one."""

    WORSE = "worse"
    """Shown to be, and by more than the margin as far as the mean says."""
    WORSE_WITHIN = "worse within the margin"
    """Shown to be, and shown to be so by no more than the margin."""
    NOT_WORSE = "not worse"
    """Not shown to be."""
    OPEN = "open"
    """Shown to be, with a mean within the margin and an interval that reaches beyond."""
    TOO_FEW = "too few seeds"


@dataclass(frozen=True)
class Assay:
    """The baseline at half of a budget against itself at the whole one: can this task tell ranks apart?"""

    budget: str
    half: str
    loss_of_half: Interval | None
    """Paired by seed, half minus whole (positive: half is worse); nothing where no seed has both."""
    margin: float
    """Within which differences do not matter: a loss of half that does not matter either makes equivalence cheap."""

    @property
    def seen(self) -> Half:
        """What half of the budget does, by the 95 % interval."""
        if self.loss_of_half is None or self.loss_of_half.low is None or self.loss_of_half.high is None:
            return Half.TOO_FEW
        if self.loss_of_half.low <= 0:
            return Half.NOT_WORSE
        if self.loss_of_half.high <= self.margin:
            return Half.WORSE_WITHIN
        return Half.WORSE if self.loss_of_half.mean > self.margin else Half.OPEN

    @property
    def tells(self) -> bool | None:
        """Whether half the budget is worse by what matters; nothing where that is not known."""
        return {Half.TOO_FEW: None, Half.OPEN: None}.get(self.seen, self.seen is Half.WORSE)

    @property
    def text(self) -> str:
        """In plain words."""
        if self.loss_of_half is None or self.seen is Half.TOO_FEW:
            return f"Too few seeds at {self.half} to know whether this task can tell ranks apart at {self.budget}."
        ends = f"[{number(self.loss_of_half.low, '.4f')}, {number(self.loss_of_half.high, '.4f')}]"
        apart = f"{number(self.loss_of_half.mean, '+.4f')} nats per token, {ends} over {self.loss_of_half.over}"
        half, margin = f"half of it, {self.half},", f"the margin of {self.margin:g}"
        return {
            Half.WORSE: f"At {self.budget} this task can tell ranks apart: {half} is worse ({apart}).",
            Half.NOT_WORSE: f"At {self.budget} this task cannot tell ranks apart: {half} is not shown to be worse "
            f"({apart}). Equivalence says little there.",
            Half.WORSE_WITHIN: f"At {self.budget} this task cannot tell ranks apart by more than {margin}: {half} is "
            f"worse by less than that ({apart}). Equivalence within it says little there.",
            Half.OPEN: f"At {self.budget} it is not known whether this task can tell ranks apart: {half} is worse, by "
            f"more or by less than {margin} ({apart}).",
        }[self.seen]


def judge_primary(
    arms: Sequence[ArmSummary], primary: Sequence[Mapping[str, str]], analysis: Mapping[str, Any]
) -> dict[Comparison, Judgement]:
    """A judgement for each primary comparison, one family over all budgets.

    One whose arm has no finished pair of runs keeps its place in the family. No verdict rests on survivors: see
    `verdicts.withheld`.
    """
    found = {Comparison(arm.arm, arm.budget): arm for arm in arms}
    family = [Comparison(part["arm"], part["budget"]) for part in primary]
    differences = {c: [d for _, d in found[c].differences] if c in found else [] for c in family}
    lost = {c: found[c].lost for c in family if c in found}
    return judge_family(differences, analysis["margin"], analysis["alpha"], lost)


def assays(runs: pd.DataFrame, baseline: str, budgets: Sequence[str], margin: float) -> list[Assay]:
    """Of every budget at half of which the baseline was trained too."""
    counting = evaluations(runs)
    done = counting[(counting["status"] == Status.COMPLETED) & (counting["arm"] == baseline)]
    losses = done.pivot_table(index="seed", columns="budget", values="test_loss")
    found = []
    for budget in budgets:
        half = halved(budget)
        if half is not None and half in losses:
            apart = (losses[half] - losses[budget]).dropna().tolist() if budget in losses else []
            found.append(Assay(budget, half, interval_of(apart) if apart else None, margin))
    return found


def verdict_sentences(judged: Mapping[Comparison, Judgement], baseline: str, tells: Sequence[Assay]) -> list[str]:
    """The verdicts in plain words, the like together; then what they rest on."""
    several = len({c.budget for c in judged}) > 1
    sentences = []
    for verdict, said in (
        (Verdict.BETTER, "better than"),
        (Verdict.WORSE, "worse than"),
        (Verdict.EQUIVALENT, "equivalent to"),
        (Verdict.UNDECIDED, "not decided against"),
    ):
        names = [
            (f"{c.arm} at {c.budget}" if several else c.arm) + (f" ({j.lost.text})" if j.lost.text else "")
            for c, j in judged.items()
            if j.verdict is verdict
        ]
        if names:
            sentences.append(f"{listed(names)} {'is' if len(names) == 1 else 'are'} {said} {baseline}.")
    same = list(dict.fromkeys(c.budget for c, j in judged.items() if j.verdict is Verdict.EQUIVALENT))
    sentences += [a.text for a in tells if a.tells is not True and a.budget in same]
    if untested := untested_budgets(same, tells):
        sentences.append(
            f"Whether this task can tell ranks apart was not tested at {listed(untested)} (`controls: [half]`)."
        )
    return sentences


def untested_budgets(budgets: Sequence[str], tells: Sequence[Assay]) -> list[str]:
    """Those at half of which the baseline was not trained."""
    tested = {assay.budget for assay in tells}
    return [budget for budget in budgets if budget not in tested]
