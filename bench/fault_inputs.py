"""What no study, no record and no path is: refused in words, soon and in little memory; or read as far as it counts.

Each row tries several inputs beside a finished study. `tries` says of each how its verb ended, what it said, its
seconds of the processor and the memory that it took beyond what its process had when it began. All of them are
harmless: what they meet is this package's own limits.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adaptive_lora.demo.tasks import generate
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.results import load_results
from fault_process import Act, Child
from fault_study import Cases, Place, Row

SECONDS, MIB = 30.0, 1024.0
"""Most that a try may take: of the processor, and of memory."""
LONG_RECORD, SHORT_RECORD = 50_000_000, 50_000
"""Bytes of a record that is far longer than `max_length`, and of its beginning."""
DEEP, DIGITS, OVERLONG = "[" * 20_000, "9" * 5_000, "a" * 5_000
OWN_DATA = """\
name: own
model: {{name: demo}}
data: {{source: "{path}", train: 24, validation: 8, test: 24, max_length: 64}}
budgets: ["rank:2"]
arms: [uniform]
seeds: {{evaluation: 2}}
train: {{steps: 3, batch_size: 4, learning_rate: 1e-2}}
analysis: {{primary: [], margin: 0.01}}
controls: none
report: {{answers: 1}}
"""


@dataclass(frozen=True)
class Try:
    """A verb with something, and the exit code that it is to end with."""

    given: str
    words: Sequence[object]
    code: int = 2
    first: Sequence[Act] = ()


def tried(own: Try) -> Row:
    """How it ended."""
    ended = Child(own.words, first=own.first).wait()
    used, mib = round(ended.cpu, 1), round(ended.grown / 2**20)
    right = ended.code == own.code and "Traceback" not in ended.said and used < SECONDS and mib < MIB
    said = next((line for line in ended.said.splitlines() if line.lstrip().startswith("- ")), "").strip()
    said = re.sub("a{60,}", "aaa...", said or ended.told("error:", "failed:")["said"])[:400]
    return {"given": own.given, "exit": ended.code, "said": said, "cpu_seconds": used, "mib": mib, "right": right}


def several(done: str, tries: Callable[[Cases, Place], Sequence[Try]], name: str) -> Callable[[Cases], Row]:
    """A row of several tries beside a finished study, which then is what it was."""

    def case(cases: Cases) -> Row:
        place = cases.copy(name, half=False)
        made = [tried(own) for own in tries(cases, place)]
        return cases.row(place, done, summed(made), tries=made, right=all(own["right"] for own in made))

    return case


def summed(tries: Sequence[Row]) -> Row:
    """Of several tries one ending: the first that is wrong, else the last."""
    worst = next((own for own in tries if not own["right"]), tries[-1])
    return {"exit": worst["exit"], "said": worst["said"]}


def nested(cases: Cases, place: Place) -> list[Try]:
    """Lists in lists, a value that holds itself."""
    files = {"deep.yaml": f"a: {DEEP}", "self.yaml": "a: &a [*a, *a]", "deep.json": DEEP, "deep-plan.json": DEEP}
    paths = written(cases.folder / "nested", files)
    archive = cases.folder / "nested" / "export"
    archive.mkdir()
    (archive / "facts.json").write_text(DEEP)
    return [
        *(Try(name, ["run", paths[name], "--out", place.out]) for name in ("deep.yaml", "self.yaml")),
        Try("deep.json as records", ["data", "profile", paths["deep.json"]]),
        Try("deep.json as a plan", ["plan", "--model", "demo", "--plan", paths["deep-plan.json"], "--for", "peft"]),
        Try("facts.json of an export", ["status", archive]),
    ]


def signs(cases: Cases, place: Place) -> list[Try]:
    """Control characters and halves of surrogate pairs, in files and in what is a record's own text."""
    half, control = '[{"instruction": "a", "output": "\\ud800"}]', '[{"instruction": "\x07\x1b[2J", "output": "a"}]'
    paths = written(cases.folder / "signs", {
        "control.yaml": "name: a\nb: \x07", "half.yaml": 'name: "a\\ud800"', "control.json": control, "half.json": half,
    })  # fmt: skip
    refused = [Try(name, ["run", paths[name], "--out", place.out]) for name in ("control.yaml", "half.yaml")]
    refused += [Try(name, ["data", "profile", paths[name]]) for name in ("control.json", "half.json")]
    rows = [{**row, "output": f"{row['output']}\x07\x1b[31m"} for row in generate("fine-tuning", 60)]
    study, out = own_data(cases.folder / "signs", "escaped", rows)
    run = ["run", study, "--out", out, "--device", "cpu"]
    return [*refused, Try("records whose text holds them", run, 0), Try("and their page", ["report", out], 0)]


def digits(cases: Cases, place: Place) -> list[Try]:
    """Numbers of 5,000 digits."""
    paths = written(cases.folder / "digits", {
        "digits.yaml": f"seeds: {{evaluation: [{DIGITS}]}}",
        "budget.yaml": place.study.read_text().replace('"rank:2"', f'"rank:{DIGITS}"'),
        "digits.json": f'[{{"instruction": "a", "output": {DIGITS}}}]',
        "table.json": f'[{{"arm": "a", "seed": {DIGITS}, "loss": 1.0}}]',
    })  # fmt: skip
    return [
        Try("digits.yaml", ["run", paths["digits.yaml"], "--out", place.out]),
        Try("digits.json as records", ["data", "profile", paths["digits.json"]]),
        Try("table.json as results", ["judge", paths["table.json"], "--baseline", "a"]),
        Try("a budget in a study file", ["run", paths["budget.yaml"], "--out", place.out]),
        Try("a budget", ["plan", "--model", "demo", "--budget", f"params:{DIGITS}"]),
    ]


def overlong(cases: Cases, place: Place) -> list[Try]:
    """Paths of 5,000 characters, one with half a surrogate pair, and one that never ends."""
    verbs = [
        ("status",),
        ("results",),
        ("report",),
        ("paper",),
        ("memory",),
        ("export", "--form", "peft"),
        ("adapter",),
    ]
    tries = [Try(f"{verb[0]} of 5,000 characters", [verb[0], OVERLONG, *verb[1:]]) for verb in verbs]
    files = ("5,000 characters", OVERLONG), ("half a pair", "x\udcff.yaml"), ("/dev/zero", "/dev/zero")
    tries += [Try(f"run of {name}", ["run", path, "--dry-run"]) for name, path in files]
    return [*tries, Try("results --out of 5,000 characters", ["results", place.out, "--out", OVERLONG])]


def long_record(cases: Cases) -> Row:
    """A record of 50 MB ends as its first 50 kB do."""
    place, folder, losses, tries = cases.copy("long", half=False), cases.folder / "long-record", [], []
    for size in (SHORT_RECORD, LONG_RECORD):
        text = "a word and " * (size // 11)
        rows = [*generate("fine-tuning", 55), {"instruction": "Write.", "input": "", "output": text}]
        study, out = own_data(folder, f"{size}", rows)
        tries.append(tried(Try(f"a record of {size / 1e6:g} MB", ["run", study, "--out", out, "--device", "cpu"], 0)))
        with contextlib.suppress(OSError):
            losses.append(load_results(out)[["arm", "seed", "validation_loss", "test_loss"]].to_csv())
    same = len(losses) == 2 and losses[0] == losses[1]
    row = cases.row(place, "a study whose data hold one record of 50 MB, beside its first 50 kB", summed(tries),
                    tries=tries, right=same and all(own["right"] for own in tries))  # fmt: skip
    return {**row, "identical": row["identical"] and same}


def own_data(folder: Path, name: str, rows: Sequence[object]) -> tuple[Path, Path]:
    """A study of these records, and where it goes."""
    paths = written(folder, {f"{name}-data.json": json.dumps(list(rows))})
    study = written(folder, {f"{name}.yaml": OWN_DATA.format(path=paths[f"{name}-data.json"])})[f"{name}.yaml"]
    return study, folder / f"{name}-out"


def written(folder: Path, files: dict[str, str]) -> dict[str, Path]:
    """Files in a folder, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: folder / name for name in files}


def zeroed_page(cases: Cases) -> Row:
    """A page of the ledger that holds rows."""
    place = cases.copy("page", half=False)
    path = StudyPaths(place.out).ledger
    content, page = path.read_bytes(), 4096
    at = content.index(b"completed") // page * page
    path.write_bytes(content[:at] + bytes(page) + content[at + page :])
    told = Child(place.command("run")).wait().told("damaged")
    told["recover"] = Child(["recover", place.out]).wait().told("lost:")
    return cases.row(place, "a page of study.db with rows in it zeroed; `recover`", told)


CASES: dict[str, Callable[[Cases], Row]] = {
    "nested without an end": several("study file, records, plan, export: 20,000 lists deep, or in themselves", nested,
                                     "nested-own"),
    "control characters": several("control characters and half surrogate pairs in study files and records", signs,
                                  "signs-own"),
    "numbers of 5,000 digits": several("in study file, records, results and an option", digits, "digits-own"),
    "overlong paths": several("paths of 5,000 characters, of half a surrogate pair, a device that never ends", overlong,
                              "overlong-own"),
    "record of 50 MB": long_record,
    "ledger's page zeroed": zeroed_page,
}  # fmt: skip
