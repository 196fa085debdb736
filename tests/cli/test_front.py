"""The front: what is wrong with a command is said before torch is imported; the schema is what the reader takes."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from adaptive_lora.errors import StudyFileError
from adaptive_lora.planning.strategies import STRATEGIES
from adaptive_lora.recipes import list_recipes, recipe
from adaptive_lora.study.json_schema import study_json_schema
from adaptive_lora.study.study_file import parse_study
from tests.fresh import FRONT, fresh
from tests.study.test_spec import GOOD

# Ends as the console script does, and says on the last line of stderr whether anything heavy was imported.
RUN = """
import sys
from adaptive_lora.cli.main import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "peft", "datasets", "pandas", "scipy"} & set(sys.modules)
    print("heavy:", *sorted(heavy), file=sys.stderr)
"""


def script(*arguments: object) -> subprocess.CompletedProcess[str]:
    return fresh(FRONT).run(RUN, *arguments)


def test_version_is_that_of_the_package() -> None:
    found = script("--version")
    assert (found.returncode, found.stdout) == (0, f"adaptive-lora {metadata.version('adaptive-lora')}\n")
    assert found.stderr == "heavy:\n"


def test_libraries_are_not_searched_for_garbage() -> None:
    """Neither while they are loaded nor at the end, which took longer than most commands."""
    code = """
import atexit, gc, sys
from adaptive_lora.cli.main import main
atexit.register(lambda: print("frozen:", gc.get_freeze_count() > 10_000, file=sys.stderr))
atexit.register = lambda call: print("at the end:", call.__name__, file=sys.stderr) or call()
try:
    main()
finally:
    print("oldest:", gc.get_threshold()[2], file=sys.stderr)
"""
    said = fresh(FRONT).run(code, "--version").stderr
    assert "at the end: freeze" in said and "oldest: 1000" in said and "frozen: True" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--strategy unifrom", "did you mean 'uniform'"),
        ("--strategy linear-decay --option slope=9", "`slope`"),
        ("--strategy empirical", "give `--data`"),
        ("--budget rank", "Write for example `rank:8`"),
        ("--scaling rs", "constant, rslora or alpha-over-r"),
        ("--reference-scaling 0", "its reference above 0"),
        ("--targets all-linaer", "did you mean 'all-linear'"),
        ("--template alpacca", "template must be one of"),
        ("--data none.json", "none.json does not exist"),
        ("--data demo:nothing", "no group of tasks"),
        ("--out {folder}", "is a directory"),
        ("--out {file}/plan.json", "is a file"),
        ("--peft {file}", "is a file"),
    ],
)
def test_a_bad_argument_of_plan_is_answered_before_torch_is_imported(
    arguments: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("keep me")
    words = arguments.format(folder=tmp_path, file=tmp_path / "file").split()
    found = script("plan", "--model", "demo", *words)
    assert (found.returncode, found.stdout) == (2, "")
    assert message in found.stderr and found.stderr.endswith("heavy:\n"), found.stderr
    assert (tmp_path / "file").read_text() == "keep me"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[uniform,", "[unifrom,", "did you mean 'uniform'"),
        ('"rank:2"', '"rank:0"', "Write for example `rank:8`"),
        ("train: {", "trian: {", "did you mean 'train'"),
    ],
)
@pytest.mark.parametrize("how", ["--dry-run", "--out"])
def test_a_bad_study_file_is_answered_before_torch_is_imported(
    study_file: Callable[..., Path], tmp_path: Path, old: str, new: str, message: str, how: str
) -> None:
    found = script("run", study_file((old, new)), *([how, tmp_path / "out"] if how == "--out" else [how]))
    assert found.returncode == 2 and message in found.stderr and found.stderr.endswith("heavy:\n"), found.stderr
    assert re.search(r"study\.yaml: \d errors?\n", found.stderr) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", ["--png {file}/x.png", "--template alpacca"])
def test_a_bad_argument_of_data_profile_is_answered_before_torch_is_imported(words: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = script("data", "profile", "demo:all", *words.format(file=tmp_path / "file").split())
    assert found.returncode == 2 and found.stderr.endswith("heavy:\n"), found.stderr


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody can write to")
def test_a_place_that_cannot_be_made_is_named_with_the_reason() -> None:
    found = script("plan", "--model", "demo", "--peft", "/proc/adaptive-lora")
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert re.search(r"error: /proc/adaptive-lora:? \S.*", found.stderr), found.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs limits on the size of files")
def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n{RUN}"
    place = tmp_path / "plan.json"
    found = fresh(FRONT).run(limited, "plan", "--model", "demo", "--out", place)
    assert found.returncode == 1 and f"failed: {place}: File too large." in found.stderr, found.stderr
    assert "Traceback" not in found.stderr and list(tmp_path.iterdir()) == []


def test_schema_is_printed_without_torch() -> None:
    found = script("schema")
    assert found.returncode == 0 and json.loads(found.stdout) == study_json_schema()
    assert found.stderr.endswith("heavy:\n")


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = study_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def as_data(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def test_figures_are_drawn_in_the_shell_of_a_notebook() -> None:
    """Jupyter's shells have a backend in the environment that matplotlib refuses when it is imported elsewhere."""
    program = "from adaptive_lora.cli import main; main.app = lambda: __import__('matplotlib'); main.main()"
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    assert fresh(FRONT).run(program, environment=backend).returncode == 0


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_fits_the_schema(name: str, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(as_data(recipe(name).read_text()))


def test_the_test_suites_study_fits_the_schema(
    study_file: Callable[..., Path], validator: jsonschema.Draft202012Validator
) -> None:
    validator.validate(as_data(study_file().read_text()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: good", "name: good\ncontrols: none\nanalysis: {margin: 0.01}"),
        ("evaluation: 3", "evaluation: 6, looks: [3, 6]"),
        ("name: good", "name: good\ncontrols: [twin, half]\ntracking: wandb\nscaling: rslora\ntargets: [q_proj]"),
        ("name: good", "name: good\nanalysis: {primary: [rising, {arm: rising, budget: 'rank:4'}], margin: 0.02}"),
        ("[1e-4, 3e-4]", "auto"),
        ("[1e-4, 3e-4]", "[auto, 1e-4]"),
        ("[1e-4, 3e-4]", "1e-4"),
        ("epochs: 3", "steps: 5, epochs: null"),
        ("{slope: -1}", "{slope: 0.5, min_rank: 2}"),
        ("  - uniform\n", "  - uniform\n  - {ranks: {c_attn: 4}}\n"),
        ("evaluation: 3", "evaluation: [1, 2]"),
        ("epochs: 3", "epochs: 3, tune: baseline"),
        ("name: good", "name: good\nanalysis: {margin: half-budget}"),
        ("name: good", "name: good\ncontrols: [own-shuffled, unclipped, half]"),
        ("  - uniform\n", "  - uniform\n  - {strategy: lora-drop, options: {power: 0.5}}\n"),
        ("{slope: -1}", "{slope: -1}, train: {clip: false}"),
    ],
)
def test_what_the_reader_takes_fits_the_schema(old: str, new: str, validator: jsonschema.Draft202012Validator) -> None:
    assert old in GOOD
    parse_study(GOOD.replace(old, new), Path("study.yaml"))
    validator.validate(as_data(GOOD.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: good", "name: ../evil"),
        ("name: good", "name: good\nextra: 1"),
        ("name: good", "name: good\ncontrols: [twins]"),
        ("name: good", "name: good\nscaling: rs"),
        ("{name: demo}", "{nmae: demo}"),
        ("train: 20", "train: 0"),
        ('"rank:4"', '"rank:0"'),
        ("  - uniform\n", "  - unifrom\n"),
        ("strategy: linear-decay", "strategy: linear-decy"),
        ("{slope: -1}", "{slope: 5}"),
        ("{slope: -1}", "{slop: 1}"),
        ("strategy: linear-decay", "strategy: linear-decay, ranks: {c_attn: 4}"),
        ("epochs: 3", "epochs: 3, steps: 3"),
        ("epochs: 3, ", ""),
        ("[1e-4, 3e-4]", "[1e-4, -1]"),
        ("[1e-4, 3e-4]", "car"),
        ("evaluation: 3", "evaluation: 0"),
        ("evaluation: 3", "evaluation: 3, looks: [1, 3]"),
        ("epochs: 3", "epochs: 3, tune: base"),
        ("name: good", "name: good\nanalysis: {margin: half}"),
        ("name: good", "name: good\ncontrols: [own-shufled]"),
        ("  - uniform\n", "  - uniform\n  - {strategy: lora-drop, options: {power: -1}}\n"),
        ("{slope: -1}", "{slope: -1}, train: {clip: 1}"),
        ("evaluation: 3", "evaluation: 20000"),
    ],
)
def test_what_the_reader_refuses_does_not_fit_the_schema(
    old: str, new: str, validator: jsonschema.Draft202012Validator
) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new)
    with pytest.raises(StudyFileError):
        parse_study(text, Path("study.yaml"))
    assert not validator.is_valid(as_data(text))


def described(schema: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(part, key, description) of every key of the study file and of every strategy's options."""
    for part, own in [("", schema), *schema["$defs"].items()]:
        for key, value in own.get("properties", {}).items():
            there = schema["$defs"].get(value.get("$ref", "").rpartition("/")[2], {})
            yield part, key, value.get("description") or there.get("description", "")


def test_every_key_has_a_description() -> None:
    changed = {"source", "source_options"}  # the transforms' class says what they are
    bare = [(part, key) for part, key, text in described(study_json_schema()) if not text and key not in changed]
    assert not bare and len(list(described(study_json_schema()))) > 60


def test_editors_are_offered_every_strategy_and_its_options() -> None:
    schema = copy.deepcopy(study_json_schema())
    arm = schema["$defs"]["ArmPart"]
    assert arm["properties"]["strategy"]["anyOf"][0]["enum"] == list(STRATEGIES)
    for name, strategy in STRATEGIES.items():
        assert set(schema["$defs"][f"options-of-{name}"]["properties"]) == set(strategy.options.model_fields)
