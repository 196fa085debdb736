"""What a study may be judged by, as its file says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from adaptive_lora.stats.metrics import RESERVED
from adaptive_lora.study.schema_training import Part


def _own_name(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"{name!r} is what runs have anyway; give your own metric another name")
    return name


class MetricPart(Part):
    """A metric of the study's own: a command that scores every adapter that is compared."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$"), AfterValidator(_own_name)]
    """What tables and figures call it, such as `f1`."""
    command: Annotated[list[str], Field(min_length=1)]
    """Program and arguments, such as `[python, score.py]`, run without a shell in the folder of the study file. Three
    arguments are added: the adapter's folder (as PEFT saves it), the base model, and the file to write: CSV with the
    columns `record` and `value`, or JSON lines of both, one value a record and the same records for every adapter."""
    better: Literal["higher", "lower"]
    """Which values are better."""


MetricField = Annotated[
    Annotated[Literal["test_loss", "exact_match"], Tag("~named")] | Annotated[MetricPart, Tag("~own")],
    Discriminator(lambda value: "~own" if isinstance(value, Mapping | MetricPart) else "~named"),
]
"""Told apart by the form, so that a complaint speaks of the one that was meant."""
