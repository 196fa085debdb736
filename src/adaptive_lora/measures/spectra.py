"""Spectra of inputs and of whitened gradients, from sums that a pass over the data leaves behind.

Legend: n tokens, d_in and d_out the sides of a weight W (d_out, d_in), x (n, d_in) its inputs, G (d_out, d_in)
its gradient.

Whole sums, and no sketches of them: whitening leaves a gradient without few strong directions. Single-pass
sketches (Tropp et al. 2017, arXiv 1609.00048) half as wide as the matrices of a small real Llama still
missed the effective rank by up to two fifths.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

RIDGE = 1e-3
"""Added to the diagonal of C before it is inverted, relative to C's mean eigenvalue: directions that carry a
thousandth of the mean variance or less are not blown up. It lies above the rounding error of float32 sums."""

_SMALL = 1024
"""Up to this size all eigenvalues are computed; of larger matrices only the leading ones that are asked for."""
_BLOCK = 128
"""Columns at a time of a symmetric sum: the blocks below the diagonal are left out."""


@dataclass
class Moments:
    """Streaming first and second moments of inputs: what covariance and whitening are made of."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.empty(0))
    """(d_in,) Σ x."""
    second: Tensor = field(default_factory=lambda: torch.empty(0))
    """(d_in, d_in) Σ xxᵀ, of which only the blocks on and above the diagonal are filled."""

    def add(self, x: Tensor) -> None:
        """Takes in rows (n, d_in)."""
        width = x.shape[1]
        if not self.count:
            self.total, self.second = x.new_zeros(width), x.new_zeros(width, width)
        self.count += len(x)
        self.total += x.sum(0)
        for at in range(0, width, _BLOCK):
            self.second[at : at + _BLOCK, at:].addmm_(x[:, at : at + _BLOCK].T, x[:, at:])

    @property
    def bytes(self) -> int:
        """What is kept between batches."""
        return self.second.numel() * self.second.element_size()

    def uncentred(self) -> Tensor:
        """(d_in, d_in) C = E[xxᵀ]."""
        upper = _fine(self.second).triu()
        return (upper + upper.triu(1).T) / self.count

    def centred(self) -> Tensor:
        """(d_in, d_in) E[(x - μ)(x - μ)ᵀ]."""
        mean = _fine(self.total) / self.count
        return self.uncentred() - torch.outer(mean, mean)

    def explained(self, components: int) -> list[float]:
        """Shares of the inputs' variance along the leading principal components, descending; empty without inputs.

        λ_j / Σ λ of the centred covariance, as PEFT's incremental PCA has them.
        """
        if not self.count:
            return []
        covariance = self.centred()
        values, trace = leading_eigenvalues(covariance, components), covariance.trace()
        shares = (values / trace).clamp(min=0)
        return [0.0] * len(values) if trace <= 0 else list(shares.tolist())  # what is not finite stays so

    def whitened(self, rows: Tensor) -> Tensor:
        """σ² of `rows` (m, d_in) · (C + ridge)^{-1/2}, ascending; zeros may be left out."""
        damped = self.uncentred()
        damped.diagonal().add_(RIDGE * damped.diagonal().mean())
        lower, failed = torch.linalg.cholesky_ex(damped)
        if failed:  # sums that are not finite; the caller tells the user
            return torch.full((1,), float("nan"))
        half = torch.linalg.solve_triangular(lower, _fine(rows).T, upper=False)  # (d_in, m)
        gram: Tensor = half @ half.T if len(half) < half.shape[1] else half.T @ half
        found: Tensor = torch.linalg.eigvalsh(gram) if gram.isfinite().all() else gram.diagonal()
        return found


def leading_eigenvalues(matrix: Tensor, count: int) -> Tensor:
    """The largest eigenvalues of a symmetric matrix without negative ones, descending.

    All are computed up to a size of 1,024; of larger ones the leading ones by subspace iteration on twice as
    many vectors (Halko, Martinsson, Tropp 2011, arXiv 0909.4061).

    >>> leading_eigenvalues(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2)
    tensor([3., 2.])
    """
    size = len(matrix)
    if not matrix.isfinite().all():
        return matrix.diagonal()[:count]  # the caller tells the user
    if size <= _SMALL or 4 * count >= size:
        every: Tensor = torch.linalg.eigvalsh(matrix)
        return every.flip(0)[:count]
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(size, 2 * count, generator=generator, dtype=matrix.dtype).to(matrix.device)
    for _ in range(8):
        basis = torch.linalg.qr(matrix @ basis).Q
    leading: Tensor = torch.linalg.eigvalsh(basis.T @ matrix @ basis)
    return leading.flip(0)[:count]


def effective_rank(energies: Tensor) -> float:
    """exp(H(p)), p = σ² / Σ σ²: between 1 (one direction) and their number (all alike); 0 where all are 0.

    The entropy's exponential is Roy and Vetterli's effective rank (EUSIPCO 2007), here of energies.

    >>> effective_rank(torch.tensor([2.0, 2.0, 0.0]))
    2.0
    """
    if not energies.isfinite().all():
        return float("nan")  # the caller tells the user
    held = energies[energies > 0]
    shares = held / held.sum()
    return float(torch.special.entr(shares).sum().exp()) if len(held) else 0.0


def _fine(tensor: Tensor) -> Tensor:
    """In double precision, on the processor where the device has none."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()
