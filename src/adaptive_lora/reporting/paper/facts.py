"""Named facts: the only way in which a number comes into the text.

A fact that the study does not have is not in the mapping, and asking for it stops the build with its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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


class Facts(Mapping[str, Fact]):
    """Name -> fact; what is missing raises PaperError."""

    def __init__(self, *parts: Mapping[str, Any]) -> None:
        """Of values, or (value, form) or (value, form, unit); values that do not exist are left out."""
        named = [
            (name, entry if isinstance(entry, tuple) else (entry,)) for part in parts for name, entry in part.items()
        ]
        known = [(name, Fact(value, *form)) for name, (raw, *form) in named if (value := _plain(raw)) is not None]
        self._facts = dict(known)
        if len(self._facts) < len(known):
            raise ValueError("A fact is there twice.")

    def __getitem__(self, name: str) -> Fact:
        if name not in self._facts:
            raise PaperError(f"The text needs the fact `{name}`, which the study does not have.")
        return self._facts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._facts

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def for_templates(self) -> dict[str, Any]:
        """`n("x")` writes a fact, `count("x")` is its value, `has("x")` says whether there is one."""
        return {
            "n": lambda name: self[name].text,
            "has": lambda name: name in self,
            "count": lambda name: self[name].value,
        }


def _plain(value: Any) -> Value | None:
    if value is None or isinstance(value, Interval):
        return value
    if isinstance(value, str):
        return value or None
    if pd.isna(value) or not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() and not isinstance(value, float) else float(value)
