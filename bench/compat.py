"""Which tool reads which form of an adapter right: the table of `export --list`, run again. Prints one row a tool.

Four families (GPT-2, Llama, Qwen 3, Gemma 3 text), tiny and random, with an adapter of ranks 2, 4, 5 and 12, two
scalings and one module left out, in every form, through every tool that is installed:

right      its logits (llama.cpp: log-probabilities of the next token) are those of the weights, to 1e-5 in float32, or
           to twice the tool's own difference without an adapter, up to 5e-3 of the largest
wrong      it answers, and says something else
refused    it says that it cannot
not here   it is not installed; `make interop` installs what there is

    make interop
    python bench/compat.py [--only TOOL] [--out FILE]

llama.cpp: its converter is looked for as `export` does ($LLAMA_CPP); as the tiny models have a tokenizer that it does
not know, it is told to take it for GPT-2's, which no weight depends on.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.export.shapes import FAMILIES, make_family, mixed_adapter

from adaptive_lora.errors import AdaptiveLoraError
from adaptive_lora.export import gguf, mlx, writing
from adaptive_lora.export.base_facts import facts_of
from adaptive_lora.export.checking import LOOSEST, TOLERANCE, Probe, probes
from adaptive_lora.export.forms import MERGED, Form
from adaptive_lora.export.tools import find_tool
from adaptive_lora.export.writing import Job
from adaptive_lora.files import write_atomically
from adaptive_lora.models.older_keys import add_older_keys
from adaptive_lora.training.base import FrozenBase, load_base, quiet_libraries

BY_PEFT: tuple[Form, ...] = ("peft", "padded", "single-alpha", "unit")
SHIM = """
import runpy, sys
from pathlib import Path
script = Path({real!r}) / Path(__file__).name
sys.path[:0] = [str(script.parent), str(script.parent / "gguf-py")]
import conversion.base
for kind in vars(conversion.base).values():
    if isinstance(kind, type) and "get_vocab_base_pre" in vars(kind):
        kind.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
runpy.run_path(str(script), run_name="__main__")
"""
ENGINE = """
import json, sys
import xllamacpp
model, lora, texts, vocabulary = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.fit_params = model, 128, 1, False, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
if lora:
    adapter = xllamacpp.CommonAdapterLoraInfo()
    adapter.path, adapter.scale = lora, 1.0
    params.lora_adapters = [adapter]
server = xllamacpp.Server(params)
for ids in texts:
    asked = {"prompt": ids, "max_tokens": 1, "logprobs": vocabulary, "temperature": 0.0, "cache_prompt": False}
    said = server.handle_completions(asked)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    print("ANSWER", json.dumps({str(token["id"]): token["logprob"] for token in said}), flush=True)
"""
"""A process of its own, as what the engine refuses may end the process."""


@dataclass(frozen=True)
class Row:
    """What a tool made of a form of a family."""

    tool: str
    family: str
    form: str
    result: str
    """`right`, `wrong`, `refused` or `not here`."""
    largest: float | None = None
    """Largest difference of a logit, or of a log-probability."""
    noise: float | None = None
    """The same of the base model, without an adapter."""
    effect: float | None = None
    """Largest difference that the adapter makes."""
    why: str | None = None
    by_table: str = "not said"
    """What the table says: `reads` or `does not`."""


@dataclass(frozen=True)
class Case:
    """A family's model, its adapter, and what is right."""

    family: str
    base: FrozenBase
    asked: tuple[Probe, ...]
    place: Path

    def job(self, name: str, llama_cpp: Path | None = None) -> Job:
        return Job(
            mixed_adapter(self.base.outline.modules), self.base, facts_of(self.base), self.place / name, llama_cpp
        )

    @property
    def folder(self) -> Path:
        return Path(self.base.location)

    @property
    def texts(self) -> list[list[int]]:
        return [list(p.ids) for p in self.asked]


Answers = Sequence[Tensor]


def judged(tool: str, case: Case, form: str, own: Answers, alone: Answers, last: bool = False) -> Row:
    """A row by a tool's answers with the adapter and without; `last`: log-probabilities of the next token."""

    def aim(logits: Tensor) -> Tensor:
        return torch.log_softmax(logits[-1].double(), -1).float() if last else logits

    def far(one: Answers, other: Answers) -> float:
        return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))

    wanted, before = [aim(p.wanted) for p in case.asked], [aim(p.base) for p in case.asked]
    largest, noise, size = far(own, wanted), far(alone, before), max(1.0, *(float(w.abs().max()) for w in wanted))
    right = largest <= max(TOLERANCE * size, min(2 * noise, LOOSEST * size))
    return Row(tool, case.family, form, "right" if right else "wrong", largest, noise, far(wanted, before))


def attempt(tool: str, case: Case, form: str, answer: Callable[[], Row]) -> Row:
    """The row, or the refusal."""
    try:
        return answer()
    except Exception as error:  # whatever a tool refuses with
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return Row(tool, case.family, form, "refused", why=reason[0][:160].replace(str(case.place), ""))


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
    """llama.cpp's engine, through its converter."""
    base = case.place / "base.gguf"
    gguf._convert(converter / "convert_hf_to_gguf.py", [case.folder], base)
    vocabulary = int(case.asked[0].base.shape[-1])
    alone = _engine(base, None, case.texts, vocabulary)

    def one(form: Form) -> Row:
        job = case.job(f"llama-{form}", converter)
        model, lora = base, job.folder / gguf.ADAPTER_FILE
        writing.write_form(form, job)
        if form == "merged":
            model, lora = case.place / "merged.gguf", None
            gguf._convert(converter / "convert_hf_to_gguf.py", [job.folder], model)
        elif form == "gguf-merged":
            model, lora = job.folder / gguf.MODEL_FILE, None
        elif form != "gguf":
            gguf._convert(converter / "convert_lora_to_gguf.py", [job.folder, "--base", case.folder], lora)
        return judged("llama.cpp", case, form, _engine(model, lora, case.texts, vocabulary), alone, last=True)

    forms: tuple[Form, ...] = ("gguf", "gguf-merged", "merged", *BY_PEFT)
    return [attempt("llama.cpp", case, form, lambda form=form: one(form)) for form in forms]


def _engine(model: Path, lora: Path | None, texts: Sequence[Sequence[int]], vocabulary: int) -> list[Tensor]:
    command = [sys.executable, "-c", ENGINE, str(model), str(lora or ""), json.dumps(texts), str(vocabulary)]
    done = subprocess.run(command, capture_output=True, text=True)
    answers = [json.loads(line.split(" ", 1)[1]) for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    if len(answers) != len(texts):
        said = [line for line in done.stderr.splitlines() if "error" in line.lower() or " E " in line]
        raise RuntimeError((said or done.stderr.splitlines() or ["the engine said nothing"])[-1])
    return [torch.tensor([answer[str(i)] for i in range(vocabulary)]) for answer in answers]


def by_onnxruntime(case: Case, _: Path) -> list[Row]:
    """ONNX Runtime GenAI's model builder, and the reader of `.onnx_adapter` files."""

    def built(form: Form) -> Row:
        job = case.job(f"onnx-{form}")
        writing.write_form(form, job)
        merged = form == "merged"
        return judged("onnxruntime", case, form, _onnx(job.folder if merged else case.folder, job, merged), alone)

    def read() -> Row:
        job = case.job("onnx-adapter")
        writing.write_form("onnx-adapter", job)
        found = writing.check_form("onnx-adapter", job, case.asked)
        result = "right" if found.passed else "wrong"
        return Row("onnxruntime", case.family, "onnx-adapter", result, found.largest, 0.0, found.effect)

    rows = [attempt("onnxruntime", case, "onnx-adapter", read)]
    if not _has("onnxruntime_genai", "onnx_ir"):
        return [*rows, *(Row("onnxruntime", case.family, form, "not here") for form in (*BY_PEFT, "merged"))]
    try:
        alone = _onnx(case.folder, case.job("onnx-base"), True)
    except RuntimeError as error:
        why = f"its builder does not know this family: {error}"[:160]
        return [*rows, *(Row("onnxruntime", case.family, form, "refused", why=why) for form in (*BY_PEFT, "merged"))]
    forms: tuple[Form, ...] = (*BY_PEFT, "merged")
    return [*rows, *(attempt("onnxruntime", case, form, lambda form=form: built(form)) for form in forms)]


def _onnx(model: Path, job: Job, alone: bool) -> list[Tensor]:
    """Logits of a model that the builder makes, with the adapter of the job unless it is `alone`."""
    import numpy as np
    import onnxruntime

    to = job.folder.with_name(job.folder.name + "-built")
    options = [] if alone else ["--extra_options", f"adapter_path={job.folder}"]
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "fp32", "-e", "cpu"]
    places = ["-i", str(model), "-o", str(to), "-c", str(job.folder.with_name("cache"))]
    done = subprocess.run([*builder, *places, *options], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["the builder said nothing"])[-1])
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(to / "model.onnx"), settings)
    texts = [probe.ids for probe in probes(job.base, job.adapter)]
    found = []
    for ids in texts:
        given: dict[str, Any] = {}
        for entry in session.get_inputs():
            if entry.name == "input_ids":
                given[entry.name] = np.array([ids], dtype=np.int64)
            elif entry.name == "attention_mask":
                given[entry.name] = np.ones((1, len(ids)), dtype=np.int64)
            elif entry.name == "position_ids":
                given[entry.name] = np.arange(len(ids), dtype=np.int64)[None]
            else:  # nothing has been read before
                shape = [size if isinstance(size, int) else 1 if i == 0 else 0 for i, size in enumerate(entry.shape)]
                given[entry.name] = np.zeros(shape, dtype=np.float32)
        found.append(torch.from_numpy(session.run(["logits"], given)[0][0]))
    return found


Runner = Callable[[Case, Path], list[Row]]
RUNNERS: Mapping[str, tuple[Runner, tuple[str, ...], tuple[str, ...]]] = {
    "peft": (by_peft, ("peft",), ("peft", "transformers", "torch")),
    "mlx": (by_mlx, ("mlx_lm",), ("mlx-lm", "mlx")),
    "llama.cpp": (by_llama_cpp, ("xllamacpp", "gguf"), ("xllamacpp", "gguf")),
    "onnxruntime": (by_onnxruntime, ("onnxruntime",), ("onnxruntime", "onnxruntime-genai")),
}
"""Tool -> what runs it, the modules that must be there, the distributions whose versions are told."""


REMARKED = {("mlx", "gpt2", "merged")}
"""What the table says in a remark alone: refused, and so no danger."""


def _has(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


def _versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def run(tool: str, cases: Sequence[Case], converter: Path | None) -> list[Row]:
    """All rows of a tool, with what the table says."""
    runner, modules, _ = RUNNERS[tool]
    if not _has(*modules) or (tool == "llama.cpp" and converter is None):
        lacking = ", ".join(modules) if not _has(*modules) else "llama.cpp's converter ($LLAMA_CPP)"
        return [Row(tool, case.family, "all", "not here", why=f"needs {lacking}") for case in cases]
    rows = []
    for case in cases:
        print(f"{tool}: {case.family}", file=sys.stderr)
        try:
            rows += runner(case, converter or Path())
        except Exception as error:  # it cannot even read the base model
            why = f"without an adapter: {str(error).strip().splitlines()[0]}"
            rows.append(Row(tool, case.family, "all", "refused", why=why))
    return [_with_table(row, case) for row, case in ((row, _of(cases, row)) for row in rows)]


def _of(cases: Sequence[Case], row: Row) -> Case:
    return next(case for case in cases if case.family == row.family)


def _with_table(row: Row, case: Case) -> Row:
    tool = find_tool(row.tool)
    transposed = bool(facts_of(case.base).transposed)
    reads = row.form in tool.accepts and (row.form in MERGED or not transposed or tool.conv1d)
    return Row(**{**asdict(row), "by_table": "reads" if reads else "does not"})


def agrees(row: Row) -> bool:
    """Whether what the table says came out: what it reads is right, and nothing that it does not is."""
    if (row.tool, row.family, row.form) in REMARKED:
        return row.result != "wrong"
    return row.result == "not here" or (row.result == "right") == (row.by_table == "reads")


def open_cases(place: Path) -> list[Case]:
    """The four families, each in a folder of its own, whose configurations older readers read too."""
    cases = []
    for family in FAMILIES:
        own = place / family
        own.mkdir()
        folder = make_family(family, own / "base")
        add_older_keys(folder)
        base = load_base(family, folder)
        cases.append(Case(family, base, tuple(probes(base, mixed_adapter(base.outline.modules))), own))
    return cases


def shim(place: Path) -> Path | None:
    """llama.cpp's converter, told what the tokenizer is; None where it is not here."""
    real = gguf.find_converter()
    if real is None:
        return None
    place.mkdir()
    for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
        (place / name).write_text(SHIM.format(real=str(real)))
    return place


def table(rows: Sequence[Row]) -> str:
    """One row a tool: forms by what became of them, with the families where that was not all."""
    lines = []
    for tool in dict.fromkeys(row.tool for row in rows):
        own = [row for row in rows if row.tool == tool]
        parts = []
        for result in ("right", "wrong", "refused", "not here"):
            forms: dict[str, list[str]] = {}
            for row in own:
                if row.result == result:
                    forms.setdefault(row.form, []).append(row.family)
            named = [f if len(k) == len(FAMILIES) else f"{f} ({', '.join(k)})" for f, k in forms.items()]
            if named:
                parts.append(f"{result}: {', '.join(named)}")
        lines.append(f"{tool:12} " + f"\n{'':13}".join(parts))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(RUNNERS))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    tools = [asked.only] if asked.only else list(RUNNERS)
    with tempfile.TemporaryDirectory() as place, quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converter = shim(Path(place) / "converter")
        cases = open_cases(Path(place))
        rows = [row for tool in tools for row in run(tool, cases, converter)]
    versions = {tool: _versions(RUNNERS[tool][2]) for tool in tools}
    print(table(rows))
    odd = [row for row in rows if not agrees(row)]
    for row in odd:
        what = f"{row.tool}, {row.family}, {row.form}: {row.result} {row.why or ''}"
        print(f"not as the table says ({row.by_table}): {what}")
    if asked.out:
        content = {"versions": versions, "tolerance": TOLERANCE, "rows": [asdict(row) for row in rows]}
        write_atomically(asked.out, json.dumps(content, indent=1) + "\n")
    if odd:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except AdaptiveLoraError as error:
        sys.exit(str(error))
