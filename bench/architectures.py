"""Whether the bank is the model, for tiny random models of some eighty architectures. Prints one row each.

modules          linear layers that `targets: all-linear` adapts, and how many it leaves out as text does not pass there
PEFT             the plan built by PEFT and read back: modules, ranks, scalings
as alone         largest difference of a text's loss, relative: plain transformers, one text a pass, against the padded
                 batches of the reference engine
as reference     largest difference between bank and reference engine, of losses relative and of adapters relative to
                 the largest value of any A, or B, after three updates of two adapters without dropout; float64, or
                 float32 where the model cannot
every B moved    whether each of the bank's adapters left its start in every module

Texts have 5 to 60 tokens: longer than every window and chunk (8), on both sides of every switch of position scaling
(32). Where all linear layers cannot be adapted, the refusal is shown and the targets that it advises are tried.

    python bench/architectures.py [--only PART_OF_A_NAME] [--out FILE] [--table FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from adaptive_lora import demo
from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import UsageError
from adaptive_lora.files import write_atomically
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.study.targets import targets_of
from adaptive_lora.training.adapter import attached, weights_of
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase, load_base, quiet_libraries
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.fidelity import check_causal
from adaptive_lora.training.options import TrainingOptions
from adaptive_lora.training.peft_check import check_with_peft
from adaptive_lora.training.reference import train
from zoo import ZOO, texts

ROOT = Path(__file__).parent.parent
BOUND = 1e-5
# Adam divides by the gradient's size. With a large epsilon it does not, and rounding of gradients near 0 stays small.
OPTIONS = TrainingOptions(learning_rate=0.1, steps=3, batch_size=4, dropout=0.0, epsilon=1.0)


@dataclass(frozen=True)
class Row:
    """What was found of one family; None where it did not come to that."""

    family: str
    targets: str = "all-linear"
    modules: int | None = None
    left_out: int | None = None
    peft: bool | None = None
    as_alone: float | None = None
    as_reference: float | None = None
    moved: bool | None = None
    mode: str | None = None
    refusal: str | None = None
    remedy: str | None = None
    """What comes of the targets that the refusal advises, in short."""
    seconds: float = 0.0

    @property
    def agrees(self) -> bool:
        """Whether everything was compared and is equal within the bound."""
        numbers = (self.as_alone, self.as_reference)
        return bool(self.peft and self.moved) and all(n is not None and n <= BOUND for n in numbers)


def saved(family: str, folder: Path) -> Path:
    """The family's tiny model as a model folder, with the embedded tokenizer."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(0)
    config = ZOO[family]()
    try:
        model = AutoModelForCausalLM.from_config(config)
    except ValueError:
        model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # a scale of 0 would hide what it multiplies
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo.model_folder() / name, folder)
    return folder


def alone(folder: Path, examples: Sequence[Example], dtype: str) -> list[float]:
    """Each text's summed loss by plain transformers, one a pass; shortest first, as dynamic NTK keeps the longest."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    found = [0.0] * len(examples)
    with torch.no_grad():
        for i in sorted(range(len(examples)), key=lambda i: len(examples[i].ids)):
            ids, first = torch.tensor(examples[i].ids), examples[i].prompt_length
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
            found[i] = float(torch.nn.functional.cross_entropy(logits[first - 1 : -1], ids[first:], reduction="sum"))
    return found


def plan_of(modules: Sequence[ModuleShape], shift: int) -> RankPlan:
    """Ranks 1, 2, 3 in turn."""
    ranks = {m.name: 1 + (i + shift) % 3 for i, m in enumerate(modules)}
    cost = sum(m.params_per_rank * ranks[m.name] for m in modules)
    return RankPlan("ranks", cost, tuple(modules), ranks, Scaling("constant", 2.0, 3.0))


def by_reference(base: FrozenBase, member: Member, test: Sequence[Example]) -> tuple[list[float], dict[str, Any]]:
    """Losses of all updates and texts, and the adapter."""
    with attached(base, member.plan, member.seed) as model:
        progress = train(model.to(base.model.dtype), member.examples, member.options, member.seed)
        found = evaluate(model, test, base.device)
        return [record.loss for record in progress.curve] + found.nll.tolist(), copied(weights_of(model))


def copied(weights: Any) -> dict[str, Any]:
    return {name: tuple(x.clone() for x in pair) for name, pair in weights.items()}


def difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest, relative."""
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, theirs, strict=True))


def adapters_apart(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest difference of all A, and of all B, relative to the largest value of any."""
    found = []
    for letter in (0, 1):
        apart = max(float((ours[name][letter] - theirs[name][letter]).abs().max()) for name in theirs)
        found.append(apart / max(float(pair[letter].abs().max()) for pair in theirs.values()))
    return max(found)


Targets = str | list[str]


def compared(family: str, folder: Path, targets: Targets) -> Row:
    """The row of a family in float64, or in float32 where that fails; raises what then fails."""
    try:
        return compared_in("float64", family, folder, targets)
    except Exception:
        return compared_in("float32", family, folder, targets)


def compared_in(dtype: str, family: str, folder: Path, targets: Targets) -> Row:
    """The row of a family."""
    base = load_base(family, folder, dtype=dtype)  # type: ignore[arg-type]
    modules, examples = targets_of(base.outline, targets), texts()
    members = [Member(plan=plan_of(modules, k), options=OPTIONS, seed=k, examples=tuple(examples)) for k in (0, 1)]
    check_causal(base)
    check_with_peft(base.model, members[0].plan, base.outline.modules, family)
    as_alone = difference(evaluate(base.model, examples, base.device).nll.tolist(), alone(folder, examples, dtype))
    wanted = [by_reference(base, member, examples) for member in members]
    with Bank(base, members, texts=examples) as bank:
        curves = [[getattr(record, "loss", float("nan")) for record in bank.step()] for _ in range(OPTIONS.steps)]
        losses = [[*(c[k] for c in curves), *found.nll.tolist()] for k, found in enumerate(bank.evaluate(examples))]
        adapters = [copied(slot.weights()) for slot in bank.slots]
        mode = f"{'padded' if bank.model.padded else 'packed'}: {bank.kernels}; {dtype}"
    apart = [
        max(difference(ours, theirs), adapters_apart(adapter, other))
        for ours, adapter, (theirs, other) in zip(losses, adapters, wanted, strict=True)
    ]
    return Row(
        family, str(targets), len(modules), len(base.outline.uncalled), True, as_alone, max(apart),
        all(float(b.abs().max()) > 0 for adapter in adapters for _, b in adapter.values()), mode,
    )  # fmt: skip


def row_of(family: str) -> Row:
    """The row of a family, with its refusal and what comes of the remedy where there is one; never an error."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        stack.enter_context(quiet_libraries())
        warnings.simplefilter("ignore")
        try:
            folder = saved(family, Path(place))
            try:
                row = compared(family, folder, "all-linear")
            except Exception as error:
                row = Row(family, refusal=said(error))
                row = Row(**{**asdict(row), "remedy": in_short(family, folder, advised(str(error)))})
        except Exception as error:
            row = Row(family, refusal=said(error))
    return Row(**{**asdict(row), "seconds": round(time.perf_counter() - began, 2)})


def said(error: Exception) -> str:
    """A refusal's own words; of anything else its class too."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UsageError) else f"{type(error).__name__}: {text}"


def advised(refusal: str) -> Targets | None:
    """The first targets that a refusal names as a remedy."""
    found = re.search(r"Set `targets: (\[.*?\]|[\w-]+)`", refusal)
    if found is None:
        return None
    text = found[1]
    return text[1:-1].split(", ") if text.startswith("[") else text


def in_short(family: str, folder: Path, targets: Targets | None) -> str | None:
    """What comes of other targets."""
    if targets is None:
        return None
    try:
        row = compared(family, folder, targets)
    except Exception as error:
        return f"refused too: {said(error)}"
    verdict = "agrees" if row.agrees else "DIFFERS"
    return f"`targets: {targets}` {verdict} ({row.modules} modules, {row.as_reference:.0e}; {row.mode})"


# Writing


def cells(row: Row) -> list[str]:
    """The row of the table."""
    number = lambda x: "-" if x is None else f"{x:.0e}"  # noqa: E731
    yes = lambda x: "-" if x is None else "yes" if x else "NO"  # noqa: E731
    last = row.mode or ""
    if row.refusal:
        last = f"refused: {row.refusal}" + (f" Tried: {row.remedy}" if row.remedy else "")
    count = "-" if row.modules is None else f"{row.modules}" + (f" (+{row.left_out} left out)" if row.left_out else "")
    return [row.family, count, yes(row.peft), number(row.as_alone), number(row.as_reference), yes(row.moved), last]


def table(rows: Sequence[Row], versions: dict[str, str]) -> str:
    """The page of the documentation."""
    head = ["family", "modules", "plan = PEFT", "as alone", "bank = reference", "every B moved", "how, or the refusal"]
    lines = [head, ["---"] * len(head), *(cells(row) for row in rows)]
    agree, refused = sum(row.agrees for row in rows), sum(row.refusal is not None for row in rows)
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join(
        [
            "# Architectures",
            "",
            "Which models the bank trains as they are, tried on tiny random models of each family. "
            f"Made by `python bench/architectures.py` with {named}. Of {len(rows)} tiny random models {agree} agree, "
            f"{refused} are refused, {len(rows) - agree - refused} differ by more than {BOUND:g}.",
            "",
            "*As alone*: the largest relative difference of a text's loss between plain transformers, one text a pass, "
            "and the reference engine's batches. *Bank = reference*: of losses and adapters after three updates. "
            "Texts of 5 to 60 tokens reach beyond every window and chunk (8) and lie on both sides of every switch of "
            "position scaling (32). *Packed*: sequences end to end, our attention; *padded*: rows, the model's own. "
            "Before a study is trained, the same is checked on its own model and texts; "
            "[how](how-a-study-runs.md#the-bank-is-the-model).",
            "",
            *("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="families whose name holds this")
    parser.add_argument("--out", type=Path, help="default: results/bench/architectures.json, if all families ran")
    parser.add_argument("--table", type=Path, help="default: docs/architectures.md, likewise")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # tiny products wait longer for one another than they take
    rows = []
    for family in (name for name in ZOO if asked.only in name):
        rows.append(row_of(family))
        print(" | ".join(cells(rows[-1])), f"| {rows[-1].seconds} s", flush=True)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")}
    found = {"versions": versions, "bound": BOUND, "rows": [asdict(row) | {"agrees": row.agrees} for row in rows]}
    out = asked.out or (None if asked.only else ROOT / "results/bench/architectures.json")
    page = asked.table or (None if asked.only else ROOT / "docs/architectures.md")
    if out:
        write_atomically(out, json.dumps(found, indent=1) + "\n")
    if page:
        write_atomically(page, table(rows, versions))
    bad = [row.family for row in rows if not row.agrees and row.refusal is None]
    print(f"{sum(r.agrees for r in rows)} of {len(rows)} agree; differ: {', '.join(bad) or 'none'}", file=sys.stderr)


if __name__ == "__main__":
    main()
