"""Which of a ledger's runs count, after the study file has changed.

Runs have their arm, budget and seed as labels. A deviation may change what these labels stand for
(an arm's options, its scaling, its learning rate): one label would name two runs, and one seed would count twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptive_lora.stats.run_table import Phase
from adaptive_lora.study.learning_rate_search import search_of
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.matrix import StudyMatrix


def set_aside(matrix: StudyMatrix, context: Mapping[str, Any], ledger: Ledger) -> int:
    """Sets runs aside that the study does not ask for, and takes back those that it asks for again; how many are set
    aside.

    What a run is, its identity, decides; labels follow it where an arm was renamed. Of the rest, evaluation runs stay
    at the rate that tuning has chosen, and tuning runs at the rates of the grid. An arm whose rate is not chosen yet
    has no evaluation runs that count.
    """
    every = ledger.runs(every=True)
    possible = {run.run_id(context): run for run in matrix.possible_runs({run["learning_rate"] for run in every})}
    ledger.register({run["run_id"]: possible[run["run_id"]] for run in every if run["run_id"] in possible})
    foreign = [run["run_id"] for run in every if run["run_id"] not in possible]
    # First what no study file of now could name: grid and choice must follow from the runs that are left alone.
    ledger.set_facts({"set_aside": foreign})
    search = search_of(matrix, ledger)
    elsewhere = [
        run["run_id"]
        for run in ledger.runs()
        if not (
            run["learning_rate"] in search.asked.get((run["arm"], run["budget"]), ())
            if run["phase"] == Phase.TUNING
            else run["learning_rate"] == search.chosen.get((run["arm"], run["budget"]))
        )
    ]
    ledger.set_facts({"set_aside": [*foreign, *elsewhere]})
    return len(foreign) + len(elsewhere)
