"""Planted updates: their shape, their effect, and the texts that the planted model writes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.groundtruth.planting import Directions, Planted, plant, planted_plan, random_directions, sample_texts
from adaptive_lora.training.base import FrozenBase
from tests.groundtruth.conftest import altered, divergence, log_answers, small_plan

EFFECT = 0.3


def alone(base: FrozenBase, directions: Directions, probes: list[Example]) -> list[float]:
    """KL(frozen || frozen and one direction), each direction in turn."""
    frozen = log_answers(base.model, probes)
    single = [{name: (a[i : i + 1], b[i : i + 1])} for name, (a, b) in directions.items() for i in range(len(a))]
    return [divergence(frozen, log_answers(altered(base, one), probes)) for one in single]


def test_a_planted_plan_leaves_out_what_has_no_rank(gpt2: FrozenBase) -> None:
    first, second, *_ = gpt2.outline.modules
    plan = planted_plan(gpt2.outline.modules, {first.name: 0, second.name: 2})
    assert plan.ranks == {second.name: 2}
    assert plan.modules == (second,)
    assert plan.budget == plan.trainable_parameters == 2 * (second.d_in + second.d_out)
    assert plan.scaling_of(second.name) == 1.0


def test_directions_are_orthonormal_and_drawn_by_seed_and_module(base: FrozenBase) -> None:
    plan = small_plan(base.outline.modules)
    found, again, other = (random_directions(plan, seed) for seed in (3, 3, 4))
    assert found.keys() == plan.ranks.keys()
    for m in plan.modules:
        r = plan.ranks[m.name]
        for x, width in zip(found[m.name], (m.d_in, m.d_out), strict=True):
            assert x.shape == (r, width)
            torch.testing.assert_close(x @ x.t(), torch.eye(r), rtol=0, atol=1e-5)
        for same, x, different in zip(again[m.name], found[m.name], other[m.name], strict=True):
            assert torch.equal(same, x)
            assert not torch.allclose(different, x, atol=0.1)
    alike = [m for m in base.outline.modules if (m.d_in, m.d_out) == (plan.modules[0].d_in, plan.modules[0].d_out)][:2]
    one, two = random_directions(planted_plan(alike, {m.name: 2 for m in alike}), 3).values()
    assert not torch.allclose(one[0], two[0], atol=0.1)
    alone = random_directions(planted_plan(plan.modules[1:2], plan.ranks), 3)
    assert all(torch.equal(x, y) for x, y in zip(alone[plan.modules[1].name], found[plan.modules[1].name], strict=True))


def test_every_direction_has_the_same_effect_and_all_together_the_one_asked_for(
    base: FrozenBase, probes: list[Example]
) -> None:
    plan = small_plan(base.outline.modules)
    drawn = random_directions(plan, seed=3)
    planted = plant(base, plan, drawn, probes, EFFECT)
    together = divergence(log_answers(base.model, probes), log_answers(altered(base, planted.directions), probes))
    assert together == pytest.approx(EFFECT, rel=0.01)
    before, after = alone(base, drawn, probes), alone(base, planted.directions, probes)
    assert max(before) / min(before) > 4
    assert max(after) / min(after) < 1.5
    for name, (a, b) in planted.directions.items():  # directions stay, sizes change
        assert torch.equal(a, drawn[name][0])
        torch.testing.assert_close(b / b.norm(dim=1, keepdim=True), drawn[name][1], rtol=0, atol=1e-5)


def test_relative_sizes_stay_where_effects_need_not_be_equal(gpt2: FrozenBase, probes: list[Example]) -> None:
    plan = small_plan(gpt2.outline.modules)
    drawn = random_directions(plan, seed=3)
    sizes = {name: torch.arange(1.0, len(b) + 1)[:, None] * b for name, (_, b) in drawn.items()}
    given = {name: (a, sizes[name]) for name, (a, _) in drawn.items()}
    planted = plant(gpt2, plan, given, probes, EFFECT, equal=False)
    factors = torch.cat([(planted.directions[name][1] / sizes[name]).flatten() for name in sizes])
    assert float(factors.min()) == pytest.approx(float(factors.max()), rel=1e-5)
    together = divergence(log_answers(gpt2.model, probes), log_answers(altered(gpt2, planted.directions), probes))
    assert together == pytest.approx(EFFECT, rel=0.01)


def test_an_effect_out_of_reach_is_said(gpt2: FrozenBase, probes: list[Example]) -> None:
    plan = small_plan(gpt2.outline.modules)
    with pytest.raises(TrainingError, match=r"cannot change the outputs by 1000 nats.*`effect`"):
        plant(gpt2, plan, random_directions(plan, 3), probes, effect=1000.0, equal=False)


def test_the_update_has_the_planned_rank_and_the_base_is_left_as_it_was(
    base: FrozenBase, probes: list[Example]
) -> None:
    plan = small_plan(base.outline.modules)
    before = {name: x.clone() for name, x in base.model.state_dict().items()}
    planted = plant(base, plan, random_directions(plan, 3), probes, EFFECT)
    sample_texts(base, planted, [probes[0].ids[:4]], 8, seed=0)
    assert planted.plan == plan
    for m in plan.modules:
        a, b = planted.directions[m.name]
        update = b.t() @ a
        assert update.shape == (m.d_out, m.d_in)
        assert int(torch.linalg.matrix_rank(update)) == plan.ranks[m.name]
    after = base.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(x, before[name]) for name, x in after.items())


@pytest.fixture
def planted(base: FrozenBase, probes: list[Example]) -> Planted:
    plan = small_plan(base.outline.modules)
    return plant(base, plan, random_directions(plan, 3), probes, EFFECT)


def test_texts_go_on_from_their_beginnings_and_follow_from_the_seed(base: FrozenBase, planted: Planted) -> None:
    beginnings = [(1, 2, 3), (4, 5, 6), (4, 5, 6)]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    texts = sample_texts(base, planted, beginnings, 12, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert sample_texts(base, planted, beginnings, 12, seed=7) == texts
    assert sample_texts(base, planted, beginnings, 12, seed=8) != texts
    assert [e.ids[:3] for e in texts] == beginnings
    assert [(len(e.ids), e.prompt_length, e.truncated) for e in texts] == [(12, 1, False)] * 3
    assert texts[1] != texts[2]


def test_the_next_token_is_drawn_from_the_planted_model(base: FrozenBase, planted: Planted) -> None:
    """Pearson's χ² over the likeliest tokens and the rest."""
    beginning, n = (5, 9, 2, 7), 3000
    drawn = torch.tensor([e.ids[-1] for e in sample_texts(base, planted, [beginning] * n, 5, seed=0)])

    def distance(model: object) -> float:
        p = _next(model, beginning)
        top = p.topk(15).indices
        expected = n * torch.cat([p[top], 1 - p[top].sum()[None]])
        counts = torch.bincount(drawn, minlength=len(p)).double()
        found = torch.cat([counts[top], n - counts[top].sum()[None]])
        return float(((found - expected).square() / expected).sum())

    assert distance(altered(base, planted.directions)) < chi2.ppf(0.99999, 15)
    assert distance(base.model) > chi2.ppf(0.999999, 15)


def _next(model: object, ids: tuple[int, ...]) -> Tensor:
    example = Example((*ids, 0), len(ids), False)
    return log_answers(model, [example])[example][0].exp()


def test_later_tokens_are_drawn_from_the_planted_model_too(base: FrozenBase, planted: Planted) -> None:
    """Mean surprise of what was drawn is the entropy, within five standard errors; not so under the frozen model."""
    texts = sample_texts(base, planted, [(5, 9, 2)] * 120, 13, seed=0)
    texts = [replace(e, prompt_length=3) for e in dict.fromkeys(texts)]

    def excess(model: object) -> tuple[float, float]:
        log_p = log_answers(model, texts)
        own = torch.cat([-p.gather(1, torch.tensor(e.ids[3:])[:, None])[:, 0] for e, p in log_p.items()])
        apart = own - torch.cat([-(p.exp() * p).sum(-1) for p in log_p.values()])
        return float(apart.mean()), float(apart.std() / len(apart) ** 0.5)

    mean, error = excess(altered(base, planted.directions))
    assert abs(mean) < 5 * error
    mean, error = excess(base.model)
    assert mean > 5 * error
