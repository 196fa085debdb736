"""`plan`: one rank plan, and files for PEFT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptive_lora.cli.app import JsonFlag, app, err, explained, out, print_json, working
from adaptive_lora.cli.snippets import TOOLS, check_tool, paste, rate_of, save_step_0, saved_plan
from adaptive_lora.data.encoding import Learn
from adaptive_lora.errors import UsageError
from adaptive_lora.planning.outline import DType, Quantise

if TYPE_CHECKING:
    from adaptive_lora.planning.plan import RankPlan


@app.command()
@explained
def plan(
    model: Annotated[
        str,
        typer.Option(help="`demo`, `smollm2` (see `fetch`), a folder, a .gguf file, or a hub name owner/name."),
    ],
    strategy: Annotated[str, typer.Option(help="See `adaptive-lora strategies`; or `my_file.py:name`.")] = "uniform",
    budget: Annotated[str, typer.Option(help="`rank:r` (what a uniform rank r costs) or `params:N`.")] = "rank:8",
    data: Annotated[str | None, typer.Option(help="Data source, for strategies that measure.")] = None,
    targets: Annotated[
        str, typer.Option(help="`all-linear`, `attention`, `mlp`, or module names with commas.")
    ] = "all-linear",
    scaling: Annotated[str, typer.Option(help="constant, rslora or alpha-over-r.")] = "constant",
    reference_scaling: Annotated[float, typer.Option(help="alpha / rank of a uniform plan.")] = 2.0,
    option: Annotated[list[str] | None, typer.Option(help="A strategy's option, `key=value`; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="For plans that rest on data or chance.")] = 0,
    max_length: Annotated[int, typer.Option(help="Longest calibration text in tokens.")] = 512,
    template: Annotated[str, typer.Option(help="How a record becomes text: auto, chat, alpaca, ...")] = "auto",
    learn: Annotated[Learn, typer.Option(help="Of a conversation the last answer, or all.")] = "last",
    revision: Annotated[str | None, typer.Option(help="Hub commit, tag or branch.")] = None,
    dtype: Annotated[DType, typer.Option(help="Of the weights, for strategies that measure.")] = "float32",
    quantise: Annotated[
        Quantise | None,
        typer.Option(help="Measure on weights in 4 bits (nf4) or 8 (int8), by bitsandbytes."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default the accelerator where there is one.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", help="Write the plan as JSON.")] = None,
    peft: Annotated[Path | None, typer.Option(help="Write PEFT's adapter_config.json into this folder.")] = None,
    tool: Annotated[
        str | None,
        typer.Option("--for", help=f"Print what is pasted into a training tool instead; --out writes it. {TOOLS}."),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Write the plan's adapter at step 0 into this folder, to be trained on.")
    ] = None,
    saved: Annotated[
        Path | None, typer.Option("--plan", help="Take this saved plan of the model; with --for, --peft or --adapter.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """One rank plan, exactly on its budget: table, heat map, files for PEFT, text for training tools."""
    from adaptive_lora.cli.checks import check_plan, parse_options, parse_targets
    from adaptive_lora.data.templates import as_template

    wanted = Wanted((model, revision), to, peft, adapter, tool, as_json)
    options, modules, named = parse_options(option or ()), parse_targets(targets), as_template(template)
    _check(wanted, saved, (scaling, reference_scaling))
    if saved is not None:
        _give(saved_plan(saved, (model, revision)), wanted, rate_of(saved))
        return
    check_plan(strategy, options, budget, data)
    from adaptive_lora import api

    with working(f"planning {strategy} at {budget}" + (f" on {data}" if data else "")):
        made = api.plan(
            model, strategy, budget, data=data, targets=modules, options=options, seed=seed, max_length=max_length,
            scaling={"rule": scaling, "reference": reference_scaling}, template=named, learn=learn,
            revision=revision, dtype=dtype, quantise=quantise, device=device,
        )  # fmt: skip
    _give(made, wanted)


@dataclass(frozen=True)
class Wanted:
    """What is to be made of a plan."""

    model: tuple[str, str | None]
    """Name and revision."""
    to: Path | None
    peft: Path | None
    adapter: Path | None
    tool: str | None
    as_json: bool


def _check(wanted: Wanted, saved: Path | None, scaling: tuple[str, float]) -> None:
    """UsageError for what is wrong whatever the plan is."""
    from adaptive_lora.cli.checks import check_place
    from adaptive_lora.planning.plan import Scaling

    Scaling(*scaling)  # type: ignore[arg-type]  # which is what it checks
    check_place(wanted.to, "file")
    check_place(wanted.peft, "folder")
    check_place(wanted.adapter, "folder")
    if wanted.tool is not None:
        check_tool(wanted.tool, wanted.adapter)
    elif saved is not None and wanted.peft is None and wanted.adapter is None:
        raise UsageError(f"{saved} is a plan already; say what to make of it with --for, --peft or --adapter.")


def _give(made: RankPlan, wanted: Wanted, rate: float | None = None) -> None:
    """Files, warnings, and on stdout the plan or the text for a tool, with its learning rate where one is known."""
    from adaptive_lora import api

    _write(made, wanted)
    for warning in made.provenance.get("warnings", ()):
        err.print(f"warning: {warning}", markup=False, soft_wrap=True)
    if wanted.tool is not None:
        paste(made, wanted.tool, wanted.model, wanted.adapter, (wanted.to, wanted.as_json), rate)
    elif "plan_seconds" not in made.provenance:  # the plan of a study's run, as it was saved
        pass
    elif wanted.as_json:
        print_json(api.plan_json(made))
    else:
        _show(made, api.plan_json(made))


def _write(made: RankPlan, wanted: Wanted) -> None:
    """The files that were asked for; none of them where PEFT would build something else than the plan."""
    from adaptive_lora.study.prepare import check_with_peft

    if wanted.peft or wanted.adapter:
        with working("building the plan with PEFT"):
            check_with_peft(made, *wanted.model)
    if wanted.to and wanted.tool is None:
        made.save(wanted.to)
        err.print(f"wrote {wanted.to}", markup=False)
    if wanted.peft:
        from adaptive_lora.training.adapter import CONFIG_FILE, save_config

        save_config(made.to_lora_config(), wanted.peft)
        err.print(f"wrote {wanted.peft / CONFIG_FILE}", markup=False)
    if wanted.adapter:
        save_step_0(made, wanted.adapter, wanted.model)
        err.print(f"wrote {wanted.adapter}, the plan's adapter at step 0", markup=False)


def _show(made: RankPlan, facts: dict[str, Any]) -> None:
    """A plan and what it took, as tables."""
    from adaptive_lora.cli import terminal

    out.print(terminal.coverage_table(made), "", terminal.heat_map(made), "")
    if facts["measured"]:
        out.print(f"measured on {facts['device']}")
        out.print(terminal.planning_cost(facts), "")
    note = f" ({facts['model_note']})" if facts["model_note"] else ""
    left_out = f" ({len(made.left_out)} left out)" if made.left_out else ""
    out.print(
        f"{facts['model']}{note}: {facts['modules']} modules{left_out}, {facts['trainable_parameters']:,} trainable of "
        f"{facts['total_parameters']:,} parameters in all, {made.budget - made.trainable_parameters:,} of the budget "
        f"unspent, largest rank {max(made.ranks.values())}; planned in {facts['plan_seconds']:.2f} s",
        soft_wrap=True,
    )
