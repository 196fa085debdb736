"""Every tool that `compat.py` runs: its own forms of a family's adapter, and those of PEFT, each by the tool itself."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from adaptive_lora.export import gguf, mlx, onnx, writing
from adaptive_lora.export.checking import applied, logits
from adaptive_lora.export.forms import Form
from adaptive_lora.export.writing import Job
from compat_openvino import convert, next_tokens_by_openvino
from compat_rows import Case, Row, attempt, judged
from compat_tools import (
    BUILDER,
    Task,
    logits_by_ctranslate2,
    logits_by_onnxruntime,
    next_tokens_by_llama_cpp,
    run_all,
)

BY_PEFT: tuple[Form, ...] = ("peft", "padded", "single-alpha", "unit")


def by_peft(case: Case, _: Path) -> list[Row]:
    """PEFT's own forms, and merged weights by transformers."""

    def one(form: Form) -> Row:
        job = case.job(f"peft-{form}")
        writing.write_form(form, job)
        found = writing._READERS[form](job, case.asked)
        return judged("peft", case, form, found.logits, [p.base for p in case.asked])

    return [attempt("peft", case, form, lambda form=form: one(form)) for form in (*BY_PEFT, "merged")]


def by_mlx(case: Case, _: Path) -> list[Row]:
    """mlx-lm, its own form, merged weights, and a folder of PEFT's."""
    bare = _without_prefix(case)
    alone = mlx.logits_by_mlx(bare, None, case.texts)

    def one(form: Form) -> Row:
        job = case.job(f"mlx-{form}")
        writing.write_form(form, job)
        base, adapter = (job.folder, None) if form == "merged" else (bare, job.folder)
        return judged("mlx", case, form, mlx.logits_by_mlx(base, adapter, case.texts), alone)

    return [attempt("mlx", case, form, lambda form=form: one(form)) for form in ("mlx", "merged", *BY_PEFT)]


def _without_prefix(case: Case) -> Path:
    """The model with GPT-2's names as OpenAI's own file has them, which are the ones that mlx-lm knows."""
    if case.family != "gpt2":
        return case.folder
    to = case.place / "bare"
    shutil.copytree(case.folder, to)
    tensors = safetensors.torch.load_file(to / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(bare, to / "model.safetensors", {"format": "pt"})
    return to


def by_llama_cpp(case: Case, converter: Path) -> list[Row]:
    """llama.cpp's engine, through its converter: by `export` for its own forms, as its user would for the others."""
    base, forms = case.place / "base.gguf", ("gguf", "gguf-merged", *BY_PEFT)
    jobs: dict[Form, Job] = {form: case.job(f"llama-{form}", converter) for form in forms}
    adapters = str(converter / "convert_lora_to_gguf.py")
    tasks: dict[str, Task] = {"base": (str(converter / "convert_hf_to_gguf.py"), [case.folder, "--outfile", base])}
    for form in BY_PEFT:
        writing.write_form(form, jobs[form])
        to = jobs[form].folder / gguf.ADAPTER_FILE
        tasks[form] = (adapters, [jobs[form].folder, "--base", case.folder, "--outfile", to])
    said = run_all(tasks)
    vocabulary = int(case.asked[0].base.shape[-1])
    alone = next_tokens_by_llama_cpp(base, None, case.texts, vocabulary)

    def one(form: Form) -> Row:
        model, lora = base, jobs[form].folder / gguf.ADAPTER_FILE
        if form not in tasks:
            writing.write_form(form, jobs[form])
        elif refused := said[form]:
            raise RuntimeError(refused)
        if form == "gguf-merged":
            model, lora = jobs[form].folder / gguf.MODEL_FILE, None
        own = next_tokens_by_llama_cpp(model, lora, case.texts, vocabulary)
        return judged("llama.cpp", case, form, own, alone, last=True)

    return [attempt("llama.cpp", case, form, lambda form=form: one(form)) for form in forms]


def by_onnxruntime(case: Case, _: Path) -> list[Row]:
    """The reader of `.onnx_adapter` files, and ONNX Runtime GenAI's model builder."""

    def read() -> Row:
        job = case.job("onnx-adapter")
        writing.write_form("onnx-adapter", job)
        found = writing.check_form("onnx-adapter", job, case.asked)
        result = "right" if found.passed else "wrong"
        return Row("onnxruntime", case.family, "onnx-adapter", result, found.largest, 0.0, found.effect)

    rows = [attempt("onnxruntime", case, "onnx-adapter", read)]
    forms: tuple[Form, ...] = (*BY_PEFT, "merged")
    if not has("onnxruntime_genai", "onnx_ir"):
        return [*rows, *(Row("onnxruntime", case.family, form, "not here") for form in forms)]
    jobs = {form: case.job(f"onnx-{form}") for form in forms}
    for form, job in jobs.items():
        writing.write_form(form, job)
    adapters = {form: ["--extra_options", f"adapter_path={jobs[form].folder}"] for form in BY_PEFT}
    built = {name: case.place / f"built-{name}" for name in ("base", *forms)}
    models = {name: jobs["merged"].folder if name == "merged" else case.folder for name in built}
    plain = ["-p", "fp32", "-e", "cpu", "-c", case.place / "cache"]
    said = run_all(
        {name: (BUILDER, ["-i", models[name], "-o", to, *plain, *adapters.get(name, [])]) for name, to in built.items()}
    )
    if said["base"]:
        why = f"its builder does not know this family: {said['base']}".replace(f"{case.place}/", "")[:160]
        return [*rows, *(Row("onnxruntime", case.family, form, "no base", why=why) for form in forms)]
    alone = logits_by_onnxruntime(built["base"], case.texts)

    def one(form: Form) -> Row:
        if refused := said[form]:
            raise RuntimeError(refused)
        return judged("onnxruntime", case, form, logits_by_onnxruntime(built[form], case.texts), alone)

    return [*rows, *(attempt("onnxruntime", case, form, lambda form=form: one(form)) for form in forms)]


def by_lm_eval(case: Case, _: Path) -> list[Row]:
    """lm-evaluation-harness's model, with `peft=` and without."""
    from lm_eval.models.huggingface import HFLM

    def answers(folder: Path, adapter: Path | None) -> list[Tensor]:
        plain = {"device": "cpu", "dtype": "float32", "batch_size": 1}
        model = HFLM(pretrained=str(folder), peft=None if adapter is None else str(adapter), **plain)
        return [model._model_call(torch.tensor([ids]))[0] for ids in case.texts]

    alone = answers(case.folder, None)

    def one(form: Form) -> Row:
        job = case.job(f"lm-eval-{form}")
        writing.write_form(form, job)
        own = answers(job.folder, None) if form == "merged" else answers(case.folder, job.folder)
        return judged("lm-eval", case, form, own, alone)

    return [attempt("lm-eval", case, form, lambda form=form: one(form)) for form in (*BY_PEFT, "merged")]


def by_openvino(case: Case, _: Path) -> list[Row]:
    """OpenVINO GenAI with its default, an `alpha` of 1, which is the whole scale there."""
    model = convert(case.folder, case.place / "openvino")
    alone = next_tokens_by_openvino(model, None, case.texts)

    def one(form: Form) -> Row:
        job = case.job(f"openvino-{form}")
        writing.write_form(form, job)
        if form == "merged":
            own = next_tokens_by_openvino(convert(job.folder, case.place / "openvino-merged"), None, case.texts)
        else:
            own = next_tokens_by_openvino(model, job.folder / "adapter_model.safetensors", case.texts)
        return judged("openvino", case, form, own, alone, last=True)

    return [attempt("openvino", case, form, lambda form=form: one(form)) for form in (*BY_PEFT, "merged")]


def by_olive(case: Case, _: Path) -> list[Row]:
    """What `olive convert-adapters` makes of PEFT's forms, as a model with such inputs computes it."""
    jobs = {form: case.job(f"olive-{form}") for form in BY_PEFT}
    for form, job in jobs.items():
        writing.write_form(form, job)
    said = run_all(
        {
            form: ("olive", ["convert-adapters", "-a", job.folder, "-o", job.folder / "adapter", "--disable_telemetry"])
            for form, job in jobs.items()
        }
    )

    def one(form: Form) -> Row:
        if refused := said[form]:
            raise RuntimeError(refused)
        with applied(case.base.model, onnx.read_onnx_adapter(jobs[form].folder)):
            own = [logits(case.base.model, ids) for ids in case.texts]
        return judged("olive", case, form, own, [p.base for p in case.asked])

    return [attempt("olive", case, form, lambda form=form: one(form)) for form in BY_PEFT]


def by_ctranslate2(case: Case, _: Path) -> list[Row]:
    """CTranslate2's converter and its engine, given merged weights, or a folder of PEFT's as if it were a model."""
    alone = logits_by_ctranslate2(case.folder, case.place / "ctranslate2", case.texts)

    def one(form: Form) -> Row:
        job = case.job(f"ctranslate2-{form}")
        writing.write_form(form, job)
        own = logits_by_ctranslate2(job.folder, case.place / f"ctranslate2-of-{form}", case.texts)
        return judged("ctranslate2", case, form, own, alone)

    return [attempt("ctranslate2", case, form, lambda form=form: one(form)) for form in ("merged", *BY_PEFT)]


Runner = Callable[[Case, Path], list[Row]]
RUNNERS: Mapping[str, tuple[Runner, tuple[str, ...], tuple[str, ...]]] = {
    "peft": (by_peft, ("peft",), ("peft", "transformers", "torch")),
    "lm-eval": (by_lm_eval, ("lm_eval",), ("lm-eval", "peft")),
    "mlx": (by_mlx, ("mlx_lm",), ("mlx-lm", "mlx")),
    "llama.cpp": (by_llama_cpp, ("xllamacpp", "gguf"), ("xllamacpp", "gguf")),
    "openvino": (by_openvino, ("openvino_genai", "openvino_tokenizers"), ("openvino-genai", "openvino")),
    "onnxruntime": (by_onnxruntime, ("onnxruntime",), ("onnxruntime", "onnxruntime-genai")),
    "olive": (by_olive, ("olive", "onnxruntime"), ("olive-ai", "onnxruntime")),
    "ctranslate2": (by_ctranslate2, ("ctranslate2",), ("ctranslate2",)),
}
"""Tool -> what runs it, the modules that must be there, the distributions whose versions are told."""


def has(*modules: str) -> bool:
    """Whether all of these can be imported."""
    return all(importlib.util.find_spec(module) is not None for module in modules)
