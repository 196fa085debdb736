"""Arms that are another one but for scaling or training: how they differ, and what that does where training breaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pandas as pd

from adaptive_lora.stats.rate_sweeps import Contrast, RateSweep, State, contrast, rows_at


@dataclass(frozen=True)
class Variant:
    """How an arm differs from the plain arm of the same strategy."""

    of: str
    """The plain arm."""
    differences: tuple[tuple[str, str | float], ...]
    """(setting, its value): `scaling`, `rank_exponent`, `b` (LoRA+), `modules`, `warmup`, `longer`, `clip`; one or
    more."""

    @property
    def only_scaling(self) -> bool:
        """Whether nothing but the scaling rule differs, so that what changes is due to it."""
        return [setting for setting, _ in self.differences] == ["scaling"]


def variants_of(spec: Mapping[str, Any]) -> dict[str, Variant]:
    """Arm -> how it differs from the plain arm of the same strategy and options; `spec` as the ledger has it.

    >>> plain = {"name": "a", "strategy": "eva", "options": {}, "scaling": None, "train": None}
    >>> variants_of({"arms": [plain, {**plain, "name": "b", "scaling": {"rule": "rslora"}}]})["b"].differences
    (('scaling', 'rslora'),)
    """
    plain: dict[str, str] = {}
    for arm in spec["arms"]:
        if not (arm.get("scaling") or arm.get("train")):
            plain.setdefault(_idea(arm), arm["name"])
    return {
        arm["name"]: Variant(plain[_idea(arm)], _differences(arm))
        for arm in spec["arms"]
        if (arm.get("scaling") or arm.get("train")) and _idea(arm) in plain
    }


def _idea(arm: Mapping[str, Any]) -> str:
    return repr((arm.get("strategy"), arm.get("options"), arm.get("ranks")))


def _differences(arm: Mapping[str, Any]) -> tuple[tuple[str, str | float], ...]:
    scaling, train = arm.get("scaling") or {}, arm.get("train") or {}
    multipliers = train.get("multipliers") or {}
    settings = {
        "scaling": (scaling.get("rule"), None),
        "rank_exponent": (multipliers.get("rank_exponent"), 0.0),
        "b": (multipliers.get("b"), 1.0),
        "modules": (len(multipliers.get("modules") or {}), 0),
        "warmup": (train.get("warmup"), None),
        "longer": (train.get("longer"), 1.0),
        "clip": (train.get("clip"), True),
    }
    return tuple((name, value) for name, (value, usual) in settings.items() if value is not None and value != usual)


class Effect(StrEnum):
    """What a change does to a plain arm at the lowest rate at which either of the two breaks."""

    NONE = "none shown"
    REMOVES = "removes the break"
    """The plain arm breaks, the changed one trains and is shown to be better."""
    BREAKS = "breaks training"
    """The other way round."""
    BETTER = "better"
    WORSE = "worse"


@dataclass(frozen=True)
class VariantContrast:
    """A changed arm beside its plain one, at the lowest rate at which either breaks."""

    changed: RateSweep
    plain: RateSweep
    variant: Variant
    learning_rate: float
    against: Contrast
    """Changed less plain, validation loss."""
    effect: Effect

    @property
    def due_to_scaling(self) -> bool:
        """Whether the scaling rule alone was changed, and comes out as another rule."""
        return self.variant.only_scaling and self.changed.cells[0].scaling != self.plain.cells[0].scaling


def variant_contrasts(
    table: pd.DataFrame, sweeps: Mapping[tuple[str, str], RateSweep], variants: Mapping[str, Variant]
) -> tuple[list[VariantContrast], list[RateSweep]]:
    """Of a `stability_table`: the changed arms where either arm breaks, and those where neither does."""
    found, unbroken = [], []
    for (arm, budget), sweep in sweeps.items():
        variant = variants.get(arm)
        plain = sweeps.get((variant.of, budget)) if variant else None
        if variant is None or plain is None:
            continue
        breaks = [cell.learning_rate for s in (plain, sweep) if (cell := s.first_break)]
        if not breaks:
            unbroken.append(sweep)
            continue
        rate = min(breaks)
        rows = [rows_at(table, name, budget, rate) for name in (arm, variant.of)]
        against = contrast(rows[0], rows[1], "validation_loss")
        effect = _effect(against.direction, (sweep.state_at(rate), plain.state_at(rate)))
        found.append(VariantContrast(sweep, plain, variant, rate, against, effect))
    return found, unbroken


def _effect(direction: int, states: tuple[State, State]) -> Effect:
    if direction < 0:
        return Effect.REMOVES if states == (State.TRAINS, State.BREAKS) else Effect.BETTER
    if direction > 0:
        return Effect.BREAKS if states == (State.BREAKS, State.TRAINS) else Effect.WORSE
    return Effect.NONE
