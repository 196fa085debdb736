"""The matrix of a study: every run once, with what the file leaves to defaults resolved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from adaptive_lora.stats.run_table import Phase
from adaptive_lora.study.matrix import Role
from adaptive_lora.study.study_file import load_study, parse_study

WriteStudy = Callable[..., Path]
ARMS = "[uniform, linear-decay, empirical, random]"


def test_every_cell_has_one_role_and_its_own_scaling_training_and_steps(study_file: WriteStudy) -> None:
    arms = ("[uniform, {strategy: linear-decay, name: warm, scaling: rslora, train: {warmup: 2, longer: 2}}, "
            "{strategy: posthoc-svd, options: {short_run_steps: 3}}]")  # fmt: skip
    study = load_study(study_file((ARMS, arms), ("controls: none", "controls: all"), ("rank:2", "rank:4")))
    roles = {cell.key: cell.role for cell in study.matrix.cells}
    assert roles == {
        ("uniform", "rank:4"): Role.BASELINE, ("warm", "rank:4"): Role.ARM, ("posthoc-svd", "rank:4"): Role.ARM,
        ("random", "rank:4"): Role.CHANCE, ("shuffled", "rank:4"): Role.CHANCE,
        ("uniform-x1.5", "rank:4"): Role.COMPUTE, ("uniform", "rank:2"): Role.ASSAY, ("uniform", "rank:8"): Role.ASSAY,
    }  # fmt: skip
    warm, longer = study.matrix.by_key["warm", "rank:4"], study.matrix.by_key["uniform-x1.5", "rank:4"]
    assert (warm.scaling.rule, warm.training.warmup, warm.steps) == ("rslora", 2, 12)
    assert longer.steps == 9 and longer.scaling.rule == "constant"
    assert study.matrix.compute_controls == {"posthoc-svd": "uniform-x1.5"}
    assert study.matrix.assay_budgets == ("rank:2", "rank:8")


def test_every_run_is_there_once_and_has_an_identity_of_its_own(study_file: WriteStudy) -> None:
    changes = ("controls: none", "controls: all"), ("learning_rate: 1e-2", "learning_rate: [1e-3, 1e-2]")
    study = load_study(study_file(*changes, ("{evaluation: 2}", "{evaluation: 2, tuning: 2}")))
    matrix = study.matrix
    runs = [*matrix.tuning_runs(), *matrix.evaluation_runs({cell.key: 1e-3 for cell in matrix.cells})]
    assert set(Counter(run.run_id({}) for run in runs).values()) == {1}
    assert Counter(run.phase for run in runs) == matrix.counts()
    possible = {run.run_id({}) for run in matrix.possible_runs([1e-3, 1e-2])}
    assert {run.run_id({}) for run in runs} <= possible
    assert matrix.counts(excluded={("random", "rank:2")})[Phase.EVALUATION] == matrix.counts()[Phase.EVALUATION] - 2


def test_the_runs_of_committed_studies_keep_their_identities() -> None:
    """What was published is found again by its ids, whatever the version that wrote it."""
    results = Path(__file__).parents[2] / "results"
    for name, arms in (("demo", 5), ("superseded/alpaca-stories260k", 22), ("gsm8k-stories260k", 11)):
        folder = results / name
        facts = json.loads((folder / "facts.json").read_text())
        matrix = parse_study((folder / "study.yaml").read_text().replace("${ADAPTIVE_LORA_ASSETS}", "x"), folder).matrix
        rates = {(arm, budget): rate for arm, budget, rate in facts["chosen_rates"]}
        runs = [*matrix.tuning_runs(), *matrix.evaluation_runs(rates)]
        table = pd.read_csv(folder / "runs.csv")
        ids = {phase: {run.run_id(facts["material"]) for run in runs if run.phase is phase} for phase in Phase}
        found = {phase: set(table.loc[table["phase"] == phase, "run_id"]) for phase in Phase}
        if matrix.spec.seeds.looks:  # it may have ended early, and which rates it tried followed from losses
            assert found[Phase.EVALUATION] <= ids[Phase.EVALUATION]
        else:
            assert found == ids
        assert len({cell.arm.name for cell in matrix.cells}) >= arms
