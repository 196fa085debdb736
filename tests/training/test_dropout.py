"""Dropout masks: of the probability asked for, over tokens only, determined by seed, step and module."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptive_lora.streams import derive_seed
from adaptive_lora.training import dropout
from adaptive_lora.training.dropout import DropoutMasks, zero_

WIDTHS = {"first": 16, "second": 48, "third": 16}
CPU = torch.device("cpu")


def masks(seed: int = 0, p: float = 0.2, widths: dict[str, int] | None = None) -> DropoutMasks:
    return DropoutMasks(seed, p, widths or WIDTHS)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_share_asked_for_is_dropped_everywhere(p: float) -> None:
    """By module, by feature, and by tokens early and late: to five standard deviations."""
    found = masks(p=p)
    for name, width in WIDTHS.items():
        which = found.dropped(name, 3, 4000, CPU)
        hits = torch.zeros(4000 * width).index_fill_(0, which, 1).view(4000, width)
        for part in (hits, hits[:2000], hits[2000:], hits[:, 0], hits[:, -1], hits[:, ::2]):
            tolerance = 5 * (p * (1 - p) / part.numel()) ** 0.5
            assert part.mean().item() == pytest.approx(p, abs=tolerance)
        neighbours = (hits.flatten()[1:] * hits.flatten()[:-1]).mean().item()  # independent of what stands next to it
        assert neighbours == pytest.approx(p * p, abs=6 * (p * p / hits.numel()) ** 0.5)


@given(st.integers(0, 5), st.floats(0.001, 0.95), st.integers(0, 9), st.integers(0, 40))
def test_positions_ascend_and_lie_inside(seed: int, p: float, step: int, tokens: int) -> None:
    found = masks(seed, p)
    for name, width in WIDTHS.items():
        which = found.dropped(name, step, tokens, CPU)
        assert which.dtype == torch.int64
        assert (which[1:] > which[:-1]).all()
        assert not len(which) or (which[0] >= 0 and which[-1] < tokens * width)


def test_a_mask_is_a_function_of_seed_step_module_and_size() -> None:
    one, two = masks(), masks()
    forth = {(step, name): one.dropped(name, step, 30, CPU).clone() for step in range(3) for name in WIDTHS}
    back = {(s, n): two.dropped(n, s, 30, CPU).clone() for s in (2, 0, 1) for n in reversed(WIDTHS)}
    assert all(torch.equal(forth[key], back[key]) for key in forth)
    assert len({tuple(which.tolist()) for which in forth.values()}) == 9
    for other in (masks(seed=1), masks(p=0.21)):
        assert not any(torch.equal(other.dropped(name, step, 30, CPU), which) for (step, name), which in forth.items())


def test_a_mask_drawn_again_after_others_is_the_same() -> None:
    """The backward pass draws again where activations are recomputed; a step of other length lies between."""
    found = masks()
    first = found.dropped("second", 4, 30, CPU).clone()
    found.dropped("second", 4, 31, CPU)
    found.dropped("first", 5, 30, CPU)
    assert torch.equal(found.dropped("second", 4, 30, CPU), first)


def test_probability_0_drops_no_input() -> None:
    assert len(masks(p=0.0).dropped("first", 0, 100, CPU)) == 0


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_erasing_takes_positions_or_a_mask(tokens: int, width: int, seed: int) -> None:
    x = torch.arange(1.0, 1 + tokens * width).view(tokens, width)
    which = masks(seed, 0.4, {"only": width}).dropped("only", 0, tokens, CPU)
    flags = torch.zeros(tokens * width, dtype=torch.bool).index_fill_(0, which, True)
    one, two = zero_(x.clone(), which), zero_(x.clone(), flags)
    assert torch.equal(one, two) and torch.equal(one, torch.where(flags.view_as(x), 0, x))


@given(
    st.lists(st.integers(0, 3000), min_size=1, max_size=6),
    st.sampled_from([1e-30, 1e-3, 0.05, 0.5, 0.95]),
    st.integers(0, 9),
)
def test_the_kernel_draws_what_numpy_does(sizes: list[int], p: float, seed: int) -> None:
    ends = np.cumsum(np.array(sizes, np.int64))
    drawn = []
    for kernel in (dropout.dropout_kernel(), None):
        stream = np.random.Generator(np.random.SFC64(seed))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dropout, "dropout_kernel", lambda kernel=kernel: kernel)
            patch.setattr(dropout, "_BLOCK", 64)
            positions, cuts = dropout.successes(stream, ends, p)
        drawn.append((positions[: cuts[-1]].tolist(), cuts))
    assert drawn[0] == drawn[1]


def test_more_successes_than_expected_are_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is made for as many as there are likely to be: here for far fewer."""
    whole, ends = masks(p=0.5).positions(0, 500), np.array([8000, 32000, 40000])
    scale = -1 / math.log1p(-0.5)
    kernel = dropout.dropout_kernel()
    for draw in (dropout._successes, *([functools.partial(dropout._compiled_successes, kernel)] if kernel else [])):
        stream = np.random.Generator(np.random.SFC64(derive_seed(0, "dropout", 0)))
        positions, cuts = draw(stream, ends, scale, 100)
        assert cuts[-1] == sum(len(whole[name]) for name in WIDTHS) > 15_000
        assert np.array_equal(positions[: cuts[-1]], np.concatenate([whole[name] for name in WIDTHS]))


# Flags, as accelerators draw them; here on the CPU.


def flags_of(found: DropoutMasks, step: int, tokens: int) -> dict[str, torch.Tensor]:
    return found.by_module(found.draw_(torch.empty(tokens, sum(WIDTHS.values()), dtype=torch.bool), step))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_flags_drop_the_share_asked_for_everywhere(p: float) -> None:
    for name, width in WIDTHS.items():
        hits = flags_of(masks(p=p), 3, 4000)[name].double()
        assert hits.shape == (4000, width)
        for part in (hits, hits[:2000], hits[2000:], hits[:, 0], hits[:, -1], hits[:, ::2]):
            tolerance = 5 * (p * (1 - p) / part.numel()) ** 0.5
            assert part.mean().item() == pytest.approx(p, abs=tolerance)
        for neighbours in (hits[1:] * hits[:-1], hits[:, 1:] * hits[:, :-1]):
            assert neighbours.mean().item() == pytest.approx(p * p, abs=6 * (p * p / neighbours.numel()) ** 0.5)


def test_flags_are_a_function_of_seed_step_and_module_and_of_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn into the middle of a bank's tensor they are the reference engine's."""
    monkeypatch.setattr(DropoutMasks, "as_flags", staticmethod(lambda device: True))
    rows = torch.zeros(90, sum(WIDTHS.values()), dtype=torch.bool)
    masks().draw_(rows[41:71], 4)
    assert not rows[:41].any() and not rows[71:].any()
    for name, own in masks().by_module(rows[41:71]).items():
        assert torch.equal(masks().dropped(name, 4, 30, CPU), own.reshape(-1))
    drawn = {tuple(masks().dropped(name, step, 30, CPU)[:480].tolist()) for step in (4, 5) for name in WIDTHS}
    drawn |= {tuple(masks(seed).dropped("first", 4, 30, CPU).tolist()) for seed in (1, 2)}
    assert len(drawn) == 8
    assert masks().bytes_per_token(CPU) == 80 and masks(p=0.0).bytes_per_token(CPU) == 0
