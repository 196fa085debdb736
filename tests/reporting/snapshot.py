"""Every number of the committed studies' verdicts, arms, assays, ceilings and ladders, as `verdicts.json` has them.

`python -m tests.reporting.snapshot` writes that file anew: after studies were run again, or the statistics were changed
on purpose. `git diff` of it then shows what moved.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adaptive_lora.files import write_atomically
from adaptive_lora.reporting.choices import ceiling_cells, ceilings_of, ladder_rows
from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.stats.ceiling import Ceiling
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.verdicts import Judgement

RESULTS = Path(__file__).parents[2] / "results"
SNAPSHOT = Path(__file__).parent / "verdicts.json"


def interval(found: Interval | None) -> list[float | int | None] | None:
    return None if found is None else [found.mean, found.low, found.high, found.n]


def of_judgement(j: Judgement) -> dict[str, Any]:
    return {
        "n": j.n, "records": j.records, "mean": j.mean, "interval": interval(j.interval),
        "over_seeds": interval(j.over_seeds), "over_records": interval(j.over_records),
        "equivalence_interval": interval(j.equivalence_interval), "p": j.p, "adjusted_p": j.adjusted_p,
        "equivalence_p": j.equivalence_p, "adjusted_equivalence_p": j.adjusted_equivalence_p,
        "margin": j.margin.value, "improvement": interval(j.improvement), "verdict": str(j.verdict), "look": j.look,
        "beyond_margin": j.beyond_margin, "cautions": [str(caution) for caution in j.cautions],
    }  # fmt: skip


def of_ceiling(found: Findings, c: Ceiling) -> dict[str, Any]:
    cell = next(cell for cell in ceiling_cells(found) if cell.budget == c.budget)
    return {
        "verdict": str(c.verdict), "half": interval(c.cost_of_half), "double": interval(cell.double),
        "gains": {name: interval(gain) for name, gain in cell.gains.items()},
        "beyond": {own.arm: [*(interval(own.beyond) or ()), own.p_closed, own.p_pays] for own in c.arms},
    }  # fmt: skip


def numbers(found: Findings) -> dict[str, Any]:
    """Every number that a verdict, a summary of an arm, an assay, a ceiling or a ladder has."""
    return {
        "judged": {f"{c.arm}@{c.budget}": of_judgement(j) for c, j in found.judged.items()},
        "arms": {
            f"{a.arm}@{a.budget}": {
                "loss": interval(a.loss), "difference": interval(a.difference), "rate": a.learning_rate,
            }
            for a in found.arms
        },
        "assays": {
            a.budget: {"half": a.half, "loss_of_half": interval(a.loss_of_half), "seen": str(a.result)}
            for a in found.assays
        },
        "ceilings": {c.budget: of_ceiling(found, c) for c in ceilings_of(found)},
        "ladder": {row.label: [row.effect, row.low, row.high, row.n] for row in ladder_rows(found)},
    }  # fmt: skip


def committed() -> dict[str, Any]:
    """By study."""
    found = {}
    for path in sorted(RESULTS.glob("*/facts.json")):
        with open_findings(path.parent) as findings:
            found[path.parent.name] = numbers(findings)
    return found


if __name__ == "__main__":
    write_atomically(SNAPSHOT, json.dumps(committed(), indent=1) + "\n")
