"""Products on bfloat16 tiles: about as exact as in float32, whatever the shapes; a row whatever its company."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from adaptive_lora.training import split_product as module
from adaptive_lora.training.fused_layers import frozen_linear
from adaptive_lora.training.kernels import split_kernel
from adaptive_lora.training.split_product import split_product, splits

SHAPES = [(1, 32, 32), (37, 70, 45), (33, 33, 65), (300, 600, 100), (515, 64, 172), (40, 48, 4200)]
"""Rows, inputs and outputs: at, below and above the sides of tiles and blocks, steps, rows and columns at a time."""
needs_tiles = pytest.mark.skipif(split_kernel() is None, reason="this processor multiplies no bfloat16 tiles")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def numbers(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Of very different sizes, in the midst of NaN, which a product that reads too far would take along."""
    random = torch.Generator().manual_seed(seed)
    around = torch.full((rows + 8, columns), torch.nan)
    sizes = torch.rand(rows, columns, generator=random).mul(8).sub(4).exp()
    around[4:-4] = torch.randn(rows, columns, generator=random) * sizes
    return around[4:-4]


def error(x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    """Of y, in units of what its terms sum up to."""
    terms = x.double().abs() @ weight.double().abs().T
    return (y.double() - x.double() @ weight.double().T).abs() / terms


@needs_tiles
@pytest.mark.parametrize("lies", ["rows", "columns", "apart"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_is_as_exact_as_in_float32(shape: tuple[int, int, int], lies: str) -> None:
    rows, d_in, d_out = shape
    x = numbers(rows, d_in)
    weight = {
        "rows": lambda: numbers(d_out, d_in, 1),
        "columns": lambda: numbers(d_in, d_out, 1).t(),
        "apart": lambda: numbers(d_out, 2 * d_in, 1)[:, ::2],
    }[lies]()
    assert splits(x, weight)
    ours, plain = error(x, weight, split_product(x, weight)), error(x, weight, x @ weight.T)
    assert ours.max() < 1e-6  # 2^-20; a product of two parts each would be off by 2^-17
    assert ours.square().mean().sqrt() < 1.5 * plain.square().mean().sqrt()


@needs_tiles
def test_a_row_is_the_same_in_any_company() -> None:
    x, weight = numbers(700, 96), numbers(80, 96, 1)
    whole = split_product(x, weight)
    for rows in ([5], [699], list(range(100, 433)), list(range(0, 700, 7))):
        assert torch.equal(split_product(x[rows], weight), whole[rows])


@needs_tiles
def test_nothing_is_written_beyond_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither beside y nor beside the workspace, though tiles are larger than what they hold."""
    made = list[Tensor]()

    def surrounded(size: int) -> Tensor:
        made.append(torch.full((size + 128,), 7, dtype=torch.uint8))
        return made[-1][64:]

    monkeypatch.setattr(module, "_OWN", threading.local())
    monkeypatch.setattr(module, "_new_workspace", surrounded)
    x, weight, beyond = numbers(45, 70), numbers(77, 70, 1), torch.full((47, 77), 3.0)
    monkeypatch.setattr(Tensor, "new_empty", lambda *_: beyond[1:-1])
    assert split_product(x, weight).data_ptr() == beyond[1:].data_ptr()
    assert (beyond[[0, -1]] == 3).all() and not (beyond[1:-1] == 3).any()
    assert (made[0][:64] == 7).all() and (made[0][-64:] == 7).all()


@needs_tiles
def test_what_is_not_finite_stays_so_and_in_its_row() -> None:
    x, weight = numbers(40, 64), numbers(48, 64, 1)
    x = x.clone()
    x[3, 5], x[20, 6] = torch.inf, torch.nan
    finite = split_product(x, weight).isfinite()
    assert not finite[[3, 20]].any() and finite[[i for i in range(40) if i not in (3, 20)]].all()


@needs_tiles
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_tiny_and_huge_numbers(size: float) -> None:
    x, weight = numbers(40, 64) * size, numbers(48, 64, 1)
    assert error(x, weight, split_product(x, weight)).max() < 1e-6


@needs_tiles
def test_frozen_layers_use_it_where_a_thread_works_alone() -> None:
    x, weight, bias = numbers(100, 64), numbers(48, 64, 1), torch.arange(48.0)
    y = frozen_linear(x, weight, bias)
    assert torch.equal(y, split_product(x, weight) + bias)
    assert torch.equal(frozen_linear(y, weight.t()), split_product(y, weight.t()))
    torch.set_num_threads(2)
    assert not splits(x, weight)


def test_it_is_left_alone_where_it_is_not_for() -> None:
    wide = numbers(40, 64)
    assert not splits(wide.double(), wide.double()) and not splits(wide.bfloat16(), wide.bfloat16())
    assert not splits(wide[:, :16], wide[:, :16]) and not splits(wide[:0], wide) and not splits(wide.to("meta"), wide)


def test_without_tiles_products_are_the_same_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = numbers(100, 64), numbers(48, 64, 1)
    with_them = frozen_linear(x, weight)
    monkeypatch.setattr(module, "split_kernel", lambda: None)
    torch.testing.assert_close(frozen_linear(x, weight), with_them, rtol=1e-4, atol=1e-4)
