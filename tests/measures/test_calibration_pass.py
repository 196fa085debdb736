"""Everything a pass says, against the full gradients of autograd and the inputs one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.sources import load_records
from adaptive_lora.errors import TrainingError
from adaptive_lora.measures import hooks
from adaptive_lora.measures.calibration_pass import GROUP, Pass, Quantity, run_pass
from adaptive_lora.measures.groups import check_values
from adaptive_lora.measures.spectra import RIDGE
from adaptive_lora.training.base import FrozenBase, load_base
from adaptive_lora.training.options import initial_a

MEASURES = frozenset(GROUP.inputs)
GRADIENTS = frozenset({"weight-gradient", "gradient-norm", "b-gradient", "whitened-rank"})


def pass_over(
    base: FrozenBase,
    batches: Sequence[Sequence[Example]],
    *measures: str,
    rank: int = 8,
    components: int | None = None,
    **more: Any,
) -> Pass:
    sizes = {"b-gradient": rank, "input-spectrum": components}
    quantities = frozenset(Quantity(measure, sizes.get(measure)) for measure in measures)
    return Pass(quantities=quantities, base=base, modules=base.outline.modules, batches=batches, seed=3, **more)


def take(plan: Pass) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values by measure, and facts; raises the error of a measure without meaning."""
    found, facts = run_pass(plan)
    for quantity, values in found.items():
        if error := check_values(quantity.measure, values):
            raise error
    return {quantity.measure: values for quantity, values in found.items()}, facts


def scores_of(base: FrozenBase, batches: Sequence[Sequence[Example]], *measures: str, **more: Any) -> dict[str, Any]:
    return take(pass_over(base, batches, *measures, **more))[0]


def in_threes(examples: Sequence[Example], count: int = 6) -> list[list[Example]]:
    return [list(examples[at : at + 3]) for at in range(0, count, 3)]


def batch_loss(base: FrozenBase, batch: Sequence[Example]) -> torch.Tensor:
    """Σ nll / Σ tokens, every sequence by itself: no padding anywhere."""
    nll, tokens = torch.zeros((), dtype=torch.float64), 0
    for example in batch:
        ids, start = torch.tensor([example.ids]), example.prompt_length
        scores = base.model(ids).logits[0].log_softmax(-1)
        nll = nll - scores[range(start - 1, ids.shape[1] - 1), ids[0, start:]].sum()
        tokens += ids.shape[1] - start
    return nll / tokens


def oriented(base: FrozenBase, gradients: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """(d_out, d_in) by module."""
    return {
        m.name: gradient.T if m.fan_in_fan_out else gradient
        for m, gradient in zip(base.outline.modules, gradients, strict=True)
    }


def gradients_of(base: FrozenBase, batches: Sequence[Sequence[Example]]) -> list[dict[str, torch.Tensor]]:
    """Batch by batch, the gradients of all target weights."""
    weights = [base.model.get_submodule(m.name).weight.requires_grad_() for m in base.outline.modules]
    found = [oriented(base, torch.autograd.grad(batch_loss(base, batch), weights)) for batch in batches]
    base.model.requires_grad_(False)
    return found


def inputs_of(base: FrozenBase, examples: Sequence[Example], completion: bool = False) -> dict[str, torch.Tensor]:
    """(n, d_in) by module: what went in, every sequence by itself."""
    rows: dict[str, list[torch.Tensor]] = {m.name: [] for m in base.outline.modules}
    hooks = [
        base.model.get_submodule(name).register_forward_hook(lambda _, x, y, kept=kept: kept.append(x[0][0]))
        for name, kept in rows.items()
    ]
    for example in examples:
        base.model(torch.tensor([example.ids]))
        if completion:
            for kept in rows.values():
                kept[-1] = kept[-1][example.prompt_length :]
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(kept) for name, kept in rows.items()}


def weight_of(base: FrozenBase, name: str) -> torch.Tensor:
    return oriented(base, [base.model.get_submodule(m.name).weight for m in base.outline.modules])[name]


def close(found: Mapping[str, float], expected: Mapping[str, float], rel: float = 1e-6) -> bool:
    return dict(found) == pytest.approx(dict(expected), rel=rel)


def test_exact_scores_are_those_of_the_full_mean_gradient(base: FrozenBase, examples: list[Example]) -> None:
    base.model.double()
    batches = in_threes(examples)
    found = scores_of(base, batches, "weight-gradient", "gradient-norm")
    each = gradients_of(base, batches)
    means = {name: sum(g[name] for g in each) / 2 for name in each[0]}
    assert close(found["weight-gradient"], {n: (weight_of(base, n) * g).abs().mean().item() for n, g in means.items()})
    assert close(found["gradient-norm"], {n: (g.norm() / g.numel() ** 0.5).item() for n, g in means.items()})


def test_exact_whitened_rank_is_that_of_a_direct_computation(base: FrozenBase, examples: list[Example]) -> None:
    base.model.double()
    batches = in_threes(examples)
    found = scores_of(base, batches, "whitened-rank")["whitened-rank"]
    each, inputs = gradients_of(base, batches), inputs_of(base, examples[:6])
    expected = {}
    for name, x in inputs.items():
        second = x.T @ x / len(x)
        values, vectors = torch.linalg.eigh(second + RIDGE * second.diagonal().mean() * torch.eye(len(second)))
        whitened = (each[0][name] + each[1][name]) / 2 @ vectors @ torch.diag(values.rsqrt()) @ vectors.T
        energies = torch.linalg.svdvals(whitened).square()
        shares = energies / energies.sum()
        expected[name] = torch.special.entr(shares).sum().exp().item()
    assert close(found, expected)
    assert max(found.values()) > 1.5 * min(found.values())  # modules differ, so that the test can tell them apart


@pytest.mark.parametrize("others", [(), ("gradient-norm",), ("whitened-rank",)])
@pytest.mark.parametrize("mode", ["exact", "stream"])
def test_b_gradient_is_that_of_an_adapter_whose_b_is_zero(
    base: FrozenBase, examples: list[Example], mode: str, others: tuple[str, ...]
) -> None:
    base.model.double()
    batches, rank = in_threes(examples), 4
    found = scores_of(base, batches, "b-gradient", *others, rank=rank, mode=mode)["b-gradient"]
    expected = dict.fromkeys(found, 0.0)
    for gradients in gradients_of(base, batches):
        for m in base.outline.modules:
            a = torch.from_numpy(initial_a(3, m.name, rank, m.d_in)).double()
            b = gradients[m.name] @ a.T  # W + B A: dL/dB = dL/dW Aᵀ
            expected[m.name] += b.square().mean().item() / 2
    assert close(found, expected)


def test_a_stream_scores_entries_batch_by_batch(base: FrozenBase, examples: list[Example]) -> None:
    base.model.double()
    batches = in_threes(examples)
    found, facts = take(pass_over(base, batches, "weight-gradient", "gradient-norm", mode="stream"))
    each = gradients_of(base, batches)
    sizes = {name: [(weight_of(base, name) * g[name]).abs().mean().item() for g in each] for name in each[0]}
    assert close(found["weight-gradient"], {name: sum(values) / 2 for name, values in sizes.items()})
    assert (facts["mode"], facts["passes"], facts["score_bytes"]) == ("stream", 1, 0)


def test_a_stream_has_the_spectra_of_exact_in_less_memory(base: FrozenBase, examples: list[Example]) -> None:
    batches = in_threes(examples)
    whole, facts = take(pass_over(base, batches, "input-spectrum", "whitened-rank", "b-gradient", mode="exact"))
    asked = pass_over(base, batches, "input-spectrum", "whitened-rank", "b-gradient", mode="stream")
    rounds, less = take(replace(asked, round_entries=4000))
    assert facts["passes"] == 1 and less["passes"] > 3
    assert less["score_bytes"] < facts["score_bytes"] / 3
    for measure in ("whitened-rank", "b-gradient"):
        assert close(rounds[measure], whole[measure], rel=1e-4)
    assert list(rounds["whitened-rank"]) == [m.name for m in base.outline.modules]
    for name, spectrum in whole["input-spectrum"].items():
        assert rounds["input-spectrum"][name] == pytest.approx(spectrum, abs=1e-5)


def test_auto_is_exact_for_small_models(
    gpt2: FrozenBase, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert take(pass_over(gpt2, in_threes(examples), "gradient-norm"))[1]["mode"] == "exact"
    monkeypatch.setattr("adaptive_lora.measures.request.EXACT_ENTRIES", 100)
    assert take(pass_over(gpt2, in_threes(examples), "gradient-norm"))[1]["mode"] == "stream"


@pytest.mark.parametrize("tokens", ["all", "completion"])
def test_input_spectra_are_those_of_the_real_tokens(base: FrozenBase, examples: list[Example], tokens: str) -> None:
    base.model.double()
    found = scores_of(base, in_threes(examples), "input-spectrum", tokens=tokens)["input-spectrum"]
    for name, x in inputs_of(base, examples[:6], completion=tokens == "completion").items():
        values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
        expected = (values / values.sum()).clamp(min=0)
        assert list(found[name]) == pytest.approx(expected.tolist(), abs=1e-9)
        assert list(found[name]) == sorted(found[name], reverse=True)


def test_components_can_be_fewer(gpt2: FrozenBase, examples: list[Example]) -> None:
    batches = in_threes(examples)
    few = scores_of(gpt2, batches, "input-spectrum", components=5)["input-spectrum"]
    every = scores_of(gpt2, batches, "input-spectrum")["input-spectrum"]
    assert {name: spectrum[:5] for name, spectrum in every.items()} == few


def test_input_spectra_do_not_depend_on_batches_or_padding(base: FrozenBase, examples: list[Example]) -> None:
    base.model.double()
    alone = scores_of(base, [[e] for e in examples[:6]], "input-spectrum")["input-spectrum"]
    together = scores_of(base, [examples[:6]], "input-spectrum")["input-spectrum"]
    for name, spectrum in alone.items():
        assert list(together[name]) == pytest.approx(spectrum, abs=1e-9)


def test_gradients_do_not_depend_on_padding_or_on_order(base: FrozenBase, examples: list[Example]) -> None:
    base.model.double()
    several = sorted(examples[:6], key=lambda e: len(e.ids))
    batches = [several[:3], several[3:]]
    first = scores_of(base, batches, *GRADIENTS)
    turned = scores_of(base, [batch[::-1] for batch in batches[::-1]], *GRADIENTS)
    for measure in GRADIENTS:
        assert close(first[measure], turned[measure], rel=1e-9)


def test_measures_are_the_same_together_and_alone(base: FrozenBase, examples: list[Example]) -> None:
    batches = in_threes(examples)
    together = scores_of(base, batches, *MEASURES)
    for measure in MEASURES:
        assert scores_of(base, batches, measure)[measure] == together[measure]


@pytest.mark.parametrize("mode", ["exact", "stream"])
def test_a_batch_in_parts_is_the_batch(
    base: FrozenBase, examples: list[Example], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scores_of(base, in_threes(examples), *MEASURES, mode=mode)
    passes: list[int] = []
    own = hooks.collate

    def noted(part: Sequence[Example]) -> Any:
        passes.append(len(part))
        return own(part)

    monkeypatch.setattr(hooks, "collate", noted)
    monkeypatch.setattr(hooks, "ACTIVATIONS", 1)
    parts = scores_of(base, in_threes(examples), *MEASURES, mode=mode)
    assert passes == [1] * len(passes) and len(passes) >= 6
    for measure in MEASURES - {"input-spectrum"}:
        assert close(parts[measure], whole[measure], rel=1e-5)


def test_the_output_layer_is_asked_for_what_is_learnt_alone(
    gpt2: FrozenBase, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    head = gpt2.model.get_submodule("lm_head")
    with head.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape[-2])):
        scores_of(gpt2, in_threes(examples), "weight-gradient")
        learnt = sum(example.completion_tokens for example in examples[:6])
        assert sum(rows) == learnt
        rows.clear()
        scores_of(gpt2, in_threes(examples), "input-spectrum")
        assert not rows  # spectra of inputs need none of it


def test_modules_that_share_an_input_are_measured_once(
    base: FrozenBase, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaptive_lora.measures.spectra import Moments

    calls = []
    plain = Moments.add
    monkeypatch.setattr(Moments, "add", lambda self, x: (calls.append(x.shape), plain(self, x))[1])
    for measure in ("input-spectrum", "whitened-rank"):
        calls.clear()
        scores_of(base, [examples[:3]], measure)
        assert len(calls) == 3 * 4  # three blocks; before attention and out of it, before the MLP and inside


def frozen_and_clean(base: FrozenBase) -> Callable[[], None]:
    """Remembers the base; the returned function asserts that it is the same, with no hook and no gradient."""
    before = {name: p.clone() for name, p in base.model.named_parameters()}

    def check() -> None:
        for name, parameter in base.model.named_parameters():
            assert not parameter.requires_grad and parameter.grad is None
            assert torch.equal(parameter, before[name])
        assert not any(m._forward_hooks or m._backward_hooks for m in base.model.modules())

    return check


@pytest.mark.parametrize("mode", ["exact", "stream"])
def test_the_base_is_left_frozen_and_clean(base: FrozenBase, examples: list[Example], mode: str) -> None:
    check = frozen_and_clean(base)
    scores_of(base, [examples[:4]], *MEASURES, mode=mode)
    check()


def test_the_base_is_left_clean_after_an_error(
    gpt2: FrozenBase, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = frozen_and_clean(gpt2)

    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("adaptive_lora.measures.accumulators.BatchGradients.add", fail)
    with pytest.raises(MemoryError, match="no room"):
        scores_of(gpt2, [examples[:4]], *MEASURES)
    check()


def test_half_precision_gradients_are_summed_in_full(gpt2: FrozenBase, examples: list[Example]) -> None:
    batches = [[e] for e in examples[:12]]
    full = scores_of(gpt2, batches, *MEASURES)
    gpt2.model.bfloat16()
    half = scores_of(gpt2, batches, *MEASURES)
    assert close(half["gradient-norm"], full["gradient-norm"], rel=0.05)
    assert close(half["b-gradient"], full["b-gradient"], rel=0.1)
    assert close(half["whitened-rank"], full["whitened-rank"], rel=0.1)
    for name, spectrum in full["input-spectrum"].items():
        assert half["input-spectrum"][name] == pytest.approx(spectrum, abs=0.02)


def test_weights_that_take_no_part_score_zero(gpt2: FrozenBase, examples: list[Example]) -> None:
    gpt2.model.transformer.h[2].register_forward_hook(lambda module, inputs, output: inputs[0])
    scores = scores_of(gpt2, [examples[:2]], *GRADIENTS)
    for values in scores.values():
        assert {name for name, value in values.items() if value == 0} == {name for name in values if ".h.2." in name}


def test_a_module_never_called_has_no_spectrum(gpt2: FrozenBase, examples: list[Example]) -> None:
    block = gpt2.model.transformer.h[1].mlp
    block.forward = lambda x: x * 1.0
    scores = scores_of(gpt2, [examples[:2]], *MEASURES)
    assert scores["input-spectrum"]["transformer.h.1.mlp.c_fc"] == []
    assert scores["whitened-rank"]["transformer.h.1.mlp.c_fc"] == 0


def test_a_weight_used_twice_has_the_sum_of_both_gradients(llama_twice: FrozenBase, examples: list[Example]) -> None:
    batches = in_threes(examples)
    name = "model.layers.0.mlp.up_proj"
    each = gradients_of(llama_twice, batches)
    expected = sum((weight_of(llama_twice, name) * g[name]).abs().mean().item() for g in each) / 2
    found = scores_of(llama_twice, batches, "weight-gradient", mode="stream")["weight-gradient"]
    assert found[name] == pytest.approx(expected, rel=1e-6)


@pytest.fixture
def llama_twice(model_folders: dict[str, Path]) -> FrozenBase:
    """The tiny Llama, whose last block uses the MLP of the first."""
    base = load_base("llama", model_folders["llama"])
    base.model.double()
    base.model.model.layers[2].mlp = base.model.model.layers[0].mlp
    kept = tuple(m for m in base.outline.modules if ".2.mlp." not in m.name)
    return replace(base, outline=replace(base.outline, modules=kept))


def test_a_score_that_is_not_finite_is_an_error(gpt2: FrozenBase, examples: list[Example]) -> None:
    gpt2.model.transformer.ln_f.weight.data.fill_(float("nan"))
    for measure in GRADIENTS:
        with pytest.raises(TrainingError, match="not finite"):
            scores_of(gpt2, [examples[:4]], measure)


def test_inputs_that_are_not_finite_are_an_error(gpt2: FrozenBase, examples: list[Example]) -> None:
    gpt2.model.transformer.h[1].ln_1.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"input-spectrum of transformer\.h\.1\.attn\.c_attn is not finite"):
        scores_of(gpt2, [examples[:4]], "input-spectrum")


@pytest.mark.parametrize("name", ["stories260K", "babyllama-tok361"])
def test_stream_and_exact_agree_on_real_models(assets: Path, name: str) -> None:
    base = load_base(name, assets / "models" / name)
    records = load_records(str(assets / "data" / "alpaca" / "alpaca_random_9k.json")).records[:40]
    usable = [e for e in Encoder(base.tokenizer, 192, "alpaca-short").encode_all(records) if e.completion_tokens > 0]
    batches = in_threes(usable, 9)
    exact = scores_of(base, batches, "whitened-rank", mode="exact")["whitened-rank"]
    asked = pass_over(base, batches, "whitened-rank", mode="stream", round_entries=300_000)
    stream, facts = take(asked)
    assert facts["passes"] > 1
    assert close(stream["whitened-rank"], exact, rel=0.02)
