"""Agreement of runs against explicit ΔW, C and F; the race, its held-back judges, and what it costs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from adaptive_lora.data.encoding import Example
from adaptive_lora.planning.modules import total_cost
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.scores import agreement
from adaptive_lora.scores.agreement import Agreement, agreements, inner, marginal_gains
from adaptive_lora.scores.short_run import Practice, Short, Weights, train_short
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.evaluate import Evaluation
from tests.scores.conftest import Told, assert_clean, failing_bank, in_threes, inner_state, options, short_of

READINGS = ["uniform", "confirmed", "confirmed squared", "shared and felt", "all"]


def draw(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def runs_are(monkeypatch: pytest.MonkeyPatch, make: Callable[[Short, int], Weights]) -> None:
    """Puts `make(short, i)` in the place of the i-th run's weights."""
    monkeypatch.setattr(agreement, "train_short", lambda short, seeds: [make(short, i) for i in range(len(seeds))])


def random_run(short: Short, i: int, sign: float = 1.0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
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


def test_shared_confirmed_and_felt_are_those_of_a_direct_computation(base: FrozenBase) -> None:
    base.model.double()
    short = replace(short_of(base), budget=3 * short_of(base).budget // 5)  # ranks 2 and 3, so scalings differ
    assert len({short.plan().scaling_of(m.name) for m in short.modules}) > 1
    batches, before = in_threes(short.examples), inner_state(base)
    found = agreements(short, 3, batches)
    assert_clean(base, before)

    weights, plan = train_short(short, agreement._seeds(short, 3)), short.plan()
    moments = moments_of(base, [example for batch in batches for example in batch])
    direct = {}
    for m in short.modules:
        updates = [plan.scaling_of(m.name) * run[m.name][1] @ run[m.name][0] for run in weights]
        second, fisher = moments[m.name]
        pairs = list(combinations(updates, 2))
        shared = sum((one * other).sum() for one, other in pairs) / 3
        felt = sum((one.t() @ fisher @ other @ second).trace() for one, other in pairs) / 3
        size = sum(update.square().sum() for update in updates) / 3
        direct[m.name] = (float(shared), float(shared / size), float(felt))
    assert {n: a.shared for n, a in found.items()} == pytest.approx({n: max(0, e) for n, (e, _, _) in direct.items()})
    assert {n: a.confirmed for n, a in found.items()} == pytest.approx(
        {n: max(0, a) for n, (_, a, _) in direct.items()}
    )
    largest = max(found, key=lambda name: found[name].felt)
    factor = found[largest].felt / direct[largest][2]
    assert {n: a.felt for n, a in found.items()} == pytest.approx(
        {n: factor * max(0, felt) for n, (_, _, felt) in direct.items()}, rel=1e-7, abs=1e-9 * found[largest].felt
    )
    assert sum(a.felt > 0 for a in found.values()) > len(found) / 2


def test_the_runs_differ_in_draw_and_order(gpt2: FrozenBase) -> None:
    told = Told()
    short = short_of(gpt2, practice=Practice(options(), told.bank()))
    agreements(short, 3, in_threes(short.examples))
    assert len({member.seed for member in told.members[0]}) == 3
    assert len({tuple(e.ids for e in member.batch(0)) for member in told.members[0]}) == 3
    assert all(member.plan == short.plan() for member in told.members[0])


def test_identical_runs_confirm_each_other_wholly(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_are(monkeypatch, lambda short, i: random_run(short, 0))
    short = short_of(gpt2)
    found = agreements(short, 3, in_threes(short.examples))
    assert [a.confirmed for a in found.values()] == pytest.approx([1] * len(found))
    assert all(a.felt > 0 for a in found.values())


def test_independent_runs_confirm_nothing(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_are(monkeypatch, random_run)
    found = agreements(short_of(gpt2), 6, in_threes(short_of(gpt2).examples))
    assert all(0 <= a.confirmed < 0.05 for a in found.values())


def test_opposed_runs_share_nothing_and_not_less(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_are(monkeypatch, lambda short, i: random_run(short, 0, sign=(-1.0) ** i))
    found = agreements(short_of(gpt2), 2, in_threes(short_of(gpt2).examples))
    assert set(found.values()) == {Agreement(0.0, 0.0, 0.0)}
    assert set(Agreement(0.0, 0.0, 0.0).candidates().values()) == {0.0, 1.0}


def test_runs_that_learnt_nothing_confirm_nothing(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_are(monkeypatch, lambda short, i: random_run(short, 0, sign=0.0))
    found = agreements(short_of(gpt2), 2, in_threes(short_of(gpt2).examples))
    assert {a.confirmed for a in found.values()} == {0.0}


def test_readings_of_an_agreement() -> None:
    wanted = {"uniform": 1.0, "confirmed": 0.5, "confirmed squared": 0.25, "shared and felt": 6.0, "all": 3.0}
    assert Agreement(shared=4.0, confirmed=0.5, felt=9.0).candidates() == wanted
    assert list(wanted) == READINGS


@pytest.mark.parametrize(("count", "held"), [(24, 4), (40, 6), (2, 1)])
def test_judges_are_a_fixed_draw_and_never_trained_on(gpt2: FrozenBase, count: int, held: int) -> None:
    short = short_of(gpt2, count)
    judges, rest = agreement._held_back(short)
    assert len(judges) == held and sorted([*judges, *rest], key=id) == sorted(short.examples, key=id)
    assert agreement._held_back(short) == (judges, rest)
    if count == 24:
        assert agreement._held_back(replace(short, seed=6))[0] != judges


def test_a_share_that_is_large_is_cut(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "HELD_BACK", (0.5, 3))
    assert len(agreement._held_back(short_of(gpt2))[0]) == 3


def test_banks_are_given_the_rest_and_the_judges_judge(gpt2: FrozenBase) -> None:
    told = Told()
    short = short_of(gpt2, practice=Practice(options(), told.bank()), steps=4)
    gains, facts = marginal_gains(short, 2, 3, in_threes(short.examples))
    judges, rest = agreement._held_back(short)
    assert [len(members) for members in told.members] == [2, 5] and told.judges == [judges]
    assert all(list(member.examples) == rest for members in told.members for member in members)
    assert len({member.seed for member in told.members[1]}) == 1  # raced from one beginning
    assert {member.options.steps for member in told.members[1]} == {3}
    assert {member.plan.trainable_parameters for member in told.members[1]} == {short.budget}
    assert facts == {
        "short_runs": 2, "short_run_steps": 4, "short_run_parameters": short.budget,
        "short_run_tokens": told.tokens[0], "race_runs": 5, "race_steps": 3, "race_tokens": told.tokens[1],
        "race_losses": facts["race_losses"], "race_winner": facts["race_winner"],
    }  # fmt: skip
    assert list(facts["race_losses"]) == READINGS and facts["race_winner"] in READINGS
    assert gains.keys() == {m.name for m in short.modules}
    assert told.updates == 2 * 4 + 5 * 3


def test_without_a_race_there_are_no_judges(gpt2: FrozenBase) -> None:
    told = Told()
    short = short_of(gpt2, practice=Practice(options(), told.bank()))
    batches = in_threes(short.examples)
    gains, facts = marginal_gains(short, 2, 0, batches)
    assert len(told.members) == 1 and told.judges == [] and not [key for key in facts if "race" in key]
    assert list(told.members[0][0].examples) == list(short.examples)
    direct = {name: a.candidates()["shared and felt"] for name, a in agreements(short, 2, batches).items()}
    assert gains == direct


def raced(monkeypatch: pytest.MonkeyPatch, short: Short, nll: Mapping[str, Sequence[float]]) -> tuple[Any, list[Any]]:
    """The race where each reading's judging is known: its result, and what would have been trained."""
    asked: list[tuple[RankPlan, int]] = []

    @contextlib.contextmanager
    def trained(short: Short, runs: Sequence[tuple[RankPlan, int]]) -> Iterator[Any]:
        class Judged:
            @staticmethod
            def evaluate(judges: Sequence[Example]) -> list[Evaluation]:
                tokens = np.full(len(judges), 2)
                return [Evaluation(np.array(own), tokens, tokens > 0) for own in nll.values()]

        asked.extend(runs)
        yield Judged

    monkeypatch.setattr(agreement, "trained", trained)
    wishes = {name: {m.name: float(i + k) for i, m in enumerate(short.modules)} for k, name in enumerate(nll)}
    judges = list(short.examples[: len(next(iter(nll.values())))])
    return agreement._race(short, wishes, judges), asked


EVEN = [4.0, 6.0, 5.0, 7.0]
RACES: dict[str, tuple[dict[str, list[float]], str]] = {
    "nothing is better": ({"uniform": EVEN, "confirmed": EVEN, "all": [5.0, 6.0, 6.0, 7.0]}, "uniform"),
    "better for certain": ({"uniform": EVEN, "confirmed": [3.0, 5.1, 4.1, 6.0], "all": EVEN}, "confirmed"),
    "better by chance": ({"uniform": EVEN, "confirmed": [0.0, 6.4, 5.0, 7.5], "all": EVEN}, "uniform"),
    "the best of two": (
        {"uniform": EVEN, "confirmed": [3.0, 5.0, 4.0, 6.0], "all": [2.0, 4.0, 3.0, 5.1]},
        "all",
    ),
    "the surer is not the better": (
        {"uniform": EVEN, "confirmed": [3.0, 5.0, 4.0, 6.0], "all": [3.9, 5.9, 4.9, 6.9]},
        "confirmed",
    ),
    "a lower loss that is not certain": (
        {"uniform": EVEN, "confirmed": [3.5, 5.5, 4.5, 6.5], "all": [-9.0, 6.0, 5.0, 7.0]},
        "confirmed",
    ),
    "one judge": ({"uniform": [4.0], "confirmed": [1.0]}, "uniform"),
    "not a number": ({"uniform": EVEN, "confirmed": [float("nan")] * 4}, "uniform"),
}


@pytest.mark.parametrize("case", RACES)
def test_uniform_is_left_only_for_what_beats_it_for_certain(
    gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    (nll, winner), short = RACES[case], short_of(gpt2)
    (losses, found), asked = raced(monkeypatch, short, nll)
    assert found == winner
    assert losses == pytest.approx({name: sum(own) / 2 / len(own) for name, own in nll.items()}, nan_ok=True)
    assert {total_cost(short.modules, plan.ranks) for plan, _ in asked} == {short.budget}
    assert len({seed for _, seed in asked}) == 1 and len({str(plan.ranks) for plan, _ in asked}) == len(nll)


def test_how_certain_is_counted_in_standard_errors_of_the_sum(
    gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = np.array([-3.0, -1.0, -2.0, 0.0])
    certain = -apart.sum() / (apart.std(ddof=1) * 2)
    for bound, winner in ((certain * 0.999, "confirmed"), (certain * 1.001, "uniform")):
        monkeypatch.setattr(agreement, "CERTAIN", bound)
        nll = {"uniform": EVEN, "confirmed": list(np.array(EVEN) + apart)}
        assert raced(monkeypatch, short_of(gpt2), nll)[0][1] == winner


def test_the_plan_follows_the_winner(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    short = short_of(gpt2)
    batches = in_threes(short.examples)
    rest = replace(short, examples=agreement._held_back(short)[1])
    found = agreements(rest, 2, batches)
    for winner in READINGS:
        monkeypatch.setattr(agreement, "_race", lambda *_, winner=winner: ({}, winner))
        gains, facts = marginal_gains(short, 2, 3, batches)
        assert gains == {name: a.candidates()[winner] for name, a in found.items()} and facts["race_winner"] == winner


def test_gains_follow_from_the_seed(gpt2: FrozenBase) -> None:
    short = short_of(gpt2, steps=3)
    batches = in_threes(short.examples)
    first, again, other = (marginal_gains(replace(short, seed=seed), 2, 2, batches) for seed in (5, 5, 6))
    assert first == again
    assert first[1]["race_losses"] != other[1]["race_losses"]
    plain, changed = (marginal_gains(replace(short, seed=seed), 2, 0, batches)[0] for seed in (5, 6))
    assert plain != changed


def test_the_base_is_left_clean_where_something_breaks(base: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    short, before = short_of(base, steps=3), inner_state(base)
    batches, global_state = in_threes(short.examples), torch.get_rng_state()
    marginal_gains(short, 2, 2, batches)
    assert_clean(base, before)
    with pytest.raises(OSError, match="cut"):
        marginal_gains(replace(short, practice=Practice(options(), failing_bank)), 2, 2, batches)
    assert_clean(base, before)
    for part in ("_Moments.on_gradient", "sequence_losses"):
        with monkeypatch.context() as patch:
            patch.setattr(f"adaptive_lora.scores.agreement.{part}", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                marginal_gains(short, 2, 2, batches)
        assert_clean(base, before)
    assert torch.equal(torch.get_rng_state(), global_state)
