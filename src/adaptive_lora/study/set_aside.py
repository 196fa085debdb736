"""Which of a ledger's runs the study asks for as it is now; after a deviation there can be others.

Runs have their arm, budget and seed as labels. A deviation may change what stands behind these (an arm's options, its
scaling, its learning rate), so that one label would name two runs and one seed would count twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from adaptive_lora.stats.run_table import Phase
from adaptive_lora.study.learning_rate_search import chosen_rates, grid_of
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.protocol import arms_on_budgets
from adaptive_lora.study.runs import RunSpec
from adaptive_lora.study.schema import StudySpec
from adaptive_lora.study.settings import scaling_of


def set_aside(spec: StudySpec, context: Mapping[str, Any], ledger: Ledger) -> int:
    """Sets runs aside that the study does not ask for, and takes back those that it asks for again; how many.

    What a run is, its identity, decides; labels follow it where an arm was renamed. Of the rest, evaluation runs stay
    at the rate that tuning has chosen, and tuning runs at the rates of the grid. An arm whose rate is not chosen yet
    has no evaluation runs that count.
    """
    every = ledger.runs(every=True)
    possible = {run.run_id(context): run for run in _possible(spec, {run["learning_rate"] for run in every})}
    ledger.register({run["run_id"]: possible[run["run_id"]] for run in every if run["run_id"] in possible})
    foreign = [run["run_id"] for run in every if run["run_id"] not in possible]
    ledger.set_facts({"set_aside": foreign})  # the grid and the choice follow from the others alone
    grid, chosen = grid_of(spec, ledger), chosen_rates(spec, ledger)
    elsewhere = [
        run["run_id"]
        for run in ledger.runs()
        if not (
            run["learning_rate"] in grid
            if run["phase"] == Phase.TUNING
            else run["learning_rate"] == chosen.get((run["arm"], run["budget"]))
        )
    ]
    ledger.set_facts({"set_aside": [*foreign, *elsewhere]})
    return len(foreign) + len(elsewhere)


def _possible(spec: StudySpec, rates: set[float]) -> Iterator[RunSpec]:
    """Every run that the study could ask for at some rates, twins of every run included."""
    seeds = {Phase.TUNING: spec.seeds.tuning, Phase.EVALUATION: spec.seeds.evaluation}
    for budget, arm in arms_on_budgets(spec):
        for phase, own in seeds.items():
            for rate in rates:
                for seed in own:
                    for replica in (0, 1) if phase is Phase.EVALUATION else (0,):
                        yield RunSpec(phase, arm, budget, scaling_of(spec, arm), rate, seed, replica)
