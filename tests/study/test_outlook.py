"""What a study is expected to take, by a pilot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.crossed import Components
from adaptive_lora.stats.design import Costs
from adaptive_lora.stats.run_table import Phase
from adaptive_lora.stats.spreads import Pilot, Spread
from adaptive_lora.study.estimate import Estimate
from adaptive_lora.study.matrix import StudyMatrix
from adaptive_lora.study.outlook import StudyCosts, design_of, outlook
from adaptive_lora.study.study_file import load_study

PARTS = Components(8e-5, 0.02, 0.02)
TYPICAL = Spread("a", "rank:8", PARTS, None, 0.02, 0.0, True)
WIDE = replace(TYPICAL, arm="b", difference=Components(9e-5, 0.04, 0.02))
NARROW = replace(TYPICAL, arm="c", difference=Components(1e-5, 0.01, 0.02))
PILOT = Pilot((WIDE, TYPICAL, NARROW), 0.5)


@pytest.fixture
def matrix(study_file: Callable[..., Path]) -> StudyMatrix:
    """Three comparisons and the baseline, eight seeds, tuned."""
    changes = (("primary: []", "margin: 0.02"), ("{evaluation: 2}", "{evaluation: 8, tuning: 2}"))
    return load_study(study_file(*changes, ("learning_rate: 1e-2", "learning_rate: [3e-3, 1e-2]"))).matrix


def test_a_study_file_is_a_design(matrix: StudyMatrix) -> None:
    design = design_of(matrix.spec, matrix, PILOT)
    assert (design.seeds, design.records, design.looks) == (8, matrix.spec.data.test, ())
    assert (design.margin, design.comparisons, design.correlation) == (0.02, len(matrix.comparisons), 0.5)


def test_costs_are_those_of_all_runs(matrix: StudyMatrix) -> None:
    costs = StudyCosts(Costs(run=10.0, record=0.5), 100.0, matrix)
    tuning = matrix.counts()[Phase.TUNING]
    assert costs.twins == 0 and costs.seconds(6, 40) == 100 + 10 * tuning + 6 * (10 + 20)


def test_without_looks_every_effect_takes_the_same_and_more_of_it_decides_more(matrix: StudyMatrix) -> None:
    design = replace(design_of(matrix.spec, matrix, PILOT), records=2000)
    costs = StudyCosts(Costs(10.0, 0.01), 100.0, matrix)
    found = outlook(PILOT, design, costs)
    assert found.typical is not None and found.typical.arm == "a" and [p.arm for p in found.power] == ["b", "a", "c"]
    assert [row.margins for row in found.expected] == [0, 1, 2]
    assert [row.difference for row in found.expected] == [0.0, 0.02, 0.04]
    runs = sum(matrix.counts().values())
    assert {row.runs for row in found.expected} == {runs} and {row.seeds for row in found.expected} == {8.0}
    seconds = pytest.approx(costs.seconds(matrix.counts()[Phase.EVALUATION], 2000))
    assert [row.seconds for row in found.expected] == [seconds] * 3
    assert found.expected[2].decided > 0.95 and found.planned is not None and found.cheapest is not None
    assert found.planned.seconds == seconds
    assert min(found.cheapest.power, found.cheapest.equivalence_power) >= 0.8


def test_looks_spare_runs(matrix: StudyMatrix) -> None:
    design = replace(design_of(matrix.spec, matrix, PILOT), records=2000, looks=(4, 6, 8))
    found = outlook(PILOT, design, StudyCosts(Costs(10.0, 0.01), 100.0, matrix)).expected
    assert found[2].seeds < 6 and found[2].runs < sum(matrix.counts().values()) and found[2].seconds < found[0].seconds


def test_a_pilot_that_lacks_something_gives_no_more_than_it_can(matrix: StudyMatrix) -> None:
    design, costs = design_of(matrix.spec, matrix), StudyCosts(Costs(10.0, 0.01), 0.0, matrix)
    nothing = outlook(Pilot((), 0.0), design, costs)
    assert (nothing.power, nothing.typical, nothing.expected, nothing.planned) == ((), None, (), None)
    unknown = outlook(Pilot((replace(TYPICAL, margin=None),), 0.0), design, costs)
    assert [row.margins for row in unknown.expected] == [0] and unknown.planned is None and unknown.cheapest is None


def test_what_no_verdict_needs_stops_at_the_first_look(study_file: Callable[..., Path]) -> None:
    changes = (("primary: []", "margin: 0.02"), ("{evaluation: 2}", "{evaluation: 8, looks: [4, 6, 8]}"))
    matrix = load_study(study_file(*changes, ("controls: none", "controls: [half, double, twin]"))).matrix
    costs = StudyCosts(Costs(10.0, 0.01), 0.0, matrix)
    found = outlook(PILOT, replace(design_of(matrix.spec, matrix, PILOT), records=2000), costs).expected
    # Undecided to the end: all cells have eight seeds, but the baseline at twice the budget four; and there is a twin.
    brief = sum(map(matrix.is_brief, matrix.cells))
    assert brief == costs.twins == 1 and found[0].runs <= sum(matrix.counts().values())
    assert sum(matrix.counts().values()) == 8 * (len(matrix.cells) - 1) + 4 + 1
    assert found[2].runs < found[0].runs


def test_the_cost_is_told_in_minutes_or_hours_and_with_looks_as_the_most(matrix: StudyMatrix) -> None:
    design = design_of(matrix.spec, matrix)
    short = Estimate({}, {}, 100, 50_000_000, 0.0, 90.0, design, None, ())
    assert render("power.cost", short).endswith("about 1.5 minutes in all on this machine")
    long = replace(short, planning_seconds=120.0, seconds=3 * 3600.0, design=replace(design, looks=(4, 8)))
    assert render("power.cost", long).endswith(
        "about 3 hours in all on this machine, of which 2.0 minutes planning; "
        "runs and time are those of all seeds, and looks may end the study sooner"
    )
