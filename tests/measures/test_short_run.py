"""Measures of over-ranked runs against the explicit ΔW in the weights; plans by short runs, from measure to ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.measuring import measure
from adaptive_lora.measures.over_ranked import over_ranked_seed, spectrum
from adaptive_lora.measures.request import PlannedTraining, Request
from adaptive_lora.measures.short_run import short_run_of
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.planning.strategies.base import OverRankOptions
from adaptive_lora.planning.strategies.nested import Options as NestedOptions
from adaptive_lora.study.plan_task import make_plan
from adaptive_lora.study.schema import ArmPart, ScalingPart
from adaptive_lora.training.base import FrozenBase
from tests.measures.conftest import (
    RANK,
    Recorder,
    assert_clean,
    failing_bank,
    inner_state,
    merge,
    options,
    request_of,
    short_of,
    trained,
)
from tests.measures.test_marginal_gain import moments_of
from tests.training.conftest import demo_examples

Updates = dict[str, torch.Tensor]


def asked(**changes: Any) -> OverRankOptions:
    """Runs of the uniform rank `RANK`, on three batches of three."""
    given = {"over_rank": 1, "short_run_steps": None, "calibration_batches": 3, "calibration_batch_size": 3}
    return OverRankOptions(**{**given, **changes})


def scores_of(request: Request, *needs: str) -> Mapping[str, Mapping[str, Any]]:
    return measure(needs, request).scores


def updates_of(request: Request) -> Updates:
    """ΔW = s B A of the over-ranked run, in full."""
    short = short_run_of(request, request.over_ranked_budget)
    (weights,), plan = trained(short, [over_ranked_seed(short)]), short.plan()
    return {name: plan.scaling_of(name) * b @ a for name, (a, b) in weights.items()}


@torch.no_grad()
def inputs_of(base: FrozenBase, examples: Sequence[Example]) -> Updates:
    """(n, d_in) by module, every sequence by itself: no padding anywhere."""
    rows: dict[str, list[torch.Tensor]] = {m.name: [] for m in base.outline.modules}
    hooks = [
        base.model.get_submodule(name).register_forward_hook(lambda _, x, __, kept=kept: kept.append(x[0][0]))
        for name, kept in rows.items()
    ]
    for example in examples:
        base.model(torch.tensor([example.ids]))
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(kept) for name, kept in rows.items()}


def spectra_on(inputs: Updates, updates: Updates) -> dict[str, list[float]]:
    """Singular values of ΔW C^½, the largest R."""
    found = {}
    for name, x in inputs.items():
        values, vectors = torch.linalg.eigh(x.t() @ x / len(x))
        root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.t()
        found[name] = torch.linalg.svdvals(updates[name] @ root)[:RANK].tolist()
    return found


def close(found: Mapping[str, Any], expected: Mapping[str, Any], rel: float = 1e-9) -> bool:
    return found.keys() == expected.keys() and all(
        found[name] == pytest.approx(expected[name], rel=rel, abs=1e-12) for name in expected
    )


@pytest.mark.parametrize(("d_out", "d_in", "rank"), [(9, 7, 3), (4, 11, 4), (4, 5, 6)])
def test_spectrum_is_that_of_the_explicit_product(d_out: int, d_in: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*size, generator=generator) for size in ((rank, d_in), (d_out, rank)))
    direct = torch.linalg.svdvals(1.5 * b.double() @ a.double())[:rank]
    assert spectrum(1.5, a, b) == pytest.approx(direct.tolist(), rel=1e-9)
    assert spectrum(1.5, a, torch.zeros_like(b)) == [0.0] * min(d_out, rank)


def test_scores_are_those_of_the_explicit_update_in_the_weights(base: FrozenBase) -> None:
    base.model.double()
    request, before = request_of(base, asked()), inner_state(base)
    found = scores_of(request, "update-spectrum", "update-spectrum-on-inputs", "output-norm")
    assert_clean(base, before)

    updates, seen = updates_of(request), [example for batch in request.batches for example in batch]
    frozen = spectra_on(inputs_of(base, seen), updates)
    merge(base, updates)
    inputs = inputs_of(base, seen)
    plain = {name: torch.linalg.svdvals(update)[:RANK].tolist() for name, update in updates.items()}
    outputs = {name: (x @ updates[name].t()).square().sum(1).mean().item() for name, x in inputs.items()}
    assert close(found["update-spectrum"], plain)
    assert close(found["update-spectrum-on-inputs"], spectra_on(inputs, updates))
    assert close(found["output-norm"], outputs)
    assert not close(frozen, spectra_on(inputs, updates), rel=0.01)  # the adapted model's inputs are others


def test_the_loss_feels_an_update_through_inputs_and_gradients(base: FrozenBase) -> None:
    """σ² are the eigenvalues of the explicit (F^½ ΔW C^½)ᵀ (F^½ ΔW C^½), of sums over the calibration tokens."""
    base.model.double()
    request, before = request_of(base, asked()), inner_state(base)
    found = scores_of(request, "update-spectrum-on-loss")["update-spectrum-on-loss"]
    assert_clean(base, before)
    sums = moments_of(base, [example for batch in request.batches for example in batch])
    for name, update in updates_of(request).items():
        inputs, gradients = sums[name]
        squares = torch.linalg.eigvals(update.t() @ gradients @ update @ inputs).real.sort(descending=True).values
        assert found[name] == pytest.approx(squares[:RANK].clamp_min(0).sqrt().tolist(), rel=1e-6)
        assert found[name] == sorted(found[name], reverse=True)


def test_a_run_that_is_a_share_of_the_training(gpt2: FrozenBase) -> None:
    request = request_of(gpt2, NestedOptions(), steps=50)
    assert request.short_training.options.steps == 12 == request.options.updates(50)
    assert replace(request, options=NestedOptions(short_run_share=0.01)).short_training.options.steps == 1
    assert replace(request, options=NestedOptions(short_run_steps=7)).short_training.options.steps == 7
    assert request.over_ranked_budget == 2 * request.budget


def test_how_the_batches_are_formed_is_no_matter(gpt2: FrozenBase) -> None:
    padded = request_of(gpt2, asked(calibration_batches=1, calibration_batch_size=6))
    alone = request_of(gpt2, asked(calibration_batches=6, calibration_batch_size=1))
    assert len({len(example.ids) for example in padded.batches[0]}) > 1
    found, expected = (scores_of(request, "output-norm") for request in (padded, alone))
    assert found.keys() == {"output-norm"} and close(found["output-norm"], expected["output-norm"], rel=1e-4)


def test_runs_follow_from_their_seeds(gpt2: FrozenBase) -> None:
    short = short_of(gpt2)
    together, alone = trained(short, [1, 2, 1]), trained(short, [1])
    name = short.modules[0].name
    for i in (0, 1):
        assert torch.equal(together[0][name][i], together[2][name][i])
        assert torch.allclose(together[0][name][i], alone[0][name][i], atol=1e-6)
        assert not torch.allclose(together[0][name][i], together[1][name][i], atol=1e-3)
    first, again, other = (scores_of(request_of(gpt2, asked(), seed=seed), "update-spectrum") for seed in (5, 5, 6))
    assert first == again != other


def test_the_schedule_spans_the_steps_of_a_short_run(gpt2: FrozenBase) -> None:
    planned = options(steps=1000, learning_rate=0.3, schedule="cosine", warmup=0.1, weight_decay=0.2)
    request = request_of(gpt2, asked(short_run_steps=20), training=PlannedTraining(planned))
    short = request.short_training.options
    assert short == replace(planned, steps=20) and short.warmup_steps == 2
    slower = replace(request, options=asked(short_run_learning_rate=0.5))
    assert slower.short_training.options == replace(planned, learning_rate=0.5)


def test_the_plan_of_a_run_is_uniform_and_never_above_what_modules_hold(gpt2: FrozenBase) -> None:
    short = short_of(gpt2)
    assert set(short.plan().ranks.values()) == {RANK} and short.plan().trainable_parameters == short.budget
    most = replace(short, budget=10**9).plan()
    assert most.ranks == {m.name: m.largest_rank for m in short.modules}


def test_facts_are_what_the_bank_was_given(gpt2: FrozenBase) -> None:
    record = Recorder()
    short = short_of(gpt2, bank=record.bank(), steps=7)
    trained(short, [3, 4])
    assert short.facts([3, 4]) == {
        "short_runs": 2,
        "short_run_steps": 7,
        "short_run_parameters": short.budget,
        "short_run_tokens": record.tokens[0],
    }
    assert record.updates == 14 and record.tokens[0] > 0


def test_the_base_is_left_clean_where_a_run_breaks(base: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    before = inner_state(base)
    with pytest.raises(OSError, match="cut"):
        scores_of(request_of(base, asked(), failing_bank), "output-norm")
    assert_clean(base, before)
    monkeypatch.setattr("adaptive_lora.measures.over_ranked._Sums.on_input", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scores_of(request_of(base, asked()), "output-norm")
    assert_clean(base, before)


def test_a_run_that_diverges_gives_no_score(gpt2: FrozenBase) -> None:
    wild = request_of(gpt2, asked(), learning_rate=1e30, max_grad_norm=None)
    with pytest.raises(TrainingError, match=r"diverged at step \d of 6.*`short_run_learning_rate`"):
        scores_of(wild, "update-spectrum")


STEPS = 12
"""Of the planned training."""
ARMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("posthoc-svd", {"short_run_steps": 5}),
    ("posthoc-svd", {"short_run_steps": 5, "of": "update-on-inputs", "over_rank": 3}),
    ("lora-drop", {"short_run_steps": 5}),
    ("nested", {"short_run_share": 0.5, "over_rank": 1.5}),
    ("adalora", {"short_run_steps": 5}),
    ("marginal-gain", {"short_run_steps": 4, "runs": 2, "rounds": 1, "race": False}),
    ("marginal-gain", {"runs": 2, "rounds": 2}),
)


def planned(base: FrozenBase, arm: tuple[str, dict[str, Any]], record: Recorder, seed: int = 0) -> RankPlan:
    part = ArmPart(name="arm", strategy=arm[0], options={**arm[1], "calibration_batches": 2})
    budget = resolve_budget("rank:3", base.outline.modules)
    training = PlannedTraining(options(steps=STEPS), record.bank())
    return make_plan(base, base.outline.modules, part, budget, ScalingPart(), seed, demo_examples(base, 24), training)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: f"{arm[0]} {list(arm[1].values())}")
def test_plans_by_short_runs_are_on_budget_and_say_what_they_cost(
    base: FrozenBase, arm: tuple[str, dict[str, Any]]
) -> None:
    before, record = inner_state(base), Recorder()
    plan = planned(base, arm, record)
    assert_clean(base, before)
    assert plan.trainable_parameters == plan.budget == 3 * sum(m.params_per_rank for m in base.outline.modules)
    facts = plan.provenance["measured"]
    even = facts.get("race_winner") == "uniform"
    assert (len(set(plan.ranks.values())) == 1) == even and min(plan.ranks.values()) >= 1
    assert planned(base, arm, Recorder()).ranks == plan.ranks
    assert even or planned(base, arm, Recorder(), seed=1).scores != plan.scores
    assert facts["short_run_steps"] == arm[1].get("short_run_steps", STEPS * arm[1].get("short_run_share", 1))
    if arm[0] == "adalora":
        assert facts["short_run_parameters"] == plan.budget * 4 // 3 + 4 * len(plan.ranks)  # all at rank 4, and Λ
        return
    times = {"marginal-gain": 1}.get(arm[0], arm[1].get("over_rank", 2))
    assert facts["short_run_parameters"] == plan.budget * times
    rounds = arm[1].get("rounds", 1)
    assert facts.get("calibration_records", 8) == 8 and facts["short_runs"] == sum(map(len, record.members[:rounds]))
    assert facts["short_run_tokens"] == sum(record.tokens[:rounds])
