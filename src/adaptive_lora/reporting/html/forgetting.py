"""The table of what training on the task did to a general text."""

from __future__ import annotations

from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.html.evidence import ARM, NATS, captioned
from adaptive_lora.reporting.tables import Cell, Column, Table
from adaptive_lora.stats.arms import evaluations
from adaptive_lora.stats.estimators import mean_interval


def forgetting(found: Findings) -> Table | None:
    """The loss of a general text by arm, and how far it is from the frozen model's; None where none was measured."""
    if "general_loss" not in found.runs:
        return None
    runs = evaluations(found.runs, completed=True).dropna(subset=["general_loss", "base_general_loss"])
    columns = (
        *ARM,
        Column("general_loss", "loss of the general text, 95 % interval", "interval", ".4f", NATS),
        Column("change", "minus the frozen model, 95 % interval", "interval", "+.4f", NATS),
        Column("seeds"),
    )
    cells: list[tuple[Cell, ...]] = []
    for (arm, budget), own in runs.groupby(["arm", "budget"], sort=False):
        change = mean_interval((own["general_loss"] - own["base_general_loss"]).tolist())
        cells.append((str(arm), str(budget), mean_interval(own["general_loss"].tolist()), change, change.n))
    names = ("forgetting", "Forgetting")
    return captioned(found, "forgetting", names, columns, cells, lambda row: row[0] == found.baseline)
