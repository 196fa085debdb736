"""Attention over sequences end to end: the compiled kernel and torch's, against softmax written out."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.training.attention import NotCausalOnly, packed_attention
from adaptive_lora.training.current_batch import BankBatch, current_batch
from adaptive_lora.training.kernels import attention_kernel
from adaptive_lora.training.packing import Pack, pack

ALL_LENGTHS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 70)
CAUSAL = SimpleNamespace(is_causal=True)


@pytest.fixture
def kernel() -> None:
    if attention_kernel() is None:
        pytest.skip("no C compiler here: the kernel is not built")


def pack_of(lengths: Sequence[int]) -> Pack:
    return pack([[Example((0,) * n, 1, False) for n in lengths]], "cpu")


def inputs(
    lengths: Sequence[int], heads: int, groups: int, width: int, dtype: torch.dtype, seed: int = 0
) -> list[Tensor]:
    """Query, key, value and the gradient of the result, laid out as models hand them over: tokens first."""
    generator, total = torch.Generator().manual_seed(seed), sum(lengths)
    shapes = [(total, heads, width), (total, groups, width), (total, groups, width)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    outer = torch.randn(1, total, heads, width, generator=generator, dtype=torch.float64).to(dtype)
    return [*(2 * x.transpose(0, 1)[None] for x in made), outer]


def written_out(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scaling: float, window: int = 10**6
) -> Tensor:
    """Sequence by sequence, in double precision; a query sees its own and the window - 1 tokens before it."""
    parts, shared = [], query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(shared, 1) for x in (key, value))
    for q, k, v in zip(*(x.double().split(list(lengths), 2) for x in (query, key, value)), strict=True):
        scores = scaling * q @ k.transpose(2, 3)
        behind = torch.arange(scores.shape[-1])[:, None] - torch.arange(scores.shape[-1])
        hidden = (behind < 0) | (behind >= window)
        parts.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v)
    return torch.cat(parts, 2).transpose(1, 2)


def with_gradients(made: list[Tensor], lengths: Sequence[int], **how: Any) -> list[Tensor]:
    """The result of packed attention, and the gradients of query, key and value."""
    leaves = [x.detach().requires_grad_() for x in made[:3]]
    with current_batch(BankBatch(pack_of(lengths))):
        out, _ = packed_attention(CAUSAL, *leaves, None, **how)  # type: ignore[arg-type]
    return [out.detach(), *torch.autograd.grad(out, leaves, made[3])]


def expected(made: list[Tensor], lengths: Sequence[int], scaling: float, window: int = 10**6) -> list[Tensor]:
    leaves = [x.double().requires_grad_() for x in made[:3]]
    out = written_out(*leaves, lengths, scaling, window)
    return [out.detach(), *torch.autograd.grad(out, leaves, made[3].double())]


def check(
    lengths: Sequence[int], heads: int, groups: int, width: int, dtype: torch.dtype, seed: int = 0, window: int = 10**6
) -> None:
    """Values and gradients to 1e-5 or 1e-13 of the largest, or of 1 where all should be 0."""
    made = inputs(lengths, heads, groups, width, dtype, seed)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    found = with_gradients(made, lengths, scaling=0.3, sliding_window=window)
    for ours, theirs in zip(found, expected(made, lengths, 0.3, window), strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        assert (ours.double() - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1.0)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1), (1, 1)])
@pytest.mark.parametrize("width", [5, 16, 24, 64])
def test_the_kernel_is_softmax_written_out(kernel: None, width: int, heads: int, groups: int) -> None:
    check(ALL_LENGTHS, heads, groups, width, torch.float32)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.sampled_from([3, 16, 20]), st.integers(0, 99))
def test_all_lengths_are_supported(lengths: list[int], width: int, seed: int) -> None:
    """By the kernel where there is one, and by torch."""
    check(lengths, 4, 2, width, torch.float32, seed)
    check(lengths, 4, 2, width, torch.float64, seed)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
def test_torchs_attention_in_groups_is_softmax_written_out(heads: int, groups: int) -> None:
    check(ALL_LENGTHS, heads, groups, 16, torch.float64)
    check((70, 1, 33), heads, groups, 24, torch.float64)


def test_the_usual_scaling_is_one_over_the_root_of_the_width() -> None:
    made = inputs((5, 9), 4, 2, 16, torch.float64)
    for ours, theirs in zip(with_gradients(made, (5, 9)), expected(made, (5, 9), 0.25), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_values_that_are_not_finite_stay_in_their_sequence(dtype: torch.dtype, poison: float) -> None:
    lengths = (9, 20, 18, 5)
    made = inputs(lengths, 4, 2, 16, dtype)
    clean = with_gradients(made, lengths)
    for tensor in made:
        tensor.view(tensor.shape)[(slice(None), slice(None), 12) if tensor is not made[3] else (slice(None), 12)] = (
            poison
        )
    spoilt = with_gradients(made, lengths)
    for i, (ours, theirs) in enumerate(zip(spoilt, clean, strict=True)):
        axis = 1 if i == 0 else 2
        parts = list(zip(ours.split(lengths, axis), theirs.split(lengths, axis), strict=True))
        assert [torch.equal(a, b) for a, b in parts] == [True, False, True, True]
    assert spoilt[0][:, 9 + 12 - 9 :].isnan().any()


def test_large_scores_do_not_overflow() -> None:
    made = [100 * x for x in inputs((17, 3), 2, 2, 16, torch.float32)]
    assert all(x.isfinite().all() for x in with_gradients(made, (17, 3)))


@pytest.mark.parametrize(
    "request_",
    [{"softcap": 30.0}, {"s_aux": torch.zeros(4)}, {"position_bias": torch.zeros(1)},
     {"dropout": 0.1}, {"attention_mask": torch.ones(1, 1, 14, 14)}],
    ids=lambda value: next(iter(value)),
)  # fmt: skip
def test_attention_that_is_not_only_causal_is_refused(request_: dict[str, Any]) -> None:
    made = inputs((9, 5), 4, 2, 16, torch.float32)[:3]
    with current_batch(BankBatch(pack_of((9, 5)))):
        mask = request_.pop("attention_mask", None)
        with pytest.raises(NotCausalOnly):
            packed_attention(CAUSAL, *made, mask, **request_)  # type: ignore[arg-type]
        with pytest.raises(NotCausalOnly):
            packed_attention(SimpleNamespace(is_causal=False), *made, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("window", [1, 2, 8, 69])
def test_a_window_is_applied(window: int, dtype: torch.dtype) -> None:
    check(ALL_LENGTHS, 4, 2, 16, dtype, window=window)


def test_a_window_as_wide_as_the_longest_text_is_causality() -> None:
    made = inputs((9, 5), 4, 2, 16, torch.float64)
    for ours, theirs in zip(with_gradients(made, (9, 5), sliding_window=9), with_gradients(made, (9, 5)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_wider_than_keys_are_right_or_refused(dtype: torch.dtype) -> None:
    """As in DeepSeek's latent attention, where the two differ."""
    query, key, _, _ = inputs((9, 5), 4, 2, 16, dtype)
    value = inputs((9, 5), 4, 2, 24, dtype)[2]
    with current_batch(BankBatch(pack_of((9, 5)))):
        try:
            out, _ = packed_attention(CAUSAL, query, key, value, None)  # type: ignore[arg-type]
        except NotCausalOnly:
            return
    torch.testing.assert_close(out.double(), written_out(query, key, value, (9, 5), 0.25), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors are not slowed by them")
def test_numbers_that_slow_the_processor_are_zero_within_the_kernel_alone(kernel: None) -> None:
    """Weights of distant keys times gradients are such numbers: on real texts they took half of a training's time."""
    tiny = torch.tensor([1e-39])
    query, key, value, outer = inputs([9], 2, 2, 8, torch.float32)
    for values, gradient in ((value * 1e-39, outer), (value, outer * 1e-39)):
        assert values.any() and gradient.any()
        out, *gradients = with_gradients([query, key, values, gradient], [9], scaling=0.3)
        assert not (out if values is not value else gradients[2]).any()
        assert (tiny * 1).any()
