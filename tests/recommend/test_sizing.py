"""What fits the time: arithmetic, tried without training anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_lora.recommend import sizing
from adaptive_lora.recommend.sizing import (
    SHARE,
    SHARE_AT_CAP,
    Speed,
    fitting,
    largest_bank,
    least_seconds,
    seconds_of,
    size_of,
)
from adaptive_lora.recommend.study_text import Question, study_text
from adaptive_lora.stats.run_table import Phase
from adaptive_lora.study.lock import undecidable
from adaptive_lora.study.study_file import parse_study

SLOW = Speed(trained=0.28, evaluated=0.12, alone=0.28, start=6.0)
FAST = Speed(trained=0.002, evaluated=0.001, alone=0.01, start=2.0)
QUESTION = Question("demo", "demo:fine-tuning", "all-linear", 8, 128, "auto")


def test_more_time_is_a_better_study() -> None:
    sizes = [fitting(60.0 * minutes, SLOW, 9000, 4) for minutes in (1, 5, 10, 20, 60, 300, 3000)]
    assert sizes[0] is None
    found = [size for size in sizes if size is not None]
    assert len(found) == 6
    order = [(min(size.strategies, 2), size.steps if size.strategies else 0, size.seeds) for size in found]
    assert order == sorted(order)
    assert found[0].strategies == 0 and found[-1].strategies == 3
    assert all(size.seeds >= 4 for size in found if size.strategies)  # a verdict takes as many


@given(st.floats(10, 1e5), st.floats(1e-4, 2), st.floats(0.1, 0.9), st.integers(40, 50_000), st.sampled_from((4, 8)))
def test_what_fits_fits(seconds: float, trained: float, part: float, records: int, batch_size: int) -> None:
    speed = Speed(trained, part * trained, trained, start=5.0)
    size = fitting(seconds, speed, records, batch_size)
    if size is None:
        cheapest = size_of(*sizing.LADDER[-1], records, batch_size)
        assert seconds_of(cheapest, speed) > SHARE * seconds
        assert fitting(1.01 * least_seconds(speed, records, batch_size), speed, records, batch_size) is not None
        return
    assert seconds_of(size, speed) <= SHARE_AT_CAP * seconds
    assert size.train + size.validation + size.test <= records
    assert min(size.train, size.validation, size.test) >= 1
    assert not size.looks or (size.looks[0], size.looks[-1]) == (3 if size.seeds == 4 else 4, size.seeds)


def test_time_left_makes_more_seeds_not_longer_runs_beyond_the_ladder() -> None:
    size = fitting(24 * 3600.0, FAST, 9000, 4)
    assert size is not None and (size.steps, size.strategies, size.seeds) == sizing.LADDER[0]
    assert fitting(24 * 3600.0, FAST, 60, 4) == replace(size, train=36, validation=6, test=18)


@pytest.mark.parametrize("minutes", [5, 10, 20, 60, 600])
def test_the_study_file_is_the_study_that_was_counted(minutes: float, tmp_path: Path) -> None:
    size = fitting(60 * minutes, SLOW, 9000, 4)
    assert size is not None
    study = parse_study(study_text(QUESTION, size, 1e-3), tmp_path / "study.yaml")
    assert undecidable(study) is None
    runs = study.matrix.counts()
    later = size.seeds - size.looks[0] if size.looks else 0
    assert runs[Phase.EVALUATION] == size.seeds * size.runs_a_seed - later
    assert runs[Phase.TUNING] == sizing.TUNING_RUNS - 1
    assert len(study.matrix.comparisons) == size.strategies
    assert {cell.budget for cell in study.matrix.cells} == {"rank:4", "rank:8", "rank:16"}
    assert tuple(study.spec.seeds.looks) == size.looks and study.spec.train.tune == "shared"


def test_a_bank_is_whole_seeds_in_an_eighth_of_the_time() -> None:
    size = fitting(1200.0, SLOW, 9000, 4)
    assert size is not None and size.runs_a_seed == 5
    assert largest_bank(size, 1200.0, SLOW) == 5
    assert largest_bank(size, 1200.0, FAST) % 5 == 0
    assert largest_bank(size, 1200.0, FAST) > 100
