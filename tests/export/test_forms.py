"""Every form is the same update, by the rule of whoever reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adaptive_lora.export.forms import common_alpha, padded, same_role, single_alpha, unit
from adaptive_lora.export.low_rank import AdapterWeights, LowRank
from adaptive_lora.export.mlx import mlx_name, read_mlx, write_mlx
from adaptive_lora.export.peft_folder import BaseFacts, adapter_config, short_targets, write_peft
from adaptive_lora.export.reading import read_adapter
from adaptive_lora.planning.modules import ModuleShape

quick = settings(max_examples=40)
SCALINGS = st.floats(1e-3, 1e3)


@st.composite
def adapters(draw: st.DrawFn) -> AdapterWeights:
    """One to five modules of different sizes, ranks and scalings."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    modules = {}
    for i in range(draw(st.integers(1, 5))):
        d_in, d_out, rank = (draw(st.integers(1, 9)) for _ in range(3))
        a, b = torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator)
        modules[f"h.{i}.mlp.up_proj"] = LowRank(a, b, draw(SCALINGS))
    return AdapterWeights(modules, "owner/base", None)


def exact(update: LowRank) -> Tensor:
    return update.scaling * (update.b.double() @ update.a.double())


def same(found: Mapping[str, Tensor], adapter: AdapterWeights) -> None:
    """The same ΔW of every module, to float32's rounding; modules beyond have none."""
    assert found.keys() >= adapter.modules.keys()
    for name, delta in found.items():
        wanted = exact(adapter.modules[name]) if name in adapter.modules else torch.zeros_like(delta)
        torch.testing.assert_close(delta.double(), wanted, rtol=0, atol=1e-5 * max(1e-6, float(wanted.abs().max())))


def base_of(adapter: AdapterWeights, *more: ModuleShape) -> BaseFacts:
    shapes = [ModuleShape(n, "mlp", i, m.d_in, m.d_out) for i, (n, m) in enumerate(adapter.modules.items())]
    return BaseFacts("owner/base", "owner/base", None, "llama", (*shapes, *more))


@quick
@given(adapters())
def test_every_form_is_the_same_update(adapter: AdapterWeights) -> None:
    for form in (unit, single_alpha, padded):
        same({name: exact(update) for name, update in form(adapter).modules.items()}, adapter)


@quick
@given(adapters(), SCALINGS)
def test_any_alpha_will_do(adapter: AdapterWeights, alpha: float) -> None:
    made = single_alpha(adapter, alpha)
    assert [m.scaling * m.rank for m in made.modules.values()] == pytest.approx([alpha] * len(made.modules))
    same({name: exact(update) for name, update in made.modules.items()}, adapter)


# What tools compute from the two files, as plain functions: (configuration, A, B of a tensor) -> the factor before B A.


def by_llama_cpp(config: Mapping[str, Any], b: Tensor) -> float:
    return config["lora_alpha"] / b.shape[1]


def by_openvino(config: Mapping[str, Any], b: Tensor) -> float:
    return 1.0


def by_olive(config: Mapping[str, Any], b: Tensor) -> float:
    return config["lora_alpha"] / config["r"]


Rule = Callable[[Mapping[str, Any], Tensor], float]
RIGHT: tuple[tuple[Callable[[AdapterWeights], AdapterWeights], Rule], ...] = (
    (single_alpha, by_llama_cpp), (padded, by_llama_cpp), (padded, by_openvino), (unit, by_openvino),
    (padded, by_olive), (unit, by_olive),
)  # fmt: skip


@quick
@given(adapters())
def test_tools_that_know_no_patterns_read_their_forms_right(adapter: AdapterWeights) -> None:
    for form, rule in RIGHT:
        made = form(adapter)
        config = adapter_config(made, base_of(made))
        same({n: rule(config, m.b) * (m.b.double() @ m.a.double()) for n, m in made.modules.items()}, adapter)


def test_the_forms_that_are_said_to_be_wrong_are_wrong() -> None:
    """Else the table would keep people from what works."""
    ranks = {"h.0.mlp.up_proj": 2, "h.1.mlp.up_proj": 2, "h.2.mlp.up_proj": 4}
    adapter = AdapterWeights(
        {n: LowRank(torch.ones(r, 3), torch.ones(3, r), 2.0) for n, r in ranks.items()}, None, None
    )
    wrong: tuple[tuple[Callable[[AdapterWeights], AdapterWeights], Rule], ...] = (
        (lambda given: given, by_llama_cpp), (unit, by_llama_cpp), (single_alpha, by_openvino),
        (single_alpha, by_olive),
        (lambda given: given, by_openvino),
    )  # fmt: skip
    for form, rule in wrong:
        made = form(adapter)
        config = adapter_config(made, base_of(made))
        with pytest.raises(AssertionError):
            same({n: rule(config, m.b) * (m.b.double() @ m.a.double()) for n, m in made.modules.items()}, adapter)


@quick
@given(adapters())
def test_a_padded_adapter_has_one_rank_and_no_patterns(adapter: AdapterWeights) -> None:
    made = padded(adapter)
    config = adapter_config(made, base_of(made), short=True)
    assert set(made.ranks.values()) == {max(adapter.ranks.values())} == {config["r"]} == {config["lora_alpha"]}
    assert config["rank_pattern"] == config["alpha_pattern"] == {} and not config["use_rslora"]
    assert config["target_modules"] == ["up_proj"]


def test_modules_of_the_same_role_get_zeros_and_others_nothing() -> None:
    adapter = AdapterWeights({"h.0.attn.q": LowRank(torch.ones(2, 3), torch.ones(4, 2), 0.5)}, None, None)
    available = tuple(ModuleShape(f"h.{i}.attn.{leaf}", "attention", i, 3, 4) for i in range(2) for leaf in "qk")
    left_out = same_role(adapter, available)
    made = padded(adapter, left_out)
    assert [m.name for m in left_out] == ["h.1.attn.q"] and made.ranks == {"h.0.attn.q": 2, "h.1.attn.q": 2}
    same({name: exact(update) for name, update in made.modules.items()}, adapter)
    assert adapter_config(made, base_of(adapter, *available[1:]), short=True)["target_modules"] == ["q"]


def test_alpha_is_the_one_that_most_tensors_have() -> None:
    scalings = {"a": (2, 2.0), "b": (4, 1.0), "c": (4, 8.0)}
    modules = {n: LowRank(torch.ones(r, 1), torch.ones(1, r), s) for n, (r, s) in scalings.items()}
    adapter = AdapterWeights(modules, None, None)
    assert common_alpha(adapter) == 4.0
    assert torch.equal(single_alpha(adapter).modules["a"].b, modules["a"].b)


@quick
@given(adapters())
def test_a_written_folder_is_read_back_as_it_was(adapter: AdapterWeights) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        write_peft(adapter, base_of(adapter), Path(place))
        found = read_adapter(Path(place))
    assert found.ranks == adapter.ranks and found.base_name == "owner/base"
    same({name: exact(update) for name, update in found.modules.items()}, adapter)


def test_the_same_adapter_gives_the_same_bytes(tmp_path: Path) -> None:
    adapter = AdapterWeights(
        {n: LowRank(torch.ones(1, 2), torch.ones(3, 1), 2.0) for n in ("b.0.x", "a.0.x")}, None, None
    )
    turned = AdapterWeights(dict(reversed(adapter.modules.items())), None, None)
    write_peft(adapter, base_of(adapter), tmp_path / "one")
    write_peft(turned, base_of(adapter), tmp_path / "two")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_short_targets_mean_the_chosen_modules_alone() -> None:
    every = [f"h.{i}.{part}" for i in range(2) for part in ("attn.c_proj", "mlp.c_proj", "mlp.c_fc")]
    assert short_targets([n for n in every if "mlp" in n], every) == ["c_fc", "mlp.c_proj"]
    assert short_targets(["h.0.mlp.c_fc"], every) == ["0.mlp.c_fc"]
    assert short_targets(every, every) == ["c_fc", "c_proj"]


def test_mlx_has_its_own_names_order_and_scale(tmp_path: Path) -> None:
    """Stored transposed in memory order too: a transposed view would be stored as it lies."""
    import safetensors.torch

    adapter = AdapterWeights(
        {"transformer.h.0.mlp.c_fc": LowRank(torch.randn(2, 3), torch.randn(5, 2), 4.0)}, None, None
    )
    write_mlx(padded(adapter), 7, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = safetensors.torch.load_file(tmp_path / "adapters.safetensors")
    a, b = (tensors[f"model.h.0.mlp.c_fc.lora_{letter}"] for letter in "ab")
    assert config["lora_parameters"] == {"rank": 2, "scale": 1.0, "dropout": 0.0, "keys": ["mlp.c_fc"]}
    assert config["num_layers"] == 7 and a.shape == (3, 2) and b.shape == (2, 5)
    (update,) = adapter.modules.values()
    torch.testing.assert_close((a @ b).t(), update.delta())
    same({"transformer.h.0.mlp.c_fc": exact(read_mlx(tmp_path)[mlx_name("transformer.h.0.mlp.c_fc")])}, adapter)
