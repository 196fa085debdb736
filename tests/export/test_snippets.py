"""What is pasted is the plan: read back by a plain reader for each tool, and by PEFT and TRL themselves."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from adaptive_lora.errors import PlanError, UsageError
from adaptive_lora.export.snippets import step_0
from adaptive_lora.export.snippets.checking import check, load
from adaptive_lora.export.snippets.fragment import Snippet, snippet
from adaptive_lora.export.snippets.one_rank import same, whole
from adaptive_lora.export.snippets.reading import by_own_layers, peft_arguments
from adaptive_lora.export.snippets.trainers import TRAINERS
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.training.adapter import lora_layers, verify
from adaptive_lora.training.base import FrozenBase, load_base
from tests.export.conftest import pasted_plan

Realised = dict[str, tuple[int, float]]
EXACT = [name for name, trainer in TRAINERS.items() if trainer.expresses == "any ranks"]
ONE_RANK = [name for name in TRAINERS if name not in EXACT]
WITHOUT_GPT2 = ("torchtune", "litgpt")


def realised(plan: RankPlan) -> Realised:
    return {name: (rank, plan.scaling_of(name)) for name, rank in plan.ranks.items()}


def close(found: Realised, plan: RankPlan) -> bool:
    """The same modules and ranks, and scalings up to rounding."""
    ranks = {name: rank for name, (rank, _) in found.items()}
    return ranks == dict(plan.ranks) and all(
        abs(scale - plan.scaling_of(name)) < 1e-12 * scale for name, (_, scale) in found.items()
    )


# Plain readers, one a tool: text -> module -> (rank, scaling), from what the tools' own sources do with it.


def by_peft(given: Mapping[str, Any], modules: tuple[ModuleShape, ...]) -> Realised:
    """PEFT's rules: a target is a full name or its end at a dot; the first key that matches counts; alpha over rank."""

    def first(pattern: Mapping[str, Any], name: str, otherwise: Any) -> Any:
        return next((v for key, v in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)

    assert not given.get("use_rslora")
    keys = [*given.get("rank_pattern", {}), *given.get("alpha_pattern", {})]
    assert all(key.startswith("^") and "\\." in key for key in keys if "." in key)  # or `h.1` is also in `h.11`
    found = {}
    for m in modules:
        if any(m.name == target or m.name.endswith(f".{target}") for target in given["target_modules"]):
            rank = first(given.get("rank_pattern", {}), m.name, given["r"])
            found[m.name] = (rank, first(given.get("alpha_pattern", {}), m.name, given["lora_alpha"]) / rank)
    return found


def read_python(text: str, modules: tuple[ModuleShape, ...]) -> Realised:
    config = run(text)
    assert "lora_config" in config or "peft_config" in config
    made = config.get("lora_config") or config["peft_config"]
    assert made.task_type == "CAUSAL_LM" and made.fan_in_fan_out is modules[0].fan_in_fan_out
    return by_peft(vars(made), modules)


def run(text: str, **names: Any) -> dict[str, Any]:
    exec(text, names)
    return names


def read_unsloth(text: str, modules: tuple[ModuleShape, ...]) -> Realised:
    given: dict[str, Any] = {}
    run(text, model=None, FastLanguageModel=SimpleNamespace(get_peft_model=lambda model, **rest: given.update(rest)))
    assert type(given["r"]) is int  # it refuses others
    return by_peft(given, modules)


def read_axolotl(text: str, modules: tuple[ModuleShape, ...]) -> Realised:
    keys = yaml.safe_load(text)
    alphas = keys["lora_alpha_pattern"]
    assert keys["adapter"] == "lora" and {type(alpha) for alpha in (keys["lora_alpha"], *alphas.values())} == {int}
    assert keys.get("lora_fan_in_fan_out", False) is modules[0].fan_in_fan_out
    return by_peft(
        {
            "r": keys["lora_r"], "lora_alpha": keys["lora_alpha"], "target_modules": keys["lora_target_modules"],
            "rank_pattern": keys["lora_rank_pattern"], "alpha_pattern": alphas, "use_rslora": keys["peft_use_rslora"],
        },
        modules,
    )  # fmt: skip


def read_llama_factory(text: str, modules: tuple[ModuleShape, ...]) -> Realised:
    keys = yaml.safe_load(text)
    assert keys["finetuning_type"] == "lora" and type(keys["lora_alpha"]) is int
    targets = [name.strip() for name in keys["lora_target"].split(",")]
    return by_peft({"r": keys["lora_rank"], "lora_alpha": keys["lora_alpha"], "target_modules": targets}, modules)


def read_torchtune(text: str, modules: tuple[ModuleShape, ...]) -> Realised:
    keys = yaml.safe_load(text)["model"]
    ends = [{"output_proj": "o_proj"}.get(part, part) for part in keys["lora_attn_modules"]]
    ends += ["gate_proj", "up_proj", "down_proj"] if keys["apply_lora_to_mlp"] else []
    assert keys["apply_lora_to_output"] is False
    given = {"r": keys["lora_rank"], "lora_alpha": keys["lora_alpha"], "target_modules": ends}
    return by_peft(given, modules)


def read_litgpt(text: str, modules: tuple[ModuleShape, ...]) -> Realised:
    keys = yaml.safe_load(text)
    parts = {"query": ["q_proj"], "key": ["k_proj"], "value": ["v_proj"], "projection": ["o_proj"]}
    parts["mlp"] = ["gate_proj", "up_proj", "down_proj"]
    ends = [end for part, named in parts.items() if keys[f"lora_{part}"] for end in named]
    assert keys["lora_head"] is False and type(keys["lora_alpha"]) is int
    return by_peft({"r": keys["lora_r"], "lora_alpha": keys["lora_alpha"], "target_modules": ends}, modules)


def read_mlx_lm(text: str, modules: tuple[ModuleShape, ...]) -> Realised:
    keys = yaml.safe_load(text)
    own = keys["lora_parameters"]
    assert keys["num_layers"] == -1 and keys["fine_tune_type"] == "lora"
    return {m.name: (own["rank"], own["scale"]) for m in modules if m.name.split(".", 3)[3] in own["keys"]}


READERS: dict[str, Callable[[str, tuple[ModuleShape, ...]], Realised]] = {
    "peft": read_python,
    "trl": read_python,
    "unsloth": read_unsloth,
    "axolotl": read_axolotl,
    "llama-factory": read_llama_factory,
    "torchtune": read_torchtune,
    "litgpt": read_litgpt,
    "mlx-lm": read_mlx_lm,
}


@pytest.fixture
def swift(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What ms-swift gives to a plugin, where it is not installed: the base class of tuners and the table of them."""
    plugins = ModuleType("swift.tuner_plugin")
    plugins.PeftTuner, plugins.tuners_map = object, {}  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "swift", ModuleType("swift"))
    monkeypatch.setitem(__import__("sys").modules, "swift.tuner_plugin", plugins)
    tuners: dict[str, Any] = plugins.tuners_map
    return tuners


@pytest.mark.parametrize("rule", ["constant", "rslora", "alpha-over-r"])
@pytest.mark.parametrize("tool", [name for name in EXACT if name in READERS])
def test_a_plan_read_back_is_the_plan(tool: str, rule: str, base: FrozenBase) -> None:
    modules = base.outline.modules
    plan = pasted_plan(modules, rule)
    if TRAINERS[tool].whole_alphas and rule == "rslora":
        with pytest.raises(PlanError, match=r"takes whole alphas alone, and \d+ .*`--adapter DIR`"):
            snippet(plan, tool)
        return
    made = snippet(plan, tool, learning_rate=2e-5)
    found = READERS[tool](made.text, modules)
    assert close(found, plan) and made.concession is None
    arguments = peft_arguments(made)
    assert arguments is not None and by_peft(arguments, modules) == found
    assert re.search(r"^learning_rate(: 2\.0e-05| = 2e-05)", made.text, re.M)
    assert "learning_rate" not in snippet(plan, tool).text


def test_the_plugin_of_ms_swift_builds_the_plan(swift: dict[str, Any], base: FrozenBase) -> None:
    plan = pasted_plan(base.outline.modules)
    run(snippet(plan, "ms-swift").text)
    with quiet_libraries():
        built = swift["rank-plan"].prepare_model(None, base.model)
    verify(lora_layers(built), plan)


@pytest.mark.parametrize("tool", ONE_RANK)
def test_the_best_that_a_tool_with_one_rank_can_say(tool: str, plan: RankPlan, base: FrozenBase) -> None:
    modules = base.outline.modules
    if tool in WITHOUT_GPT2 and modules[0].fan_in_fan_out:
        with pytest.raises(PlanError, match=r"has no name for attn\.c_attn, attn\.c_proj, mlp"):
            snippet(plan, tool, available=modules)
        return
    made = snippet(plan, tool, available=modules, learning_rate=1e-4)
    assert READERS[tool](made.text, modules) == realised(made.plan)
    covered = modules if tool != "llama-factory" else plan.modules
    unit = sum(m.params_per_rank for m in covered)
    (rank,) = set(made.plan.ranks.values())
    assert made.plan.modules == covered and rank == plan.budget // unit
    assert made.plan.trainable_parameters == rank * unit <= plan.budget < (rank + 1) * unit
    spent = f"{rank * unit:,} of {plan.budget:,} trainable parameters, {plan.budget - rank * unit:,} unspent"
    assert made.concession is not None and made.concession.startswith(f"rank {rank} in ") and spent in made.concession
    assert ("1 more that it cannot leave out" in made.concession) is (covered is modules)
    comments = " ".join(line.removeprefix("# ") for line in made.text.splitlines() if line.startswith("#"))
    assert f"In place of by-hand: {made.trainer.title} has one rank for all modules" in comments and spent in comments


@pytest.mark.parametrize("rule", ["constant", "rslora", "alpha-over-r"])
def test_one_rank_everywhere_has_the_reference_scaling_whatever_the_rule(rule: str, base: FrozenBase) -> None:
    """A uniform plan is the same run under all three rules."""
    made = snippet(pasted_plan(base.outline.modules, rule), "llama-factory")
    keys = yaml.safe_load(made.text)
    assert keys["lora_alpha"] == 2 * keys["lora_rank"] != 2 * 4  # the plan's own reference is rank 4


@pytest.mark.parametrize("tool", TRAINERS)
def test_a_uniform_plan_can_be_said_everywhere(tool: str, model_folders: dict[str, Path]) -> None:
    modules = load_base("llama", model_folders["llama"]).outline.modules
    cost = sum(m.params_per_rank for m in modules) * 4
    plan = replace(pasted_plan(modules), budget=cost, modules=modules, ranks={m.name: 4 for m in modules}, left_out=())
    made = snippet(plan, tool, available=modules)
    assert made.concession is None and same(made.plan, plan) and "has one rank" not in made.text


def test_modules_are_named_by_their_ends_where_these_name_no_others(base: FrozenBase) -> None:
    modules = base.outline.modules
    attention = tuple(m for m in modules if m.kind == "attention")
    plan = replace(pasted_plan(modules), modules=attention, ranks={m.name: 3 for m in attention}, left_out=())
    plan = replace(plan, budget=plan.trainable_parameters)
    short = yaml.safe_load(snippet(plan, "llama-factory", available=modules).text)["lora_target"]
    full = yaml.safe_load(snippet(plan, "llama-factory").text)["lora_target"]
    assert short.split(",") == list(dict.fromkeys(name.split(".", 3)[3] for name in plan.ranks))
    assert full.split(",") == list(plan.ranks)


@pytest.mark.parametrize("tool", TRAINERS)
def test_every_text_is_built_on_the_model_and_a_changed_one_is_refused(
    tool: str, model_folders: dict[str, Path]
) -> None:
    base = load_base("llama", model_folders["llama"])
    modules = base.outline.modules
    made = snippet(pasted_plan(modules), tool, available=modules)
    made = replace(made, trainer=replace(made.trainer, package="no-such-package-here"))
    said, loaded = check(made, lambda: base.model, modules)
    assert said.startswith("checked: read back") and loaded.endswith("it is not installed")
    assert not any("lora" in name for name, _ in base.model.named_modules())
    wrong = replace(made, text=_changed(made))
    with pytest.raises(PlanError, match=r"would (not train this plan|give)"):
        check(wrong, lambda: base.model, modules)


def _changed(made: Snippet) -> str:
    """The text with another number, or another name, of one module."""
    for old, new in (
        (r": \(12, ", ": (11, "), (r"': 12$", "': 11"), (r"lora_rank: 5$", "lora_rank: 4"),
        (r"lora_r: 5$", "lora_r: 4"), (r"  rank: 5$", "  rank: 4"),
    ):  # fmt: skip
        text, count = re.subn(old, new, made.text, count=1, flags=re.M)
        if count:
            return text
    raise AssertionError(made.text)


@pytest.mark.parametrize("tool", [name for name, trainer in TRAINERS.items() if trainer.continues])
@pytest.mark.parametrize("rule", ["constant", "rslora"])
def test_an_adapter_at_step_0_is_the_plan_for_tools_that_cannot_say_it(
    tool: str, rule: str, base: FrozenBase, tmp_path: Path
) -> None:
    from peft import PeftModel

    plan, folder = pasted_plan(base.outline.modules, rule), tmp_path / "it's: step 0"
    step_0.save(plan, folder, "a-model")
    made = snippet(plan, tool, adapter=str(folder))
    keys = yaml.safe_load(made.text)
    assert keys.pop(TRAINERS[tool].continues) == str(folder) and set(keys.values()) == {"lora"}
    assert made.plan is plan and made.concession is None
    arguments = peft_arguments(made)
    assert arguments is not None and close(by_peft(arguments, base.outline.modules), plan)
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad(), quiet_libraries():
        before = base.model(tokens).logits
        model = PeftModel.from_pretrained(base.model, folder, is_trainable=True)
        assert torch.equal(model(tokens).logits, before)
    verify(lora_layers(model), plan)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == plan.trainable_parameters


def test_an_adapter_is_refused_where_a_tool_takes_none(plan: RankPlan) -> None:
    with pytest.raises(
        UsageError, match=r"TRL .* needs none, as it takes ranks of single modules; .*axolotl, ms-swift"
    ):
        snippet(plan, "trl", adapter="somewhere")
    with pytest.raises(UsageError, match=r"mlx-lm 0\.32\.2 trains no adapter on by its configuration; `--adapter` is"):
        snippet(plan, "mlx-lm", adapter="somewhere")


def test_unknown_tools_and_budgets_below_rank_1(plan: RankPlan) -> None:
    with pytest.raises(UsageError, match=r"'axolotls'.*did you mean 'axolotl'\?"):
        snippet(plan, "axolotls")
    few = replace(plan, ranks=dict.fromkeys(plan.ranks, 1), budget=plan.trainable_parameters)
    few = replace(few, budget=few.trainable_parameters)
    assert set(snippet(few, "llama-factory").plan.ranks.values()) == {1}
    with pytest.raises(PlanError, match=r"rank 1 in the (11|20) that it would adapt costs"):
        snippet(replace(few, budget=few.budget - 1), "llama-factory")
    with pytest.raises(PlanError, match="give all of the model's as `available`"):
        snippet(plan, "mlx-lm")


@pytest.mark.parametrize("tool", TRAINERS)
def test_no_name_leaves_its_place_in_a_text(tool: str) -> None:
    """A saved plan may come from anywhere: its names and words stay names and comments."""
    evil = (
        "model.layers.0.self_attn.q_proj" if tool in ("torchtune", "litgpt") else "a'b\"c.0.x': 1\n- \\ #{{7*7}}\u2028y"
    )
    shape = ModuleShape(evil, "attention", 0, 8, 8)
    facts = {"model": "m\nimport os\r\u2028x = 1\x1b[2J\x07", "budget": "rank:4\nlearning_rate: 9"}
    plan = replace(
        pasted_plan((shape, shape)),
        strategy="s\nadapter: no",
        budget=64,
        ranks={evil: 4},
        left_out=(),
        provenance=facts,
    )
    made = snippet(plan, tool, available=plan.modules)
    if tool == "mlx-lm":
        assert by_own_layers(made, plan.modules) == realised(plan)
    elif tool == "ms-swift":
        assert (peft_arguments(made) or {})["target_modules"] == [evil]
    elif tool == "llama-factory":  # its names are one text with commas
        assert yaml.safe_load(made.text)["lora_target"] in (evil, evil.split(".", 2)[2])
    else:
        assert tool in ("torchtune", "litgpt") or READERS[tool](made.text, plan.modules)
    comments = [line for line in made.text.splitlines() if line.startswith("#")]
    assert not set("\x1b\x07\r") & set(made.text)
    assert "import os" in " ".join(comments) and not re.search(r"^(import os|x = 1|adapter: no)", made.text, re.M)


def test_the_table_of_tools_is_whole() -> None:
    assert list(TRAINERS) == [
        "peft", "trl", "unsloth", "axolotl", "ms-swift", "llama-factory", "torchtune", "litgpt", "mlx-lm",
    ]  # fmt: skip
    for trainer in TRAINERS.values():
        assert re.fullmatch(r"\d+(\.\d+)+", trainer.version) and trainer.evidence and trainer.paste.endswith(".")
        assert (trainer.expresses == "one rank, modules by part") is bool(trainer.parts)


def test_a_text_is_loaded_with_the_tool_that_is_here(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = load_base("llama", model_folders["llama"]).outline.modules
    plan = pasted_plan(modules)
    assert load(snippet(plan, "peft")).startswith("loaded with PEFT ")
    assert load(snippet(plan, "trl")).startswith("loaded with PEFT ")
    made = snippet(plan, "mlx-lm", available=modules)
    made = replace(made, trainer=replace(made.trainer, package="pytest"))  # installed, but brings no module of mlx-lm
    assert re.search(r"^not loaded with mlx-lm \d.*cannot be imported here \(ModuleNotFoundError: .*mlx_lm", load(made))
    (tmp_path / "mlx_lm").mkdir()
    (tmp_path / "mlx_lm" / "lora.py").write_text(
        "CONFIG_DEFAULTS = ['fine_tune_type', 'num_layers', 'lora_parameters']"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert re.search(r"^loaded with mlx-lm \d", load(made))
    with pytest.raises(PlanError, match=r"mlx-lm \S+ refuses the text: KeyError: 'unknown: rank_pattern'"):
        load(replace(made, text=made.text + "rank_pattern: {}\n"))


def test_whole_numbers_are_whole_up_to_rounding() -> None:
    assert whole(2.0 * (8 / 3) * 3) == 16 and whole(0.3 * 10) == 3 and whole(5.5) is None and whole(1e-9) is None


def test_the_readings_are_json_in_the_package() -> None:
    path = Path(__import__("adaptive_lora.export.snippets.trainers", fromlist=["x"]).__file__).with_name(
        "trainers.json"
    )
    assert set(json.loads(path.read_text(encoding="utf-8"))) == set(TRAINERS)
