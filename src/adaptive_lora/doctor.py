"""Checks that this installation works, by doing small real things, and says what to do where it does not."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from adaptive_lora import demo

State = Literal["ok", "note", "failed"]


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    state: State
    found: str
    remedy: str = ""


def examine() -> Iterator[Check]:
    """All checks in turn; one that raises counts as failed, with its reason."""
    for name, (check, remedy) in CHECKS.items():
        try:
            state, found = check()
        except ModuleNotFoundError as error:
            state, found = "note", f"{error.name} is not installed: this installation reads studies and plans by shape"
            remedy = "For the rest, pip install 'adaptive-lora[train]'."
        except Exception as error:
            state, found = "failed", f"{type(error).__name__}: {error}"
        yield Check(name, state, found, "" if state == "ok" else remedy)


def _python_and_torch() -> tuple[State, str]:
    import torch

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    found = f"Python {sys.version.split()[0]}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    return ("ok" if sys.version_info >= (3, 11) and version >= (2, 6) else "failed"), found


def _libraries() -> tuple[State, str]:
    versions = {name: metadata.version(name) for name in ("transformers", "peft", "accelerate", "datasets")}
    major, minor = (int(part) for part in versions["peft"].split(".")[:2])
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    return ("ok" if (major, minor) >= (0, 21) else "note"), found


def _forward_and_backward() -> tuple[State, str]:
    """One update of a rank-2 adapter on the embedded model must lower the loss of its own batch."""
    import torch

    from adaptive_lora.training.adapter import attached, trainable
    from adaptive_lora.training.options import TrainingOptions
    from adaptive_lora.training.reference import update

    base, plan, examples = _small_case({"attention": 2, "mlp": 2})
    with attached(base, plan, seed=0) as model:
        optimizer = torch.optim.AdamW(trainable(model).values(), weight_decay=0.0)
        options = TrainingOptions(learning_rate=1e-3, steps=3, schedule="constant")
        first, *_, last = (update(model, optimizer, examples, options, step).loss for step in range(3))
    return ("ok" if last < first else "failed"), f"loss {first:.3f} -> {last:.3f} in two updates"


def _bank() -> tuple[State, str]:
    """Two adapters trained together must have the losses of each trained alone."""
    from adaptive_lora.training.adapter import attached
    from adaptive_lora.training.bank import Bank, Member
    from adaptive_lora.training.options import TrainingOptions
    from adaptive_lora.training.reference import train

    base, plan, examples = _small_case({"attention": 2, "mlp": 1})
    options = TrainingOptions(learning_rate=1e-3, steps=3, batch_size=2, dropout=0.1)
    members = [Member(plan=plan, options=options, seed=seed, examples=examples) for seed in (0, 1)]
    together = []
    with Bank(base, members) as bank:
        while bank.running:
            together.append([getattr(record, "loss", float("nan")) for record in bank.step()])
    worst = 0.0
    for k, member in enumerate(members):
        with attached(base, plan, member.seed, options.dropout) as model:
            alone = train(model, examples, options, member.seed).curve
        worst = max(
            worst, *(abs(now[k] - record.loss) / record.loss for now, record in zip(together, alone, strict=True))
        )
    return ("ok" if worst < 1e-4 else "failed"), f"losses as alone within {worst:.1e}"


def _kernels() -> tuple[State, str]:
    from adaptive_lora.training.kernels import kernel_places, kernel_status, split_kernel

    status, places = kernel_status(), kernel_places()
    compiled = all(text == "compiled" for text in status.values())
    products = "by bfloat16 tiles" if split_kernel() else "oneDNN"
    found = ", ".join(f"{name}: {text}" for name, text in {**status, "float32 products": products}.items())
    return ("ok" if compiled and not places else "note"), "; ".join([found, *places])


def _rank_pattern() -> tuple[State, str]:
    """Mixed ranks must be built as planned (read back inside `attached`) and survive PEFT's own format."""
    import torch
    from peft import PeftModel

    from adaptive_lora.models.libraries import quiet_libraries
    from adaptive_lora.training.adapter import ADAPTER, attached, lora_layers, save_adapter, weights_of

    base, plan, examples = _small_case({"attention": 3, "mlp": 1})
    ids = torch.tensor([examples[0].ids])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        with attached(base, plan, seed=0) as model:
            for layer in lora_layers(model).values():
                layer.lora_B[ADAPTER].weight.fill_(0.01)
            expected = model(input_ids=ids).logits
            save_adapter(weights_of(model), plan, Path(folder), base)
        with quiet_libraries():
            loaded = PeftModel.from_pretrained(base.model, folder)
        difference = float((loaded(input_ids=ids).logits - expected).abs().max())
    return (
        "ok" if difference < 1e-5 else "failed"
    ), f"ranks 3 and 1 as planned; reloaded logits differ by {difference:.1e}"


def _ledger() -> tuple[State, str]:
    """What was committed must outlive a writer that dies in the middle of the next transaction."""
    from adaptive_lora.study.folder import StudyPaths
    from adaptive_lora.study.open_ledger import create_or_open, open_to_read

    dies = (
        "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1]);"
        "db.execute(\"INSERT INTO study VALUES ('torn', '1')\"); os._exit(9)"
    )
    place = Path.cwd() if os.access(Path.cwd(), os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix=".doctor-") as name:
        folder = Path(name)
        ledger = create_or_open(folder)
        ledger.set_facts({"kept": 1})
        ledger.close()
        subprocess.run([sys.executable, "-c", dies, str(StudyPaths(folder).ledger)], check=False)
        with contextlib.closing(open_to_read(folder)) as reader:
            facts = reader.facts()
    return (
        "ok" if facts == {"kept": 1} else "failed"
    ), f"SQLite {sqlite3.sqlite_version}; what a killed writer had committed is kept, the rest is gone"


def _hub() -> tuple[State, str]:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "note", "offline by HF_HUB_OFFLINE; only cached and local models and data are used"
    try:
        with urllib.request.urlopen(f"{constants.ENDPOINT}/api/models?limit=1", timeout=5) as answer:
            return "ok", f"{constants.ENDPOINT} answers {answer.status}"
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        return "note", f"{constants.ENDPOINT} cannot be reached ({getattr(error, 'reason', error)})"


def _accelerator() -> tuple[State, str]:
    import torch

    if torch.cuda.is_available():
        return "ok", f"{torch.cuda.device_count()} CUDA device(s): {torch.cuda.get_device_name(0)}"
    if torch.backends.mps.is_available():
        return "ok", "Apple GPU (mps)"
    return "note", "none; studies run on the CPU"


def _room() -> tuple[State, str]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return ("ok" if free > 2 else "note"), f"{free:.1f} GB free where you stand"


def _optional_tools() -> tuple[State, str]:
    tools = {name: shutil.which(name) for name in ("latexmk", "tectonic", "chromium")}
    found = ", ".join(f"{name} {'found' if path else 'not found'}" for name, path in tools.items())
    return ("ok" if tools["latexmk"] or tools["tectonic"] else "note"), found


def _assets() -> tuple[State, str]:
    place = os.environ.get("ADAPTIVE_LORA_ASSETS")
    if not place:
        return (
            "note",
            "ADAPTIVE_LORA_ASSETS is not set; recipes that read it are refused, everything else works",
        )
    return ("ok" if Path(place).is_dir() else "failed"), f"ADAPTIVE_LORA_ASSETS={place}"


def _small_case(ranks: dict[str, int]):  # type: ignore[no-untyped-def]  # noqa: ANN202 (torch types, imported late)
    """The embedded model, a plan with these ranks by kind, and four examples."""
    from adaptive_lora.data.encoding import Encoder
    from adaptive_lora.data.sources import from_dicts
    from adaptive_lora.demo.tasks import generate
    from adaptive_lora.planning.plan import RankPlan, Scaling
    from adaptive_lora.training.base import load_base

    base = load_base(demo.MODEL, demo.model_folder())
    modules = base.outline.modules
    pattern = {m.name: ranks[m.kind] for m in modules}
    plan = RankPlan("ranks", sum(m.params_per_rank * pattern[m.name] for m in modules), modules, pattern, Scaling())
    records = from_dicts(generate("fine-tuning", 4), "demo").records
    return base, plan, list(Encoder(base.tokenizer, base.outline.within(512)).encode_all(records))


CHECKS: dict[str, tuple[Callable[[], tuple[State, str]], str]] = {
    "Python and torch": (_python_and_torch, "Use Python 3.11 or later and `pip install 'torch>=2.6'`."),
    "libraries": (
        _libraries,
        "`pip install -U peft`: before 0.21 it does not warn of rank patterns that match nothing.",
    ),
    "forward and backward": (_forward_and_backward, "Reinstall torch for this machine; see pytorch.org."),
    "bank": (_bank, "Set `engine: reference` in study files, and report this with the versions above."),
    "kernels": (
        _kernels,
        "Install a C compiler, or name one in CC: without it, training on the CPU is slower. Where "
        "they are not kept in the cache, point XDG_CACHE_HOME to a folder of your own.",
    ),
    "PEFT rank pattern": (_rank_pattern, "`pip install -U peft transformers`, then run this again."),
    "ledger": (_ledger, "Use a folder on a local disk; some network drives do not keep SQLite's promises."),
    "hub": (_hub, "Without the hub, name local folders and files; `adaptive-lora demo` needs nothing."),
    "accelerator": (
        _accelerator,
        "For a GPU, install the torch build that fits its driver; see pytorch.org.",
    ),
    "disk": (_room, "Free some space: adapters and checkpoints of a study are kept in its folder."),
    "optional tools": (_optional_tools, "For PDF papers install latexmk (TeX Live) or tectonic."),
    "study material": (
        _assets,
        "Set ADAPTIVE_LORA_ASSETS to the folder with `models/` and `data/`, or leave it.",
    ),
}
