"""The update that an adapter makes, module by module, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """One module's update ΔW = scaling · B A, with W and ΔW of shape (d_out, d_in).

    Also for GPT-2's `Conv1D`, which stores W as (d_in, d_out): A and B are the same there, its ΔW is transposed.
    """

    a: Tensor
    """A, (rank, d_in), on the CPU."""
    b: Tensor
    """B, (d_out, rank), on the CPU."""
    scaling: float
    """The factor itself, whatever rule and alpha it came from."""

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def d_in(self) -> int:
        return int(self.a.shape[1])

    @property
    def d_out(self) -> int:
        return int(self.b.shape[0])

    def delta(self) -> Tensor:
        """scaling · B A in float32, (d_out, d_in)."""
        return self.scaling * (self.b.float() @ self.a.float())


@dataclass(frozen=True)
class AdapterWeights:
    """What an adapter folder holds, resolved: every adapted module with its update. No code of the folder ran."""

    modules: Mapping[str, LowRank]
    """By full module name in the base model, as `named_modules` gives it, in the order of the names."""
    base_name: str | None
    """What the folder calls its base model: a hub name or a path. A string for people; nothing is read from there."""
    revision: str | None
    """The base model's commit, where the folder says one."""
    notes: tuple[str, ...] = ()
    """What a user should know of the reading, one sentence each; empty where there is nothing odd."""

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by module."""
        return {name: update.rank for name, update in self.modules.items()}

    @property
    def parameters(self) -> int:
        """Σ rank · (d_in + d_out)."""
        return sum(update.rank * (update.d_in + update.d_out) for update in self.modules.values())
