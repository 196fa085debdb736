"""What `compat.py` compares and says: a family's model with an adapter, and what a tool made of a form of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.export.shapes import FAMILIES, make_family, mixed_adapter

from adaptive_lora.export.base_facts import facts_of
from adaptive_lora.export.checking import LOOSEST, TOLERANCE, Probe, probes
from adaptive_lora.export.forms import MERGED
from adaptive_lora.export.tools import find_tool
from adaptive_lora.export.writing import Job
from adaptive_lora.models.older_keys import add_older_keys
from adaptive_lora.training.base import FrozenBase, load_base


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
        sizes = [(a - b).abs().max() for a, b in pairs if a is not None and b is not None]
        return float(torch.stack(sizes).max())  # which does not pass over what is no number

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


REMARKED = {
    ("mlx", "gpt2", "mlx"), ("onnxruntime", "gpt2", "onnx-adapter"), ("olive", "gpt2", "padded"),
    ("olive", "gpt2", "unit"),
}  # fmt: skip
"""Right or refused, for a base model that is not: the first is read beside OpenAI's names alone, of the others the
builder makes none."""


def with_table(row: Row, case: Case) -> Row:
    """The row, with what the table says of it."""
    tool = find_tool(row.tool)
    transposed = bool(facts_of(case.base).transposed)
    reads = row.form in tool.accepts and (row.form in MERGED or not transposed or tool.conv1d)
    return Row(**{**asdict(row), "by_table": "reads" if reads else "does not"})


def agrees(row: Row) -> bool:
    """Whether what the table says came out: what it reads is right, and nothing that it does not is."""
    if (row.tool, row.family, row.form) in REMARKED:
        return row.result in ("right", "refused", "not here", "no base")
    return row.result in ("not here", "no base") or (row.result == "right") == (row.by_table == "reads")


def open_cases(place: Path, families: Sequence[str] = FAMILIES) -> list[Case]:
    """The families, each in a folder of its own, whose configurations older readers read too."""
    cases = []
    for family in families:
        own = place / family
        own.mkdir()
        folder = make_family(family, own / "base")
        add_older_keys(folder)
        base = load_base(family, folder)
        cases.append(Case(family, base, tuple(probes(base, mixed_adapter(base.outline.modules))), own))
    return cases
