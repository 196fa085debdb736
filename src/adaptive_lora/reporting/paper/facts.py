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

Value = str | int | float | Interval


@dataclass(frozen=True)
class Fact:
    """A value and how it is written."""

    value: Value
    unit: str = ""
    form: str = ""
    """As in Python's `format`."""

    @property
    def text(self) -> str:
        """As it stands in a sentence, with a true minus.

        >>> Fact(Interval(-0.012, -0.02, 0.001, 9, 0.95), "nats per token", "+.3f").text
        '−0.012 [−0.020, +0.001] nats per token'
        """
        text = formatted(self.value, self.form)
        return f"{text} {self.unit}" if self.unit else text


class Facts(Mapping[str, Fact]):
    """Name -> fact; what is missing raises PaperError."""

    def __init__(self, facts: Mapping[str, Fact]) -> None:
        self._facts = dict(facts)

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


class Collected:
    """Facts while they are gathered; values that do not exist are left out."""

    def __init__(self) -> None:
        self._facts: dict[str, Fact] = {}

    def add(self, name: str, value: Any, form: str = "", unit: str = "") -> None:
        """Adds a fact; a name twice is a mistake of ours."""
        if name in self._facts:
            raise ValueError(f"The fact {name!r} is there twice.")
        if (plain := _plain(value)) is not None:
            self._facts[name] = Fact(plain, unit, form)

    def done(self) -> Facts:
        """What was gathered."""
        return Facts(self._facts)


def _plain(value: Any) -> Value | None:
    if value is None or isinstance(value, Interval):
        return value
    if isinstance(value, str):
        return value or None
    if pd.isna(value) or not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() and not isinstance(value, float) else float(value)
