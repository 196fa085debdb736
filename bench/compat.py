"""Which tool reads which form of an adapter right: the table of `export --list`, run again. Prints one row a tool.

Four families (GPT-2, Llama, Qwen 3, Gemma 3 text), tiny and random, with an adapter of ranks 2, 4, 5 and 12, two
scalings and one module left out, in every form, through every tool that is installed:

right      its logits (llama.cpp: log-probabilities of the next token) are those of the weights, to 1e-5 in float32, or
           to ten times the tool's own difference without an adapter, up to 5e-3 of the largest
wrong      it answers, and says something else
refused    it says that it cannot
no base    it does not read the family's base model either
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
from compat_tools import BUILDER, Task, logits_by_onnxruntime, next_tokens_by_llama_cpp, run_all, shim

BY_PEFT: tuple[Form, ...] = ("peft", "padded", "single-alpha", "unit")


@dataclass(frozen=True)
class Row:
    """What a tool made of a form of a family."""

    tool: str
    family: str
    form: str
    result: str
    """`right`, `wrong`, `refused`, `no base` or `not here`."""
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


Answers = Sequence[Tensor | None]


def judged(tool: str, case: Case, form: str, own: Answers, alone: Answers, last: bool = False) -> Row:
    """A row by a tool's answers with the adapter and without; `last`: log-probabilities of the next token."""

    def aim(logits: Tensor) -> Tensor:
        return torch.log_softmax(logits[-1].double(), -1).float() if last else logits

    def far(one: Answers, other: Answers) -> float:
        pairs = zip(one, other, strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs if a is not None and b is not None)

    wanted, before = [aim(p.wanted) for p in case.asked], [aim(p.base) for p in case.asked]
    largest, noise, size = far(own, wanted), far(alone, before), max(1.0, *(float(w.abs().max()) for w in wanted))
    right = largest <= max(TOLERANCE * size, min(10 * noise, LOOSEST * size))
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
    if not _has("onnxruntime_genai", "onnx_ir"):
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


Runner = Callable[[Case, Path], list[Row]]
RUNNERS: Mapping[str, tuple[Runner, tuple[str, ...], tuple[str, ...]]] = {
    "peft": (by_peft, ("peft",), ("peft", "transformers", "torch")),
    "mlx": (by_mlx, ("mlx_lm",), ("mlx-lm", "mlx")),
    "llama.cpp": (by_llama_cpp, ("xllamacpp", "gguf"), ("xllamacpp", "gguf")),
    "onnxruntime": (by_onnxruntime, ("onnxruntime",), ("onnxruntime", "onnxruntime-genai")),
}
"""Tool -> what runs it, the modules that must be there, the distributions whose versions are told."""


REMARKED = {("mlx", "gpt2", "mlx"), ("onnxruntime", "gpt2", "onnx-adapter")}
"""Read right, for a base model that is not: the first beside OpenAI's names alone, of the second the builder makes none.
"""


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
            rows.append(Row(tool, case.family, "all", "no base", why=why))
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
        return row.result == "right" or row.result == "refused"
    return row.result in ("not here", "no base") or (row.result == "right") == (row.by_table == "reads")


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


def table(rows: Sequence[Row]) -> str:
    """One row a tool: forms by what became of them, with the families where that was not all."""
    lines = []
    for tool in dict.fromkeys(row.tool for row in rows):
        own = [row for row in rows if row.tool == tool]
        parts = []
        for result in ("right", "wrong", "refused", "no base", "not here"):
            forms: dict[str, list[str]] = {}
            for row in own:
                if row.result == result:
                    forms.setdefault(row.form, []).append(row.family)
            named = [f if len(k) == len(FAMILIES) else f"{f} ({', '.join(k)})" for f, k in forms.items()]
            if named:
                parts.append(f"{result}: {', '.join(named)}")
        lines.append(f"{tool:12} " + f"\n{'':13}".join(parts))
    return "\n".join(lines)


def with_kept(path: Path, versions: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """What to write: the rows, and of an earlier file those of other tools and families."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"versions": {}, "rows": []}
    done = {(row.tool, row.family) for row in rows}
    kept = [row for row in before["rows"] if (row["tool"], row["family"]) not in done]
    order = list(RUNNERS)
    every = sorted([*kept, *map(asdict, rows)], key=lambda r: (order.index(r["tool"]), FAMILIES.index(r["family"])))
    return {"versions": {**before["versions"], **versions}, "tolerance": TOLERANCE, "rows": every}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(RUNNERS))
    parser.add_argument("--family", choices=FAMILIES)
    parser.add_argument("--out", type=Path, help="JSON; what was not run this time stays in it")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    tools = [asked.only] if asked.only else list(RUNNERS)
    with tempfile.TemporaryDirectory() as place, quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converter = shim(Path(place) / "converter")
        cases = [case for case in open_cases(Path(place)) if asked.family in (None, case.family)]
        rows = [row for tool in tools for row in run(tool, cases, converter)]
    versions = {tool: _versions(RUNNERS[tool][2]) for tool in tools}
    print(table(rows))
    odd = [row for row in rows if not agrees(row)]
    for row in odd:
        what = f"{row.tool}, {row.family}, {row.form}: {row.result} {row.why or ''}"
        print(f"not as the table says ({row.by_table}): {what}")
    if asked.out:
        write_atomically(asked.out, json.dumps(with_kept(asked.out, versions, rows), indent=1) + "\n")
    if odd:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except AdaptiveLoraError as error:
        sys.exit(str(error))
