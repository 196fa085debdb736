"""Which tool reads which form, in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from adaptive_lora.export.forms import Form
from adaptive_lora.export.tools import Tool


def tools_view(forms: Mapping[Form, str], tools: Sequence[Tool]) -> Group:
    """The forms, and a row a tool: what it reads, the form that is chosen for it first, and what to know."""
    about = Table("form", "what it is", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for form, text in forms.items():
        about.add_row(Text(form, "bold"), text)
    table = Table("tool", "version", "reads", "and what happens with others", box=None, pad_edge=False,
                  padding=(0, 2, 0, 0))  # fmt: skip
    for tool in tools:
        wrong: dict[str, list[str]] = {}
        for form, why in tool.wrong.items():
            wrong.setdefault(why, []).append(form)
        others = "; ".join(f"{', '.join(own)}: {why}" for why, own in wrong.items())
        remarks = "; ".join((*tool.remarks, *([] if tool.evidence == "run" else ["read in its code, not run"])))
        told = Text.assemble(others, "\n" if others and remarks else "", (remarks, "dim"))
        table.add_row(Text(tool.name, "bold"), tool.version, ", ".join(tool.accepts), told)
    return Group(about, Text(), table, Text("\n`--for TOOL` takes the first form of its row.", style="dim"))
