"""Which arms of a study are another one but for scaling or training, and how they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """How an arm differs from the plain arm of the same strategy."""

    of: str
    """The plain arm."""
    differs: str
    """In words that begin a sentence: `alpha-over-r scaling`, `LoRA+ (B at 16 times the rate)`, `warm-up of 10 %`."""
    scaling_alone: bool
    """Whether nothing but the scaling differs, so that what it moves can be put down to it."""


def variants_of(spec: Mapping[str, Any]) -> dict[str, Variant]:
    """Arm -> how it differs from the plain arm of the same strategy and options; `spec` as the ledger has it.

    >>> plain = {"name": "a", "strategy": "eva", "options": {}, "scaling": None, "train": None}
    >>> variants_of({"arms": [plain, {**plain, "name": "b", "scaling": {"rule": "rslora"}}]})["b"].differs
    'rslora scaling'
    """
    plain: dict[str, str] = {}
    for arm in spec["arms"]:
        if not (arm.get("scaling") or arm.get("train")):
            plain.setdefault(_idea(arm), arm["name"])
    return {
        arm["name"]: Variant(plain[_idea(arm)], " and ".join(_differences(arm)), _scales_alone(arm))
        for arm in spec["arms"]
        if (arm.get("scaling") or arm.get("train")) and _idea(arm) in plain
    }


def _idea(arm: Mapping[str, Any]) -> str:
    return repr((arm.get("strategy"), arm.get("options"), arm.get("ranks")))


def _scales_alone(arm: Mapping[str, Any]) -> bool:
    return bool(arm.get("scaling")) and len(_differences(arm)) == 1


def _differences(arm: Mapping[str, Any]) -> list[str]:
    scaling, train = arm.get("scaling") or {}, arm.get("train") or {}
    multipliers = train.get("multipliers") or {}
    said = [f"{scaling['rule']} scaling"] if scaling else []
    if multipliers.get("rank_exponent"):
        said.append(f"rates that fall with rank (exponent {multipliers['rank_exponent']:g})")
    if multipliers.get("b", 1.0) != 1.0:
        said.append(f"LoRA+ (B at {multipliers['b']:g} times the rate)")
    if multipliers.get("modules"):
        said.append("rates of its own by module")
    if train.get("warmup") is not None:
        warmup = train["warmup"]
        said.append(f"a warm-up of {100 * warmup:g} %" if warmup < 1 else f"a warm-up of {warmup:g} steps")
    if train.get("longer", 1.0) != 1.0:
        said.append(f"{train['longer']:g} times the steps")
    return said
