"""Which tool reads which form of an adapter right: the table of `export --list`, run again. Prints one row a tool.

Four families (GPT-2, Llama, Qwen 3, Gemma 3 text), tiny and random, with an adapter of ranks 2, 4, 5 and 12, two
scalings and one module left out, in every form, through every tool that is installed:

right           its logits (of some engines: log-probabilities of the next token) are those of the weights, to 1e-5 in
                float32, or to ten times the tool's own difference without an adapter, up to 5e-3 of the largest
silently wrong  it answers, and says something else
refused         it says that it cannot
no base         it does not read the family's base model either
not here        it is not installed; `make compat` installs what there is
not run         no such machine here, or too much to install: what its row says was read in its release's code

    make compat
    python bench/compat.py [--only TOOL] [--family FAMILY] [--out FILE]

llama.cpp: its converter is looked for as `export` does ($LLAMA_CPP); as the tiny models have a tokenizer that it does
not know, it is told to take it for GPT-2's, which no weight depends on.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from adaptive_lora.errors import AdaptiveLoraError
from adaptive_lora.export.checking import TOLERANCE
from adaptive_lora.export.tools import TOOLS, Tool
from adaptive_lora.files import write_atomically
from adaptive_lora.models.libraries import quiet_libraries
from compat_rows import FAMILIES, Case, Row, agrees, open_cases, with_table
from compat_runners import RUNNERS, has
from compat_tools import shim

RESULTS = {
    "right": "right", "wrong": "silently wrong", "refused": "refused", "no base": "no base", "not here": "not here",
}  # fmt: skip
"""A row's result, and how the table says it."""
NOT_RUN = {tool.name: tool for tool in TOOLS if tool.name not in RUNNERS}


def versions_of(tool: str) -> dict[str, str]:
    """Distribution -> version, of what the tool is made of."""
    found = {}
    for name in RUNNERS[tool][2]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    source = Path(os.environ.get("LLAMA_CPP", "")) / "SOURCE"
    if tool == "llama.cpp" and source.is_file():
        name, _, version = source.read_text(encoding="utf-8").strip().partition("==")
        found[f"converter of {name}"] = version
    return found


def run(tool: str, cases: Sequence[Case], converter: Path | None) -> list[Row]:
    """All rows of a tool, with what the table says."""
    runner, modules, _ = RUNNERS[tool]
    if not has(*modules) or (tool == "llama.cpp" and converter is None):
        lacking = ", ".join(modules) if not has(*modules) else "llama.cpp's converter ($LLAMA_CPP)"
        return [Row(tool, case.family, "all", "not here", why=f"needs {lacking}") for case in cases]
    rows = []
    for case in cases:
        print(f"{tool}: {case.family}", file=sys.stderr)
        try:
            found = runner(case, converter or Path())
        except Exception as error:  # it cannot even read the base model
            why = f"without an adapter: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
            found = [Row(tool, case.family, "all", "no base", why=why.replace(str(case.place), ""))]
        rows += [with_table(row, case) for row in found]
    return rows


def table(rows: Sequence[Row], versions: Mapping[str, Mapping[str, str]]) -> str:
    """One row a tool: forms by what became of them, with the families where that was not all."""
    lines = []
    for tool in dict.fromkeys(row.tool for row in rows):
        own = [row for row in rows if row.tool == tool]
        parts = [", ".join(f"{name} {version}" for name, version in versions.get(tool, {}).items()) or "not installed"]
        for result, word in RESULTS.items():
            forms: dict[str, list[str]] = {}
            for row in own:
                if row.result == result:
                    forms.setdefault(row.form, []).append(row.family)
            named = [f if len(k) == len(FAMILIES) else f"{f} ({', '.join(k)})" for f, k in forms.items()]
            if named:
                parts.append(f"{word}: {', '.join(named)}{_sizes(own, result)}")
        lines.append(f"{tool:12} " + f"\n{'':13}".join(parts))
    return "\n".join([*lines, *(f"{name:12} {_as_read(tool)}" for name, tool in NOT_RUN.items())])


def _sizes(rows: Sequence[Row], result: str) -> str:
    """The largest difference of what was right, and the smallest and largest of what was wrong."""
    sizes = [row.largest for row in rows if row.result == result and row.largest is not None]
    if not sizes or result == "refused":
        return ""
    return f"; off by up to {max(sizes):.0e}" if result == "right" else f"; off by {min(sizes):.2g} to {max(sizes):.2g}"


def _as_read(tool: Tool) -> str:
    return f"not run; read in the code of {tool.version}: reads {', '.join(tool.accepts)}"


def with_kept(path: Path, versions: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """What to write: the rows, and of an earlier file those of other tools and families; what was not run, and why."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"versions": {}, "rows": []}
    done = {(row.tool, row.family) for row in rows}
    kept = [row for row in before["rows"] if (row["tool"], row["family"]) not in done]
    order = list(RUNNERS)
    every = sorted([*kept, *map(asdict, rows)], key=lambda r: (order.index(r["tool"]), FAMILIES.index(r["family"])))
    told = {**before["versions"], **versions}
    not_run = {
        name: {"version": tool.version, "source": "read in the release's code", "reads": list(tool.accepts),
               "does not": dict(tool.wrong)}
        for name, tool in NOT_RUN.items()
    }  # fmt: skip
    in_order = {tool: told[tool] for tool in order if tool in told}
    return {"versions": in_order, "tolerance": TOLERANCE, "rows": every, "not_run": not_run}


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
        cases = open_cases(Path(place), [asked.family] if asked.family else FAMILIES)
        rows = []
        for tool in tools:
            found = run(tool, cases, converter)
            rows += found
            if asked.out:  # at once, as some tools take minutes
                report = with_kept(asked.out, {tool: versions_of(tool)}, found)
                write_atomically(asked.out, json.dumps(report, indent=1) + "\n")
    print(table(rows, {tool: versions_of(tool) for tool in tools}))
    odd = [row for row in rows if not agrees(row)]
    for row in odd:
        what = f"{row.tool}, {row.family}, {row.form}: {row.result} {row.why or ''}"
        print(f"not as the table says ({row.by_table}): {what}")
    if odd:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except AdaptiveLoraError as error:
        sys.exit(str(error))
