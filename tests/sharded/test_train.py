"""`torchrun -m adaptive_lora.sharded`, in a world of this process: what it writes, and how it goes on."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from adaptive_lora.errors import DataError, PlanError, UsageError
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.sharded.__main__ import arguments, main
from adaptive_lora.sharded.job import Job, adapters_of
from adaptive_lora.sharded.train import train_sharded
from adaptive_lora.training.bank import Bank
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.options import TrainingOptions
from adaptive_lora.training.ranks import Ranks, joined
from tests.conftest import mixed_plan

OPTIONS = TrainingOptions(learning_rate=1.0, steps=4, batch_size=2, dropout=0.1)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun tells a process that is alone."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))


@pytest.fixture
def alone(world: None) -> Iterator[Ranks]:
    with joined("cpu", minutes=5) as ranks:
        yield ranks


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Sixteen records."""
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"Say {i}:", "completion": f" {i} and {i + 1}."} for i in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def job(model_folders: dict[str, Path], gpt2: FrozenBase, texts: Path, tmp_path: Path) -> Job:
    """One plan, two seeds."""
    plans = {"mixed": mixed_plan(gpt2.outline.modules)}
    return Job(
        model=str(model_folders["gpt2"]), data=str(texts), test=str(texts), out=tmp_path / "out", plans=plans,
        options=OPTIONS, rates=(1e-2,), seeds=(0, 1), max_length=32,
    )  # fmt: skip


def test_adapters_and_losses_are_the_banks_and_peft_reads_them(
    job: Job, gpt2: FrozenBase, world: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job.plans["mixed"].save(tmp_path / "mixed.json")
    words = ["--model", job.model, "--data", job.data, "--test", job.data, "--out", str(job.out), "--steps", "3"]
    words += ["--learning-rate", "1e-2,1e-3", "--batch-size", "2", "--max-length", "32", "--device", "cpu"]
    assert main([str(tmp_path / "mixed.json"), *words, "--warmup", "0"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report == json.loads(job.results.read_text()) and "step 1 of 3: loss" in err
    names = ["mixed-0.01-seed-0", "mixed-0.001-seed-0"]
    assert {path.name for path in job.out.iterdir()} == {*names, "results.json"}
    assert [row["adapter"] for row in report["adapters"]] == names
    options = replace(OPTIONS, steps=3, dropout=0.0)
    adapters = adapters_of(replace(job, seeds=(0,), rates=(1e-2, 1e-3), options=options), gpt2)
    assert [row["run_id"] for row in report["adapters"]] == [adapter.run_id for adapter in adapters]
    with Bank(gpt2, [adapter.member for adapter in adapters]) as bank:
        while bank.running:
            bank.step()
        wanted = bank.evaluate(adapters[0].member.examples)
    assert [row["test_loss"] for row in report["adapters"]] == pytest.approx([e.loss for e in wanted], rel=1e-6)
    assert wanted[0].loss != wanted[1].loss
    with quiet_libraries():
        model = PeftModel.from_pretrained(gpt2.model, str(job.out / names[1]))
    found = evaluate(model, adapters[0].member.examples, torch.device("cpu"))
    assert found.loss == pytest.approx(wanted[1].loss, rel=1e-5)


def test_an_interrupted_training_ends_in_the_same_adapters(job: Job, alone: Ranks, tmp_path: Path) -> None:
    """One of them diverges, the other's checkpoint is cut short."""
    job = replace(job, rates=(1e-2, 1e30), seeds=(0,))
    whole = train_sharded(job, alone)
    fine, wild = whole["adapters"]
    assert fine["test_loss"] and fine["diverged_at"] is None
    assert wild["test_loss"] is None and wild["diverged_at"] == wild["steps"] > 0
    assert not (job.out / wild["adapter"]).exists()
    again, asked = replace(job, out=tmp_path / "again"), iter([False, False, True])
    with pytest.raises(KeyboardInterrupt):
        train_sharded(again, alone, should_stop=lambda: next(asked))
    saved = again.out / "checkpoints"
    assert len(list(saved.iterdir())) == 2 and not again.results.exists()
    (saved / f"{fine['adapter']}.safetensors").write_bytes(b"cut short")  # begins anew
    found = train_sharded(replace(again, checkpoint_seconds=0), alone)
    for ours, theirs in zip(found["adapters"], whole["adapters"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    one, other = (folder / fine["adapter"] / "adapter_model.safetensors" for folder in (job.out, again.out))
    assert one.read_bytes() == other.read_bytes()
    assert train_sharded(again, alone) == found  # nothing is trained again
    with pytest.raises(UsageError, match=r"has the results of other plans, data or training"):
        train_sharded(replace(again, seeds=(1,)), alone)


@pytest.mark.parametrize(
    ("spoil", "kind", "match"),
    [
        (lambda job: replace(job, rates=(1e-2, 1e-2)), UsageError, "Two adapters would have one name"),
        (lambda job: replace(job, max_length=1), DataError, "has room for a completion within 1 tokens"),
        (lambda job: replace(job, plans={"other": _renamed(job.plans["mixed"])}), PlanError, "The plan other is of"),
    ],
    ids=["one name", "no room", "other model"],
)
def test_what_cannot_be_trained_is_refused(
    job: Job, gpt2: FrozenBase, spoil: Callable[[Job], Job], kind: type[Exception], match: str
) -> None:
    with pytest.raises(kind, match=match):
        adapters_of(spoil(job), gpt2)


def _renamed(plan: RankPlan) -> RankPlan:
    modules = tuple(replace(m, name=f"other.{m.name}") for m in plan.modules)
    return replace(plan, modules=modules, ranks={f"other.{name}": rank for name, rank in plan.ranks.items()})


def test_the_documented_command_has_only_options_that_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "machines-sharded.md").read_text(encoding="utf-8")
    words = page.split("-m adaptive_lora.sharded", 1)[1].split("```")[0].replace("\\\n", " ").split()
    asked = arguments().parse_args(words)
    assert asked.seeds == [0, 1, 2] and asked.learning_rate == [1e-4, 3e-4] and len(asked.plans) == 2
    options = {text for action in arguments()._actions for text in action.option_strings}
    assert set(re.findall(r"`(--[a-z-]+)`", page)) <= options | {"--nnodes", "--rdzv-endpoint"}


def test_the_command_says_all_that_is_wrong_with_the_plans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], world: None
) -> None:
    (tmp_path / "cut.json").write_text("{")
    words = ["--model", "demo", "--data", "demo:fine-tuning", "--out", str(tmp_path / "out"), "--steps", "2"]
    assert main([str(tmp_path / "cut.json"), str(tmp_path / "none.json"), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rank 0: ") and "cut.json" in err and "none.json" in err
    for wrong in (["--steps", "0"], ["--seeds", "0,a"]):
        with pytest.raises(SystemExit):
            main(["plan.json", *words, *wrong])
    assert "must be at least 1, got 0" in (err := capsys.readouterr().err) and "numbers with commas" in err
