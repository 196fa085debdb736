"""What the protocol saves: adapter-steps to as many decisions, against the protocol before. Prints JSON.

Studies are simulated from the three committed ones (`simulated.py`), with the arms' real differences for truth, and
judged both ways on the same draws. **Before**: every cell tuned with three tuning seeds on as many rates as it then
took (five in `alpaca-babyllama-full`, three in the others), ten evaluation seeds for all, controls `all` (random,
shuffled, twin, half, double, equal compute), sign flips with Holm, equivalence within 0.01 nats. **Now**: the study
file; tuning as it goes on the losses of the committed study (`replayed_tuning.py`; `tuning_steps_as_run`: what it
took there, where every arm was tried at three rates). Both have the same arms, budgets and steps, so that nothing is
saved by asking less, and the same margin, as equivalence within a narrower one is another question: `own_margin` has
the files' own, a quarter of what half the budget costs, which in the main study is a third of it at rank:2 and cannot
be had at rank:8. The plans of looks are the cheapest, one a study, that together decide as large a share as before;
`as_run` is with the files' own. What is asked now is more: every measured arm has a control of its own.
`adapter_step_ratio_same_controls` is against the protocol before with these controls too.

    python bench/efficiency.py [--studies 400] [--results FOLDER] [--out FILE]

`adapter_step_ratio`: now over before, all three together. `decided_new` and `decided_old`: shares of the primary
comparisons with a verdict. `wrong_new`, `wrong_old`: shares of studies with a false one: the other sign, a difference
where there is none, or an equivalence of what differs by more than the margin. Both rules promise 5 %. The one before
takes 5 % for each equivalence and breaks it (`..._as_it_was`), so its alpha is lowered, study by study, until it is
kept. `saving`: adapter-steps by where they go.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adaptive_lora.files import write_atomically
from adaptive_lora.stats.evidence import rule_of
from adaptive_lora.stats.run_table import Comparison, Phase
from adaptive_lora.stats.verdicts import Judgement, Verdict, judge_family
from adaptive_lora.streams import numpy_stream
from adaptive_lora.study.matrix import Run, StudyMatrix, matrix_of
from adaptive_lora.study.sequential import looks_of, open_cells
from adaptive_lora.study.study_file import Study, load_study
from calibration import OLD_MARGIN, old_rule
from protocol_before import ALL_CONTROLS, OLD_SEEDS, before, old_steps, said, steps
from replayed_tuning import replayed_steps
from simulated import HALF, RealTable, Simulated, Simulator, read_tables

ROOT = Path(__file__).parent.parent
STUDIES = ("alpaca-babyllama-full", "alpaca-stories260k", "gsm8k-stories260k")
PLANS = ((4, 6), (4, 6, 8), (4, 6, 8, 10), (4, 6, 8, 10, 12))
MOST_SEEDS = 12
OLD_ALPHAS = (0.05, 0.04, 0.03, 0.02, 0.015, 0.01, 0.005)
PROMISED = 0.05
"""The share of studies with a false verdict that both rules promise not to exceed."""
REAL, NULL = "real differences", "no true difference"


def with_looks(study: Study, looks: tuple[int, ...]) -> StudyMatrix:
    """The study with another plan of looks, and the seeds that it needs."""
    spec = study.spec
    seeds = {**said(spec.seeds), "evaluation": list(spec.seeds.evaluation[: looks[-1]]), "looks": list(looks)}
    return matrix_of(type(spec).model_validate({**said(spec), "seeds": seeds}))


def steps_of_tuning(runs: pd.DataFrame, matrix: StudyMatrix) -> int:
    """What tuning took in the committed study, whose arms were tried at three rates."""
    tuned = runs[runs["phase"] == Phase.TUNING]
    return sum(
        matrix.by_key[str(arm), str(budget)].steps for arm, budget in zip(tuned["arm"], tuned["budget"], strict=True)
    )


def new_steps(matrix: StudyMatrix, judged: Mapping[Comparison, Judgement]) -> int:
    """Evaluation by looks, with these decisions."""
    rates, waiting, total = {cell.key: 1.0 for cell in matrix.cells}, frozenset(matrix.comparisons), 0
    for look in looks_of(matrix):
        cells = open_cells(matrix, waiting) if look.number > 1 else None
        total += steps(matrix.evaluation_runs(rates, look.new, cells))
        waiting = frozenset(c for c in waiting if not (judged[c].decided and (judged[c].look or 0) <= look.number))
        if not waiting:
            break
    return total


def fixed_steps(matrix: StudyMatrix, seeds: int) -> int:
    """Evaluation of the same cells without looks."""
    runs: list[Run] = list(matrix.evaluation_runs({cell.key: 1.0 for cell in matrix.cells}))
    planned = len(matrix.spec.seeds.evaluation)
    return round(steps(runs) * seeds / planned)


class Simulations:
    """Draws one study, budget by budget, from its real tables."""

    def __init__(
        self, matrix: StudyMatrix, tables: Mapping[str, RealTable], scenario: str, margin: float | None
    ) -> None:
        self.matrix, self.null = matrix, scenario == NULL
        stream = numpy_stream(0, "efficiency", matrix.spec.name, scenario)
        self.sims = {budget: Simulator(table, "normal", stream) for budget, table in tables.items()}
        self.rule = replace(rule_of(matrix.spec.model_dump(mode="json")), margin=margin)

    def draw(self) -> Draw:
        """One study."""
        spec, family, truth, old = self.matrix.spec, {}, {}, {}
        for budget, sim in self.sims.items():
            arms = [c.arm for c in self.matrix.comparisons if c.budget == budget]
            like = np.array([sim.real.arms.index(arm) for arm in arms])
            means = np.zeros(len(arms)) if self.null else sim.real.means[like]
            half = float(sim.real.means[sim.real.arms.index(HALF)])
            drawn = sim.study(like, means, MOST_SEEDS, spec.data.test, half)
            keys = [Comparison(arm, budget) for arm in arms]
            family |= dict(zip(keys, _named(drawn, self.rule.seeds), strict=True))
            margin = half / 4 if self.rule.margin is None else self.rule.margin
            truth |= {key: (float(mean), margin) for key, mean in zip(keys, means, strict=True)}
            old |= dict(zip(keys, drawn.family.values(), strict=True))
        return Draw(family, old, truth)


@dataclass(frozen=True)
class Draw:
    """A simulated study."""

    family: Mapping[Comparison, Any]
    """Evidence, with the study's own seeds."""
    old: Mapping[Comparison, Any]
    """Likewise, with as many as were drawn."""
    truth: Mapping[Comparison, tuple[float, float]]
    """Difference, and the margin."""

    def before(self, alpha: float) -> dict[Comparison, str]:
        """Verdicts of the rule before: one family over all budgets, as it was."""
        everything = Simulated(dict(enumerate(self.old.values())), (), np.zeros(len(self.old)))
        return dict(zip(self.old, old_rule(everything, alpha=alpha), strict=True))


def _named(drawn: Simulated, seeds: tuple[int, ...]) -> list[Any]:
    """Evidence with the study's own seeds, as many as it has."""

    def seeded(table: Any) -> Any:
        return None if table is None else replace(table.of_seeds(range(len(seeds))), seeds=seeds)

    return [
        replace(own, table=seeded(own.table), half=seeded(own.half), finished=frozenset(seeds))
        for own in drawn.family.values()
    ]


def wrong(verdict: str, truth: float, margin: float) -> bool:
    """Whether a verdict says what is not so."""
    if verdict == "equivalent":
        return abs(truth) > margin
    return (verdict == "better" and truth >= 0) or (verdict == "worse" and truth <= 0)


def simulated(
    matrix: StudyMatrix,
    tables: Mapping[str, RealTable],
    scenario: str,
    studies: int,
    margin: float | None = OLD_MARGIN,
) -> dict[str, float]:
    """Means over simulated studies; without a margin it is a quarter of what half the budget costs."""
    sims, rows = Simulations(matrix, tables, scenario, margin), []
    for _ in range(studies):
        drawn = sims.draw()
        judged = judge_family(drawn.family, sims.rule)
        new = {c: str(j.verdict) for c, j in judged.items()}
        seeds = float(np.mean([j.n for j in judged.values()]))
        rows.append({"steps": new_steps(matrix, judged), "seeds": seeds, **shares(new, drawn.truth)})
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]}


def shares(verdicts: Mapping[Comparison, str], truth: Mapping[Comparison, tuple[float, float]]) -> dict[str, float]:
    """What share is decided, and whether anything is wrong."""
    return {
        "decided": float(np.mean([v != Verdict.UNDECIDED for v in verdicts.values()])),
        "wrong": float(any(wrong(v, *truth[c]) for c, v in verdicts.items())),
    }


def simulated_before(matrix: StudyMatrix, tables: Mapping[str, RealTable], studies: int) -> dict[str, Any]:
    """The rule before at its alpha, and `held`: at the largest of some at which it errs no more often than promised."""
    found: dict[float, dict[str, float]] = {}
    for scenario in (REAL, NULL):
        sims = Simulations(matrix, tables, scenario, OLD_MARGIN)
        draws = [sims.draw() for _ in range(studies)]
        for alpha in OLD_ALPHAS:
            rows = [shares(drawn.before(alpha), drawn.truth) for drawn in draws]
            means = {key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0]}
            found.setdefault(alpha, {"alpha": alpha}).update({f"{key}, {scenario}": x for key, x in means.items()})
    held = [o for o in found.values() if max(o[f"wrong, {scenario}"] for scenario in (REAL, NULL)) <= PROMISED]
    return {"as it was": found[OLD_ALPHAS[0]], "held": held[0] if held else found[OLD_ALPHAS[-1]]}


def of_study(study: Study, tables: Mapping[str, RealTable], tuning: int, studies: int) -> dict[str, Any]:
    """What the study took before, and by each plan of looks, the same draws for all."""
    old = old_steps(before(study))
    plans = [{"looks": looks, **simulated(with_looks(study, looks), tables, REAL, studies)} for looks in PLANS]
    return {
        "old_steps": old,
        "old_steps_same_controls": sum(old_steps(before(study, (*ALL_CONTROLS, "own-shuffled"))).values()),
        "tuning_steps": tuning,
        "comparisons": len(study.matrix.comparisons),
        "ten_seeds_steps": fixed_steps(study.matrix, len(OLD_SEEDS)),
        "before": simulated_before(study.matrix, tables, studies),
        "plans": plans,
        "own_margin": simulated(study.matrix, tables, REAL, studies, margin=None),
        NULL: simulated(study.matrix, tables, NULL, studies),
    }


Chosen = Sequence[Mapping[str, Any]]
"""A plan of looks for each study."""


def over_all(found: Mapping[str, dict[str, Any]], shares_of: Sequence[float]) -> float:
    """The share of all comparisons, by that of each study."""
    return round(float(np.average(shares_of, weights=[own["comparisons"] for own in found.values()])), 4)


def before_all(found: Mapping[str, dict[str, Any]], how: str) -> dict[str, float]:
    """The rule before over all studies."""
    return {
        key: over_all(found, [own["before"][how][f"{key}, {REAL}"] for own in found.values()])
        for key in ("decided", "wrong")
    }


def cheapest(found: Mapping[str, dict[str, Any]]) -> Chosen:
    """One plan of looks a study: the least steps that decide as large a share of all comparisons as before."""
    wanted = before_all(found, "held")["decided"]
    every = [list(chosen) for chosen in itertools.product(*(own["plans"] for own in found.values()))]
    enough = [chosen for chosen in every if over_all(found, [plan["decided"] for plan in chosen]) >= wanted]
    longest = [own["plans"][-1] for own in found.values()]
    return min(enough, key=lambda chosen: sum(plan["steps"] for plan in chosen), default=longest)


def totals(found: Mapping[str, dict[str, Any]], chosen: Chosen) -> dict[str, float]:
    """Over all studies, with one plan of looks each: steps by steps before, and shares of all comparisons."""
    old = sum(sum(own["old_steps"].values()) for own in found.values())
    same = sum(own["old_steps_same_controls"] for own in found.values())
    steps = sum(own["tuning_steps"] for own in found.values()) + sum(plan["steps"] for plan in chosen)
    return {
        "adapter_step_ratio": round(steps / old, 4),
        "adapter_step_ratio_same_controls": round(steps / same, 4),
        "decided_new": over_all(found, [plan["decided"] for plan in chosen]),
        "wrong_new": over_all(found, [plan["wrong"] for plan in chosen]),
    }


def saving(found: Mapping[str, dict[str, Any]], chosen: Chosen) -> dict[str, int]:
    """Adapter-steps by where they go."""
    own = list(found.values())
    return {
        "rates": sum(study["old_steps"]["tuning"] - study["tuning_steps"] for study in own),
        "controls": sum(study["old_steps"]["evaluation"] - study["ten_seeds_steps"] for study in own),
        "looks and arms that stop": round(
            sum(study["ten_seeds_steps"] - plan["steps"] for study, plan in zip(own, chosen, strict=True))
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    began, tables = time.perf_counter(), read_tables(asked.results)
    found: dict[str, Any] = {}
    for name in STUDIES:
        study = load_study(ROOT / "studies" / f"{name}.yaml")
        own = {t.name.split(" ")[1]: t for t in tables if t.name.split(" ")[0] == name}
        if not own:  # an export of before, without losses by record
            continue
        runs = pd.read_csv(asked.results / name / "runs.csv")
        found[name] = of_study(study, own, replayed_steps(study.matrix, runs), asked.studies)
        found[name]["tuning_steps_as_run"] = steps_of_tuning(runs, study.matrix)
    chosen = cheapest(found)
    as_run = totals(found, [own["plans"][-1] for own in found.values()])
    held, as_it_was = before_all(found, "held"), before_all(found, "as it was")
    report = {
        **totals(found, chosen),
        "decided_old": held["decided"],
        "wrong_old": held["wrong"],
        "decided_old_as_it_was": as_it_was["decided"],
        "wrong_old_as_it_was": as_it_was["wrong"],
        "looks": {name: plan["looks"] for name, plan in zip(found, chosen, strict=True)},
        "saving": saving(found, chosen),
        "adapter_step_ratio_as_run": as_run["adapter_step_ratio"],
        "decided_as_run": as_run["decided_new"],
        "decided_own_margin": over_all(found, [own["own_margin"]["decided"] for own in found.values()]),
        "false_positive_new": max(own[NULL]["wrong"] for own in found.values()),
        "false_positive_old": max(own["before"]["held"][f"wrong, {NULL}"] for own in found.values()),
        "old_steps": sum(sum(own["old_steps"].values()) for own in found.values()),
        "not_simulated": [name for name in STUDIES if name not in found],
        "studies": asked.studies,
        "by_study": found,
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
