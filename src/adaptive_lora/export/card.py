"""What stands beside an export: a model card for people, `compat.json` for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_lora.export.checking import Built, Check, Probe
from adaptive_lora.export.forms import DESCRIPTIONS, MERGED, Form
from adaptive_lora.export.low_rank import AdapterWeights
from adaptive_lora.export.peft_folder import BaseFacts
from adaptive_lora.export.tools import Filled, Tool, compatible, not_read
from adaptive_lora.planning.modules import role_of

CARD_FILE, COMPAT_FILE = "README.md", "compat.json"


@dataclass(frozen=True)
class Story:
    """What is known of an adapter beside its weights."""

    name: str
    """For files and servers: `linear-decay-rank-8`."""
    title: str
    facts: tuple[tuple[str, str], ...] = ()
    """What it is, where from, on which data: label and text."""
    verdict: str | None = None
    """What a study says of its arm; None where it comes from none."""


@dataclass(frozen=True)
class Exported:
    """What was written, and what is known of it."""

    form: Form
    folder: str
    story: Story
    adapter: AdapterWeights
    base: BaseFacts
    check: Check | Built
    probes: tuple[Probe, ...]

    @property
    def untrained(self) -> bool:
        """Whether this is a plan that nobody has trained."""
        return isinstance(self.check, Built)

    @property
    def transposed(self) -> bool:
        """Whether modules with an update are stored as GPT-2's are."""
        return bool(self.base.transposed & self.adapter.modules.keys())

    def starts(self, tool: Tool, here: bool = False) -> tuple[str, ...]:
        """The commands that give a tool this export, in order: with places on this machine where it is for `here`."""
        base, folder = (self.base.location, self.folder) if here else (self.base.named, Path(self.folder).name)
        filled = Filled(base, folder, self.story.name, max(self.adapter.ranks.values()))
        lines = [line for line in (tool.needs.get(self.form), tool.accepts[self.form]) if line]
        return tuple(filled.into(line) for line in lines)

    def remarks(self, tool: Tool) -> tuple[str, ...]:
        """What to know beside that; it is about adapters."""
        return () if self.form in MERGED else tool.remarks


def compat_json(found: Exported, hashes: Mapping[str, str]) -> str:
    """Which tools take what was written and how, what it was checked with, and what a server should say.

    `hashes` are those of its files.
    """
    own = found.adapter.ranks.values()
    content = {
        "form": found.form,
        "what": DESCRIPTIONS[found.form],
        "base_model": {"name": found.base.named, "revision": found.base.revision, "note": found.base.note},
        "modules": len(own),
        "ranks": {"smallest": min(own), "largest": max(own)},
        "parameters": found.adapter.parameters,
        "check": found.check.to_json(),
        "files": dict(hashes),
        "prompts": [{"text": p.text, "ids": p.ids, "next_tokens": p.next_tokens()} for p in found.probes],
        "tools": [_tool_row(found, tool, fits) for tool, fits in _tools(found)],
    }
    return json.dumps(content, indent=2) + "\n"


def _tools(found: Exported) -> list[tuple[Tool, bool]]:
    return [(tool, command is not None) for tool, command in compatible(found.form, found.transposed)]


def _tool_row(found: Exported, tool: Tool, fits: bool) -> Mapping[str, Any]:
    row = {"tool": tool.name, "version": tool.version, "evidence": tool.evidence, "reads": fits}
    if fits:
        return {**row, "start": found.starts(tool), "remarks": found.remarks(tool)}
    return {**row, "why": why_not(found, tool)}


def why_not(found: Exported, tool: Tool) -> str:
    """Why a tool is not to be given this export."""
    if found.form in tool.accepts:
        return f"it {tool.conv1d_why.format(family=found.base.family)}; take merged weights"
    return not_read(tool, found.form)


def card(found: Exported, tool: Tool | None = None) -> str:
    """The model card: plan, data, verdict, how to load it in each tool that reads it."""
    parts = [
        _front_matter(found),
        f"# {found.story.title}",
        _what(found),
        "## What it is",
        _table(("", ""), found.story.facts) if found.story.facts else "Nothing is recorded beside its weights.",
        "## Where the rank went",
        _ranks(found.adapter),
        *(["## Verdict", found.story.verdict] if found.story.verdict else []),
        "## Load it, once it is trained" if found.untrained else "## Load it",
        _loading(found, tool),
        "## Checked",
        found.check.paragraph,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(found: Exported) -> str:
    lines = ["---"]
    if "/" in found.base.named and not found.base.named.startswith(("/", ".", "~")):
        lines.append(f"base_model: {found.base.named}")
    if found.form not in MERGED and found.form not in ("gguf", "mlx", "onnx-adapter"):
        lines.append("library_name: peft")
    lines += ["tags:", "- lora", "- adaptive-lora", "---"]
    return "\n".join(lines)


def _what(found: Exported) -> str:
    base = found.base.named + (f" ({found.base.note})" if found.base.note else "")
    licence = f" Licence of the base model: {found.base.licence}." if found.base.licence else ""
    revision = f", revision {found.base.revision}" if found.base.revision else ""
    state = "parameters, **untrained**" if found.untrained else "trained parameters"
    return (
        f"An adapter of {base}{revision}: {len(found.adapter.modules)} modules, {found.adapter.parameters:,} {state}. "
        f"Form `{found.form}`: {DESCRIPTIONS[found.form]}.{licence}"
    )


def _ranks(adapter: AdapterWeights) -> str:
    roles: dict[str, list[int]] = {}
    for name, rank in adapter.ranks.items():
        roles.setdefault(role_of(name), []).append(rank)
    rows = [
        (f"`{role}`", str(len(ranks)), f"{min(ranks)} to {max(ranks)}" if min(ranks) < max(ranks) else str(ranks[0]))
        for role, ranks in roles.items()
    ]
    scalings = {round(m.scaling, 6) for m in adapter.modules.values()}
    scale = f"{min(scalings):g}" if len(scalings) == 1 else f"{min(scalings):g} to {max(scalings):g}"
    return _table(("modules", "blocks", "rank"), rows) + f"\n\nΔW = scaling · B A, with a scaling of {scale}."


def _loading(found: Exported, tool: Tool | None) -> str:
    """For the tool that was asked for in full, or PEFT and its like; for all others a line."""
    rows = sorted(_tools(found), key=lambda row: row[0] is not tool)
    reads = [own for own, fits in rows if fits]
    parts = [_in_full(found, own) for own in reads[:1]]
    if others := [f"{own.title} ({own.version}): `{'`, then `'.join(found.starts(own))}`" for own in reads[1:]]:
        parts.append("Read right by these too:\n\n" + "\n".join(f"- {line}" for line in others))
    if wrong := [f"{own.title}: {why_not(found, own)}" for own, fits in rows if not fits]:
        parts.append("Not for these:\n\n" + "\n".join(f"- {line}." for line in wrong))
    return "\n\n".join(parts)


def _in_full(found: Exported, tool: Tool) -> str:
    command = "\n".join(found.starts(tool))
    remarks = "".join(f"\n- {remark}" for remark in found.remarks(tool))
    return f"{tool.title} ({tool.version}):\n\n```\n{command}\n```" + (f"\n{remarks}" if remarks else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
