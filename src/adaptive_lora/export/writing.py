"""An adapter written in a form, and read back: every form with what writes it and what checks it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_lora.errors import ModelError
from adaptive_lora.export import gguf, mlx, onnx
from adaptive_lora.export.checking import Check, Probe, applied, compared, logits, updates_differing
from adaptive_lora.export.forms import Form, padded, same_role, single_alpha, unit
from adaptive_lora.export.low_rank import AdapterWeights, LowRank
from adaptive_lora.export.merged import write_merged
from adaptive_lora.export.peft_folder import BaseFacts, write_peft
from adaptive_lora.export.reading import read_adapter
from adaptive_lora.models.libraries import quiet_libraries

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive_lora.training.base import FrozenBase


@dataclass(frozen=True)
class Job:
    """What is written, of which model, where."""

    adapter: AdapterWeights
    base: FrozenBase
    facts: BaseFacts
    folder: Path
    llama_cpp: Path | None = None
    """A checkout of llama.cpp, for GGUF; None: `find_converter` looks."""

    @property
    def padded(self) -> AdapterWeights:
        """With zeros for modules of the same name in other blocks."""
        return padded(self.adapter, same_role(self.adapter, self.facts.modules))

    @property
    def blocks(self) -> int:
        """How many blocks the model has."""
        return 1 + max(m.depth for m in self.facts.modules)


def write_form(form: Form, job: Job) -> None:
    """Writes the files of a form into the folder."""
    _WRITERS[form](job)


def check_form(form: Form, job: Job, asked: Sequence[Probe]) -> Check:
    """Logits of the prompts by what was written, against those of the weights."""
    found = _READERS[form](job, asked)
    dtype = str(job.base.model.dtype).removeprefix("torch.")
    check = compared(found.by, asked, found.logits, found.noise, dtype)
    if check.passed:
        return check
    return Check(**{**vars(check), "differing": (*found.differing(), *check.differing)})


def _write_gguf(job: Job) -> None:
    converter = gguf.require_converter(job.llama_cpp)
    gguf.write_gguf(single_alpha(job.adapter), job.base, job.facts, job.folder, converter)


def _write_gguf_merged(job: Job) -> None:
    converter = gguf.require_converter(job.llama_cpp)
    gguf.write_gguf_merged(job.adapter.modules, job.base, job.folder, converter)


def _write_mlx(job: Job) -> None:
    mlx.check_base(Path(job.base.location))
    mlx.write_mlx(job.padded, job.blocks, job.folder)


_WRITERS: Mapping[Form, Callable[[Job], None]] = {
    "peft": lambda job: write_peft(job.adapter, job.facts, job.folder),
    "padded": lambda job: write_peft(job.padded, job.facts, job.folder, short=True),
    "single-alpha": lambda job: write_peft(single_alpha(job.adapter), job.facts, job.folder),
    "unit": lambda job: write_peft(unit(job.adapter), job.facts, job.folder),
    "merged": lambda job: write_merged(job.adapter.modules, job.base, job.folder),
    "gguf": _write_gguf,
    "gguf-merged": _write_gguf_merged,
    "mlx": _write_mlx,
    "onnx-adapter": lambda job: onnx.write_onnx_adapter(job.padded, job.folder),
}


@dataclass(frozen=True)
class Found:
    """What was read back."""

    by: str
    """What read it."""
    logits: list[Tensor]
    """Of every prompt."""
    differing: Callable[[], tuple[str, ...]] = tuple
    """What to say where they differ."""
    noise: float = 0.0
    """How far its logits are from ours without an adapter."""


def _by_peft(job: Job, asked: Sequence[Probe]) -> Found:
    import peft
    import torch

    from adaptive_lora.training.adapter import detach

    try:
        with quiet_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # PEFT draws initial values before it reads the saved ones.
            with torch.random.fork_rng(devices=[]):
                model = peft.PeftModel.from_pretrained(job.base.model, str(job.folder)).eval()
            found = [logits(model, p.ids) for p in asked]
    finally:
        detach(job.base.model)
        job.base.model.requires_grad_(False)
    return Found(
        f"PEFT {peft.__version__}",
        found,
        lambda: updates_differing(job.adapter.modules, read_adapter(job.folder).modules),
    )


def _by_transformers(job: Job, asked: Sequence[Probe]) -> Found:
    import transformers

    with quiet_libraries():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(job.folder), dtype=job.base.model.dtype, trust_remote_code=False, local_files_only=True
        ).eval()
    return Found(f"transformers {transformers.__version__}", [logits(model, p.ids) for p in asked])


def _by_transformers_gguf(job: Job, asked: Sequence[Probe]) -> Found:
    import transformers

    from adaptive_lora.models.gguf import read_gguf_model

    model = read_gguf_model(job.folder / gguf.MODEL_FILE).eval()
    return Found(f"transformers {transformers.__version__}, from GGUF", [logits(model, p.ids) for p in asked])


def _by_rule(job: Job, asked: Sequence[Probe], by: str, found: Mapping[str, LowRank]) -> Found:
    unknown = [name for name in found if name not in {m.name for m in job.facts.modules}]
    if unknown:
        raise ModelError(f"{job.folder}: {unknown[0]} is no module of {job.facts.named}.")
    with applied(job.base.model, found):
        own = [logits(job.base.model, p.ids) for p in asked]
    return Found(by, own, lambda: updates_differing(job.adapter.modules, found))


def _by_llama_cpp_rule(job: Job, asked: Sequence[Probe]) -> Found:
    found = gguf.read_gguf(job.folder, job.adapter.modules, job.base.model.config)
    return _by_rule(job, asked, "llama.cpp's rule, alpha / rank of each tensor", found)


def _by_mlx(job: Job, asked: Sequence[Probe]) -> Found:
    """By mlx-lm itself where it is installed and the base model is a folder, else by its rule."""
    if not (mlx.is_installed() and Path(job.base.location).is_dir()):
        return _by_mlx_rule(job, asked, "it is not installed, or the base model in no folder")
    texts = [p.ids for p in asked]
    try:
        alone = mlx.logits_by_mlx(Path(job.base.location), None, texts)
    except ValueError as error:  # a family that it does not know, or whose weights have other names there
        return _by_mlx_rule(job, asked, f"it does not load the base model: {str(error).splitlines()[0].strip()}")
    noise = max(float((own - p.base).abs().max()) for own, p in zip(alone, asked, strict=True))
    found = mlx.logits_by_mlx(Path(job.base.location), job.folder, texts)
    told = (
        f"without an adapter its logits differ by {noise:.2g} already, as it reads the base model otherwise: take the "
        "form merged"
    )
    return Found(f"mlx-lm {mlx.version()}", found, lambda: (told,), noise)


def _by_mlx_rule(job: Job, asked: Sequence[Probe], why: str) -> Found:
    own = {mlx.mlx_name(m.name): m.name for m in job.facts.modules}
    found = {own.get(name, name): update for name, update in mlx.read_mlx(job.folder).items()}
    return _by_rule(job, asked, f"mlx-lm's rule ({why})", found)


def _by_onnx_rule(job: Job, asked: Sequence[Probe]) -> Found:
    return _by_rule(job, asked, "ONNX Runtime's reader", onnx.read_onnx_adapter(job.folder))


_READERS: Mapping[Form, Callable[[Job, Sequence[Probe]], Found]] = {
    **dict.fromkeys(("peft", "padded", "single-alpha", "unit"), _by_peft),
    "merged": _by_transformers,
    "gguf": _by_llama_cpp_rule,
    "gguf-merged": _by_transformers_gguf,
    "mlx": _by_mlx,
    "onnx-adapter": _by_onnx_rule,
}  # fmt: skip
