"""Power of a study's seeds and records, by the spread of a pilot."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from adaptive_lora.stats.crossed import Components
from adaptive_lora.stats.effect_sizes import RecordLosses
from adaptive_lora.stats.evidence import StudyTables
from adaptive_lora.stats.power import Design, equivalence_power, half_width, power_by_arm, power_of
from adaptive_lora.stats.spreads import Pilot, pilot_of, tuning_pilot
from adaptive_lora.stats.step_down import Family
from adaptive_lora.streams import numpy_stream
from tests.stats.tables import BASE, diverge, moved, table

DESIGN = Design(seeds=10, alpha=0.05, comparisons=4, margin=0.01, records=400)
EIGHT, FOUR = "rank:8", "rank:4"


def none_by_record(run_id: str, split: str) -> RecordLosses | None:
    """As an export without its archive has them."""
    return None


def pilot(runs: pd.DataFrame, margin: float | None = 0.01) -> Pilot:
    return pilot_of(StudyTables(runs, none_by_record), "uniform", margin)


def test_every_number_has_what_it_says() -> None:
    runs = table({("uniform", EIGHT): BASE, ("a", EIGHT): moved(0.0), ("b", EIGHT): moved(0.0, 10)})
    found = pilot(runs)
    close, far = power_by_arm(found.spreads, DESIGN)
    assert (close.arm, far.arm) == ("a", "b") and far.sd == pytest.approx(10 * close.sd)
    assert far.detectable == pytest.approx(10 * close.detectable) and not far.by_record
    spread = Components(far.sd**2, 0.0, 0.0)
    assert power_of(far.detectable, spread, 10, 1, Family(0.05, 4)) == pytest.approx(0.8, abs=1e-3)
    assert far.half_width == pytest.approx(half_width(spread, 10, 1))
    assert close.seeds_for_equivalence is not None and far.seeds_for_equivalence is not None
    assert close.seeds_for_equivalence < 5 < far.seeds_for_equivalence
    for seeds, enough in ((far.seeds_for_equivalence, True), (far.seeds_for_equivalence - 1, False)):
        assert (equivalence_power(0.01, spread, seeds, 1, Family(0.05, 4)) >= 0.8) == enough
    assert far.seeds_for_margin is not None and power_of(0.01, spread, far.seeds_for_margin, 1, Family(0.05, 4)) >= 0.8


def test_a_pilot_of_one_seed_says_nothing() -> None:
    assert pilot(table({("uniform", EIGHT): BASE[:1], ("a", EIGHT): BASE[:1]})).spreads == ()
    assert power_by_arm(pilot(table({("uniform", EIGHT): BASE, ("a", EIGHT): moved(0.0)})).spreads,
                        dataclasses.replace(DESIGN, seeds=1)) == []  # fmt: skip


def test_alpha_reaches_every_number() -> None:
    found = pilot(table({("uniform", EIGHT): BASE, ("a", EIGHT): moved(0.0, 10)}))
    strict, usual = (power_by_arm(found.spreads, dataclasses.replace(DESIGN, alpha=a))[0] for a in (0.01, 0.05))
    assert strict.seeds_for_equivalence is not None and usual.seeds_for_equivalence is not None
    assert strict.seeds_for_equivalence > usual.seeds_for_equivalence
    assert strict.half_width > usual.half_width and strict.detectable > usual.detectable


def test_a_margin_is_measured_by_the_baseline_at_half_the_budget() -> None:
    runs = table({("uniform", EIGHT): BASE, ("uniform", FOUR): moved(0.08, 5), ("a", EIGHT): moved(0.0)})
    (spread,) = pilot(runs, None).spreads
    assert spread.margin == pytest.approx(0.08 / 4, abs=1e-3) and spread.half is not None
    assert spread.contrast.seeds == pytest.approx(spread.difference.seeds + spread.half.seeds / 16)
    (by_number,) = pilot(runs, 0.01).spreads
    assert by_number.margin == 0.01 and by_number.contrast == by_number.difference
    better = table({("uniform", EIGHT): BASE, ("uniform", FOUR): moved(-0.08), ("a", EIGHT): moved(0.0)})
    (unknown,) = pilot(better, None).spreads
    assert unknown.margin is None
    (power,) = power_by_arm([unknown], DESIGN)
    assert (power.margin, power.seeds_for_margin, power.seeds_for_equivalence) == (None, None, None)


def by_record(run_id: str, split: str) -> RecordLosses | None:
    """Losses of 300 records, whose mean has noise of its own, the same for every run of a seed."""
    draw = numpy_stream(int(run_id[-1]), "tests", run_id)
    records = numpy_stream(0, "tests", run_id[:-1]).normal(0, 0.2, 300)
    return SimpleNamespace(nll=records + draw.normal(0, 0.1, 300), tokens=np.ones(300, dtype=np.int64))


def test_losses_by_record_tell_records_from_seeds() -> None:
    runs = table({("uniform", EIGHT): BASE, ("a", EIGHT): BASE})
    (spread,) = pilot_of(StudyTables(runs, by_record), "uniform", 0.01).spreads
    assert spread.by_record and spread.difference.records == pytest.approx(2 * 0.2**2, rel=0.2)
    assert spread.difference.both == pytest.approx(2 * 0.1**2, rel=0.1) and spread.difference.seeds < 1e-4
    few, many = (power_by_arm([spread], dataclasses.replace(DESIGN, records=n))[0] for n in (200, 20_000))
    assert few.half_width == pytest.approx(half_width(spread.difference, 10, 200))
    # Two hundred records are too few to find the margin, with however many seeds.
    assert few.seeds_for_margin is None and many.seeds_for_margin is not None


def test_tuning_runs_are_a_pilot_at_the_rate_that_does_best() -> None:
    rates = {0.001: 0.0, 0.003: -0.5, 0.01: -0.9}
    every = []
    for rate, gain in rates.items():
        runs = table({("uniform", EIGHT): BASE, ("a", EIGHT): moved(0.001, 100 * gain + 60)})
        own = runs.assign(phase="tuning", learning_rate=rate, validation_loss=runs["test_loss"] + gain, test_loss=None)
        every.append(own.assign(run_id=own["run_id"] + f"@{rate}"))
    diverge(every[2], "a", [0])  # at the highest rate one seed of it diverges, and one of the baseline
    diverge(every[2], "uniform", [1])
    found = tuning_pilot(pd.concat(every), none_by_record, "uniform", 0.01)
    (spread,) = found.spreads
    expected = np.var([1e-3 * w for w in (10, -10, 20, -20, 10, -10, 15, -15)], ddof=1)
    assert (spread.arm, spread.difference.seeds) == ("a", pytest.approx(float(expected)))
    assert tuning_pilot(every[0].iloc[:0], none_by_record, "uniform", 0.01).spreads == ()


def test_looks_leave_less_to_the_last_and_what_is_detectable_says_so() -> None:
    found = pilot(table({("uniform", EIGHT): BASE, ("a", EIGHT): moved(0.0, 10)}))
    looking = dataclasses.replace(DESIGN, looks=(4, 6, 8, 10))
    (once,), (often,) = (power_by_arm(found.spreads, design) for design in (DESIGN, looking))
    assert DESIGN.final_alpha == 0.05 and 0.03 < looking.final_alpha < 0.04
    spread = Components(often.sd**2, 0.0, 0.0)
    assert power_of(often.detectable, spread, 10, 1, Family(looking.final_alpha, 4)) == pytest.approx(0.8, abs=1e-3)
    assert often.detectable > 1.02 * once.detectable
    assert often.half_width == once.half_width  # an interval is of level 1 - alpha, whenever it is looked at
