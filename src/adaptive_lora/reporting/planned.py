"""What a study asks of its seeds and records, as its power is reckoned from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptive_lora.stats.evidence import rule_of
from adaptive_lora.stats.power import Design

if TYPE_CHECKING:
    from adaptive_lora.reporting.findings import Findings


def planned(found: Findings) -> Design:
    """By the study file; a metric that is made after training has as many records as it scored."""
    spec, rule, metric = found.facts["spec"], rule_of(found.facts["spec"]), found.metric
    scored = next((own.test_records for own in found.differences.values() if metric.is_scored), None)
    return Design(
        seeds=len(spec["seeds"]["evaluation"]),
        alpha=rule.alpha,
        comparisons=max(1, len(found.judged)),
        margin=rule.margin,
        records=scored or spec["data"]["test"],
        looks=rule.looks,
        correlation=found.pilot.correlation,
        unit=metric.unit,
        own_records=metric.has_own_records,
    )
