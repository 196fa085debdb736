"""Known spectra: of inputs, of whitened gradients, and their effective ranks."""

from __future__ import annotations

import math

import pytest
import torch

from adaptive_lora.measures.spectra import RIDGE, Moments, effective_rank, leading_eigenvalues
from adaptive_lora.measures.weights import stable_rank


def normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments_of(*parts: torch.Tensor) -> Moments:
    moments = Moments()
    for part in parts:
        moments.add(part)
    return moments


@pytest.mark.parametrize(
    ("energies", "expected"),
    [([1.0] * 7, 7.0), ([3.0, 0.0, 0.0], 1.0), ([0.5, 0.25, 0.25], 2**1.5), ([0.0, 0.0], 0.0)],
)
def test_effective_rank_of_known_spectra(energies: list[float], expected: float) -> None:
    assert effective_rank(torch.tensor(energies, dtype=torch.float64)) == pytest.approx(expected)


def test_effective_rank_of_what_is_not_finite_is_not_finite() -> None:
    assert math.isnan(effective_rank(torch.tensor([1.0, float("nan")])))


@pytest.mark.parametrize("width", [5, 700])  # one block of columns, and two
def test_moments_are_those_of_all_rows_however_they_come(width: int) -> None:
    x = normal(900, width) @ torch.diag(torch.linspace(1, 3, width).double()) + 5
    moments = moments_of(x[:1], x[1:300], x[300:])
    assert torch.allclose(moments.uncentred(), x.T @ x / len(x), atol=1e-9)
    assert torch.allclose(moments.centred(), torch.cov(x.T, correction=0), atol=1e-9)


def test_explained_variance_is_that_of_the_centred_inputs() -> None:
    scales = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64).sqrt()
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4)  # uncorrelated exactly
    found = moments_of(signs * scales + 100).explained(3)
    assert found == pytest.approx([8 / 15, 4 / 15, 2 / 15])
    assert Moments().explained(3) == []
    assert moments_of(torch.ones(3, 4)).explained(2) == [0.0, 0.0]


@pytest.mark.parametrize("rows", [4, 40])  # fewer and more than d_in
def test_whitening_takes_the_inputs_own_directions_out(rows: int) -> None:
    mixing = torch.diag(torch.logspace(0, -1, 20, dtype=torch.float64)) @ torch.linalg.qr(normal(20, 20)).Q
    x, gradient = normal(500, 20, seed=1) @ mixing, normal(rows, 20, seed=2)
    second = x.T @ x / len(x)
    damped = second + RIDGE * second.trace() / 20 * torch.eye(20, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(damped)
    expected = torch.linalg.svdvals(gradient @ vectors @ torch.diag(values.rsqrt()) @ vectors.T).square()
    found = moments_of(x).whitened(gradient)
    assert torch.allclose(found.flip(0)[: len(expected)], expected[: len(found)], rtol=1e-8)


def test_leading_eigenvalues_of_large_matrices_by_iteration() -> None:
    basis = torch.linalg.qr(normal(1200, 1200)).Q
    spectrum = torch.arange(1, 1201, dtype=torch.float64) ** -1.0
    found = leading_eigenvalues(basis @ torch.diag(spectrum) @ basis.T, 16)
    assert torch.allclose(found, spectrum[:16], rtol=1e-3)


def test_stable_rank_of_known_weights() -> None:
    assert stable_rank(torch.eye(6)) == pytest.approx(6)
    assert stable_rank(torch.outer(torch.arange(1.0, 5), torch.ones(3))) == pytest.approx(1)
    assert stable_rank(torch.zeros(3, 3)) == 0
    assert math.isnan(stable_rank(torch.full((2, 2), float("nan"))))


def test_stable_rank_of_large_weights_takes_the_largest_singular_value_alone() -> None:
    weight = normal(1030, 1100).float()
    direct = weight.double().square().sum() / torch.linalg.matrix_norm(weight.double(), 2) ** 2
    assert stable_rank(weight) == pytest.approx(float(direct), rel=1e-6)
