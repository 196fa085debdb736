"""What is accumulated for each module over the batches of a pass, one class for each kind of sum.

Legend: G_b = dL_b/dW (d_out, d_in) is the gradient on batch b, G the mean over the batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from adaptive_lora.measures.spectra import Moments, effective_rank

Values = dict[str, float]


class Accumulator(Protocol):
    """Accumulates over the calls of one module."""

    def add(self, x: Tensor, g: Tensor) -> None:
        """One call of the module: its input's rows (n, d_in) and its output's gradient (n, d_out)."""

    def complete(self) -> None:
        """The batch has no more calls of this module."""

    def values(self, batches: int, moments: Moments | None) -> Values:
        """Measure -> value, after so many batches."""

    @property
    def bytes(self) -> int:
        """Bytes held between batches."""


class GradientSum(Protocol):
    """Accumulates over whole gradients of batches."""

    def add_gradient(self, gradient: Tensor) -> None:
        """G_b (d_out, d_in) of the next batch."""

    def values(self, batches: int, moments: Moments | None) -> Values:
        """See `Accumulator`."""

    @property
    def bytes(self) -> int:
        """See `Accumulator`."""


class BatchGradients:
    """Forms G_b once for all its sums, and drops it at the end of the batch."""

    def __init__(self, sums: Sequence[GradientSum]) -> None:
        self.sums = sums
        self.current: Tensor | None = None

    def add(self, x: Tensor, g: Tensor) -> None:
        self.current = g.T @ x if self.current is None else self.current.addmm_(g.T, x)

    def complete(self) -> None:
        if self.current is not None:
            for each in self.sums:
                each.add_gradient(self.current)
            self.current = None

    def values(self, batches: int, moments: Moments | None) -> Values:
        return {name: value for each in self.sums for name, value in each.values(batches, moments).items()}

    @property
    def bytes(self) -> int:
        return sum(each.bytes for each in self.sums)


class MeanGradient:
    """Keeps Σ G_b: the measures by their definition.

    - `weight-gradient`: mean |W ⊙ G|
    - `gradient-norm`: ||G||_F / sqrt(d_in · d_out)
    - `whitened-rank`: the effective rank of G (C + ridge)^{-1/2}, where the inputs' moments are given
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight  # (d_out, d_in)
        self.total: Tensor | None = None

    def add_gradient(self, gradient: Tensor) -> None:
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


class EntrywiseMeans:
    """Keeps of every G_b only the mean over the batches of `entrywise`.

    That is mean_b mean |W ⊙ G_b|, in place of mean |W ⊙ mean_b G_b|: signs that differ between batches
    do not cancel.
    """

    bytes = 0

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight  # (d_out, d_in)
        self.totals: Values = {}

    def add_gradient(self, gradient: Tensor) -> None:
        for measure, value in entrywise(self.weight, gradient).items():
            self.totals[measure] = self.totals.get(measure, 0.0) + value

    def values(self, batches: int, moments: Moments | None) -> Values:
        return {measure: value / batches for measure, value in self.totals.items()}


class BGradient:
    """`b-gradient`: the mean over batches and entries of (dL_b/dB)², at B = 0 and the initial A (r, d_in).

    With the output Wx + B A x (scaling 1; another one would be a factor common to all modules), dL/dB = gᵀ(x Aᵀ),
    and A's own gradient is 0. The rows of the calls are enough: G_b is never formed for it, so that the value
    does not depend on what else is measured.
    """

    def __init__(self, a: Tensor) -> None:
        self.a = a
        self.current: Tensor | None = None
        self.squares = 0.0

    def add(self, x: Tensor, g: Tensor) -> None:
        part = g.T @ (x @ self.a.T)  # (d_out, r)
        self.current = part if self.current is None else self.current + part

    def complete(self) -> None:
        if self.current is not None:
            self.squares += float(self.current.square().mean())
            self.current = None

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
