"""What people call from Python: plans, adapters, studies and results, with paths as text and models as objects."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import adaptive_lora
from adaptive_lora import RankPlan, TrainingOptions, load_results, load_study, plan, report, train
from adaptive_lora.demo.tasks import generate
from adaptive_lora.errors import ModelError, StrategyError, StudyFileError, StudyFolderError, UsageError
from adaptive_lora.reporting.exported import export_study
from adaptive_lora.training.base import default_device
from tests.fresh import NEVER_ASKED, READING, fresh

ROOT = Path(__file__).parent.parent
RECORDS = generate("fine-tuning", 24)
TRAINING = TrainingOptions(learning_rate=1e-2, steps=3)
FILE = '''
import adaptive_lora

@adaptive_lora.measure("weight-rms", effort="weights")
def weight_rms(base, modules):
    return {m.name: float(base.model.get_submodule(m.name).weight.square().mean().sqrt()) for m in modules}

@adaptive_lora.strategy("mine", needs=["weight-rms"], options={"power": 1.0})
def mine(modules, scores, options):
    """Rank follows the size of the frozen weights."""
    return {m.name: scores["weight-rms"][m.name] ** options.power for m in modules}
'''


@pytest.fixture(scope="module")
def loaded(model_folders: dict[str, Path]) -> tuple[Any, Any]:
    """A transformers model and its tokenizer, as a notebook has them."""
    model = AutoModelForCausalLM.from_pretrained(model_folders["gpt2"])
    return model.train(), AutoTokenizer.from_pretrained(model_folders["gpt2"])


def test_a_plan_from_keywords_and_back_from_its_file(tmp_path: Path) -> None:
    made = plan(
        model="demo", strategy="linear-decay", budget="rank:4", options={"slope": 0.5},
        scaling={"rule": "rslora", "reference": 1.0}, targets=["attn.c_attn", "mlp.c_fc"],
    )  # fmt: skip
    assert (made.strategy, made.scaling.rule, made.scaling.reference_scaling) == ("linear-decay", "rslora", 1.0)
    assert made.options["slope"] == 0.5 and {m.name.split(".")[-1] for m in made.modules} == {"c_attn", "c_fc"}
    made.save(str(tmp_path / "plan.json"))
    assert RankPlan.load(str(tmp_path / "plan.json")) == RankPlan.load(tmp_path / "plan.json") == made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scaling": "rs"}, "rule must be constant, rslora or alpha-over-r and its reference above 0, got 'rs'"),
        ({"scaling": {"reference": -1.0}}, "its reference above 0, got {'reference': -1.0}"),
        ({"strategy": "empirical"}, r"empirical measures on data: give `--data` \(in Python `data=`\)"),
        ({"strategy": "unifrom"}, "did you mean 'uniform'"),
        ({"strategy": "no_such.py:mine"}, r"no_such\.py cannot be read"),
        ({"strategy": "eva", "data": RECORDS, "device": "abacus"}, "no device 'abacus' here; there is: cpu"),
        ({"model": 3}, "a loaded transformers model, got a int"),
    ],
)
def test_what_a_plan_cannot_be_made_of(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(**{"model": "demo", **arguments})


def test_records_may_be_a_list_and_the_device_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "records.json").write_text(json.dumps(RECORDS))
    by_list, by_file, by_text = (
        plan("demo", "empirical", data=data)
        for data in (RECORDS, tmp_path / "records.json", str(tmp_path / "records.json"))
    )
    assert by_list.ranks == by_file.ranks == by_text.ranks and len(set(by_list.ranks.values())) > 1
    assert by_list.provenance["device"] == ("cuda:0" if default_device() == "cuda" else default_device())
    assert by_list.provenance["data"] == "24 records" and by_text.provenance["data"].endswith("records.json")
    assert plan("demo").provenance["device"] is None  # by shape alone


def test_half_precision_is_asked_for_by_name() -> None:
    at = {dtype: plan("demo", "stable-rank", dtype=dtype, device="cpu").scores for dtype in ("float32", "bfloat16")}
    assert at["float32"] != at["bfloat16"]


def test_a_loaded_model_in_place_of_a_name(
    loaded: tuple[Any, Any], model_folders: dict[str, Path], tmp_path: Path
) -> None:
    model, tokenizer = loaded
    before = {name: p.clone() for name, p in model.state_dict().items()}
    made = plan(model, "empirical", "rank:2", data=RECORDS, tokenizer=tokenizer, max_length=64)
    named = plan(str(model_folders["gpt2"]), "empirical", "rank:2", data=RECORDS, max_length=64, device="cpu")
    assert made.ranks == named.ranks and made.scores == named.scores

    curve = train(made, model, RECORDS, str(tmp_path / "a"), TRAINING, tokenizer=tokenizer, max_length=64)
    other = train(named, model_folders["gpt2"], RECORDS, tmp_path / "b", TRAINING, max_length=64, device="cpu")
    assert curve == other and len(curve) == 3
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "b" / "adapter_model.safetensors"
    ).read_bytes()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert model.training and all(p.requires_grad for p in model.parameters())  # as it was given


def test_a_plan_may_be_its_file(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    plan(model_folders["gpt2"], budget="rank:1").save(tmp_path / "plan.json")
    model = str(model_folders["gpt2"])
    assert train(str(tmp_path / "plan.json"), model, RECORDS, tmp_path / "out", TRAINING, max_length=64, device="cpu")
    with pytest.raises(
        UsageError, match=r"another model: demo has no module transformer\.h\.0\.attn\.c_attn of size 24 × 72"
    ):
        train(tmp_path / "plan.json", "demo", RECORDS, tmp_path / "no", TRAINING)


def test_what_a_loaded_model_must_have(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    assert plan(model, budget="rank:1").provenance["base_parameters"] == sum(p.numel() for p in model.parameters())
    with pytest.raises(UsageError, match="needs its `tokenizer` to read records"):
        plan(model, "empirical", data=RECORDS)
    with pytest.raises(UsageError, match="There is no device 'cuda:99' here"):
        plan(model, "empirical", data=RECORDS, tokenizer=tokenizer, device="cuda:99")
    model.peft_config = {}
    try:
        with pytest.raises(ModelError, match="carries an adapter already"):
            plan(model)
    finally:
        del model.peft_config


def test_a_study_from_a_mapping_is_the_study_of_its_file(study_file: Callable[..., Path], tmp_path: Path) -> None:
    from ruamel.yaml import YAML

    path = study_file(("[uniform, linear-decay, empirical, random]", "[uniform, linear-decay]"))
    data = YAML(typ="safe", pure=True).load(path)
    by_mapping, by_text = load_study(data), load_study(str(path))
    assert by_mapping.spec == by_text.spec
    assert by_mapping.run(str(tmp_path / "out"), device="cpu").finished
    assert by_text.run(tmp_path / "out", device="cpu").finished  # the very same study: nothing is left to train
    assert load_study(tmp_path / "out" / "study.yaml").spec == by_mapping.spec


def test_faults_of_a_mapping_are_named_by_their_keys() -> None:
    data = {"name": "x", "modle": {"name": "demo"}, "budgets": ["rank:0"], "arms": ["unifrom"]}
    with pytest.raises(StudyFileError) as caught:
        load_study(data)
    assert any(text.startswith("modle: unknown key (did you mean 'model'?)") for text in caught.value.complaints)
    assert any(text.startswith("arms[0]: There is no strategy") for text in caught.value.complaints)
    assert not any("line " in text for text in caught.value.complaints)
    with pytest.raises(StudyFileError, match="a set cannot stand in a study"):
        load_study({**data, "arms": {"uniform"}})


def outside_study(model: Path, **more: Any) -> dict[str, Any]:
    return {
        "name": "outside",
        "model": {"name": str(model)},
        "data": {"source": "demo:fine-tuning", "train": 12, "validation": 4, "test": 6, "max_length": 64},
        "budgets": ["rank:2"],
        "arms": ["uniform", "mine.py:mine", {"name": "flat", "strategy": "mine.py:mine", "options": {"power": 0.5}},
                 {"name": "turned", "strategy": "inverted", "options": {"source": "mine.py:mine"}}],
        "seeds": {"evaluation": 1},
        "train": {"steps": 2, "batch_size": 4, "learning_rate": 1e-2},
        "analysis": {"primary": []},
        "controls": ["shuffled"],
        "report": {"answers": 0},
        **more,
    }  # fmt: skip


def test_a_strategy_in_a_file_goes_through_a_study(
    tmp_path: Path, model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative to the study file; its hash is in the runs' identity, so that an edited file is another strategy."""
    (tmp_path / "mine.py").write_text(FILE)
    path = tmp_path / "studies" / "study.yaml"
    path.parent.mkdir()
    path.write_text(json.dumps(outside_study(model_folders["gpt2"])).replace("mine.py", "../mine.py"))
    study = load_study(path)
    assert study.run(tmp_path / "out", device="cpu").finished
    found = load_results(tmp_path / "out")
    assert set(found.runs["arm"]) == {"uniform", "mine", "flat", "turned", "shuffled"}
    assert found.runs.set_index("arm")["strategy"]["mine"] == study.spec.arms[1].strategy
    assert found.runs["trainable_parameters"].nunique() == 1
    by_arm = {arm: own.set_index("module")["rank"].to_dict() for arm, own in found.ranks.groupby("arm")}
    monkeypatch.chdir(tmp_path)
    alone = plan(model_folders["gpt2"], "mine.py:mine", "rank:2")
    assert by_arm["mine"] == alone.ranks and by_arm["shuffled"] != by_arm["mine"] != by_arm["turned"]
    assert alone.provenance["code"]["file"] == "mine.py"
    assert alone.provenance["code"]["sha256"].startswith(study.spec.arms[1].strategy.partition("@")[2])

    (tmp_path / "mine.py").write_text(FILE + "# edited\n")
    edited = load_study(path)
    with pytest.raises(
        StudyFolderError, match=r"arms\[1\]\.strategy: 'mine\.py:mine@\w+' there, 'mine\.py:mine@\w+' here"
    ):
        edited.run(tmp_path / "out", device="cpu")

    (tmp_path / "mine.py").unlink()
    export_study(tmp_path / "out", tmp_path / "export")
    for folder in ("out", "export"):  # both have the file that the study was run with
        again = load_study(tmp_path / folder / "study.yaml")
        assert again.parsed.identity == study.parsed.identity
    assert load_study(tmp_path / "out" / "study.yaml").run(tmp_path / "out", device="cpu").finished


def test_a_function_in_a_script_is_a_strategy_too(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    @adaptive_lora.strategy("in-a-script")
    def in_a_script(modules: Any, scores: Any, options: Any) -> dict[str, float]:
        """More rank further up."""
        return {m.name: 1.0 + m.depth for m in modules}

    assert plan("demo", in_a_script).ranks == plan("demo", "in-a-script").ranks != plan("demo").ranks
    study = load_study(outside_study(model_folders["gpt2"], arms=["uniform", in_a_script], controls=[]))
    assert str(study.spec.arms[1].strategy).startswith("in-a-script@") and study.spec.arms[1].name == "in-a-script"
    turned = plan("demo", "inverted", options={"source": "in-a-script"})
    assert turned.ranks != plan("demo", in_a_script).ranks and "@" in turned.options["source"]
    with pytest.raises(StrategyError, match="`source`: There is no strategy 'in-a-scrpt'"):
        plan("demo", "inverted", options={"source": "in-a-scrpt"})


def test_results_as_frames(study_file: Callable[..., Path], tmp_path: Path) -> None:
    assert load_study(study_file(("evaluation: 2", "evaluation: 6"), ("primary: []", "primary: [linear-decay]"))).run(
        tmp_path / "out", device="cpu"
    )
    found = load_results(str(tmp_path / "out"))
    runs = found.runs.set_index("run_id")
    assert len(runs) == 4 * 6 and set(found.ranks["run_id"]) == set(found.curves["run_id"]) == set(runs.index)
    losses = found.records.query("split == 'test'").groupby("run_id")[["nll", "tokens"]].sum()
    torch.testing.assert_close(
        torch.tensor((losses["nll"] / losses["tokens"])[runs.index].to_numpy()),
        torch.tensor(runs["test_loss"].to_numpy(float)),
    )
    assert losses.index.difference(runs.index).tolist() == ["base"]
    judged = found.judge().set_index("arm")
    assert judged["family"].to_dict() == {
        "linear-decay": "primary", "empirical": "exploratory", "random": "exploratory",
    }  # fmt: skip
    assert judged["verdict"].notna().tolist() == [True, False, False]
    per_seed = runs.pivot(index="seed", columns="arm", values="test_loss")
    difference, row = (per_seed["linear-decay"] - per_seed["uniform"]).mean(), judged.loc["linear-decay"]
    # Judged by records, whose losses count as an archive keeps them, in single precision.
    assert row["mean"] == pytest.approx(difference, abs=1e-7) and row["low"] < difference < row["high"]
    assert report(str(tmp_path / "out"), str(tmp_path / "page")) == tmp_path / "page" / "report.html"
    assert "linear-decay" in (tmp_path / "page" / "report.html").read_text()


def test_results_studies_and_plans_by_shape_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import adaptive_lora\n"
        f"found = adaptive_lora.load_results({str(ROOT / 'results' / 'demo')!r})\n"
        "judged = found.judge()\n"
        "assert set(judged['family']) == {'exploratory'} and judged['verdict'].isna().all(), judged\n"  # named none
        "assert {'linear-decay', 'shuffled'} <= set(judged['arm']) and judged['mean'].notna().all()\n"
        f"named = adaptive_lora.load_results({str(ROOT / 'results' / 'superseded' / 'alpaca-stories260k')!r}).judge()\n"
        "primary = named[named['family'] == 'primary']\n"
        "assert len(primary) == 4 and set(primary['verdict']) <= {'better', 'worse', 'equivalent', 'undecided'}\n"
        "assert len(found.runs) and len(found.ranks) and len(found.curves)\n"
        "assert list(found.records) == ['run_id', 'split', 'record', 'nll', 'tokens']\n"
        f"adaptive_lora.load_study({str(ROOT / 'studies' / 'demo.yaml')!r})\n"
        "assert adaptive_lora.plan('demo', 'linear-decay').provenance['device'] is None\n"
    )
    done = fresh(READING).run(code + NEVER_ASKED)
    assert done.returncode == 0, done.stderr
    with pytest.raises(UsageError, match="is an export, which stays as it is: name a folder"):
        report(ROOT / "results" / "demo")
    with pytest.raises(StudyFolderError, match="is no study folder"):
        load_results(tmp_path / "none")
