"""The cheapest seeds and records, against a search of all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adaptive_lora.stats.crossed import Components
from adaptive_lora.stats.design import MOST_SEEDS, Costs, Plan, cheapest, plan_of
from adaptive_lora.stats.power import Design, equivalence_power, power_of
from adaptive_lora.stats.spreads import Spread
from adaptive_lora.stats.step_down import Family

SPREAD = Spread("a", "rank:8", Components(8e-5, 0.02, 0.02), Components(8e-5, 0.03, 0.02), 0.015, 8.0, True)
DESIGN = Design(seeds=10, alpha=0.05, comparisons=5, margin=None, records=2000, correlation=0.4)


def at(seeds: int, records: int, costs: Costs, spread: Spread = SPREAD) -> Plan:
    return plan_of(spread, replace(DESIGN, seeds=seeds, records=records), costs)


def test_a_plan_has_the_powers_of_its_size() -> None:
    found = at(12, 1500, Costs(run=20.0, record=0.01))
    sizes = (12, 1500, Family(0.05, 5, 0.4), 1 + 8 / 11)
    assert found.power == power_of(0.015, SPREAD.difference, *sizes)
    assert found.equivalence_power == equivalence_power(0.015, SPREAD.contrast, *sizes)
    assert found.cost == 12 * (20 + 15)


@pytest.mark.parametrize("costs", [Costs(20.0, 0.01), Costs(0.0, 0.001), Costs(1000.0, 0.001), Costs(1.0, 1.0)])
@pytest.mark.parametrize("equivalence", [True, False])
def test_no_other_size_is_cheaper(costs: Costs, equivalence: bool) -> None:
    found = cheapest(SPREAD, DESIGN, costs, equivalence=equivalence)
    assert found is not None and found == at(found.seeds, found.records, costs)

    def enough(plan: Plan) -> bool:
        return plan.power >= 0.8 and (not equivalence or plan.equivalence_power >= 0.8)

    assert enough(found)
    for seeds in range(4, 61, 3):
        for records in (200, 400, 800, 1600, 3200, 6400, 12_800, 20_000):
            plan = at(seeds, records, costs)
            assert plan.cost >= found.cost or not enough(plan)
    assert found.records == 200 or not enough(at(found.seeds, found.records - 1, costs))


def test_dear_seeds_are_replaced_by_records_and_dear_records_by_seeds() -> None:
    dear_seeds, dear_records = (cheapest(SPREAD, DESIGN, costs) for costs in (Costs(1000.0, 0.001), Costs(0.1, 1.0)))
    assert dear_seeds is not None and dear_records is not None
    assert dear_seeds.seeds < dear_records.seeds and dear_seeds.records > dear_records.records


def test_what_no_size_shows_has_no_plan() -> None:
    narrow = replace(SPREAD, margin=1e-4)
    assert cheapest(narrow, DESIGN, Costs(20.0, 0.01)) is None
    assert cheapest(SPREAD, DESIGN, Costs(20.0, 0.01), most_records=300) is None


def test_without_losses_by_record_seeds_alone_are_planned() -> None:
    spread = replace(SPREAD, difference=Components(2e-4, 0.0, 0.0), half=None, by_record=False)
    found = cheapest(spread, DESIGN, Costs(20.0, 0.01))
    assert found is not None and found.records == 2000 and 4 < found.seeds < MOST_SEEDS
    fewer = at(found.seeds - 1, 2000, Costs(20.0, 0.01), spread)
    assert min(fewer.power, fewer.equivalence_power) < 0.8 <= min(found.power, found.equivalence_power)


def test_what_cannot_be_planned_says_why() -> None:
    with pytest.raises(ValueError, match="none was measured for a at rank:8"):
        at(6, 400, Costs(1.0, 1.0), replace(SPREAD, margin=None))
    for run, record in ((-1.0, 1.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="Costs must be positive"):
            Costs(run, record)
