"""What the paper says of arms beside controls by chance."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from adaptive_lora.reporting.paper.prose import _beside_chance


def found(alpha: float = 0.05, **arms: Sequence[float]) -> Any:
    """Findings of arms by their differences from the baseline, seed by seed; `chance_*` are the controls."""
    compared = [SimpleNamespace(arm=n, budget="rank:8", differences=tuple(enumerate(d))) for n, d in arms.items()]
    own = [name for name in arms if not name.startswith("chance")]
    return SimpleNamespace(compared=compared, contenders=own, named=lambda arm, _: arm, analysis={"alpha": alpha})


def shown(study: Any) -> dict[str, list[str]]:
    return dict(_beside_chance(study, ["chance_a", "chance_b"]))


SEEDS = (0.0, 0.1, -0.1, 0.05)


@pytest.mark.parametrize(("by", "says"), [(0.02, "worse"), (-0.02, "better")])
def test_overlapping_intervals_hide_no_paired_difference(by: float, says: str) -> None:
    """Seeds move all arms together: all intervals overlap, and each pair differs by nearly the same."""
    arm = [seed + by + wiggle for seed, wiggle in zip(SEEDS, (0.001, 0.0, -0.001, 0.0), strict=True)]
    both = shown(found(arm=arm, chance_a=SEEDS, chance_b=[seed + 0.001 for seed in SEEDS]))
    assert both == {"worse": [], "better": [], says: ["arm"]}


def test_one_control_that_does_as_well_is_enough_and_so_is_one_seed() -> None:
    worse = [seed + 0.02 for seed in SEEDS]
    assert shown(found(arm=worse, chance_a=SEEDS, chance_b=worse)) == {"worse": [], "better": []}
    assert shown(found(arm=[0.5], chance_a=[0.1])) == {"worse": [], "better": []}
    assert shown(found(arm=worse)) == {"worse": [], "better": []}


def test_the_level_is_the_studys() -> None:
    arm = [0.1, 0.0, 0.05, 0.12]
    for alpha, worse in ((0.1, ["arm"]), (0.01, [])):
        assert shown(found(alpha, arm=arm, chance_a=[0.0] * 4))["worse"] == worse
