"""Makes the table of what committed studies say of strategies and rates: `src/adaptive_lora/recommend/evidence.json`.

    python scripts/evidence.py

It goes with the package, where there is no `results/`. A test compares it with them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adaptive_lora.files import write_atomically
from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.study.folder import StudyPaths

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "src" / "adaptive_lora" / "recommend" / "evidence.json"
DIGITS = 6


def evidence(results: Path = ROOT / "results") -> dict[str, list[dict[str, Any]]]:
    """The table: verdicts against uniform ranks, what half a budget costs, tuned rates."""
    found: dict[str, list[dict[str, Any]]] = {"comparisons": [], "halves": [], "rates": []}
    for folder in sorted(path for path in results.iterdir() if StudyPaths(path).is_export):
        with open_findings(folder) as study:
            found["comparisons"] += _comparisons(folder.name, study)
            found["halves"] += _halves(folder.name, study)
            found["rates"] += _rates(folder.name, study)
    return found


def _comparisons(name: str, study: Findings) -> list[dict[str, Any]]:
    arms = {arm["name"]: arm for arm in study.facts["spec"]["arms"]}
    return [
        {
            "study": name, "strategy": arms[c.arm]["strategy"], "options": arms[c.arm]["options"], "budget": c.budget,
            "verdict": str(j.verdict), **_ends(j.interval), "seeds": j.n,
        }
        for c, j in study.judged.items()
        if arms[c.arm]["strategy"] is not None and study.baseline == "uniform"
    ]  # fmt: skip


def _halves(name: str, study: Findings) -> list[dict[str, Any]]:
    rows = [(a, a.loss_of_half) for a in study.assays if a.loss_of_half is not None and study.judged]
    return [{"study": name, "budget": a.budget, "half": a.half, **_ends(loss)} for a, loss in rows]


def _rates(name: str, study: Findings) -> list[dict[str, Any]]:
    parameters, steps = study.facts["model"]["total_parameters"], study.facts["spec"]["train"]["steps"]
    return [
        {"study": name, "parameters": parameters, "budget": budget, "rate": rate, "steps": steps}
        for arm, budget, rate in study.facts["chosen_rates"]
        if arm == study.baseline and study.tuned_by_baseline
    ]


def _ends(interval: Interval | None) -> dict[str, float | None]:
    values = (None,) * 3 if interval is None else (interval.mean, interval.low, interval.high)
    names = ("mean", "low", "high")
    return {n: None if v is None else round(v, DIGITS) for n, v in zip(names, values, strict=True)}


if __name__ == "__main__":
    rows = {name: ",\n    ".join(map(json.dumps, own)) for name, own in evidence().items()}
    body = ",\n".join(f'  "{name}": [\n    {lines}\n  ]' for name, lines in rows.items())
    write_atomically(TABLE, f"{{\n{body}\n}}\n")
