"""What the paper says of arms beside controls by chance."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.paper.prose import _beside_chance
from adaptive_lora.stats.arms import summarise
from adaptive_lora.stats.differences import differences_of, with_differences
from tests.stats.tables import BASE, by_record, by_seed, table

CHANCE = ("chance-a", "chance-b")
SEEDS = (0.0, 0.1, -0.1, 0.05)


def study(alpha: float = 0.05, noise: float | None = None, **arms: Sequence[float]) -> Findings:
    """Of arms by their differences from the baseline, seed by seed; losses of 50 records with `noise`."""
    named = {name.replace("_", "-"): differences for name, differences in arms.items()}
    losses = {"uniform": [0.0] * len(BASE), **named}
    runs = table({(name, "rank:8"): [BASE[i] + x for i, x in enumerate(own)] for name, own in losses.items()})
    tables = by_seed(runs) if noise is None else by_record(runs, noise=noise)
    differences = differences_of(tables, "uniform")
    spec = {"analysis": {"baseline": "uniform", "alpha": alpha}, "budgets": ["rank:8"],
            "arms": [{"name": name} for name in losses if name not in CHANCE]}  # fmt: skip
    own = with_differences(summarise(runs, "uniform"), differences)
    return Findings(None, {"spec": spec}, runs, own, {}, [], differences, tables)


def shown(found: Findings) -> dict[str, list[str]]:
    return dict(_beside_chance(found, CHANCE))


@pytest.mark.parametrize(("by", "says"), [(0.02, "above"), (-0.02, "below")])
def test_overlapping_intervals_hide_no_paired_difference(by: float, says: str) -> None:
    """Seeds move all arms together: all intervals overlap, and each pair differs by nearly the same."""
    arm = [seed + by + wiggle for seed, wiggle in zip(SEEDS, (0.001, 0.0, -0.001, 0.0), strict=True)]
    both = shown(study(arm=arm, chance_a=SEEDS, chance_b=[seed + 0.001 for seed in SEEDS]))
    assert both == {"above": [], "below": [], says: ["arm"]}


def test_one_control_that_does_as_well_is_enough_and_so_is_one_seed() -> None:
    worse = [seed + 0.02 for seed in SEEDS]
    none: dict[str, list[str]] = {"above": [], "below": []}
    assert shown(study(arm=worse, chance_a=SEEDS, chance_b=worse)) == none
    assert shown(study(arm=[0.5], chance_a=[0.1])) == none
    assert shown(study(arm=worse)) == none


def test_records_that_differ_among_themselves_show_less_than_seeds_do() -> None:
    worse = [seed + 0.02 + wiggle for seed, wiggle in zip(SEEDS, (0.001, 0.0, -0.001, 0.0), strict=True)]
    for noise, above in ((None, ["arm"]), (0.001, ["arm"]), (0.2, [])):
        assert shown(study(noise=noise, arm=worse, chance_a=SEEDS))["above"] == above


def test_the_level_is_the_studys() -> None:
    arm = [0.1, 0.0, 0.05, 0.12]
    for alpha, above in ((0.1, ["arm"]), (0.01, [])):
        found = study(alpha, arm=arm, chance_a=[0.0] * 4)
        interval = found.between(("arm", "rank:8"), ("chance-a", "rank:8"))
        assert interval is not None and interval.level == 1 - alpha
        assert shown(found)["above"] == above
