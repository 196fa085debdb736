"""What a report shows beside what it compares."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from adaptive_lora.study.schema_training import Part

MOST_ANSWERS = 20
"""A page is to be read."""


class ReportPart(Part):
    """What the page shows beside what it compares; changes no result."""

    answers: Annotated[int, Field(ge=0, le=MOST_ANSWERS)] = 5
    """So many test records, answered greedily by the frozen model, by the baseline and by the best other arm; 0 for
    data that must not be copied into a report."""
