"""Named facts: the only way in which a number comes into the text.

A fact that the study does not have is not in the mapping, and asking for it stops the build with its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from adaptive_lora.errors import PaperError
from adaptive_lora.reporting.formatting import formatted
from adaptive_lora.stats.estimators import Interval

NATS = "nats per token"
Value = str | int | float | Interval


@dataclass(frozen=True)
class Fact:
    """A value and how it is written."""

    value: Value
    form: str = ""
    """As in Python's `format`."""
    unit: str = ""

    @property
    def text(self) -> str:
        """As it stands in a sentence, with a true minus.

        >>> Fact(Interval(-0.012, -0.02, 0.001, 9, 0.95), "+.3f", "nats per token").text
        '−0.012 [−0.020, +0.001] nats per token'
        """
        text = formatted(self.value, self.form)
        return f"{text} {self.unit}" if self.unit else text


class Facts(dict[str, Fact]):
    """Name -> fact; what is missing raises PaperError."""

    def __init__(self, *parts: Mapping[str, Any]) -> None:
        """Of values, or (value, form) or (value, form, unit); values that do not exist are left out."""
        for name, entry in (item for part in parts for item in part.items()):
            value, *written = entry if isinstance(entry, tuple) else (entry,)
            if name in self:
                raise ValueError(f"The fact {name!r} is there twice.")
            if (plain := _plain(value)) is not None:
                self[name] = Fact(plain, *written)

    def __missing__(self, name: str) -> Fact:
        raise PaperError(f"The text needs the fact `{name}`, which the study does not have.")


def _plain(value: Any) -> Value | None:
    if value is None or isinstance(value, Interval):
        return value
    if isinstance(value, str):
        return value or None
    if pd.isna(value) or not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() and not isinstance(value, float) else float(value)
