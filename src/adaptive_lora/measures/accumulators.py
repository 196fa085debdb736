"""What is accumulated for each module over the batches of a pass, one class for each kind of sum.

Legend: G_b = dL_b/dW (d_out, d_in) is the gradient on batch b, G the mean over the batches.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from adaptive_lora.measures.spectra import Moments, effective_rank

Values = dict[str, float]


class BatchGradients:
    """Forms G_b (d_out, d_in) of every batch, and keeps of it what is asked for.

    `keep` keeps Σ G_b, for the measures by their definition:

    - `weight-gradient`: mean |W ⊙ G|
    - `gradient-norm`: ||G||_F / sqrt(d_in · d_out)
    - `whitened-rank`: the effective rank of G (C + ridge)^{-1/2}, where the inputs' moments are given

    `by_batch` keeps of every G_b only the first two of it, whose means over the batches then take the place of those
    of G: mean_b mean |W ⊙ G_b| for mean |W ⊙ mean_b G_b|, so that signs that differ between batches do not cancel.
    """

    def __init__(self, weight: Callable[[], Tensor], keep: bool, by_batch: bool) -> None:
        # W (d_out, d_in), asked for when it is needed: that of a quantised layer is made for the occasion.
        self.weight, self.keep, self.by_batch = weight, keep, by_batch
        self.current: Tensor | None = None
        self.total: Tensor | None = None
        self.totals: Values = {}

    def add(self, x: Tensor, g: Tensor) -> None:
        """One call of the module: its input's rows (n, d_in) and its output's gradient (n, d_out)."""
        self.current = g.T @ x if self.current is None else self.current.addmm_(g.T, x)

    def complete(self) -> None:
        """The batch has no more calls of this module."""
        if self.current is None:
            return
        if self.by_batch:
            for measure, value in entrywise(self.weight(), self.current).items():
                self.totals[measure] = self.totals.get(measure, 0.0) + value
        if self.keep:
            self.total = self.current if self.total is None else self.total.add_(self.current)
        self.current = None

    def values(self, batches: int, moments: Moments | None) -> Values:
        """Measure -> value, after so many batches; empty for a module that took no part."""
        found: Values = {}
        if self.total is not None:
            mean = self.total / batches
            found = entrywise(self.weight(), mean)
            if moments is not None:
                found["whitened-rank"] = effective_rank(moments.whitened(mean))
        return found | {measure: value / batches for measure, value in self.totals.items()}

    @property
    def bytes(self) -> int:
        """Bytes held between batches."""
        return 0 if self.total is None else self.total.nbytes


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
        """As `BatchGradients.add`."""
        part = g.T @ (x @ self.a.T)  # (d_out, r)
        self.current = part if self.current is None else self.current + part

    def complete(self) -> None:
        """As `BatchGradients.complete`."""
        if self.current is not None:
            self.squares += float(self.current.square().mean())
            self.current = None

    @property
    def bytes(self) -> int:
        """Bytes held between batches."""
        return self.a.nbytes


def entrywise(weight: Tensor, gradient: Tensor) -> Values:
    """The measures that are means over the entries of W and its gradient."""
    return {
        "weight-gradient": float((weight * gradient).abs().mean()),
        "gradient-norm": float(gradient.square().mean().sqrt()),
    }
