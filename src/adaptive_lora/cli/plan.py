"""`plan`: one rank plan, and files for PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptive_lora.cli.app import JsonFlag, app, err, explained, out, print_json, working
from adaptive_lora.data.encoding import Learn
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
    as_json: JsonFlag = False,
) -> None:
    """One rank plan, exactly on its budget: table, heat map, and files for PEFT."""
    from adaptive_lora.cli.checks import check_place, check_plan, parse_options, parse_targets
    from adaptive_lora.data.templates import as_template
    from adaptive_lora.planning.plan import Scaling

    options, modules, named = parse_options(option or ()), parse_targets(targets), as_template(template)
    check_plan(strategy, options, budget, data)
    Scaling(scaling, reference_scaling)  # type: ignore[arg-type]  # which is what it checks
    check_place(to, "file")
    check_place(peft, "folder")

    from adaptive_lora import api

    with working(f"planning {strategy} at {budget}" + (f" on {data}" if data else "")):
        made = api.plan(
            model, strategy, budget, data=data, targets=modules, options=options, seed=seed, max_length=max_length,
            scaling={"rule": scaling, "reference": reference_scaling}, template=named, learn=learn,
            revision=revision, dtype=dtype, quantise=quantise, device=device,
        )  # fmt: skip
    _write(made, to, peft, model, revision)
    for warning in made.provenance["warnings"]:
        err.print(f"warning: {warning}", markup=False, soft_wrap=True)
    if as_json:
        print_json(api.plan_json(made))
    else:
        _show(made, api.plan_json(made))


def _write(made: RankPlan, to: Path | None, peft: Path | None, model: str, revision: str | None) -> None:
    """The files that were asked for; none of them where PEFT would build something else than the plan."""
    from adaptive_lora.study.prepare import check_with_peft

    if peft:
        with working("building the plan with PEFT"):
            check_with_peft(made, model, revision)
    if to:
        made.save(to)
        err.print(f"wrote {to}", markup=False)
    if peft:
        from adaptive_lora.training.adapter import CONFIG_FILE, save_config

        save_config(made.to_lora_config(), peft)
        err.print(f"wrote {peft / CONFIG_FILE}", markup=False)


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
