"""The documentation's pages that are made from the code, so that they cannot say otherwise: a hook of mkdocs.

`make docs` builds all pages. Generated are the key reference of the study file (from its JSON schema), the table of
strategies (from the registry), what is pasted into training tools, and the reference of the commands; CONTRIBUTING and
CHANGELOG are the repository's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import griffe
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from adaptive_lora.cli.main import app
from adaptive_lora.export.forms import DESCRIPTIONS
from adaptive_lora.export.snippets.fragment import snippet
from adaptive_lora.export.snippets.trainers import TRAINERS
from adaptive_lora.export.tools import TOOLS
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.planning.strategies import STRATEGIES
from adaptive_lora.study.json_schema import study_json_schema

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(r"\]\(\.\./([\w./-]+)\)")
"""A link from a page in `docs` to a file of the repository, which reads on the site as in the repository."""
Schema = Mapping[str, Any]
WORDS = {"string": "text", "integer": "whole number", "object": "mapping", "boolean": "`true` or `false`"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and what lies outside `docs`."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for linked in sorted({path for page in (ROOT / "docs").glob("*.md") for path in OUTSIDE.findall(page.read_text())}):
        if (ROOT / linked).is_file():  # mkdocs complains of those that are not
            files.append(File.generated(config, f"repository/{linked}", abs_src_path=str(ROOT / linked)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fills in the tables that are made, and leads links out of `docs` to the files that were added."""
    if page.file.src_uri.count("/") == 0:
        markdown = OUTSIDE.sub(r"](repository/\1)", markdown)
    for mark, made in MADE.items():
        if mark in markdown:
            markdown = markdown.replace(mark, made())
    return markdown


def pages() -> dict[str, str]:
    """Path -> Markdown of every generated page."""
    return {
        "reference/study-file.md": study_file_reference(study_json_schema()),
        "reference/commands.md": commands_reference(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "]("),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }


def table(*heads: str, rows: Iterator[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def strategies_table() -> str:
    """Every strategy: what it does, what it needs measured, where it comes from."""

    def rows() -> Iterator[tuple[str, ...]]:
        for name, strategy in STRATEGIES.items():
            needs = ", ".join(strategy.needs(strategy.options())) or "shapes alone"
            yield f"`{name}`", strategy.summary, needs, strategy.source

    return table("strategy", "what it does", "measured", "source", rows=rows())


def trainers_table() -> str:
    """Every training tool: what it can say of a plan, in which version, and how that is known."""

    def rows() -> Iterator[tuple[str, ...]]:
        for name, trainer in TRAINERS.items():
            alphas = ", whole alphas" if trainer.whole_alphas else ""
            adapter = f"by `{trainer.continues}`" if trainer.continues else ""
            says = trainer.expresses + alphas
            yield f"`{name}`", f"{trainer.title} {trainer.version}", says, adapter, trainer.seen, trainer.evidence

    return table("`--for`", "tool", "can say", "trains an adapter on", "known by", "where", rows=rows())


def snippets_text() -> str:
    """For every training tool what is pasted for one small plan."""
    modules = [
        ModuleShape(f"model.layers.{block}.{role}", kind, block, d_in, d_out)
        for block in (0, 1)
        for role, kind, d_in, d_out in (
            ("self_attn.q_proj", "attention", 64, 64),
            ("self_attn.v_proj", "attention", 64, 32),
            ("mlp.gate_proj", "mlp", 64, 160),
            ("mlp.up_proj", "mlp", 64, 160),
            ("mlp.down_proj", "mlp", 160, 64),
        )
    ]
    adapted = tuple(modules[:1] + modules[2:])
    strategy, budget = STRATEGIES["linear-decay"], resolve_budget("rank:4", adapted)
    ranks = strategy.allocate(adapted, {}, budget.parameters, strategy.options())
    plan = RankPlan(
        strategy.name, budget.parameters, adapted, ranks, Scaling(reference_rank=budget.reference_rank),
        provenance={"budget": budget.text}, left_out=(modules[1],),
    )  # fmt: skip
    text = []
    for name, trainer in TRAINERS.items():
        made = snippet(plan, name, available=modules, learning_rate=3e-4)
        text.append(f"### {trainer.title}\n\n```{trainer.language}\n{made.text}```\n")
        if trainer.continues and trainer.expresses != "any ranks":
            told = snippet(plan, name, adapter="my-adapter", learning_rate=3e-4).text
            text.append(f"The plan itself, with `--adapter my-adapter`:\n\n```yaml\n{told}```\n")
    return "\n".join(text)


def forms_table() -> str:
    """Every form of an adapter."""
    return table("form", "what it is", rows=((f"`{form}`", text) for form, text in DESCRIPTIONS.items()))


def tools_table() -> str:
    """Every tool that adapters are exported for: what it reads, what it makes of other forms, what to know."""

    def rows() -> Iterator[tuple[str, ...]]:
        for tool in TOOLS:
            reads = ", ".join(f"`{form}`" for form in tool.accepts)
            wrong = "; ".join(f"`{form}`: {why}" for form, why in tool.wrong.items())
            which = f"{tool.title} {tool.version}, {tool.evidence}"
            yield f"`{tool.name}`", which, reads, wrong, "; ".join(tool.remarks)

    return table("`--for`", "tool", "reads", "of other forms", "remarks", rows=rows())


def compat_table() -> str:
    """What `bench/compat.py` measured, one row a tool, and what of the table was not run."""
    found = json.loads((ROOT / "results" / "bench" / "compat.json").read_text(encoding="utf-8"))
    families = len({row["family"] for row in found["rows"]})

    def cell(tool: str, *results: str) -> str:
        forms: dict[str, list[str]] = {}
        own = [row for row in found["rows"] if row["tool"] == tool and row["result"] in results]
        for row in own:
            forms.setdefault(row["form"], []).append(row["family"])
        sizes = [row["largest"] for row in own if row["largest"] is not None]
        told = [f"`{form}`" + ("" if len(k) == families else f" ({', '.join(k)})") for form, k in forms.items()]
        return ", ".join(told) + (f": off by up to {max(sizes):.1g}" if sizes else "")

    def rows() -> Iterator[tuple[str, ...]]:
        for tool, versions in found["versions"].items():
            which = ", ".join(f"{name} {version}" for name, version in versions.items())
            yield f"`{tool}`", which, cell(tool, "right"), cell(tool, "wrong"), cell(tool, "refused", "no base")
        for tool, told in found["not_run"].items():
            reads = ", ".join(f"`{form}`" for form in told["reads"])
            yield f"`{tool}`", f"{told['version']}, not run", f"{told['source']}: {reads}", "", ""

    return table("tool", "version", "right", "silently wrong", "refused, or its base model is", rows=rows())


def sharded_table() -> str:
    """What `bench/sharded.py` measured of a base that two processes share."""
    found = json.loads((ROOT / "results" / "bench" / "sharded.json").read_text(encoding="utf-8"))

    def rows() -> Iterator[tuple[str, str, str]]:
        kept, received = found["resident_bytes"], found["received_bytes"]
        for title, replicated, shared in (
            ("frozen weights of a process", found["frozen_bytes"]["replicated"], max(found["frozen_bytes"]["sharded"])),
            ("resident with the base there, libraries too", kept["replicated"], kept["sharded"]),
            ("received in a training pass", 0, received["train"]),
            ("received in a pass that evaluates", 0, received["evaluate"]),
        ):
            yield f"{title}, MB", f"{replicated / 1e6:.0f}", f"{shared / 1e6:.0f}"
        cpu = found["train_pass_cpu_seconds"]
        yield "CPU seconds of a training pass", f"{cpu['replicated']:.2f}", f"{cpu['sharded']:.2f}"

    heads = (f"`{found['model']}`, {found['positions']} positions", "replicated", f"shared by {found['ranks']}")
    return table(*heads, rows=rows())


def break_even_table() -> str:
    """From how many positions on a pass hides its gathering."""
    found = json.loads((ROOT / "results" / "bench" / "sharded.json").read_text(encoding="utf-8"))["break_even"]
    assumed = found["assumed"]
    head = f"{assumed['ranks']} ranks of {assumed['flops'] / 1e12:.0f} TFLOP/s, {assumed['bytes_per_parameter']} bytes"
    rows = (
        (name, f"{found['bandwidth'][name] / 1e9:.4g}", f"{positions:,}")
        for name, positions in found["positions"].items()
    )
    return table(head, "GB/s", "positions", rows=rows)


def scaling_table() -> str:
    """What is measured of a study's growth, a file of results a row."""

    def found(name: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((ROOT / "results" / "bench" / f"{name}.json").read_text(encoding="utf-8"))
        return loaded

    def rows() -> Iterator[tuple[str, str, str]]:
        for title, name in (("babyllama, 1.0M", "throughput-babyllama-xeon"), ("SmolLM2, 135M", "throughput-smollm2")):
            speeds = found(name)["seconds_per_adapter_step"]
            pair = f"{speeds['bank']['median']:.3g} s (PEFT + Trainer {speeds['trainer']['median']:.3g} s)"
            yield f"an adapter-step, {title}, two cores", pair, name
        state = found("memory-smollm2")["state_bytes_per_adapter"]
        yield "one adapter more, SmolLM2, rank 8", f"{state / 1e6:.0f} MB", "memory-smollm2"
        driver = found("scheduler")
        share = f"{driver['driver_seconds_per_run'] * 1e3:.1f} ms; {driver['share']:.2%} of {driver['workers']} workers"
        yield f"the driver's own work for each of {driver['runs']:,} runs (simulated workers)", share, "scheduler"
        ledger = found("ledger-long-curves")
        for verb in ("status", "results", "report"):
            at = f"`{verb}` of {ledger['runs']:,} runs with curves of {ledger['steps']:,} points"
            yield at, f"{ledger[verb + '_seconds']:.1f} s", "ledger-long-curves"

    return table("", "measured", "`results/bench/`", rows=rows())


def _faults() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "results" / "bench" / "faults.json").read_text(encoding="utf-8"))
    return found


def kills_table() -> str:
    """Kills of `bench/faults.py` by the phase that the process was in."""
    found = _faults()
    phases = found["killed"]["by_phase"]
    return table(*phases, "all", rows=iter([tuple(map(str, (*phases.values(), found["kills"])))]))


def faults_table() -> str:
    """Every fault of `bench/faults.py`: what was done, how the verbs ended, what became of the study."""

    def rows() -> Iterator[tuple[str, ...]]:
        for row in _faults()["faults"]:
            codes = dict.fromkeys(own["exit"] for own in row.get("tries", [row["ended"]]))
            ended = ", ".join("killed" if code == -9 else str(code) for code in codes)
            then = "identical" if row["identical"] else "different"
            tries = f" ({len(row['tries'])} tries)" if "tries" in row else ""
            yield row["fault"], row["done"] + tries, ended, f"{then}, {row['lost']} lost"

    return table("fault", "what was done", "exit", "then, by the same command", rows=rows())


MADE: Mapping[str, Callable[[], str]] = {
    "<!-- fault-kills -->": kills_table,
    "<!-- faults -->": faults_table,
    "<!-- scaling -->": scaling_table,
    "<!-- sharded -->": sharded_table,
    "<!-- sharded-break-even -->": break_even_table,
    "<!-- strategies -->": strategies_table,
    "<!-- forms -->": forms_table,
    "<!-- tools -->": tools_table,
    "<!-- compat -->": compat_table,
    "<!-- trainers -->": trainers_table,
    "<!-- snippets -->": snippets_text,
}
"""Mark in a page -> what stands there on the site."""


def study_file_reference(schema: Schema) -> str:
    """Every key of the study file, from the JSON schema."""
    parts = {"": schema, **{key: part for key, part in _parts(schema) if "properties" in part}}
    text = ["# Keys of the study file\n"]
    text.append(
        "Made from the declarations that the reader checks files against; `adaptive-lora schema` prints them as a JSON "
        "schema for editors ([how](../study-file.md#completion-in-your-editor)). Unknown keys are errors. The "
        "options of each strategy are [at the end](#options-of-strategies).\n"
    )
    for key, part in parts.items():
        text.append(f"## `{key}`\n" if key else "## The file\n")
        if key:
            text.append(part.get("description", "").partition("\n\n")[0] + "\n")
        text.append(table("key", "value", "default", "meaning", rows=_rows(part, schema)))
    text.append("## Options of strategies\n")
    text.append(
        "Under `options` of an arm. Every strategy has `min_rank` and `max_rank`; those not listed have no others.\n"
    )
    for name in STRATEGIES:
        part = schema["$defs"][f"options-of-{name}"]
        own = {key: value for key, value in part["properties"].items() if key not in ("min_rank", "max_rank")}
        if own:
            text.append(f"### `{name}`\n")
            if not all("description" in value for value in own.values()):
                text.append(part.get("description", "") + "\n")
            text.append(table("option", "value", "default", "meaning", rows=_rows({"properties": own}, schema)))
    return "\n".join(text)


def _parts(schema: Schema, at: str = "", part: Schema | None = None) -> Iterator[tuple[str, Schema]]:
    """(dotted key, its part) of every key that has keys of its own, in the order of the file."""
    for key, value in (part or schema)["properties"].items():
        references = re.findall(r"'#/\$defs/(\w+)'", repr(value))
        for reference in references:
            inner = schema["$defs"][reference]
            here = f"{at}.{key}" if at else key
            if not (at and reference == "ScalingPart") and here != "arms.train.multipliers":  # those of the study
                form = f": {{{inner['required'][0]}: ...}}" if len(references) > 1 else ""
                yield here + form + ("[]" if value.get("type") == "array" else ""), inner
                yield from _parts(schema, here, inner)


def _rows(part: Schema, schema: Schema) -> Iterator[tuple[str, ...]]:
    for key, value in part["properties"].items():
        there = schema["$defs"].get(value.get("$ref", "").rpartition("/")[2], {})
        meaning = value.get("description") or there.get("description", "")
        default = "**required**" if key in part.get("required", ()) else _in_yaml(value.get("default"))
        yield f"`{key}`", _kind(value, schema), default, " ".join(meaning.split())


def _in_yaml(value: Any) -> str:
    words = {None: "", True: "`true`", False: "`false`"}
    if isinstance(value, dict):
        return ""  # of its own keys
    return words[value] if value is None or isinstance(value, bool) else f"`{value}`"


def _kind(value: Schema, schema: Schema) -> str:
    """The type of a value in words."""
    if "$ref" in value:
        return "keys below"
    if either := value.get("anyOf") or value.get("oneOf"):
        kinds = [_kind(part, schema) for part in either]
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
    if "enum" in value:
        many = set(STRATEGIES) <= set(value["enum"])
        return "a strategy's name" if many else ", ".join(f"`{word}`" for word in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if value.get("type") == "array":
        kind = _kind(value["items"], schema)
        return f"list of {kind}s" if kind in WORDS.values() else f"list of {kind}"
    if value.get("pattern", "").startswith(r"\.py"):
        return "`file.py:name`"
    return f"{WORDS.get(value['type'], value['type'])}{_bounds(value)}"


def _bounds(value: Schema) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {value[key]:g}" for key, sign in signs.items() if key in value]
    return f" {', '.join(found)}" if found else ""


def commands_reference() -> str:
    """Every verb with its arguments and options."""
    text = ["# Commands\n", "What `adaptive-lora VERB --help` prints.\n"]
    text.append(
        "Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed, 2 a mistake in what was "
        "asked, 130 interrupted.\n"
    )
    for name, command in _verbs(typer.main.get_command(app)):
        text += [f"## {name}\n", (command.help or "").strip() + "\n"]
        rows = [_parameter(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            text.append(table("parameter", "default", "meaning", rows=iter(rows)))
    return "\n".join(text)


def _verbs(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _verbs(command, f"{before}{name} ")
        else:
            yield before + name, command


def _parameter(parameter: Any) -> tuple[str, str, str]:
    is_option = parameter.param_type_name == "option"
    name = ", ".join(parameter.opts) if is_option else str(parameter.name).upper()
    default = parameter.default
    shown = "" if default is None or default is False or default == "" or callable(default) else f"`{default}`"
    return f"`{name}`", "**required**" if parameter.required else shown, parameter.help or ""


class Doctests(griffe.Extension):
    """Shows the examples in docstrings as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fences every block that begins with `>>>`."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"(?ms)^>>> .*?(?=\n\n|\Z)", lambda found: f"```pycon\n{found.group(0)}\n```", obj.docstring.value
            )
