"""A rank plan: which module gets which rank and scaling, and what decided so. A value, no tensors."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adaptive_lora.errors import PlanError
from adaptive_lora.files import write_atomically
from adaptive_lora.planning.modules import ModuleShape, to_dicts, total_cost
from adaptive_lora.planning.plan_file import FORMAT, check_plan_data, read_json

if TYPE_CHECKING:
    from peft import LoraConfig

ScalingRule = Literal["constant", "rslora", "alpha-over-r"]
EXPONENTS: Mapping[str, float] = {"constant": 0.0, "rslora": 0.5, "alpha-over-r": 1.0}


@dataclass(frozen=True)
class Scaling:
    """How strongly a module's update counts: s = s_ref · (r_ref / r)^g.

    g is 0 for `constant`, 1/2 for `rslora` (arXiv 2312.03732) and 1 for `alpha-over-r`, which is what
    PEFT does when alpha is left constant. At r = r_ref the three agree, so that a uniform plan is the
    same run under all of them.
    """

    rule: ScalingRule = "constant"
    reference_scaling: float = 2.0
    """s_ref; 2 is the common habit alpha = 2r."""
    reference_rank: float = 8.0
    """r_ref; the uniform rank that costs the plan's budget."""

    def __post_init__(self) -> None:
        if self.rule not in EXPONENTS or not self.reference_scaling > 0:
            raise PlanError(
                "The scaling rule must be constant, rslora or alpha-over-r and its reference above 0, got "
                f"{self.rule!r} and {self.reference_scaling!r}."
            )

    def at(self, rank: int) -> float:
        """The factor multiplied with B A in a module of this rank.

        >>> Scaling("alpha-over-r", reference_scaling=2.0, reference_rank=8).at(16)
        1.0
        """
        return float(self.reference_scaling * (self.reference_rank / rank) ** EXPONENTS[self.rule])


@dataclass(frozen=True)
class RankPlan:
    """The result of an allocation, and what produced it."""

    strategy: str
    """Name of the strategy, or `ranks` for fixed ranks from a file."""
    budget: int
    """The ceiling asked for, in trainable parameters."""
    modules: tuple[ModuleShape, ...]
    ranks: Mapping[str, int]
    scaling: Scaling
    options: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] | None = None
    """What was measured per module, where the strategy measures."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Model, data, seed and planning cost, as far as known."""
    left_out: tuple[ModuleShape, ...] = ()
    """Target modules without an adapter, where the strategy leaves some out."""

    def __post_init__(self) -> None:
        names = [m.name for m in self.modules]
        if sorted(names) != sorted(self.ranks):
            odd = sorted(set(names) ^ set(self.ranks))
            raise PlanError(f"A plan must give a rank to each of its modules; ranks and modules differ in {odd[:4]}.")
        if bad := {name: rank for name, rank in self.ranks.items() if rank < 1}:
            raise PlanError(
                f"Ranks start at 1; leave a module out instead of rank 0. Got {dict(list(bad.items())[:4])}."
            )

    @property
    def trainable_parameters(self) -> int:
        """What the plan costs: Σ rank · (d_in + d_out)."""
        return total_cost(self.modules, self.ranks)

    def scaling_of(self, name: str) -> float:
        """The factor of a module by the plan's rule."""
        return self.scaling.at(self.ranks[name])

    def alpha_of(self, name: str) -> float:
        """PEFT's `lora_alpha` of a module: scaling · rank."""
        return self.scaling_of(name) * self.ranks[name]

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values; `from_json` reads it back."""
        return {
            "format": FORMAT,
            "strategy": self.strategy,
            "options": dict(self.options),
            "budget": self.budget,
            "trainable_parameters": self.trainable_parameters,
            "scaling": {
                "rule": self.scaling.rule,
                "reference_scaling": self.scaling.reference_scaling,
                "reference_rank": self.scaling.reference_rank,
            },
            "modules": to_dicts(self.modules),
            "ranks": {m.name: self.ranks[m.name] for m in self.modules},
            "scalings": {m.name: self.scaling_of(m.name) for m in self.modules},
            "scores": None if self.scores is None else dict(self.scores),
            "provenance": dict(self.provenance),
            "left_out": to_dicts(self.left_out),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RankPlan:
        """A plan from `to_json`; PlanError where something is missing, is no such value, or is of another format."""
        check_plan_data(data)
        return cls(
            strategy=data["strategy"],
            budget=int(data["budget"]),
            modules=tuple(ModuleShape(**m) for m in data["modules"]),
            ranks={name: int(rank) for name, rank in data["ranks"].items()},
            scaling=Scaling(**data["scaling"]),
            options=data["options"],
            scores=data["scores"],
            provenance=data["provenance"],
            left_out=tuple(ModuleShape(**m) for m in data.get("left_out", ())),
        )

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON, whole or not at all."""
        write_atomically(Path(path), json.dumps(self.to_json(), indent=2) + "\n", named=True)

    @classmethod
    def load(cls, path: str | Path) -> RankPlan:
        """Reads a saved plan; PlanError where the file is missing, cut short or no plan."""
        data = read_json(Path(path))
        try:
            return cls.from_json(data)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None

    def to_lora_config(self, dropout: float = 0.0) -> LoraConfig:
        """The plan as PEFT's configuration; the only place that makes one.

        Every module gets its own rank and alpha under the key `^` + its escaped full name: PEFT reads
        keys as regular expressions at dot boundaries, and would apply `mlp.c_proj` to every block.
        """
        from peft import LoraConfig

        common = Counter(self.ranks.values()).most_common(1)[0][0]
        return LoraConfig(
            r=common,
            lora_alpha=self.scaling.at(common) * common,
            lora_dropout=dropout,
            target_modules=[m.name for m in self.modules],
            rank_pattern={f"^{re.escape(m.name)}": self.ranks[m.name] for m in self.modules},
            alpha_pattern={f"^{re.escape(m.name)}": self.alpha_of(m.name) for m in self.modules},
            use_rslora=False,
            fan_in_fan_out=any(m.fan_in_fan_out for m in self.modules),
            bias="none",
            task_type="CAUSAL_LM",
        )


def fixed_ranks(pattern: Mapping[str, Any], modules: tuple[ModuleShape, ...], name: str) -> dict[str, int]:
    """Ranks for `modules` from names and ranks; `name` is what to call the pattern in complaints.

    A key is a module's full name or the end of it at a dot (`attn.c_attn`, `3.mlp.c_fc`); where several
    match, the longest counts. Raises PlanError unless every module and every key is matched.
    """
    bad = [f"{key!r}: {rank!r}" for key, rank in pattern.items() if type(rank) is not int or rank < 1]
    if bad:
        raise PlanError(f"{name}: ranks must be whole numbers from 1 on, got {', '.join(bad[:4])}.")
    ranks, used = {}, set()
    for module in modules:
        matching = [key for key in pattern if module.name == key or module.name.endswith(f".{key}")]
        if not matching:
            raise PlanError(f"{name} has no rank for {module.name}; name it, or the end of its name.")
        best = max(matching, key=len)
        used.add(best)
        ranks[module.name] = min(pattern[best], module.largest_rank)
    if unused := sorted(set(pattern) - used):
        raise PlanError(f"{name}: {', '.join(map(repr, unused[:4]))} matches no target module, or never counts.")
    return ranks
