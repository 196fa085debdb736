"""What a study leaves behind beside what it compares."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from adaptive_lora.study.schema_training import Part, without_default

MOST_ANSWERS = 20
"""A page is to be read."""


class ReportPart(Part):
    """What the page shows beside what it compares, and which adapters stay; changes no result."""

    answers: Annotated[int, Field(ge=0, le=MOST_ANSWERS)] = 5
    """So many test records, answered greedily by the frozen model, by the baseline and by the best other arm; 0 for
    data that must not be copied into a report."""
    keep_adapters: Literal["all", "best", "none"] = "all"
    """Which trained adapters stay in the folder, tuning runs' included: all, of every arm and budget the one with the
    lowest validation loss, which is the one that `export` takes, or none. Others are deleted as the study goes on."""

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study that says nothing of `keep_adapters` is locked and recorded as before there was such a key."""
        return without_default(dump(self), "keep_adapters", "all")
