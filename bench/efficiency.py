"""What the protocol saves: adapter-steps to as many decisions, against the protocol before. Prints JSON.

Studies are simulated from the three committed ones (`simulated.py`), with the arms' real differences for truth, and
judged both ways on the same draws. **Before**: every cell tuned with three tuning seeds on as many rates as it then
took (five in `alpaca-babyllama-full`, three in the others), ten evaluation seeds for all, controls `all` (random,
shuffled, twin, half, double, equal compute), sign flips with Holm, equivalence within 0.01 nats. **Now**: the study
file; tuning as it goes on the losses of the committed study (`replayed_tuning.py`; `tuning_steps_as_run`: what it
took there, where every arm was tried at three rates). Both have the same arms, budgets and steps, so that nothing is
saved by asking less, and the same margin, as equivalence within a narrower one is another question: `own_margin` has
the files' own, a quarter of what half the budget costs, which in the main study is a third of it at rank:2 and cannot
be had at rank:8. Plans of looks are tried from the shortest, and the first counts that decides as large a share as
before; `as_run` has the file's own plan. What is asked now is more: every measured arm has a control of its own.
`adapter_step_ratio_same_controls` is against the protocol before with these controls too.

    python bench/efficiency.py [--studies 400] [--results FOLDER] [--out FILE]

`adapter_step_ratio`: now over before, all three together. `decided_new` and `decided_old`: shares of the primary
comparisons with a verdict. `wrong_new`, `wrong_old`: shares with a false one: the other sign, a difference where there
is none (in studies without true differences), or an equivalence of what differs by more than the margin.
`saving`: adapter-steps by where they go.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import replace
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
from replayed_tuning import replayed_steps
from simulated import HALF, RealTable, Simulated, Simulator, read_tables

ROOT = Path(__file__).parent.parent
STUDIES = ("alpaca-babyllama-full", "alpaca-stories260k", "gsm8k-stories260k")
OLD_RATES = {"alpaca-babyllama-full": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]}
THREE_RATES = [1e-3, 3e-3, 1e-2]
PLANS = ((4, 6), (4, 6, 8), (4, 6, 8, 10), (4, 6, 8, 10, 12))
OLD_SEEDS, OLD_TUNING = list(range(10)), [1000, 1001, 1002]
REAL, NULL = "real differences", "no true difference"


ALL_CONTROLS = ("random", "shuffled", "twin", "half", "double", "compute")


def before(study: Study, controls: tuple[str, ...] = ALL_CONTROLS) -> StudyMatrix:
    """The same arms and budgets under the protocol before."""
    spec = study.spec
    old = {
        "seeds": {"evaluation": OLD_SEEDS, "tuning": OLD_TUNING},
        "train": {**_said(spec.train), "learning_rate": old_rates(spec.name), "tune": "every-arm"},
        "controls": list(controls),
    }
    return matrix_of(type(spec).model_validate({**_said(spec), **old}))


def old_rates(name: str) -> list[float]:
    return OLD_RATES.get(name, THREE_RATES)


def with_looks(study: Study, looks: tuple[int, ...]) -> StudyMatrix:
    """The study with another plan of looks, and the seeds that it needs."""
    spec = study.spec
    seeds = {**_said(spec.seeds), "evaluation": list(spec.seeds.evaluation[: looks[-1]]), "looks": list(looks)}
    return matrix_of(type(spec).model_validate({**_said(spec), "seeds": seeds}))


def _said(part: Any) -> dict[str, Any]:
    found: dict[str, Any] = part.model_dump(mode="python", exclude_unset=True)
    return found


def steps(runs: Any) -> int:
    """Adapter-steps of runs."""
    return sum(run.cell.steps for run in runs)


def old_steps(matrix: StudyMatrix) -> dict[str, int]:
    rates = {cell.key: 1.0 for cell in matrix.cells}
    return {
        "tuning": steps(matrix.tuning_runs(old_rates(matrix.spec.name))),
        "evaluation": steps(matrix.evaluation_runs(rates)),
    }


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

    def draw(self) -> tuple[dict[Comparison, Judgement], dict[Comparison, str], dict[Comparison, tuple[float, float]]]:
        """Judgements now, verdicts before, and the truth: difference, and the margin."""
        spec, family, truth, old = self.matrix.spec, {}, {}, {}
        for budget, sim in self.sims.items():
            arms = [c.arm for c in self.matrix.comparisons if c.budget == budget]
            like = np.array([sim.real.arms.index(arm) for arm in arms])
            means = np.zeros(len(arms)) if self.null else sim.real.means[like]
            half = float(sim.real.means[sim.real.arms.index(HALF)])
            drawn = sim.study(like, means, max(len(spec.seeds.evaluation), len(OLD_SEEDS)), spec.data.test, half)
            keys = [Comparison(arm, budget) for arm in arms]
            family |= dict(zip(keys, _named(drawn, self.rule.seeds), strict=True))
            margin = half / 4 if self.rule.margin is None else self.rule.margin
            truth |= {key: (float(mean), margin) for key, mean in zip(keys, means, strict=True)}
            old |= {budget: (keys, drawn)}
        return judge_family(family, self.rule), _old(old), truth


def _named(drawn: Simulated, seeds: tuple[int, ...]) -> list[Any]:
    """Evidence with the study's own seeds, as many as it has."""

    def seeded(table: Any) -> Any:
        return None if table is None else replace(table.of_seeds(range(len(seeds))), seeds=seeds)

    return [
        replace(own, table=seeded(own.table), half=seeded(own.half), finished=frozenset(seeds))
        for own in drawn.family.values()
    ]


def _old(drawn: Mapping[str, tuple[list[Comparison], Simulated]]) -> dict[Comparison, str]:
    """One family over all budgets, as it was."""
    keys = [key for own, _ in drawn.values() for key in own]
    family = dict(enumerate(own for _, study in drawn.values() for own in study.family.values()))
    return dict(zip(keys, old_rule(Simulated(family, (), np.zeros(len(family)))), strict=True))


def wrong(verdict: str, truth: tuple[float, float], margin: float) -> bool:
    """Whether a verdict says what is not so."""
    if verdict == "equivalent":
        return abs(truth[0]) > margin
    return (verdict == "better" and truth[0] >= 0) or (verdict == "worse" and truth[0] <= 0)


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
        judged, verdicts, truth = sims.draw()
        new = {c: str(j.verdict) for c, j in judged.items()}
        rows.append(
            {
                "steps": new_steps(matrix, judged),
                "seeds": np.mean([j.n for j in judged.values()]),
                "decided_new": np.mean([v != Verdict.UNDECIDED for v in new.values()]),
                "decided_old": np.mean([v != Verdict.UNDECIDED for v in verdicts.values()]),
                "wrong_new": float(any(wrong(v, truth[c], truth[c][1]) for c, v in new.items())),
                "wrong_old": float(any(wrong(v, truth[c], OLD_MARGIN) for c, v in verdicts.items())),
            }
        )
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]}


def of_study(study: Study, tables: Mapping[str, RealTable], tuning: int, studies: int) -> dict[str, Any]:
    old = old_steps(before(study))
    found: dict[str, Any] = {"old_steps": old, "tuning_steps": tuning, "comparisons": len(study.matrix.comparisons)}
    for looks in PLANS:
        matrix = with_looks(study, looks)
        real = simulated(matrix, tables, REAL, studies)
        if real["decided_new"] >= real["decided_old"]:
            break
    found |= {"looks": looks, REAL: real, NULL: simulated(matrix, tables, NULL, studies)}
    found["as_run"] = {"looks": study.spec.seeds.looks, **simulated(study.matrix, tables, REAL, studies)}
    found["own_margin"] = simulated(study.matrix, tables, REAL, studies, margin=None)
    fixed = fixed_steps(study.matrix, len(OLD_SEEDS))
    found["saving"] = {
        "rates": old["tuning"] - tuning,
        "controls": old["evaluation"] - fixed,
        "looks and arms that stop": round(fixed - real["steps"]),
    }
    before_all = sum(old.values())
    found["old_steps_same_controls"] = sum(old_steps(before(study, (*ALL_CONTROLS, "own-shuffled"))).values())
    found["adapter_step_ratio"] = round((tuning + real["steps"]) / before_all, 4)
    found["adapter_step_ratio_as_run"] = round((tuning + found["as_run"]["steps"]) / before_all, 4)
    return found


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
    total_old = sum(sum(own["old_steps"].values()) for own in found.values())
    total_new = sum(own["tuning_steps"] + own[REAL]["steps"] for own in found.values())
    weights = [own["comparisons"] for own in found.values()]
    report = {
        "adapter_step_ratio": round(total_new / total_old, 4),
        **{
            key: round(float(np.average([own[REAL][key] for own in found.values()], weights=weights)), 4)
            for key in ("decided_new", "decided_old", "wrong_new", "wrong_old")
        },
        "false_positive_new": max(own[NULL]["wrong_new"] for own in found.values()),
        "false_positive_old": max(own[NULL]["wrong_old"] for own in found.values()),
        "adapter_step_ratio_as_run": round(
            sum(own["tuning_steps"] + own["as_run"]["steps"] for own in found.values()) / total_old, 4
        ),
        **{
            f"decided_{kind}": round(
                float(np.average([own[kind]["decided_new"] for own in found.values()], weights=weights)), 4
            )
            for kind in ("as_run", "own_margin")
        },
        "saving": {
            part: sum(own["saving"][part] for own in found.values()) for part in next(iter(found.values()))["saving"]
        },
        "old_steps": total_old,
        "adapter_step_ratio_same_controls": round(
            total_new / sum(own["old_steps_same_controls"] for own in found.values()), 4
        ),
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
