"""Fixed ranks as a hypothesis: where they cost what the baseline costs, and only there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adaptive_lora import load_results, load_study
from adaptive_lora.errors import StudyFileError
from adaptive_lora.study.protocol import primary_comparisons
from adaptive_lora.study.study_file import load_study as parse

WriteStudy = Callable[..., Path]
ARMS = "arms: [uniform, linear-decay, empirical, random]"
RANKS = "{attn.c_attn: 1, attn.c_proj: 4, mlp.c_fc: 2, mlp.c_proj: 2}"  # 96, 48, 120, 120 a unit: as rank 2 everywhere
NAMED = ("primary: []", "primary: [mine]")


def with_ranks(ranks: str) -> tuple[str, str]:
    return ARMS, f"arms: [uniform, {{name: mine, ranks: {ranks}}}]"


def test_ranks_of_the_baselines_cost_are_judged(study_file: WriteStudy, tmp_path: Path) -> None:
    path = study_file(with_ranks(RANKS), NAMED, ("evaluation: 2", "evaluation: 6"))
    assert load_study(path).run(tmp_path / "out").finished
    (row,) = load_results(str(tmp_path / "out")).judge().to_dict("records")
    assert (row["arm"], row["budget"], row["n"], row["family"]) == ("mine", "rank:2", 6, "primary")
    assert row["p"] is not None and row["verdict"]


@pytest.mark.parametrize(("cheaper", "cost"), [("attn.c_proj: 3", "2,160"), ("attn.c_proj: 5", "2,448")])
def test_ranks_of_another_cost_are_refused_with_both_costs(
    study_file: WriteStudy, tmp_path: Path, cheaper: str, cost: str
) -> None:
    path = study_file(with_ranks(RANKS.replace("attn.c_proj: 4", cheaper)), NAMED, ("evaluation: 2", "evaluation: 6"))
    message = rf"line 5, arms\[1\]\.ranks: the ranks of 'mine' cost {cost} .* and the baseline 2,304 at rank:2"
    with pytest.raises(StudyFileError, match=message):
        load_study(path).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_exploratory_ranks_may_cost_what_they_cost(study_file: WriteStudy, tmp_path: Path) -> None:
    arms = ARMS, "arms: [uniform, linear-decay, {name: mine, ranks: {c_attn: 1, c_proj: 1, c_fc: 1}}]"
    path = study_file(arms, ("primary: []", "primary: [linear-decay]"), ("evaluation: 2", "evaluation: 6"))
    assert load_study(path).run(tmp_path / "out").finished


def test_ranks_stand_under_the_first_budget(study_file: WriteStudy) -> None:
    two = ('["rank:2"]', '["rank:2", "rank:3"]')
    found = primary_comparisons(parse(study_file(with_ranks(RANKS), NAMED, two)).spec)
    assert [(c.arm, c.budget) for c in found] == [("mine", "rank:2")]
    later = ("primary: []", "primary: [{arm: mine, budget: 'rank:3'}]")
    with pytest.raises(StudyFileError, match=r"'mine' has fixed `ranks`, which .* first budget alone; write rank:2"):
        parse(study_file(with_ranks(RANKS), later, two))
