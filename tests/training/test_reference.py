"""The reference engine against an independent hand-written one, and what must not change its results."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.func import functional_call

from adaptive_lora.data.encoding import Example
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.training.adapter import ADAPTER, attached, lora_layers, trainable
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.batches import IGNORED, collate, sequence_losses
from adaptive_lora.training.checkpoint import load_checkpoint, previous
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.options import DataOrder, TrainingOptions, initial_a
from adaptive_lora.training.reference import CheckpointConfig, Diverged, train
from tests.conftest import mixed_plan

OPTIONS = TrainingOptions(
    learning_rate=2e-2, steps=5, batch_size=3, schedule="cosine", warmup=2, weight_decay=0.1, max_grad_norm=0.5
)


def trained(base: FrozenBase, plan: RankPlan, examples: list[Example], options: TrainingOptions, seed: int = 0):  # noqa: ANN201
    with attached(base, plan, seed, options.dropout) as model:
        progress = train(model, examples, options, seed)
        return progress, {name: p.detach().clone() for name, p in trainable(model).items()}


def by_hand(base: FrozenBase, plan: RankPlan, examples: list[Example], options: TrainingOptions, seed: int):  # noqa: ANN201
    """LoRA, AdamW, clipping and schedule written out without PEFT or torch.optim: W + s B A, in full."""
    factors = {}
    for m in base.outline.modules:
        a = torch.from_numpy(initial_a(seed, m.name, plan.ranks[m.name], m.d_in)).double().requires_grad_()
        factors[m.name] = (a, torch.zeros(m.d_out, plan.ranks[m.name], dtype=torch.float64, requires_grad=True))
    flat = [tensor for pair in factors.values() for tensor in pair]
    moments = [(torch.zeros_like(t), torch.zeros_like(t)) for t in flat]
    order, losses, norms = DataOrder(seed, len(examples), options.batch_size), [], []
    for step in range(options.steps):
        weights = {}
        for m in base.outline.modules:
            a, b = factors[m.name]
            delta = plan.scaling_of(m.name) * b @ a
            weight = base.model.get_submodule(m.name).weight
            weights[f"{m.name}.weight"] = weight + (delta.T if m.fan_in_fan_out else delta)
        nll = tokens = 0.0
        for i in order.batch(step):
            ids = torch.tensor([examples[i].ids])
            logits = functional_call(base.model, weights, (ids,)).logits[0]
            start = max(examples[i].prompt_length, 1)
            nll = nll - logits.log_softmax(-1)[range(start - 1, ids.shape[1] - 1), ids[0, start:]].sum()
            tokens += ids.shape[1] - start
        gradients = torch.autograd.grad(nll / tokens, flat)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        clip, rate = min(1.0, options.max_grad_norm / (norm + 1e-6)), options.rate_at(step)  # type: ignore[operator]
        for tensor, gradient, (first, second) in zip(flat, gradients, moments, strict=True):
            first.mul_(0.9).add_(0.1 * clip * gradient)
            second.mul_(0.999).add_(0.001 * (clip * gradient) ** 2)
            unbiased = first / (1 - 0.9 ** (step + 1))
            spread = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            tensor.data.mul_(1 - rate * options.weight_decay).sub_(rate * unbiased / spread)
        losses.append((nll / tokens).item())
        norms.append(norm)
    return losses, norms, factors


@pytest.mark.parametrize("rule", ["constant", "alpha-over-r"])
def test_equal_to_lora_written_by_hand_in_float64(base: FrozenBase, examples: list[Example], rule: str) -> None:
    base.model.double()
    plan = mixed_plan(base.outline.modules, rule)
    losses, norms, factors = by_hand(base, plan, examples, OPTIONS, seed=3)

    with attached(base, plan, 3) as model:
        progress = train(model, examples, OPTIONS, 3)
        for name, layer in lora_layers(model).items():
            for ours, theirs in zip((layer.lora_A, layer.lora_B), factors[name], strict=True):
                torch.testing.assert_close(ours[ADAPTER].weight, theirs, rtol=1e-9, atol=1e-10)

    assert [r.loss for r in progress.curve] == pytest.approx(losses, rel=1e-10)
    assert [r.gradient_norm for r in progress.curve] == pytest.approx(norms, rel=1e-9)
    assert max(norms) > OPTIONS.max_grad_norm  # type: ignore[operator]  # clipping was at work
    assert losses[-1] < losses[0]


def test_a_uniform_plan_is_the_same_run_under_all_scaling_rules(base: FrozenBase, examples: list[Example]) -> None:
    from adaptive_lora.planning.plan import Scaling

    modules = base.outline.modules
    ranks = {m.name: 3 for m in modules}
    results = []
    for rule in ("constant", "rslora", "alpha-over-r"):
        plan = RankPlan("uniform", 0, modules, ranks, Scaling(rule, 2.0, 3.0))  # type: ignore[arg-type]
        results.append(trained(base, plan, examples, OPTIONS)[1])
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in results[0])


def test_same_seed_equal_other_seed_different(gpt2: FrozenBase, examples: list[Example]) -> None:
    plan = mixed_plan(gpt2.outline.modules)
    options = TrainingOptions(learning_rate=1e-2, steps=4, dropout=0.2)
    one, two, other = (trained(gpt2, plan, examples, options, seed)[1] for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_dropout_changes_training_and_not_evaluation(gpt2: FrozenBase, examples: list[Example]) -> None:
    plan = mixed_plan(gpt2.outline.modules)
    without, _ = trained(gpt2, plan, examples, TrainingOptions(learning_rate=1e-2, steps=4))
    dropped, _ = trained(gpt2, plan, examples, TrainingOptions(learning_rate=1e-2, steps=4, dropout=0.5))
    assert without.curve[0].loss == dropped.curve[0].loss  # B is 0 at first: nothing to drop
    assert without.curve[3].loss != dropped.curve[3].loss
    with attached(gpt2, plan, 0, dropout=0.5) as model:
        train(model, examples, TrainingOptions(learning_rate=1e-2, steps=4, dropout=0.5), 0)
        assert evaluate(model, examples, gpt2.device).loss == evaluate(model, examples, gpt2.device).loss


def test_a_run_cut_and_resumed_ends_bit_equal(base: FrozenBase, examples: list[Example], tmp_path: Path) -> None:
    dropout = 0.3
    plan = mixed_plan(base.outline.modules)
    options = TrainingOptions(learning_rate=2e-2, steps=7, batch_size=3, weight_decay=0.1, dropout=dropout)
    whole, parameters = trained(base, plan, examples, options)
    keeping = CheckpointConfig(tmp_path / "run.safetensors", "id", every_seconds=1e9)

    steps: list[int] = []
    for _ in range(2):  # stopped after 2 steps, then after 5
        with attached(base, plan, 0, dropout) as model, pytest.raises(KeyboardInterrupt):
            train(model, examples, options, 0, keeping, lambda r: steps.append(r.step), lambda: len(steps) in (2, 5))
    with attached(base, plan, 0, dropout) as model:
        progress = train(model, examples, options, 0, keeping, lambda r: steps.append(r.step))
        resumed = {name: p.detach().clone() for name, p in trainable(model).items()}

    assert steps == list(range(7))
    assert progress.curve == whole.curve
    assert all(torch.equal(parameters[name], resumed[name]) for name in parameters)


def test_foreign_and_corrupt_checkpoints_are_ignored(gpt2: FrozenBase, examples: list[Example], tmp_path: Path) -> None:
    plan = mixed_plan(gpt2.outline.modules)
    options = TrainingOptions(learning_rate=1e-2, steps=3)
    path = tmp_path / "run.safetensors"
    with attached(gpt2, plan, 0) as model:
        train(model, examples, options, 0, CheckpointConfig(path, "id", every_seconds=0))
        optimizer = torch.optim.AdamW(trainable(model).values())
        assert load_checkpoint(path, "id", trainable(model), optimizer).steps_done == 3
        assert load_checkpoint(path, "other", trainable(model), optimizer).steps_done == 0
    with attached(gpt2, mixed_plan(gpt2.outline.modules, shift=1), 0) as other:
        optimizer = torch.optim.AdamW(trainable(other).values())
        assert load_checkpoint(path, "id", trainable(other), optimizer).steps_done == 0  # of another plan
    with attached(gpt2, plan, 0) as model:
        optimizer = torch.optim.AdamW(trainable(model).values())
        said: list[str] = []
        path.write_bytes(path.read_bytes()[:500])
        assert load_checkpoint(path, "id", trainable(model), optimizer, said.append).steps_done == 2  # the one before
        previous(path).write_bytes(b"")
        assert load_checkpoint(path, "id", trainable(model), optimizer, said.append).steps_done == 0
        assert ["going on" in text for text in said] == [True, True, False] and "starting over" in said[2]
        assert load_checkpoint(tmp_path / "none", "id", trainable(model), optimizer).steps_done == 0


def test_recomputed_activations_give_the_same_bits_for_less_memory(base: FrozenBase, examples: list[Example]) -> None:
    """Dropout included: the masks of the recomputation are those of the forward pass."""
    plan, options = mixed_plan(base.outline.modules), TrainingOptions(learning_rate=1e-2, steps=3, dropout=0.2)
    results, saved = [], []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[-1][tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for checkpointing in (False, True):
        saved.append(dict[int, int]())
        with (
            attached(base, plan, 0, options.dropout, checkpointing) as model,
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        ):
            progress = train(model, examples, options, 0)
            results.append((progress.curve, [p.detach().clone() for p in trainable(model).values()]))
    (curve, parameters), (other_curve, other_parameters) = results
    assert curve == other_curve
    assert all(torch.equal(a, b) for a, b in zip(parameters, other_parameters, strict=True))
    assert sum(saved[1].values()) < 0.5 * sum(saved[0].values())
    assert not any("forward" in vars(module) for module in base.model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases_train_full_precision_adapters(
    gpt2: FrozenBase, examples: list[Example], dtype: torch.dtype
) -> None:
    gpt2.model.to(dtype)
    plan = mixed_plan(gpt2.outline.modules)
    progress, parameters = trained(gpt2, plan, examples, TrainingOptions(learning_rate=1e-2, steps=8))
    assert all(p.dtype == torch.float32 for p in parameters.values())
    assert progress.curve[-1].loss < progress.curve[0].loss


def test_divergence_is_an_error_with_the_step(gpt2: FrozenBase, examples: list[Example]) -> None:
    options = TrainingOptions(learning_rate=1e30, steps=5, schedule="constant", max_grad_norm=None)
    with attached(gpt2, mixed_plan(gpt2.outline.modules), 0) as model, pytest.raises(Diverged, match=r"step [12]"):
        train(model, examples, options, 0)


def test_loss_is_token_weighted_over_the_split(
    base: FrozenBase, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adaptive_lora.training.evaluate.LARGEST_LOGITS", 100 * 768)  # several batches
    found = evaluate(base.model, examples, base.device)
    nll, tokens = [], []
    for example in examples:
        ids = torch.tensor([example.ids])
        scores = base.model(ids).logits[0].log_softmax(-1)
        start = example.prompt_length
        nll.append(float(-scores[range(start - 1, ids.shape[1] - 1), ids[0, start:]].sum()))
        tokens.append(len(example.ids) - start)
    assert found.nll.tolist() == pytest.approx(nll, rel=1e-4)
    assert found.tokens.tolist() == tokens
    assert found.loss == pytest.approx(sum(nll) / sum(tokens), rel=1e-5)
    means = [n / t for n, t in zip(nll, tokens, strict=True)]
    assert abs(found.loss - sum(means) / len(means)) > 1e-4  # a mean of means would be seen


def test_exact_match_is_what_greedy_decoding_gives(embedded: FrozenBase) -> None:
    from adaptive_lora.data.encoding import Encoder
    from adaptive_lora.data.sources import from_dicts
    from adaptive_lora.demo.tasks import generate

    records = from_dicts(generate("all", 20, seed=9), "demo").records
    encoded = list(Encoder(embedded.tokenizer, 128).encode_all(records))
    found = evaluate(embedded.model, encoded, embedded.device)
    for example, exact in zip(encoded, found.exact, strict=True):
        prompt = torch.tensor([example.ids[: example.prompt_length]])
        wanted = example.ids[example.prompt_length :]
        made = embedded.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=len(wanted), do_sample=False, pad_token_id=0
        )[0, prompt.shape[1] :].tolist()
        assert (made == list(wanted)) == bool(exact)
    assert 0 < found.exact.mean() < 1


def test_padding_changes_no_loss_and_masks_no_end_token(base: FrozenBase, examples: list[Example]) -> None:
    together = collate(examples[:6])
    assert (together.labels[:, -1] != IGNORED).any() and (together.labels == 0).sum() == 6  # six end tokens, id 0
    losses = sequence_losses(
        base.model(together.input_ids, attention_mask=together.attention_mask).logits, together.labels
    )
    for i, example in enumerate(examples[:6]):
        row = collate([example])
        unpadded = sequence_losses(base.model(row.input_ids).logits, row.labels)
        torch.testing.assert_close(losses.nll[i], unpadded.nll[0], rtol=1e-4, atol=1e-5)
        assert losses.tokens[i] == unpadded.tokens[0] == example.completion_tokens
