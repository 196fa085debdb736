"""Seeds and records planned together, for the least compute.

A seed costs a training and an evaluation, a record costs an evaluation of every run. The components of the difference's
variance say what each buys: seeds / S + records / R + both / (S R). Few records with many seeds leave the records'
part, however many seeds there are; many records with few seeds leave the seeds'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from adaptive_lora.stats.cautions import FEW_RECORDS
from adaptive_lora.stats.power import POWER, Design, equivalence_power, fewest, power_of
from adaptive_lora.stats.spreads import Spread
from adaptive_lora.stats.step_down import Family

FEWEST_SEEDS, MOST_SEEDS = 4, 60
MOST_RECORDS = 20_000


@dataclass(frozen=True)
class Costs:
    """In seconds, tokens or any other unit."""

    run: float
    """Of one run, whatever the number of test records."""
    record: float
    """Of one run's evaluation on one test record."""

    def __post_init__(self) -> None:
        if self.run < 0 or self.record <= 0:
            raise ValueError(f"Costs must be positive, got {self.run} a run and {self.record} a record.")

    def of(self, seeds: float, records: int) -> float:
        """Of one arm.

        >>> Costs(run=10.0, record=0.01).of(seeds=5, records=1000)
        100.0
        """
        return seeds * (self.run + records * self.record)


@dataclass(frozen=True)
class Plan:
    """A size of study."""

    seeds: int
    records: int
    power: float
    """Chance that a difference as large as the margin is found."""
    equivalence_power: float
    """Chance that equivalence is shown where there is no difference."""
    cost: float
    """Of one arm, in the unit of `Costs`."""


def plan_of(spread: Spread, design: Design, costs: Costs) -> Plan:
    """What a design's seeds and records can show of comparisons of this spread, in one look.

    ValueError where the margin is not known.
    """
    if spread.margin is None:
        raise ValueError(f"A plan takes a margin; none was measured for {spread.arm} at {spread.budget}.")
    records = design.records if spread.by_record else 1
    sizes = (design.seeds, records, Family(design.alpha, max(1, design.comparisons), design.correlation))
    factor = spread.freedom_factor(design.seeds)
    return Plan(
        seeds=design.seeds,
        records=design.records,
        power=power_of(spread.margin, spread.difference, *sizes, factor),
        equivalence_power=equivalence_power(spread.margin, spread.contrast, *sizes, factor),
        cost=costs.of(design.seeds, design.records),
    )


def cheapest(
    spread: Spread,
    design: Design,
    costs: Costs,
    power: float = POWER,
    equivalence: bool = True,
    most_records: int = MOST_RECORDS,
) -> Plan | None:
    """The least cost at which a difference as large as the margin is found with that power, and, with `equivalence`,
    equivalence shown as often where there is no difference.

    Over `FEWEST_SEEDS` to `MOST_SEEDS` seeds, each with the fewest records that do, from `FEW_RECORDS` up to
    `most_records`. Where a pilot has no losses by record, the records are the design's. None where no size does.
    """

    def at(seeds: int, records: int) -> Plan:
        return plan_of(spread, replace(design, seeds=seeds, records=records), costs)

    def enough(plan: Plan) -> bool:
        return plan.power >= power and (not equivalence or plan.equivalence_power >= power)

    least, most = (FEW_RECORDS, most_records) if spread.by_record else (design.records, design.records)
    found: Plan | None = None
    for seeds in range(FEWEST_SEEDS, MOST_SEEDS + 1):
        # So many records at most make it cheaper than what is found already.
        cheaper = most if found is None else min(most, math.ceil((found.cost / seeds - costs.run) / costs.record) - 1)
        records = fewest(lambda r, s=seeds: enough(at(s, r)), least, cheaper)  # type: ignore[misc]
        if records is not None:
            found = at(seeds, records)
    return found
