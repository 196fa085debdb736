"""What tests share: two tiny models of real architectures, the embedded one, real material where it is."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from adaptive_lora import demo
from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.sources import from_dicts
from adaptive_lora.demo.tasks import generate
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.planning.strategies import STRATEGIES, registry
from adaptive_lora.planning.strategies.base import MEASURES
from adaptive_lora.reporting.figures import making
from adaptive_lora.reporting.figures.theme import save
from adaptive_lora.study import estimated_cost, prepare, pricing
from adaptive_lora.training.base import FrozenBase, load_base

# Nothing in the suite may ask the network, whatever the machine allows.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Every study groups, hashes and encodes its source: with thousands of records, that is a third of a small one's time.
DEMO_RECORDS, prepare.DEMO_RECORDS = prepare.DEMO_RECORDS, 500
# Seconds that a dry run tries steps for, to say how long all will take.
PATIENCE = pricing.PATIENCE
pricing.PATIENCE = estimated_cost.PATIENCE = 0.1
# A test that other work on the machine has slowed down has not failed.
hypothesis.settings.register_profile("untimed", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _registries_as_they_were() -> Iterator[None]:
    """Strategies and measures that a test registers are gone after it."""
    tables: list[dict[str, Any]] = [
        STRATEGIES,
        MEASURES,
        registry.OUTSIDE_MEASURES,
        registry._MEASURE_KEYS,
        registry._PINNED,  # type: ignore[list-item]
    ]
    kept = [dict(table) for table in tables]
    yield
    for table, before in zip(tables, kept, strict=True):
        table.clear()
        table.update(before)


@pytest.fixture(autouse=True, scope="session")
def _figures_at_least_cost() -> Iterator[None]:
    """As SVG alone, which is what a page holds: the other forms cost twice as much. And by no second process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "save", functools.partial(save, kinds=("svg",)))
        patch.setattr(making, "_cores", lambda: 1)
        yield


@pytest.fixture
def whole_sources(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Generated sources as they are elsewhere, for tests that know what comes of them."""
    monkeypatch.setattr(prepare, "DEMO_RECORDS", DEMO_RECORDS)
    prepare._generated.cache_clear()
    yield
    prepare._generated.cache_clear()


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder with real models and data; the test is skipped where there is none."""
    place = os.environ.get("ADAPTIVE_LORA_ASSETS")
    if not place:
        pytest.skip("ADAPTIVE_LORA_ASSETS is not set: no real models and data here")
    return Path(place)


def make_model(kind: str, folder: Path) -> Path:
    """Saves a tiny random model of a real architecture, with the embedded tokenizer, as a model folder."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=768, n_positions=64, n_embd=24, n_layer=3, n_head=2, initializer_range=0.2,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        GPT2LMHeadModel(config).save_pretrained(folder)
    else:
        config = LlamaConfig(
            vocab_size=768, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.2,
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo.model_folder() / name, folder)
    return folder


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`gpt2` and `llama` model folders."""
    return {kind: make_model(kind, tmp_path_factory.mktemp(kind)) for kind in ("gpt2", "llama")}


@pytest.fixture(params=["gpt2", "llama"])
def base(request: pytest.FixtureRequest, model_folders: dict[str, Path]) -> FrozenBase:
    """Each tiny model in turn, freshly loaded."""
    return load_base(request.param, model_folders[request.param])


@pytest.fixture
def gpt2(model_folders: dict[str, Path]) -> FrozenBase:
    """The tiny GPT-2."""
    return load_base("gpt2", model_folders["gpt2"])


@pytest.fixture(scope="session")
def embedded() -> FrozenBase:
    """The embedded model."""
    return load_base(demo.MODEL, demo.model_folder())


@pytest.fixture
def examples(gpt2: FrozenBase) -> list[Example]:
    """Forty encoded demo tasks of different lengths."""
    records = from_dicts(generate("fine-tuning", 40), "demo").records
    return list(Encoder(gpt2.tokenizer, 64).encode_all(records))


def mixed_plan(modules: tuple[ModuleShape, ...], rule: str = "constant", shift: int = 0) -> RankPlan:
    """A plan with ranks 1, 2, 3, 4, 5 in turn."""
    ranks = {m.name: 1 + (i + shift) % 5 for i, m in enumerate(modules)}
    cost = sum(m.params_per_rank * ranks[m.name] for m in modules)
    return RankPlan("ranks", cost, modules, ranks, Scaling(rule, 2.0, 3.0))  # type: ignore[arg-type]


STUDY = """\
name: small
model: {{name: {model}}}
data: {{source: "demo:fine-tuning", train: 24, validation: 10, test: 20, max_length: 64}}
budgets: ["rank:2"]
arms: [uniform, linear-decay, empirical, random]
seeds: {{evaluation: 2}}
train: {{steps: 6, batch_size: 4, learning_rate: 1e-2, dropout: 0.1}}
analysis: {{primary: []}}
controls: none
engine: bank
"""
REFERENCE = ("engine: bank", "engine: reference")


@pytest.fixture
def study_file(tmp_path: Path, model_folders: dict[str, Path]) -> Callable[..., Path]:
    """Writes a small study file, with replacements, and returns its path."""

    def write(*replacements: tuple[str, str], name: str = "study.yaml") -> Path:
        text = STUDY.format(model=model_folders["gpt2"])
        for old, new in replacements:
            assert old in text, f"{old!r} is not in the study file"
            text = text.replace(old, new)
        if "margin:" not in text:  # a number: most of these studies train no half of the budget to measure it by
            text = text.replace("analysis: {", "analysis: {margin: 0.01, ")
        if "report:" not in text:  # answers on the page take longer than all else of a study this small
            text += "report: {answers: 0}\n"
        path = tmp_path / name
        path.write_text(text)
        return path

    return write
