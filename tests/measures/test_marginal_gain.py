"""Marginal gains: agreement against explicit ΔW, C and F; rounds, the race, its held-back judges, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.measures import marginal_gain
from adaptive_lora.measures.agreement import Agreement, agreements, inner
from adaptive_lora.measures.marginal_gain import Search, held_back, marginal_gains, race_winner
from adaptive_lora.measures.short_run import ShortRun
from adaptive_lora.planning.strategies.base import AgreementOptions
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.evaluate import Evaluation
from tests.measures.conftest import Recorder, assert_clean, failing_bank, in_threes, inner_state, short_of, trained


def asked(**changes: Any) -> AgreementOptions:
    return AgreementOptions(**{"runs": 2, "rounds": 1, **changes})


def draw(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gains_of(
    short: ShortRun, options: AgreementOptions, batches: Sequence[Sequence[Example]], judges: Sequence[Example] = ()
) -> tuple[Any, dict[str, Any]]:
    """One search by itself; raises its error."""
    (found,) = marginal_gains([Search(short, options, batches, judges)])
    if isinstance(found, TrainingError):
        raise found
    return found


def first_round(short: ShortRun, runs: int, batches: Sequence[Sequence[Example]]) -> dict[str, Agreement]:
    """What runs of the uniform plan share."""
    seeds = Search(short, asked(runs=runs), batches, ()).seeds
    return agreements(short, short.plan(), trained(short, seeds), batches)


def random_run(short: ShortRun, i: int, sign: float = 1.0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {
        m.name: (draw(2, m.d_in, seed=2 * i).float(), sign * draw(m.d_out, 2, seed=2 * i + 1).float())
        for m in short.modules
    }


def moments_of(base: FrozenBase, examples: Sequence[Example]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Σ x xᵀ and Σ g gᵀ by module on the base as it is, every sequence by itself; g of the summed loss."""
    sums: dict[str, tuple[Any, Any]] = {m.name: (0, 0) for m in base.outline.modules}
    for example in examples:
        kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

        def hear(name: str, x: torch.Tensor, y: torch.Tensor, kept: dict[str, Any] = kept) -> torch.Tensor:
            kept[name] = (x[0], torch.zeros_like(y).requires_grad_())
            return y + kept[name][1]

        hooks = [
            base.model.get_submodule(name).register_forward_hook(lambda _, x, y, name=name: hear(name, x[0], y))
            for name in sums
        ]
        ids, start = torch.tensor([example.ids]), example.prompt_length
        scores = base.model(ids).logits[0].log_softmax(-1)
        (-scores[range(start - 1, ids.shape[1] - 1), ids[0, start:]].sum()).backward()
        for hook in hooks:
            hook.remove()
        for name, (x, zero) in kept.items():
            g = zero.grad[0]  # type: ignore[index]
            sums[name] = (sums[name][0] + x.detach().t() @ x.detach(), sums[name][1] + g.t() @ g)
    return sums


def test_inner_is_the_frobenius_product_of_the_explicit_updates() -> None:
    one, other = ((draw(r, 7, seed=r), draw(5, r, seed=9 + r)) for r in (3, 4))
    direct = ((one[1] @ one[0]) * (other[1] @ other[0])).sum().item()
    assert inner(one, other) == pytest.approx(direct, rel=1e-12)
    assert inner(one, one) == pytest.approx((one[1] @ one[0]).square().sum().item(), rel=1e-12)


def test_confirmed_and_felt_are_those_of_a_direct_computation(base: FrozenBase) -> None:
    base.model.double()
    short = replace(short_of(base), budget=3 * short_of(base).budget // 5)  # ranks 2 and 3, so scalings differ
    plan = short.plan()
    assert len({plan.scaling_of(m.name) for m in short.modules}) > 1
    batches, before = in_threes(short.examples), inner_state(base)
    found = first_round(short, 3, batches)
    assert_clean(base, before)

    weights = trained(short, Search(short, asked(runs=3), batches, ()).seeds)
    moments = moments_of(base, [example for batch in batches for example in batch])
    direct = {}
    for m in short.modules:
        updates = [plan.scaling_of(m.name) * run[m.name][1] @ run[m.name][0] for run in weights]
        second, fisher = moments[m.name]
        pairs = list(combinations(updates, 2))
        shared = sum((one * other).sum() for one, other in pairs) / 3
        felt = sum((one.t() @ fisher @ other @ second).trace() for one, other in pairs) / 3
        size = sum(update.square().sum() for update in updates) / 3
        direct[m.name] = (float(shared / size), float(felt))
    assert {n: a.confirmed for n, a in found.items()} == pytest.approx({n: max(0, a) for n, (a, _) in direct.items()})
    largest = max(found, key=lambda name: found[name].felt)
    factor = found[largest].felt / direct[largest][1]
    assert {n: a.felt for n, a in found.items()} == pytest.approx(
        {n: factor * max(0, felt) for n, (_, felt) in direct.items()}, rel=1e-7, abs=1e-9 * found[largest].felt
    )
    assert sum(a.felt > 0 for a in found.values()) > len(found) / 2
    assert {n: a.rank for n, a in found.items()} == plan.ranks


def test_a_module_wants_what_is_confirmed_and_felt_for_its_rank() -> None:
    assert Agreement(confirmed=0.5, felt=36.0, rank=4).wanted == 1.5  # 0.5 √(36 / 4)


def test_the_runs_differ_in_draw_and_order(gpt2: FrozenBase) -> None:
    record = Recorder()
    short = short_of(gpt2, bank=record.bank())
    first_round(short, 3, in_threes(short.examples))
    assert len({member.seed for member in record.members[0]}) == 3
    assert len({tuple(e.ids for e in member.batch(0)) for member in record.members[0]}) == 3
    assert all(member.plan == short.plan() for member in record.members[0])


def test_identical_runs_confirm_each_other_wholly(gpt2: FrozenBase) -> None:
    short = short_of(gpt2)
    found = agreements(short, short.plan(), [random_run(short, 0)] * 3, in_threes(short.examples))
    assert [a.confirmed for a in found.values()] == pytest.approx([1] * len(found))
    assert all(a.felt > 0 for a in found.values())


def test_independent_runs_confirm_nothing(gpt2: FrozenBase) -> None:
    short = short_of(gpt2)
    found = agreements(short, short.plan(), [random_run(short, i) for i in range(6)], in_threes(short.examples))
    assert all(0 <= a.confirmed < 0.05 for a in found.values())


@pytest.mark.parametrize("sign", [-1.0, 0.0], ids=["opposed", "nothing learnt"])
def test_runs_that_share_nothing_want_nothing_and_not_less(gpt2: FrozenBase, sign: float) -> None:
    short = short_of(gpt2)
    runs = [random_run(short, 0, sign=sign**i if sign else 0.0) for i in range(2)]
    found = agreements(short, short.plan(), runs, in_threes(short.examples))
    assert {(a.confirmed, a.felt, a.wanted) for a in found.values()} == {(0.0, 0.0, 0.0)}
    search = Search(short, asked(), in_threes(short.examples), ())
    search.finish_round(runs)
    assert set(search.gains[-1].values()) == {0.0} and search.plans == [short.plan()] * 2  # the next is uniform


@pytest.mark.parametrize(("count", "held"), [(24, 4), (40, 6), (2, 1)])
def test_judges_are_a_fixed_draw_and_never_trained_on(gpt2: FrozenBase, count: int, held: int) -> None:
    examples = short_of(gpt2, count).examples
    judges, rest = held_back(examples, 5)
    assert len(judges) == held and sorted([*judges, *rest], key=id) == sorted(examples, key=id)
    assert held_back(examples, 5) == (judges, rest)
    if count == 24:
        assert held_back(examples, 6)[0] != judges


def test_a_share_that_is_large_is_cut(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marginal_gain, "HELD_BACK", (0.5, 3))
    assert len(held_back(short_of(gpt2).examples, 5)[0]) == 3


def test_every_round_trains_the_plan_of_the_round_before(gpt2: FrozenBase) -> None:
    record = Recorder()
    short = short_of(gpt2, bank=record.bank(), steps=4)
    judges, batches = list(short.examples[:3]), in_threes(short.examples)
    gains, facts = gains_of(short, asked(rounds=2), batches, judges)
    first, second, race = record.members
    assert [len(first), len(second), len(race)] == [2, 2, 3] and record.judges == [judges] * 3
    assert {str(member.plan.ranks) for member in first} == {str(short.plan().ranks)}
    wanted = {name: a.wanted for name, a in first_round(short_of(gpt2, steps=4), 2, batches).items()}
    assert (
        {str(member.plan.ranks) for member in second}
        == {str(Search(short, asked(), batches, ()).plan_by(wanted).ranks)}
        != {str(short.plan().ranks)}
    )
    assert [member.seed for member in first] == [member.seed for member in second]
    assert [race[0].plan, race[1].plan] == [short.plan(), second[0].plan]
    assert len({member.seed for member in race}) == 1  # raced from one beginning
    assert {member.plan.trainable_parameters for member in race} == {short.budget}
    assert facts == {
        "rounds": 2, "short_runs": 4, "short_run_steps": 4, "short_run_parameters": short.budget,
        "short_run_tokens": record.tokens[0] + record.tokens[1], "race_runs": 3, "race_tokens": record.tokens[2],
        "race_losses": facts["race_losses"], "race_winner": facts["race_winner"],
    }  # fmt: skip
    assert list(facts["race_losses"]) == ["uniform", "round 1", "round 2"]
    assert gains.keys() == {m.name for m in short.modules}


def test_plans_of_rounds_keep_the_bounds(gpt2: FrozenBase) -> None:
    record = Recorder()
    short = short_of(gpt2, bank=record.bank(), steps=4)
    gains_of(short, asked(min_rank=2, max_rank=6), in_threes(short.examples), list(short.examples[:3]))
    ranks = record.members[1][1].plan.ranks.values()
    assert min(ranks) >= 2 and max(ranks) <= 6


def test_without_judges_there_is_no_race(gpt2: FrozenBase) -> None:
    record = Recorder()
    short = short_of(gpt2, bank=record.bank())
    batches = in_threes(short.examples)
    gains, facts = gains_of(short, asked(), batches)
    assert len(record.members) == 1 and record.judges == [] and not [key for key in facts if "race" in key]
    assert gains == {name: a.wanted for name, a in first_round(short, 2, batches).items()}


def raced(nll: Sequence[Sequence[float]], cut: Sequence[int] = ()) -> int:
    """The winner where each plan's losses are known; the runs in `cut` diverged."""
    tokens = np.full(len(nll[0]), 2)
    found = [Evaluation(np.array(own), tokens, tokens > 0) for own in nll]
    return race_winner(found, [i not in cut for i in range(len(nll))])


EVEN = [4.0, 6.0, 5.0, 7.0]
SURE, SURER = [3.0, 5.1, 4.1, 6.0], [2.0, 4.0, 3.0, 5.1]
RACES: dict[str, tuple[list[list[float]], Sequence[int], int]] = {
    "nothing is better": ([EVEN, EVEN, [5.0, 6.0, 6.0, 7.0]], (), 0),
    "better for certain": ([EVEN, SURE, EVEN], (), 1),
    "better by chance": ([EVEN, [0.0, 6.4, 5.0, 7.5], EVEN], (), 0),
    "the best of two": ([EVEN, SURE, SURER], (), 2),
    "the surer is not the better": ([EVEN, SURE, [3.9, 5.9, 4.9, 6.9]], (), 1),
    "a lower loss that is not certain": ([EVEN, [3.5, 5.5, 4.5, 6.5], [-9.0, 6.0, 5.0, 7.0]], (), 1),
    "one judge": ([[4.0], [1.0]], (), 0),
    "not a number": ([EVEN, [float("nan")] * 4], (), 0),
    "the best diverged": ([EVEN, SURE, SURER], (2,), 1),
    "uniform diverged": ([SURER, EVEN, SURE], (0,), 2),
    "all diverged": ([EVEN, SURE, SURER], (0, 1, 2), 0),
}


@pytest.mark.parametrize("case", RACES)
def test_uniform_is_left_only_for_what_beats_it_for_certain(case: str) -> None:
    nll, cut, winner = RACES[case]
    assert raced(nll, cut) == winner


def test_how_certain_is_counted_in_standard_errors_of_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    difference = np.array([-3.0, -1.0, -2.0, 0.0])
    certain = -difference.sum() / (difference.std(ddof=1) * 2)
    for bound, winner in ((certain * 0.999, 1), (certain * 1.001, 0)):
        monkeypatch.setattr(marginal_gain, "CERTAIN", bound)
        assert raced([EVEN, list(np.array(EVEN) + difference)]) == winner


def test_the_plan_follows_the_winner(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    short = short_of(gpt2)
    batches = in_threes(short.examples)
    found = first_round(short, 2, batches)
    for winner, name in enumerate(("uniform", "round 1")):
        monkeypatch.setattr(marginal_gain, "race_winner", lambda *_, winner=winner: winner)
        gains, facts = gains_of(short, asked(), batches, list(short.examples[:3]))
        assert gains == {n: a.wanted if winner else 1.0 for n, a in found.items()} and facts["race_winner"] == name


def test_gains_follow_from_the_seed(gpt2: FrozenBase) -> None:
    short = short_of(gpt2, steps=3)
    batches, judges = in_threes(short.examples), list(short.examples[:3])
    first, again, other = (gains_of(replace(short, seed=seed), asked(), batches, judges) for seed in (5, 5, 6))
    assert first == again
    assert first[1]["race_losses"] != other[1]["race_losses"]
    plain, changed = (gains_of(replace(short, seed=seed), asked(), batches)[0] for seed in (5, 6))
    assert plain != changed


def test_the_base_is_left_clean_where_something_breaks(base: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    short, before = short_of(base, steps=3), inner_state(base)
    batches, global_state = in_threes(short.examples), torch.get_rng_state()
    judges = list(short.examples[:3])
    gains_of(short, asked(), batches, judges)
    assert_clean(base, before)
    with pytest.raises(OSError, match="cut"):
        gains_of(short_of(base, bank=failing_bank, steps=3), asked(), batches, judges)
    assert_clean(base, before)
    for part in ("UpdateMoments.on_gradient", "sequence_losses"):
        with monkeypatch.context() as patch:
            patch.setattr(f"adaptive_lora.measures.agreement.{part}", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                gains_of(short, asked(), batches, judges)
        assert_clean(base, before)
    assert torch.equal(torch.get_rng_state(), global_state)
