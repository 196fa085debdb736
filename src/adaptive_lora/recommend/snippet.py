"""What is pasted: PEFT's configuration in a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adaptive_lora.errors import UsageError
from adaptive_lora.export.snippets.checking import check
from adaptive_lora.export.snippets.fragment import snippet as tool_snippet
from adaptive_lora.export.snippets.trainers import find_trainer
from adaptive_lora.files import write_atomically
from adaptive_lora.models.locate import locate_model
from adaptive_lora.planning.modules import ModuleShape, matches, role_of
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.reporting.templating import render
from adaptive_lora.study.prepare import open_outline

_WIDTH = 76
_OWN = ("peft", "trl")
"""Tools that take PEFT's configuration as it is, for which `snippet` will do."""


@dataclass(frozen=True)
class Pasted:
    """The text for a training tool."""

    title: str
    """What the tool is called."""
    text: str
    file: Path | None
    """None where the tool cannot take the plan."""
    where: str
    """Where it goes, in a sentence."""
    notes: tuple[str, ...]
    """What the tool cannot express, and what was checked."""
    own: bool
    """Whether `snippet` will do or has to: the tool takes PEFT's configuration, or nothing of the plan."""


def write_for(tool: str, plan: RankPlan, rate: float, model: str, folder: Path) -> Pasted:
    """Writes the text for a tool into `folder`, read back as the tool does; where that cannot be, a note says why.

    It comes after all training, so that what the tool cannot take must not hide the answer.
    """
    from adaptive_lora.training.base import meta_model

    available = open_outline(model).modules
    try:
        made = tool_snippet(plan, tool, learning_rate=rate, available=available)
        checked = check(made, lambda: meta_model(model, locate_model(model)), available)
    except UsageError as error:
        return Pasted(find_trainer(tool).title, "", None, "", (str(error),), own=True)
    notes = [made.concession_sentence] if made.concession_sentence else []
    notes += checked
    file = folder / f"for-{tool}.{'py' if made.trainer.language == 'python' else 'yaml'}"
    write_atomically(file, made.text)
    return Pasted(made.trainer.title, made.text, file, made.trainer.paste, tuple(notes), tool in _OWN)


def snippet(plan: RankPlan, every: Sequence[ModuleShape], folder: Path) -> str:
    """Lines of Python. Ranks that are all the same are written out, others read from PEFT's file in `folder`."""
    ranks, alphas = set(plan.ranks.values()), {plan.alpha_of(name) for name in plan.ranks}
    if len(ranks) > 1 or len(alphas) > 1:
        return f'from peft import LoraConfig\n\nconfig = LoraConfig.from_pretrained("{folder}")'
    opening = render("recommend.opening")
    ends = _joined([f'"{end}"' for end in short_names(plan.modules, every)], len(opening) + len("target_modules=["))
    inner = f'r={ranks.pop()}, lora_alpha={alphas.pop():g}, lora_dropout=0.0, task_type="CAUSAL_LM",'
    return f"from peft import LoraConfig\n\n{opening}{inner}\n{' ' * len(opening)}target_modules=[{ends}])"


def short_names(modules: Sequence[ModuleShape], every: Sequence[ModuleShape]) -> list[str]:
    """The shortest ends of names that mean these modules and no others of the model; full names where no end does.

    >>> shapes = [ModuleShape(f"h.{i}.attn.c_proj", "attention", i, 4, 4) for i in range(2)]
    >>> short_names(shapes, shapes), short_names(shapes, [*shapes, ModuleShape("h.0.mlp.c_proj", "mlp", 0, 4, 4)])
    (['c_proj'], ['attn.c_proj'])
    """
    wanted = {m.name for m in modules}
    for parts in (1, 2, 3):
        ends = list(dict.fromkeys(".".join(role_of(m.name).split(".")[-parts:]) for m in modules))
        if {m.name for m in every if any(matches(m, end) for end in ends)} == wanted:
            return ends
    return [m.name for m in modules]


def _joined(words: Sequence[str], indent: int) -> str:
    """With commas, in lines of `_WIDTH`, the first of which begins at `indent`."""
    lines, room = [""], _WIDTH - indent
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) + 2 > room:
            lines.append("")
        lines[-1] += f"{', ' if lines[-1] else ''}{word}"
    return (",\n" + " " * indent).join(lines)
