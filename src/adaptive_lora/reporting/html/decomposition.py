"""The table of what differences are made of."""

from __future__ import annotations

from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.html.evidence import ARM, difference
from adaptive_lora.reporting.tables import Column, Row, Table
from adaptive_lora.reporting.templating import render


def decomposition(found: Findings) -> Table | None:
    """Price of unevenness and value of information of every primary arm; None where no control can tell."""
    columns = (
        *ARM,
        Column("control", "against", "text"),
        Column("price", "price of unevenness", "interval", "+.4f", found.metric.unit),
        Column("price_p", "p", form=".3g"),
        Column("value", "value of information", "interval", "+.4f", found.metric.unit),
        Column("value_p", "p", form=".3g"),
        difference(found, f"together: minus {found.baseline}", "+.4f"),
        Column("seeds"),
    )
    rows = tuple(
        Row((d.arm, d.budget, d.control, d.price.size, d.price.judged.adjusted_p, d.value.size,
             d.value.judged.adjusted_p, d.total, d.total.n), arm=d.arm)
        for d in found.decompositions
    )  # fmt: skip
    if not rows:
        return None
    caption = render("decomposition.table", found)
    return Table("decomposition", "What differences are made of", columns, rows, caption)
