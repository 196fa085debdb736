"""A plan as the text that is pasted into a training tool: YAML or Python."""

from __future__ import annotations

import functools
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptive_lora.errors import UsageError
from adaptive_lora.export.snippets.keys import adapter_keys, rate_keys, tool_keys
from adaptive_lora.export.snippets.one_rank import concession, expressible
from adaptive_lora.export.snippets.trainers import TRAINERS, Trainer, find_trainer
from adaptive_lora.export.snippets.yaml_text import yaml_text
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan

if TYPE_CHECKING:
    import jinja2

_ADAPTER = "Into the training config: modules, ranks and alphas are those of the adapter, which is at step 0."


@dataclass(frozen=True)
class Snippet:
    """What is pasted into a training tool, and the plan that it makes the tool train."""

    trainer: Trainer
    text: str
    plan: RankPlan
    """The plan that was asked for, or the best that the tool can express."""
    concession: str | None
    """In words what the tool cannot express of the plan that was asked for; None where it is that plan."""
    adapter: str | None
    """The adapter at step 0 that the text names, where it does."""

    @property
    def concession_sentence(self) -> str | None:
        """The same as a sentence with the way out."""
        if self.concession is None:
            return None
        told = f"{self.trainer.title} has one rank for all modules, so this is {self.concession}."
        way = " With `--adapter DIR` it trains the plan itself, on from an adapter at step 0."
        return told + (way if self.trainer.continues else "")


def snippet(
    plan: RankPlan,
    tool: str,
    *,
    learning_rate: float | None = None,
    adapter: str | None = None,
    available: Sequence[ModuleShape] | None = None,
) -> Snippet:
    """The text for `tool` that trains `plan`, or the best plan on its budget that the tool can express.

    `learning_rate` is written where it is known. `adapter` is a folder with the plan's adapter at step 0
    (`step_0.save`): tools that train an adapter on then train the plan as it is, whatever they can say of ranks.
    `available` are all modules of the model, for tools that name parts of blocks. Raises UsageError with the remedy.

    >>> from adaptive_lora.planning.plan import Scaling
    >>> q = ModuleShape("model.layers.0.self_attn.q_proj", "attention", 0, 8, 8)
    >>> plan = RankPlan("uniform", 64, (q,), {q.name: 4}, Scaling(reference_rank=4.0))
    >>> print(snippet(plan, "axolotl").text.partition("lora_dropout")[0])
    # uniform, 64 parameters: 1 module, 64 of 64 trainable parameters.
    # For Axolotl, as read in 0.19.0. Into the training config, in place of its `lora_` keys.
    adapter: lora
    lora_r: 4
    lora_alpha: 8
    <BLANKLINE>
    """
    trainer = find_trainer(tool)
    if adapter is not None:
        check_continues(trainer)
        keys = {**adapter_keys(trainer, adapter), **rate_keys(trainer, learning_rate)}
        return Snippet(trainer, header(plan, trainer, _ADAPTER) + yaml_text(keys), plan, None, adapter)
    found = expressible(plan, trainer, available)
    instead = concession(found, plan)
    if trainer.language == "yaml":
        body = yaml_text({**tool_keys(found, trainer, available), **rate_keys(trainer, learning_rate)})
    else:
        body = python_text(found, trainer, learning_rate)
    return Snippet(trainer, header(found, trainer, trainer.paste, instead) + body, found, instead, None)


def check_continues(trainer: Trainer) -> None:
    """UsageError where a tool trains no adapter on by its configuration."""
    if trainer.continues is None:
        able = ", ".join(name for name, other in TRAINERS.items() if other.continues)
        direct = " and needs none, as it takes ranks of single modules" if trainer.expresses == "any ranks" else ""
        raise UsageError(
            f"{trainer.title} {trainer.version} trains no adapter on by its configuration{direct}; `--adapter` is for "
            f"{able}. Leave it out."
        )


def header(plan: RankPlan, trainer: Trainer, paste: str, instead: str | None = None) -> str:
    """Comments: which plan this is, what it gives up, and where the text goes."""
    facts = plan.provenance
    text = _texts().get_template("header.txt").render(
        strategy=plan.strategy, budget=facts.get("budget") or f"{plan.budget:,} parameters", model=facts.get("model"),
        modules=len(plan.modules), left_out=len(plan.left_out), spent=plan.trainable_parameters, ceiling=plan.budget,
        wanted=facts.get("instead_of"), instead=instead, trainer=trainer, paste=paste,
    )  # fmt: skip
    wrapped = (textwrap.wrap(_printable(line), 116, break_on_hyphens=False) for line in text.splitlines())
    return "".join(f"# {line}\n" for lines in wrapped for line in lines)


def _printable(text: str) -> str:
    """Text without control characters, whatever a model is called: a comment ends where a line does."""
    return "".join(c if c.isprintable() else " " for c in text)


def python_text(plan: RankPlan, trainer: Trainer, learning_rate: float | None) -> str:
    """The Python for a tool: a table of modules, and the call that takes it."""
    common = Counter(plan.ranks.values()).most_common(1)[0][0]
    return _texts().get_template(f"{trainer.name}.txt").render(
        table=[(repr(m.name), plan.ranks[m.name], repr(plan.alpha_of(m.name))) for m in plan.modules],
        rank=common, alpha=repr(plan.scaling.at(common) * common),
        fan_in_fan_out=any(m.fan_in_fan_out for m in plan.modules), learning_rate=learning_rate and repr(learning_rate),
    )  # fmt: skip


@functools.cache
def _texts() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("adaptive_lora.export.snippets", "texts"), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,  # no markup
    )  # fmt: skip
