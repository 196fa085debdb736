"""The implementations of LoRA on a pack: each against the formula, and none mixes adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.current_batch import BankBatch
from adaptive_lora.training.dropout import DropoutMasks
from adaptive_lora.training.kernels import LoraArgs, forget_kernels, lora_kernel
from adaptive_lora.training.lora_ops import FusedCpu, LoraOp, PerAdapter, lora_op
from adaptive_lora.training.packing import pack
from adaptive_lora.training.slots import LoraPair
from tests.training.conftest import assert_close, by_bank, seven_members

NAME = "layer"
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def kernel() -> None:
    if lora_kernel(torch.float32) is None:
        pytest.skip("no C compiler here: the kernel is not built")


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make_batch(
    tokens: Sequence[int], ranks: Sequence[int], widths: tuple[int, int], dtype: torch.dtype, p: float
) -> BankBatch:
    """Adapters with these token counts and ranks in one layer; rank 0 means none. Gradients start at 1."""
    slots = []
    for k, rank in enumerate(ranks):
        a, b = (random(rank, width, dtype=dtype, seed=10 * k + i) for i, width in enumerate(widths))
        pair = LoraPair(a, b, torch.ones_like(a), torch.ones_like(b), scaling=0.5 + k)
        slots.append(
            SimpleNamespace(
                pairs={NAME: pair} if rank else {}, parameters=a, step=k, masks=DropoutMasks(k, p, {NAME: widths[0]})
            )
        )
    packed = pack([[Example((0,) * n, 1, False)] for n in tokens], "cpu")
    return BankBatch(packed, slots, training=True, stacks={})  # type: ignore[arg-type]


def forward_and_backward(op: LoraOp, batch: BankBatch, x: Tensor, y: Tensor, grad_output: Tensor) -> dict[str, Tensor]:
    """What comes out; x must come out as it went in."""
    before, out, grad_input = x.clone(), y.clone(), torch.ones_like(x)
    saved = op.forward(x, out)
    op.backward(x, saved, grad_output, grad_input)
    assert torch.equal(x.nan_to_num(), before.nan_to_num())
    found = {"y": out, "x": grad_input}
    for k, slot in enumerate(batch.slots):
        if NAME in slot.pairs:
            found |= {f"A{k}": slot.pairs[NAME].a_gradient, f"B{k}": slot.pairs[NAME].b_gradient}
    return {name: tensor.clone() for name, tensor in found.items()}


def by_formula(batch: BankBatch, x: Tensor, y: Tensor, grad_output: Tensor) -> dict[str, Tensor]:
    found = {"y": y.clone(), "x": torch.ones_like(x)}
    for k, (slot, (begin, end)) in enumerate(zip(batch.slots, batch.pack.segments, strict=True)):
        if NAME not in slot.pairs:
            continue
        pair, own, g = slot.pairs[NAME], x[begin:end].clone(), grad_output[begin:end]
        keep = torch.ones_like(own)
        if slot.masks.p:
            keep.view(-1)[slot.masks.dropped(NAME, slot.step, end - begin, torch.device("cpu"))] = 0
        own, factor = own * keep, pair.scaling / (1 - slot.masks.p)
        found["y"][begin:end] += factor * own @ pair.a.t() @ pair.b
        inner = factor * g @ pair.b.t()
        found[f"A{k}"] = 1 + inner.t() @ own
        found[f"B{k}"] = 1 + factor * (own @ pair.a.t()).t() @ g
        found["x"][begin:end] += inner @ pair.a * keep
    return found


def inputs(batch: BankBatch, widths: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    n = batch.pack.size
    return (
        random(n, widths[0], dtype=dtype, seed=91),
        random(n, widths[1], dtype=dtype, seed=92),
        random(n, widths[1], dtype=dtype, seed=93),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=40)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 21), st.integers(0, 35)), min_size=1, max_size=4),
    d_in=st.sampled_from((16, 17, 31, 64, 100, 129)),
    d_out=st.sampled_from((16, 23, 48, 80, 130)),
    p=st.sampled_from((0.0, 0.05, 0.7)),
)
def test_forward_and_backward_are_the_formula(
    dtype: torch.dtype, sizes: list[tuple[int, int]], d_in: int, d_out: int, p: float
) -> None:
    widths = (d_in, d_out)
    tokens, ranks = zip(*sizes, strict=True)
    for op in (FusedCpu, PerAdapter):
        batch = make_batch(tokens, ranks, widths, dtype, p)
        x, y, grad_output = inputs(batch, widths, dtype)
        wanted = by_formula(batch, x, y, grad_output)
        assert_close(
            forward_and_backward(op(NAME, batch), batch, x, y, grad_output), wanted, tolerance=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("widths", [(16, 16), (20, 23), (64, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_neighbour_that_is_not_finite_changes_no_bit(dtype: torch.dtype, widths: tuple[int, int]) -> None:
    """Rows that end within a vector, and neighbours that are not numbers: the others come out to the bit."""
    tokens, ranks = (5, 3, 9), (3, 17, 2)
    found = []
    for poison in (0.0, torch.nan, torch.inf):
        batch = make_batch(tokens, ranks, widths, dtype, 0.2)
        made = inputs(batch, widths, dtype)
        if poison:
            for tensor in made:
                tensor[5:8] = poison
        found.append(forward_and_backward(FusedCpu(NAME, batch), batch, *made))
    for other in found[1:]:
        for name in ("A0", "B0", "A2", "B2"):
            assert other[name].equal(found[0][name])
        for rows in (slice(0, 5), slice(8, None)):
            assert other["y"][rows].equal(found[0]["y"][rows]) and other["x"][rows].equal(found[0]["x"][rows])
        assert not other["A1"].isfinite().all()


def test_a_members_position_changes_no_bit() -> None:
    """The same adapter first, last, and among others."""
    widths, found = (33, 40), []
    for before, after in ((0, 0), (1, 0), (7, 3), (0, 8)):
        tokens = (*((before,) if before else ()), 11, *((after,) if after else ()))
        place = 1 if before else 0
        batch = make_batch(tokens, (6,) * len(tokens), widths, torch.float32, 0.0)
        own = make_batch((11,), (6,), widths, torch.float32, 0.0)
        slots = list(batch.slots)
        slots[place] = own.slots[0]
        batch = replace(batch, slots=slots)
        rows = slice(before, before + 11)
        x, y, grad_output = inputs(batch, widths, torch.float32)
        for tensor, other in zip((x, y, grad_output), inputs(own, widths, torch.float32), strict=True):
            tensor[rows] = other
        got = forward_and_backward(FusedCpu(NAME, batch), batch, x, y, grad_output)
        found.append({"y": got["y"][rows], "x": got["x"][rows], "A": got[f"A{place}"], "B": got[f"B{place}"]})
    for other in found[1:]:
        assert_close(other, found[0], tolerance=0)


def test_which_implementation_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def way(widths: tuple[int, int], dtype: torch.dtype, of: torch.dtype) -> type:
        batch = make_batch((3,), (2,), widths, of, 0.0)
        return type(
            lora_op(NAME, batch, torch.zeros(3, widths[0], dtype=dtype), torch.zeros(3, widths[1], dtype=dtype))
        )

    assert way((16, 16), torch.float32, torch.float32) is FusedCpu
    assert way((16, 16), torch.float64, torch.float64) is FusedCpu
    assert way((16, LoraArgs.MIN_WIDTH - 1), torch.float32, torch.float32) is PerAdapter
    assert way((16, 16), torch.bfloat16, torch.float32) is PerAdapter
    monkeypatch.setenv("ADAPTIVE_LORA_KERNEL", "off")
    forget_kernels()
    assert way((16, 16), torch.float32, torch.float32) is PerAdapter
    monkeypatch.undo()
    forget_kernels()


def test_a_bank_without_the_kernel_trains_the_same(exact: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    members = seven_members(exact, steps=4)
    with_it = by_bank(exact, members)
    monkeypatch.setenv("ADAPTIVE_LORA_KERNEL", "off")
    forget_kernels()
    try:
        without = by_bank(exact, members)
    finally:
        monkeypatch.undo()
        forget_kernels()
    for one, other in zip(with_it, without, strict=True):
        assert_close(one.last, other.last, tolerance=1e-9)
