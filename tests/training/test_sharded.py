"""The bank over a base that is shared among processes: two of them against one, and what one rank can show alone."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing

from adaptive_lora.errors import ModelError, TrainingError, UsageError
from adaptive_lora.training.attention import NotCausalOnly
from adaptive_lora.training.bank import Bank
from adaptive_lora.training.base import FrozenBase, load_base
from adaptive_lora.training.gathering import is_shared
from adaptive_lora.training.ranks import Ranks, joined
from adaptive_lora.training.sharded import ShardedBank, share
from adaptive_lora.training.sharded_base import load_in_turn, shard_base, sharded_bytes
from tests.training.conftest import assert_close, assert_same_records, demo_examples, like, seven_members
from tests.training.sharded_worker import CASES, PAIRS, layers_of, members_of, results_of, work

EQUAL = 1e-6
"""Two processes and one, in float32, relative to a tensor's largest value."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def two_processes(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    out = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.training.sharded_worker"])
    arguments = (2, free_port(), model_folders, out)
    torch.multiprocessing.start_processes(work, arguments, nprocs=2, start_method="forkserver")
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize(("kind", "case"), PAIRS)
def test_two_processes_end_where_one_does(
    two_processes: list[dict[str, Any]], model_folders: dict[str, Path], kind: str, case: str
) -> None:
    base = load_base(kind, model_folders[kind])
    members = members_of(case, base)
    wanted: dict[int, dict[str, Any]] = {}
    # Where all adapters are multiplied in one call, they are padded to the bank's largest rank: there the last digit
    # depends on the neighbours, in one process too.
    for own in share(members, 2) if CASES[case].get("stacked") else [range(len(members))]:
        with Bank(base, [members[i] for i in own], workers=1, **CASES[case]) as bank:
            layers = layers_of(base)
            wanted |= results_of(bank, own, base)
    found = {i: own for rank in two_processes for i, own in rank[kind][case]["results"].items()}
    assert found.keys() == wanted.keys()
    assert all(rank[kind][case]["layers"] == layers for rank in two_processes)  # fused where one process has them so
    for i, one in wanted.items():
        assert len(one["records"]) == members[i].options.steps > 0
        assert_same_records(found[i]["records"], one["records"], EQUAL)
        assert_close(found[i]["state"], one["state"], EQUAL)
        assert np.allclose(found[i]["nll"], one["nll"], rtol=EQUAL, atol=0)


def test_ranks_pass_in_lock_step_and_twins_come_out_alike(two_processes: list[dict[str, Any]]) -> None:
    many, one = ([rank["llama"][case] for rank in two_processes] for case in ("many passes", "one adapter"))
    twins = next(rank["results"] for rank in many if 1 in rank["results"])
    assert twins[1]["records"] == twins[7]["records"]
    assert all(torch.equal(tensor, twins[7]["state"][name]) for name, tensor in twins[1]["state"].items())
    assert {rank["gathers"] for rank in many + one} == {(3, 6)}  # three blocks: once, and twice
    assert sum(rank["idle"] for rank in many) > 0  # the ranks needed unequal numbers of passes
    assert sorted(len(rank["results"]) for rank in one) == [0, 1]
    assert sorted(rank["idle"] for rank in one) == [0, 4 + 1]  # updates and one pass of the evaluation


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_rank_keeps_half_of_the_blocks(two_processes: list[dict[str, Any]], kind: str) -> None:
    one, other = (rank[kind]["bytes"] for rank in two_processes)
    blocks = one["whole"] - one["outside"]
    assert one["on_rank"] + other["on_rank"] == one["whole"] + one["outside"]
    assert one["on_rank"] - one["outside"] == pytest.approx(blocks / 2, rel=0.03)  # rows are whole: 5 are 3 and 2
    assert one["received"] == blocks // 2 and 2.9 * one["largest_block"] < blocks < 3.1 * one["largest_block"]


@pytest.fixture(scope="module")
def alone() -> Iterator[Ranks]:
    """A world of this process."""
    own = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        with joined("cpu", minutes=5) as ranks:
            yield ranks


def test_a_model_of_which_attention_cannot_be_packed_is_run_through_its_own(
    gpt2: FrozenBase, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first way fails in the middle of a pass, in the first block."""

    def refuse(*_: Any, **__: Any) -> None:
        raise NotCausalOnly("not here")

    monkeypatch.setattr("adaptive_lora.training.attention._grouped", refuse)
    monkeypatch.setattr("adaptive_lora.training.attention.attention_kernel", lambda: None)
    members = seven_members(gpt2, steps=2)[:2]
    with Bank(gpt2, members) as bank:
        wanted = results_of(bank, range(2), gpt2)
    shared = shard_base(gpt2, alone)
    with ShardedBank(shared, members, alone) as bank:
        assert "the model's attention" in bank.kernels
        found = results_of(bank, range(2), shared)
    for i in range(2):
        assert_close(found[i]["state"], wanted[i]["state"], EQUAL)


def test_weights_are_shared_out_and_the_bank_leaves_them_so(gpt2: FrozenBase, alone: Ranks) -> None:
    whole = gpt2.model.transformer.h[1].mlp.c_fc.weight.clone()
    members, texts = seven_members(gpt2, steps=1)[:1], demo_examples(gpt2)[:2]
    with Bank(gpt2, members) as bank:
        wanted = bank.bytes_per_position()
    shared = load_in_turn(lambda: gpt2, alone)
    with ShardedBank(shared, members, alone, texts=texts) as bank:
        bank.step()
        assert bank.bytes_per_position() == wanted  # the weights that were gathered are not counted
        assert not bank.idle_passes
    for name, parameter in shared.model.named_parameters():
        assert is_shared(parameter) == name.startswith("transformer.h."), name
    assert torch.equal(shared.model.transformer.h[1].mlp.c_fc.weight.full_tensor(), whole)
    assert sharded_bytes(shared.model, alone).received == 0


def test_a_pass_out_of_memory_is_not_halved(gpt2: FrozenBase, alone: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = shard_base(gpt2, alone)
    with ShardedBank(shared, seven_members(shared, steps=1)[:2], alone) as bank:

        def full(*_: Any) -> None:
            raise MemoryError

        monkeypatch.setattr(bank, "_losses", full)
        with pytest.raises(TrainingError, match="Rank 0 ran out of memory in a pass of at most 4096 positions"):
            bank.step()
        with pytest.raises(TrainingError, match="Give fewer `chunk_tokens`"):
            bank.evaluate(demo_examples(shared)[:2])


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda base: replace(base, quantised="nf4"), "weights in nf4, and quantised weights cannot be shared"),
        (lambda base: _without_blocks(base), "marks no blocks in it"),
        (lambda base: _with_one_weight(base), "they have weights in common"),
    ],
    ids=["quantised", "no blocks", "common weights"],
)
def test_bases_that_cannot_be_shared_are_refused(
    gpt2: FrozenBase, alone: Ranks, spoil: Callable[[FrozenBase], FrozenBase], match: str
) -> None:
    with pytest.raises(ModelError, match=match):
        shard_base(spoil(gpt2), alone)
    assert not any(is_shared(p) for p in gpt2.model.parameters())


def _without_blocks(base: FrozenBase) -> FrozenBase:
    base.model.transformer.h = torch.nn.ModuleList()
    return base


def _with_one_weight(base: FrozenBase) -> FrozenBase:
    one, other, *_ = base.model.transformer.h
    other.mlp.c_fc.weight = one.mlp.c_fc.weight
    return base


def test_processes_that_nobody_started_together_are_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match=r"RANK.* is not set. Start them with `torchrun"), joined("cpu"):
        pass
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(UsageError, match="over `cpu` or `cuda`, got 'mps'"), joined("mps"):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match="Process 0 of this machine has no GPU of its own"), joined("cuda"):
        pass


def test_adapters_are_shared_out_evenly_and_twins_stay_together(gpt2: FrozenBase) -> None:
    member = like(seven_members(gpt2)[0], steps=6)
    short, other = like(member, steps=2), replace(member, seed=8)
    twin = replace(member, examples=list(member.examples))  # equal, and another object
    assert share([member, other, short, twin], 3) == [[0, 3], [1], [2]]
    assert share([short, member, short, other], 3) == [[1], [3], [0, 2]]
    assert share([member], 3) == [[0], [], []]
