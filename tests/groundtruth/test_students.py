"""Students: their loss, gradient and training are those of cross entropy against the answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from adaptive_lora.data.encoding import Example
from adaptive_lora.groundtruth.planting import Planted, open_planted, plant, random_directions
from adaptive_lora.groundtruth.students import (
    CHUNK,
    Answers,
    StudentBank,
    answer_loss,
    answers_of,
    divergences,
    entropy,
    train_students,
)
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.batches import collate, label_loss
from adaptive_lora.training.options import TrainingOptions
from tests.conftest import mixed_plan
from tests.groundtruth.conftest import altered, divergence, log_answers, small_plan
from tests.training.conftest import make_exact, own_name, trainable, with_adapter

OPTIONS = TrainingOptions(learning_rate=2e-2, steps=6, batch_size=3)


def member(base: FrozenBase, examples: list[Example], seed: int = 0, shift: int = 0) -> Member:
    return Member(plan=mixed_plan(base.outline.modules, shift=shift), options=OPTIONS, seed=seed, examples=examples)


def random_answers(examples: list[Example], dtype: torch.dtype = torch.float32) -> dict[Example, Tensor]:
    """Distributions that have nothing to do with the texts."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(e.completion_tokens, 768) for e in examples]
    drawn = [torch.randn(*shape, generator=generator, dtype=torch.float64) * 2 for shape in shapes]
    return {e: x.softmax(-1).to(dtype) for e, x in zip(examples, drawn, strict=True)}


def stir(bank: Bank) -> None:
    """Adapters that are far from doing nothing."""
    for k, slot in enumerate(bank.slots):
        generator = torch.Generator().manual_seed(k)
        slot.parameters.add_(0.1 * torch.randn(len(slot.parameters), generator=generator, dtype=torch.float64))


def test_loss_and_gradient_are_those_of_cross_entropy_against_the_answers(
    base: FrozenBase, examples: list[Example]
) -> None:
    base, batch = make_exact(base), examples[:3]
    answers = random_answers(examples[:8], torch.float64)
    members = [member(base, batch), member(base, examples[3:8], seed=1, shift=2)]
    batches = [batch, examples[3:8]]
    with StudentBank(base, members, answers) as bank:
        stir(bank)
        found = bank.gradients([0, 1], batches)
        losses = [result.loss for result in bank.evaluate(batch)]
        states = [slot.tensors() for slot in bank.slots]
        gradients = [
            {f"parameter/{name}/{x}": g for name, p in slot.pairs.items() for x, g in _gradients(p)}
            for slot in bank.slots
        ]
    for own, own_batch, state, (loss, tokens), gradient, on_first in zip(
        members, batches, states, found, gradients, losses, strict=True
    ):
        with with_adapter(base, own, state) as model:
            wanted = _cross_entropy(model, own_batch, answers)
            assert loss == pytest.approx(wanted.item(), rel=1e-12)
            assert tokens == sum(e.completion_tokens for e in own_batch)
            assert on_first == pytest.approx(_cross_entropy(model, batch, answers).item(), rel=1e-12)
            wanted.backward()
            by_name = {own_name(name): p.grad for name, p in trainable(model).items()}
        assert gradient.keys() == by_name.keys()
        for name, grad in by_name.items():
            torch.testing.assert_close(gradient[name], grad, rtol=1e-9, atol=1e-9 * float(grad.abs().max()))


def _gradients(part: object) -> list[tuple[str, Tensor]]:
    return [("A", part.a_gradient.clone()), ("B", part.b_gradient.t().clone())]  # type: ignore[attr-defined]


def _cross_entropy(model: object, batch: list[Example], answers: Answers) -> Tensor:
    """- Σ p log q over all completion tokens of the batch, by their number."""
    rows = []
    for e in batch:
        logits = model(input_ids=torch.tensor([e.ids]), use_cache=False).logits[0]  # type: ignore[operator]
        rows.append(-(answers[e] * functional.log_softmax(logits[e.prompt_length - 1 : -1], -1)).sum(-1))
    return torch.cat(rows).mean()


def test_answers_are_the_models_own_distributions(base: FrozenBase, examples: list[Example]) -> None:
    with Bank(base, [member(base, examples)], chunk_tokens=CHUNK) as bank:
        bank.slots[0].parameters.zero_()
        answers = answers_of(bank, 0, examples)
    wanted = log_answers(base.model, examples)
    assert answers.keys() == wanted.keys()
    for e, p in answers.items():
        torch.testing.assert_close(p.double(), wanted[e].exp(), rtol=1e-3, atol=1e-6)


def test_entropy_by_hand() -> None:
    one, two = Example((1, 2), 1, False), Example((1, 3, 4), 1, False)
    answers = {one: torch.tensor([[0.5, 0.5]]), two: torch.tensor([[1.0, 0.0], [0.25, 0.75]])}
    mixed = -(0.25 * torch.tensor(0.25).log() + 0.75 * torch.tensor(0.75).log())
    assert entropy(answers, [one, two]) == pytest.approx((0.693147 + 0 + float(mixed)) / 3, rel=1e-5)
    assert entropy(answers, [one, one, two]) == pytest.approx((2 * 0.693147 + float(mixed)) / 4, rel=1e-5)


@pytest.fixture
def planted(base: FrozenBase, probes: list[Example]) -> Planted:
    plan = small_plan(base.outline.modules)
    return plant(base, plan, random_directions(plan, 3), probes, 0.3)


def test_divergence_is_nothing_for_the_teacher_and_the_kl_for_the_frozen_model(
    base: FrozenBase, planted: Planted, examples: list[Example]
) -> None:
    teacher = Member(plan=planted.plan, options=OPTIONS, seed=0, examples=())
    with Bank(base, [teacher], chunk_tokens=CHUNK) as bank:
        open_planted(bank, planted)
        answers = answers_of(bank, 0, examples)
    with StudentBank(base, [teacher, teacher], answers) as bank:
        open_planted(bank, planted)
        bank.slots[1].parameters.zero_()
        taught, frozen = divergences(bank, examples, answers)
        twice = [*examples, examples[0]]  # a text that comes twice counts twice, on both sides
        assert divergences(bank, twice, answers)[0] == pytest.approx(0, abs=2e-6)
    assert taught == pytest.approx(0, abs=2e-6)
    p, q = log_answers(altered(base, planted.directions), examples), log_answers(base.model, examples)
    assert frozen == pytest.approx(divergence(p, q), rel=1e-4)


def test_answers_that_are_certain_give_the_ordinary_training(base: FrozenBase, examples: list[Example]) -> None:
    base = make_exact(base)
    certain = {e: functional.one_hot(torch.tensor(e.ids[max(e.prompt_length, 1) :]), 768).double() for e in examples}
    members = [member(base, examples), member(base, examples, seed=1, shift=1)]
    with Bank(base, members, chunk_tokens=CHUNK) as ordinary, torch.no_grad():
        while ordinary.running:
            ordinary.step()
        wanted = [slot.parameters.clone() for slot in ordinary.slots]
        losses = [result.loss for result in ordinary.evaluate(examples)]
    with StudentBank(base, members, certain) as bank:
        while bank.running:
            bank.step()
        for slot, parameters in zip(bank.slots, wanted, strict=True):
            torch.testing.assert_close(slot.parameters, parameters, rtol=1e-12, atol=1e-12)
    assert train_students(base, members, certain, examples) == pytest.approx(losses, rel=1e-12)


def test_students_learn_what_is_planted(base: FrozenBase, planted: Planted, probes: list[Example]) -> None:
    teacher = Member(plan=planted.plan, options=OPTIONS, seed=0, examples=())
    with Bank(base, [teacher], chunk_tokens=CHUNK) as bank:
        open_planted(bank, planted)
        answers = answers_of(bank, 0, probes)
    options = TrainingOptions(learning_rate=2e-2, steps=60, batch_size=8)
    student = Member(plan=planted.plan, options=options, seed=0, examples=probes)
    before = divergence(*(log_answers(m, probes) for m in (altered(base, planted.directions), base.model)))
    (after,) = train_students(base, [student], answers, probes)
    assert 0 < after < 0.5 * before


def test_the_loss_without_a_bank_is_the_banks(base: FrozenBase, examples: list[Example]) -> None:
    base, batch = make_exact(base), examples[:3]
    answers = random_answers(batch, torch.float64)
    with StudentBank(base, [member(base, batch)], answers) as bank:
        ((wanted, _),) = [(loss, tokens) for loss, tokens, *_ in [bank.gradients([0], [batch])[0]]]
    packed = collate(batch)
    logits = base.model(input_ids=packed.input_ids, attention_mask=packed.attention_mask).logits
    assert float(answer_loss(answers)(logits, packed, batch)) == pytest.approx(float(wanted), rel=1e-9)
    certain = {e: functional.one_hot(torch.tensor(e.ids[e.prompt_length :]), 768).double() for e in batch}
    labels = float(label_loss(logits, packed, batch))
    assert float(answer_loss(certain)(logits, packed, batch)) == pytest.approx(labels, rel=1e-9)
    assert float(wanted) != pytest.approx(labels, rel=1e-2)
