"""What is kept of each module while batches pass, one class for each way of keeping it.

Legend: G_b = dL_b/dW (d_out, d_in) is the gradient on batch b, G the mean over the batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from adaptive_lora.measures.spectra import Moments, effective_rank

Values = dict[str, float]


class Gatherer(Protocol):
    """What one module leaves behind."""

    def add(self, x: Tensor, g: Tensor) -> None:
        """One call of the module: its input's rows (n, d_in) and its output's gradient (n, d_out)."""

    def complete(self) -> None:
        """The batch has no more calls of this module."""

    def values(self, batches: int, moments: Moments | None) -> Values:
        """Measure -> value, after so many batches."""

    @property
    def bytes(self) -> int:
        """What is kept between batches."""


class Keeper(Protocol):
    """What is made of whole gradients of batches."""

    def keep(self, gradient: Tensor) -> None:
        """G_b (d_out, d_in) of the next batch."""

    def values(self, batches: int, moments: Moments | None) -> Values:
        """See `Gatherer`."""

    @property
    def bytes(self) -> int:
        """See `Gatherer`."""


class Gradients:
    """Forms G_b once for all its keepers, and drops it at the end of the batch."""

    def __init__(self, keepers: Sequence[Keeper]) -> None:
        self.keepers = keepers
        self.current: Tensor | None = None

    def add(self, x: Tensor, g: Tensor) -> None:
        self.current = g.T @ x if self.current is None else self.current.addmm_(g.T, x)

    def complete(self) -> None:
        if self.current is not None:
            for keeper in self.keepers:
                keeper.keep(self.current)
            self.current = None

    def values(self, batches: int, moments: Moments | None) -> Values:
        return {name: value for keeper in self.keepers for name, value in keeper.values(batches, moments).items()}

    @property
    def bytes(self) -> int:
        return sum(keeper.bytes for keeper in self.keepers)


class WholeGradient:
    """Keeps Σ G_b: the measures by their definition.

    - `weight-gradient`: mean |W ⊙ G|
    - `gradient-norm`: ||G||_F / sqrt(d_in · d_out)
    - `whitened-rank`: the effective rank of G (C + ridge)^{-1/2}, where the inputs' moments are given
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight  # (d_out, d_in)
        self.total: Tensor | None = None

    def keep(self, gradient: Tensor) -> None:
        self.total = gradient if self.total is None else self.total.add_(gradient)

    def values(self, batches: int, moments: Moments | None) -> Values:
        if self.total is None:
            return {}
        mean = self.total / batches
        found = entrywise(self.weight, mean)
        if moments is not None:
            found["whitened-rank"] = effective_rank(moments.whitened(mean))
        return found

    @property
    def bytes(self) -> int:
        return 0 if self.total is None else self.total.numel() * self.total.element_size()


class BatchGradient:
    """Keeps of every G_b only the mean over the batches of `entrywise`.

    That is mean_b mean |W ⊙ G_b|, in place of mean |W ⊙ mean_b G_b|: signs that differ between batches
    do not cancel.
    """

    bytes = 0

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight  # (d_out, d_in)
        self.sums: Values = {}

    def keep(self, gradient: Tensor) -> None:
        for measure, value in entrywise(self.weight, gradient).items():
            self.sums[measure] = self.sums.get(measure, 0.0) + value

    def values(self, batches: int, moments: Moments | None) -> Values:
        return {measure: value / batches for measure, value in self.sums.items()}


class BSquares:
    """`b-gradient`: the mean over batches and entries of (dL_b/dB)², at B = 0 and the first A (r, d_in).

    The output is Wx + s B A x, so that dL/dB = s gᵀ(x Aᵀ) = s G_b Aᵀ; A's own gradient is 0 there. Where G_b is
    formed for another measure it is the cheaper way; alone, the calls' rows are enough and G_b is never formed.
    """

    def __init__(self, a: Tensor, scaling: float) -> None:
        self.a = a * scaling
        self.current: Tensor | None = None
        self.squares = 0.0

    def add(self, x: Tensor, g: Tensor) -> None:
        part = g.T @ (x @ self.a.T)  # (d_out, r)
        self.current = part if self.current is None else self.current + part

    def complete(self) -> None:
        if self.current is not None:
            self.squares += float(self.current.square().mean())
            self.current = None

    def keep(self, gradient: Tensor) -> None:
        self.squares += float((gradient @ self.a.T).square().mean())

    def values(self, batches: int, moments: Moments | None) -> Values:
        return {"b-gradient": self.squares / batches}

    @property
    def bytes(self) -> int:
        return self.a.numel() * self.a.element_size()


def entrywise(weight: Tensor, gradient: Tensor) -> Values:
    """The measures that are means over the entries of W and its gradient."""
    return {
        "weight-gradient": float((weight * gradient).abs().mean()),
        "gradient-norm": float(gradient.square().mean().sqrt()),
    }
