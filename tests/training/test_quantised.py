"""Bases in 4 and 8 bits: what layers compute, that both engines train on the same numbers, how they are loaded."""

from __future__ import annotations

import contextlib
import importlib.util
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptive_lora import demo
from adaptive_lora.errors import ModelError
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.planning.outline import Quantise
from adaptive_lora.training import fused_layers, peft_check, quantised
from adaptive_lora.training.adapter import attached, save_adapter, trainable, weights_of
from adaptive_lora.training.bank import Bank
from adaptive_lora.training.base import FrozenBase, frozen, load_base, outline_of
from adaptive_lora.training.batches import collate
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.fidelity import check_alone, check_bank
from adaptive_lora.training.quantised import dense_weight, model_bytes, quantised_layers
from adaptive_lora.training.reference import update
from tests.conftest import mixed_plan
from tests.training.conftest import (
    SAME,
    Trajectory,
    assert_parity,
    by_bank,
    by_reference,
    demo_examples,
    make_exact,
    plain_twin,
    seven_members,
)

bnb: Any = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: no quantised bases here")

KINDS: tuple[Quantise, ...] = ("nf4", "int8")
WAYS = [(family, kind) for family in ("gpt2", "llama") for kind in KINDS]


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: "-".join(way))
def base(request: pytest.FixtureRequest, model_folders: dict[str, Path]) -> FrozenBase:
    """Each tiny model in each form, shared by tests that leave it unchanged."""
    family, kind = request.param
    return load_base(family, model_folders[family], quantise=kind)


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: "-".join(way))
def exact(request: pytest.FixtureRequest, model_folders: dict[str, Path]) -> FrozenBase:
    """The same, with everything but the codes and their scales in float64."""
    family, kind = request.param
    return make_exact(load_base(family, model_folders[family], quantise=kind))


@pytest.fixture(scope="module")
def reference_runs(exact: FrozenBase) -> list[Trajectory]:
    return [by_reference(exact, member) for member in seven_members(exact)]


def stored(family: str, kind: Quantise, folder: Path, into: Path, **how: Any) -> Path:
    """A model that was saved quantised, as people upload it, with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    own = {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": kind}
    with quiet_libraries():
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**own, **how))
        model.save_pretrained(into)
        AutoTokenizer.from_pretrained(folder).save_pretrained(into)
    return into


def layers_of(base: FrozenBase) -> list[Any]:
    return [layer for _, layer in quantised_layers(base.model)]


# what a layer computes


def test_all_target_modules_are_quantised_and_keep_their_names_and_shapes(
    base: FrozenBase, model_folders: dict[str, Path]
) -> None:
    plain = outline_of(base.name, model_folders[base.name])
    assert {name for name, _ in quantised_layers(base.model)} == {m.name for m in plain.modules}
    assert base.outline == plain  # parameters counted as what they stand for, `Conv1D` still one


def test_weights_are_near_those_they_were_made_of(base: FrozenBase, model_folders: dict[str, Path]) -> None:
    plain = load_base(base.name, model_folders[base.name])
    for m in base.outline.modules:
        found, wanted = (dense_weight(which.model.get_submodule(m.name)) for which in (base, plain))
        assert found.shape == wanted.shape == (m.d_out, m.d_in)
        apart = float((found - wanted).norm() / wanted.norm())
        # 15 steps over normal values leave about 9 %, 255 steps up to the row's largest about 0.5 %.
        assert (0.08 < apart < 0.11) if base.quantised == "nf4" else (0.004 < apart < 0.008)


def test_weights_are_what_their_codes_say(model_folders: dict[str, Path]) -> None:
    """By hand, for rows of 24, 40 and 96 in blocks of 64; bitsandbytes' kernel for CPUs is wrong on the last."""
    for family in ("gpt2", "llama"):
        for layer in layers_of(load_base(family, model_folders[family], quantise="nf4")):
            state, packed = layer.weight.quant_state, layer.weight.data.flatten().long()
            values = state.code[torch.stack([packed >> 4, packed & 15], 1).flatten()]
            wanted = values * state.absmax.repeat_interleave(64)[: len(values)]
            assert torch.equal(dense_weight(layer), wanted.view(layer.out_features, layer.in_features))


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_bitsandbytes_in_training(kind: Quantise) -> None:
    """Its own way where it trains on a CPU, which rounds no activation; forward, and the gradient of the input."""
    ours, theirs = (layers_of(load_base(demo.MODEL, demo.model_folder(), quantise=kind)) for _ in range(2))
    for own, other in zip(ours, theirs, strict=True):
        del other.forward
        other.train()
        x = torch.randn(5, own.in_features, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y, wanted = own(x), other(x)
        torch.testing.assert_close(y, wanted, rtol=0, atol=2e-6 * float(wanted.detach().abs().max()))
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
        found, theirs_grad = (torch.autograd.grad(which, x, weights)[0] for which in (y, wanted))
        torch.testing.assert_close(found, theirs_grad, rtol=0, atol=2e-6 * float(theirs_grad.abs().max()))


def test_a_pass_without_gradients_is_the_pass_of_training(base: FrozenBase) -> None:
    """bitsandbytes has another on some CPUs, for good, and another precision in 8 bits on all."""
    batch = collate(demo_examples(base, 4))
    embedded = base.model.get_input_embeddings()(batch.input_ids).detach()
    passes = []
    for needed in (False, True, False):
        with torch.set_grad_enabled(needed):
            inputs = embedded.clone().requires_grad_(needed)
            passes.append(base.model(inputs_embeds=inputs, attention_mask=batch.attention_mask).logits)
    assert passes[1].requires_grad
    assert torch.equal(passes[0], passes[1]) and torch.equal(passes[0], passes[2])


def test_a_text_is_given_what_it_is_given_alone(model_folders: dict[str, Path]) -> None:
    """Beside one whose inputs are a thousand times as large, for which LLM.int8 takes columns out of the 8 bits."""
    layer = layers_of(load_base("llama", model_folders["llama"], quantise="int8"))[0]
    own = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(3))
    beside = torch.cat([own, 1000 * own.flip(0)])
    torch.testing.assert_close(layer(beside)[:3], layer(own), rtol=0, atol=1e-6)
    del layer.forward  # the reason why this is ours
    assert float((layer(beside)[:3] - layer(own)).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_that_of_the_same_weights(model_folders: dict[str, Path], kind: Quantise, dtype: Any) -> None:
    base = load_base("llama", model_folders["llama"], dtype=dtype, quantise=kind)
    examples = demo_examples(base, 6)
    half = evaluate(base.model, examples, base.device).loss
    for _, layer in quantised_layers(base.model):
        assert dense_weight(layer, base.model.dtype).dtype == base.model.dtype
    twin = plain_twin(base, model_folders["llama"])
    assert half == pytest.approx(evaluate(twin.model, examples, base.device).loss, rel=1e-2)


# both engines


@pytest.mark.parametrize("how", [{}, {"stacked": True}, {"workers": 2}], ids=["as-built", "stacked", "two-workers"])
def test_seven_at_once_end_where_the_reference_ends(
    exact: FrozenBase, reference_runs: list[Trajectory], how: dict[str, Any]
) -> None:
    """To nine digits in float64: one set of weights, one arithmetic."""
    assert_parity(by_bank(exact, seven_members(exact), **how), reference_runs)


def test_other_adapters_in_the_pass_change_nothing(exact: FrozenBase, reference_runs: list[Trajectory]) -> None:
    members = seven_members(exact)
    together = by_bank(exact, members, (), workers=1)
    alone = by_bank(exact, members[1:2], (), workers=1)
    assert_parity(alone, together[1:2], SAME)


def test_in_float32_losses_agree_to_five_digits(base: FrozenBase) -> None:
    members = seven_members(base, steps=6)[:3]
    found = by_bank(base, members, ())
    for member, ours in zip(members, found, strict=True):
        theirs = by_reference(base, member, ()).records
        assert [r.loss for r in ours.records] == pytest.approx([r.loss for r in theirs], rel=1e-5)


def test_both_are_the_training_of_a_plain_model_with_these_weights(
    base: FrozenBase, model_folders: dict[str, Path]
) -> None:
    member = seven_members(base, steps=6)[1]
    found = by_bank(base, [member], ())[0].records
    wanted = by_reference(plain_twin(base, model_folders[base.name]), member, ()).records
    assert [r.loss for r in found] == pytest.approx([r.loss for r in wanted], rel=1e-5)


def test_the_bank_is_compared_with_the_model_itself_and_texts_alone(base: FrozenBase) -> None:
    examples = demo_examples(base, 12)
    own = evaluate(base.model, examples, base.device)
    check_alone(base, examples, own)
    assert check_bank(base, base.outline.modules, examples, own).largest < 1e-5
    with Bank(base, seven_members(base)[:1]) as bank:
        assert "compiled lora" in bank.kernels or not fused_layers.lora_kernel(torch.float32)


@pytest.mark.parametrize("engine", ["bank", "reference"])
def test_no_dequantised_weight_outlives_its_product(
    base: FrozenBase, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    made: list[weakref.ref[Tensor]] = []
    most = 0

    def counted(module: nn.Module, dtype: torch.dtype | None = None) -> Tensor:
        nonlocal most
        weight = dense_weight(module, dtype)
        made.append(weakref.ref(weight))
        most = max(most, sum(each() is not None for each in made))
        return weight

    member, options = seven_members(base)[0], seven_members(base)[0].options
    with contextlib.ExitStack() as stack:
        if engine == "bank":
            bank = stack.enter_context(Bank(base, [member], workers=1))
        else:
            model = stack.enter_context(attached(base, member.plan, member.seed))
            optimizer = torch.optim.AdamW(trainable(model).values())
        for where in (quantised, fused_layers):
            monkeypatch.setattr(where, "dense_weight", counted)
        if engine == "bank":
            bank.step()
        else:
            update(model, optimizer, member.batch(0), options, 0)
    assert len(made) >= 2 * len(base.outline.modules) - 4 and most <= 2


def test_activations_are_those_of_a_plain_base(base: FrozenBase, model_folders: dict[str, Path]) -> None:
    sizes = []
    for which in (base, load_base(base.name, model_folders[base.name])):
        with Bank(which, seven_members(which)[:1]) as bank:
            sizes.append(bank.bytes_per_position())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_an_adapter_trained_here_is_readable_by_peft_on_the_plain_base(
    base: FrozenBase, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    from peft import PeftModel

    plain, plan = load_base(base.name, model_folders[base.name]), mixed_plan(base.outline.modules)
    peft_check.check_with_peft(base.model, plan, base.outline.modules, base.name)
    with attached(base, plan, seed=0) as model:
        save_adapter(weights_of(model), plan, tmp_path, base)
    peft_check.read_back(tmp_path, plan)
    with quiet_libraries():
        loaded = PeftModel.from_pretrained(plain.model, str(tmp_path))
    assert len(loaded.peft_config["default"].rank_pattern) == len(plan.ranks)
    assert not any(hasattr(layer, "lora_A") for layer in layers_of(base))


# loading, sizes, refusals


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("nf4", {}),
        ("nf4", {"bnb_4bit_use_double_quant": True}),
        ("fp4", {}),
        ("int8", {}),
    ],
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_folder_that_is_stored_quantised_is_loaded_as_it_is(
    family: str, kind: Any, how: dict[str, Any], model_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = stored(family, kind, model_folders[family], tmp_path / "stored", **how)
    base = load_base("stored", folder)
    assert base.quantised == kind and base.outline.modules == outline_of("stored", folder).modules
    if kind != "fp4" and not how:
        made_here = load_base(family, model_folders[family], quantise=kind)
        for own, other in zip(layers_of(base), layers_of(made_here), strict=True):
            assert torch.equal(dense_weight(own), dense_weight(other))
    member = seven_members(base, steps=3)[0]
    ours, theirs = by_bank(base, [member], ())[0].records, by_reference(base, member, ()).records
    assert [r.loss for r in ours] == pytest.approx([r.loss for r in theirs], rel=1e-5)
    with pytest.raises(ModelError, match=f"stored quantised already \\({kind}\\), and nf4 was asked for"):
        load_base("stored", folder, quantise="nf4")


def test_codes_that_are_stored_as_half_precision_are_read_as_that(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    """As for sharded training; transformers converts them like numbers where another dtype is asked for."""
    how = {"bnb_4bit_quant_storage": "bfloat16", "bnb_4bit_compute_dtype": "bfloat16"}
    folder = stored("llama", "nf4", model_folders["llama"], tmp_path, **how)
    with pytest.raises(ModelError, match=r"4-bit codes as bfloat16.*got dtype float32: take dtype bfloat16"):
        load_base("stored", folder)
    base, made_here = (
        load_base("stored", folder, dtype="bfloat16"),
        load_base("x", model_folders["llama"], quantise="nf4"),
    )
    for own, other in zip(layers_of(base), layers_of(made_here), strict=True):
        assert own.weight.is_floating_point() and torch.equal(dense_weight(own), dense_weight(other))
    assert base.outline.total_parameters == made_here.outline.total_parameters


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_the_callers_own_is_given_back_as_it_was(model_folders: dict[str, Path], kind: Quantise) -> None:
    from transformers import AutoModelForCausalLM

    with quiet_libraries():
        config = quantised.quantisation_config(kind, "float32")
        model = AutoModelForCausalLM.from_pretrained(model_folders["llama"], quantization_config=config)
    with frozen(model, None) as base:
        assert base.quantised == kind and all("forward" in layer.__dict__ for layer in layers_of(base))
    assert not any("forward" in layer.__dict__ for _, layer in quantised_layers(model))


def test_weights_that_were_rearranged_for_inference_are_refused(model_folders: dict[str, Path]) -> None:
    base = load_base("llama", model_folders["llama"], quantise="nf4")
    layers_of(base)[3].weight.quant_state.packing_format_for_cpu = True  # what a pass does where the CPU has bfloat16
    with (
        pytest.raises(ModelError, match=r"rearranged the weights of model.layers.0.self_attn.o_proj.*Load the model"),
        frozen(base.model, None),
    ):
        pass


def test_sizes_are_those_of_codes_and_scales(base: FrozenBase, model_folders: dict[str, Path]) -> None:
    plain = load_base(base.name, model_folders[base.name])
    entries = sum(m.d_in * m.d_out for m in base.outline.modules)
    others = model_bytes(plain.model) - 4 * entries
    blocks = sum(-(-m.d_in * m.d_out // 64) for m in base.outline.modules)
    packed = entries // 2 + 4 * blocks
    by_row = entries + 4 * sum(m.d_out for m in base.outline.modules)
    assert model_bytes(base.model) == others + (packed if base.quantised == "nf4" else by_row)
    assert model_bytes(plain.model) == sum(p.nbytes for p in plain.model.parameters())


def test_without_bitsandbytes_the_error_says_what_to_install(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stored("llama", "int8", model_folders["llama"], tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    for where, how in ((model_folders["llama"], "nf4"), (folder, None)):
        with pytest.raises(ModelError, match=r"needs bitsandbytes.*pip install 'adaptive-lora\[bnb\]'"):
            load_base("tiny", where, quantise=how)  # type: ignore[arg-type]


def test_float64_weights_are_not_quantised(model_folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="no float64 weights, got int8 of tiny: take dtype float32"):
        load_base("tiny", model_folders["llama"], dtype="float64", quantise="int8")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("family", "kind"), WAYS)
def test_on_an_accelerator_both_engines_agree_too(family: str, kind: Quantise, model_folders: dict[str, Path]) -> None:
    base = load_base(family, model_folders[family], device="cuda", quantise=kind)
    member = seven_members(base, steps=4, dropout=False)[0]
    ours, theirs = by_bank(base, [member], ())[0].records, by_reference(base, member, ()).records
    assert [r.loss for r in ours] == pytest.approx([r.loss for r in theirs], rel=1e-4)
