"""From the ledger to tables. The one place where a published number gets its name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adaptive_lora.errors import AdaptiveLoraError, StudyFolderError
from adaptive_lora.files import parse_json, read_bounded, write_atomically
from adaptive_lora.stats.estimators import perplexity
from adaptive_lora.stats.metrics import metric_of
from adaptive_lora.stats.run_table import RUN_COLUMNS, Phase, Status
from adaptive_lora.study.archive import open_recorded, write_archive
from adaptive_lora.study.data_facts import splits_csv
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.ledger import BASE, GENERAL, Ledger

COST_COLUMNS = (
    "run_id", "arm", "budget", "seed", "engine", "plan_seconds", "measure_seconds", "score_bytes", "train_seconds",
)  # fmt: skip
RANK_COLUMNS = (
    "run_id", "phase", "arm", "budget", "seed", "module", "kind", "depth", "rank", "scaling", "parameters", "score",
    "update",
)  # fmt: skip
_CURVE_TEXTS = ("run_id", "arm", "budget")
_CURVE_NUMBERS = ("step", "loss", "gradient_norm", "learning_rate", "tokens")
CURVE_COLUMNS = (*_CURVE_TEXTS, "seed", *_CURVE_NUMBERS)
_WHOLE_NUMBERS = {"trainable_parameters": "Int64", "step": "Int64"}
"""Columns of runs that may be empty."""
ANSWERS = "answers"
"""The fact that has what models answered to a few test records, whose texts it holds."""
_APART = ("text", "splits", ANSWERS)
"""Facts that an export has as files of their own."""
ANSWERS_FILE, SCORES_FILE = "answers.json", "scores.csv"
_LARGEST_FACTS = 2**30
"""Bytes of the facts of a study, and of the answers on its page."""
_NAME = re.compile(r"[A-Za-z0-9._:@-]{1,80}")


def load_results(folder: Path) -> pd.DataFrame:
    """The runs of a study folder, or of an export, with `RUN_COLUMNS`; StudyFolderError where the folder is neither."""
    if (ledger := open_recorded(folder)) is None:
        return read_export(folder)[1]
    with contextlib.closing(ledger), whole(folder):
        return runs_table(ledger)


def read_export(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Facts and runs by an export's text; StudyFolderError where it is not whole."""
    with whole_export(folder):
        facts = parse_json(read_bounded(StudyPaths(folder).facts, _LARGEST_FACTS))
        if not isinstance(facts, dict):
            raise TypeError(f"`{StudyPaths(folder).facts.name}` is no object")
        if (said := folder / ANSWERS_FILE).is_file():
            facts[ANSWERS] = parse_json(read_bounded(said, _LARGEST_FACTS))
        runs = exported_table(folder, "runs", RUN_COLUMNS).astype(_WHOLE_NUMBERS)
        done = runs["status"] == Status.COMPLETED
        for phase, loss in ((Phase.EVALUATION, "test_loss"), (Phase.TUNING, "validation_loss")):
            for run in runs[done & (runs["phase"] == phase) & runs[loss].isna()].itertuples():
                raise ValueError(f"`runs.{run.run_id}.{loss}` ({run.arm} at {run.budget}, seed {run.seed}) is missing")
        return facts, runs


@contextlib.contextmanager
def whole_export(folder: Path, let_pass: type[Exception] = AdaptiveLoraError) -> Iterator[None]:
    """Turns what goes wrong while an export is read into a StudyFolderError, but for errors to `let_pass`."""
    try:
        yield
    except (AdaptiveLoraError, AssertionError, ImportError, let_pass):
        raise
    except Exception as error:  # whatever a value that is not there, or another than it was, does to what reads it
        raise StudyFolderError(
            f"{folder} holds no whole export: {_in_short(error)}. Export it again with `results --out`."
        ) from error


def whole(folder: Path) -> contextlib.AbstractContextManager[None]:
    """`whole_export` for what is made of an export, which may come from anyone; files may then fail for other reasons.

    Nothing for a study folder.
    """
    return whole_export(folder, OSError) if StudyPaths(folder).is_export else contextlib.nullcontext()


def _in_short(error: Exception) -> str:
    said = " ".join(f"{type(error).__name__} {error}".split())
    return said if len(said) <= 300 else f"{said[:300]} ..."


def exported_table(folder: Path, name: str, columns: Sequence[str]) -> pd.DataFrame:
    """A table of an export, with these columns at least; without rows where there is no such file."""
    path = folder / f"{name}.csv"
    if not path.is_file():
        return pd.DataFrame(columns=list(columns))
    found = pd.read_csv(path, keep_default_na=False, na_values=[""])
    return found.reindex(columns=[*columns, *(c for c in found if c not in columns)])


def plain_name(name: str) -> str:
    """A name that no study file could hold, made one that can stand anywhere; others as they are.

    Figures take `$` for mathematics, terminals take control characters for commands. What was there before stays
    told apart by a hash.

    >>> plain_name("linear-decay"), plain_name("$x$\\x1b")
    ('linear-decay', '_x__.8106eb')
    """
    if _NAME.fullmatch(name):
        return name
    told_apart = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:6]
    return f"{re.sub(r'[^A-Za-z0-9._:-]', '_', name[:40])}.{told_apart}"


def _runs(ledger: Ledger) -> list[dict[str, Any]]:
    names = ("arm", "strategy", "budget")
    return [{**run, **{name: plain_name(run[name]) for name in names}} for run in ledger.runs()]


def runs_table(ledger: Ledger) -> pd.DataFrame:
    """Every run with `RUN_COLUMNS`, in order of registration.

    Where there are such, the mean by a metric that is made after training and the frozen model's, `base_` and its name;
    and the losses of a general text: `general_loss` and the frozen model's, `base_general_loss`.
    """
    totals, facts = ledger.totals(), ledger.facts()
    exact_answers = bool(facts.get("data", {}).get("exact_answers"))
    metric = metric_of(facts.get("spec", {}).get("analysis", {}))
    scores = ledger.scores.means(metric.key) if metric.is_scored else {}
    rows = []
    for run in _runs(ledger):
        own = "validation" if run["phase"] == Phase.TUNING else "test"
        test_loss = _loss(totals.get((run["run_id"], "test")))
        rows.append(
            {
                **run,
                "base_loss": _loss(totals.get((BASE, own))),
                "validation_loss": _loss(totals.get((run["run_id"], "validation"))),
                "test_loss": test_loss,
                "test_perplexity": perplexity(test_loss),
                "test_exact_match": _exact(totals.get((run["run_id"], "test"))) if exact_answers else None,
            }
        )
    table = pd.DataFrame(rows, columns=list(RUN_COLUMNS)).astype(_WHOLE_NUMBERS)
    if metric.is_scored:
        table[metric.column] = metric.scale * table["run_id"].map(scores).astype(float)
        if BASE in scores:
            table[f"base_{metric.name}"] = metric.scale * scores[BASE]
    if (BASE, GENERAL) in totals:
        own_losses = {run: _loss(total) for (run, split), total in totals.items() if split == GENERAL}
        table["general_loss"] = table["run_id"].map(own_losses).astype(float)
        table["base_general_loss"] = own_losses[BASE]
    return table


def ranks_table(ledger: Ledger) -> pd.DataFrame:
    """One row per finished run and module, twins left out: rank, alpha's scaling, parameters, measured score,
    and `update`: the Frobenius norm of scaling · B · A over that of the frozen weight.

    Rank 0, without a scaling, is a target module that the plan leaves out.
    """
    columns: dict[str, list[Any]] = {name: [] for name in RANK_COLUMNS}
    runs = {run["run_id"]: run for run in _runs(ledger) if not run["replica"]}
    for run_id, plan in ledger.plans():
        run = runs.get(run_id)
        if run is None:
            continue
        modules = [*plan["modules"], *plan.get("left_out", ())]
        names = [sys.intern(module["name"]) for module in modules]
        ranks = [plan["ranks"].get(name, 0) for name in names]
        for label in ("run_id", "phase", "arm", "budget", "seed"):
            columns[label] += [run[label]] * len(modules)
        columns["module"] += names
        columns["kind"] += [sys.intern(module["kind"]) for module in modules]
        columns["depth"] += [module["depth"] for module in modules]
        columns["rank"] += ranks
        columns["scaling"] += [plan["scalings"].get(name) for name in names]
        columns["parameters"] += [r * (m["d_in"] + m["d_out"]) for r, m in zip(ranks, modules, strict=True)]
        columns["update"] += [plan.get("updates", {}).get(name) for name in names]
        columns["score"] += [plan["scores"].get(name) for name in names] if plan["scores"] else [None] * len(names)
    return pd.DataFrame(columns)


def curves_table(ledger: Ledger, phase: Phase = Phase.EVALUATION) -> pd.DataFrame:
    """One row per step of every finished run of a phase, twins left out."""
    runs = {run["run_id"]: run for run in _runs(ledger) if not run["replica"]}
    found = [(runs[run_id], curve) for run_id, curve in ledger.curves(phase.value) if run_id in runs]
    if not found:
        return pd.DataFrame(columns=list(CURVE_COLUMNS))
    lengths = [len(curve["step"]) for _, curve in found]
    which = np.repeat(np.arange(len(found)), lengths)
    # Labels are looked up per run and then repeated: a column of texts per step would be many times the numbers.
    table: dict[str, Any] = {
        label: pd.Categorical([run[label] for run, _ in found]).take(which) for label in _CURVE_TEXTS
    }
    table["seed"] = np.array([run["seed"] for run, _ in found]).take(which)
    numbers = {name: np.concatenate([curve[name] for _, curve in found]) for name in _CURVE_NUMBERS}
    return pd.DataFrame({**table, **numbers})


def costs_table(ledger: Ledger) -> pd.DataFrame:
    """One row per finished evaluation run, twins left out: what planning and training took.

    `measure_seconds` is the part of `plan_seconds` that went into scores, `score_bytes` the most that scores held
    between batches (not the model, not its activations). Empty where a plan does not say.
    """
    rows: list[dict[str, Any]] = []
    for run in _runs(ledger):
        plan = ledger.plan(run["run_id"]) if run["phase"] == Phase.EVALUATION and not run["replica"] else None
        if plan is not None:
            measured = plan["provenance"].get("measured", {})
            seconds = measured.get("seconds")
            told = {"measure_seconds": sum(seconds.values()) if seconds else None,
                    "score_bytes": measured.get("score_bytes")}  # fmt: skip
            rows.append({**{name: run[name] for name in COST_COLUMNS if name not in told}, **told})
    return pd.DataFrame(rows, columns=list(COST_COLUMNS)).astype({"measure_seconds": float, "score_bytes": float})


def scores_table(ledger: Ledger) -> pd.DataFrame | None:
    """What the study's metric, where it is made after training, gave each run, one row a record: `judge` reads it.

    The frozen model is an arm called `frozen`, without a seed. None where nothing was scored.
    """
    facts = ledger.facts()
    metric = metric_of(facts.get("spec", {}).get("analysis", {}))
    records = ledger.scores.records(metric.key) if metric.is_scored else None
    if records is None:
        return None
    named = {"arm": "arm", "task": "budget", "seed": "seed"}
    labels = [{"run_id": BASE, "arm": "frozen", "budget": "", "seed": None}, *_runs(ledger)]
    parts = [
        pd.DataFrame({**{as_: run[of] for as_, of in named.items()}, "record": records, "value": values})
        for run in labels
        if (values := ledger.scores.values(run["run_id"], metric.key)) is not None
    ]
    return pd.concat(parts, ignore_index=True).assign(metric=metric.name).astype({"seed": "Int64"})


def export(ledger: Ledger, folder: Path, answers: bool = True) -> list[Path]:
    """Writes the study as files that can be committed: runs, ranks, curves and facts as text, and its ledger's archive.

    Runs have full precision: what is computed from them is what is computed from the ledger. Without `answers` nothing
    holds a text of the data.
    """
    withheld = () if answers else (ANSWERS,)
    facts = {key: value for key, value in ledger.facts().items() if key not in withheld}
    curves = curves_table(ledger)
    # Every tenth step tells the course; whole curves are in the archive.
    thinned = curves[(curves["step"] % 10 == 0) | (curves["step"] == curves["step"].max())]
    files = {
        "study.yaml": facts["text"],
        "facts.json": json.dumps({k: v for k, v in facts.items() if k not in _APART}, indent=2, sort_keys=True) + "\n",
        "runs.csv": runs_table(ledger).to_csv(index=False),
        "runs.jsonl": runs_table(ledger).to_json(orient="records", lines=True, double_precision=10),
        "ranks.csv": ranks_table(ledger).drop(columns="run_id").to_csv(index=False, float_format="%.6g"),
        "curves.csv": thinned.drop(columns="run_id").to_csv(index=False, float_format="%.6g"),
    }
    if (scores := scores_table(ledger)) is not None:
        files[SCORES_FILE] = scores.to_csv(index=False)
    if "splits" in facts:  # studies of before did not record it
        files[StudyPaths(folder).splits.name] = splits_csv(facts["splits"])
    if ANSWERS in facts:
        files[ANSWERS_FILE] = json.dumps(facts[ANSWERS], indent=2) + "\n"
    files |= {Path(name).name: text for name, text in facts.get("strategy_files", {}).items()}
    folder.mkdir(parents=True, exist_ok=True)
    # All are written before one of an export before is replaced, so that a full disk leaves that one whole.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as staged:
        for name, text in files.items():
            write_atomically(Path(staged) / name, text)
        write_archive(ledger, StudyPaths(Path(staged)).archive, withheld)
        names = [*files, StudyPaths(folder).archive.name]
        for name in names:
            (Path(staged) / name).replace(folder / name)
    if ANSWERS not in facts:
        (folder / ANSWERS_FILE).unlink(missing_ok=True)
    return [folder / name for name in names]


def _loss(total: dict[str, Any] | None) -> float | None:
    return total["nll"] / total["tokens"] if total else None


def _exact(total: dict[str, Any] | None) -> float | None:
    return total["exact"] / total["records"] if total else None
