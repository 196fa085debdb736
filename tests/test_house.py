"""The house: imports point down and never in circles, rooms stay small, the reading wing has no torch."""

from __future__ import annotations

import ast
import graphlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "adaptive_lora"
FILES = sorted(SOURCE.rglob("*.py"))

# From the ground up; a room may import from its own floor's room and from lower floors.
FLOORS = [
    {"redaction"},
    {"errors", "streams", "files"},
    {"planning", "data"},
    {"demo", "recipes", "stats"},
    {"models"},
    {"training"},
    {"measures"},
    {"study"},
    {"foreign"},
    {"export"},
    {"reporting", "groundtruth", "recovery"},
    {"recommend", "publishing", "sharded"},
    {"api", "doctor"},
    {"cli"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets"}
# What people call from Python has flat keywords, as all libraries of the field do; a mapping would hide their types.
MANY_KEYWORDS = {"api.py": {"plan", "train"}, "publishing/exports.py": {"export_adapter"}}
WITHOUT_TORCH = {
    "redaction", "errors", "streams", "files", "planning", "data", "stats", "reporting", "recipes", "models", "foreign",
    "recovery",
}  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path, everywhere: bool) -> set[str]:
    """Modules imported by a file; with `everywhere` also inside functions, but not for type checking alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    here = room_of(module_name(path))
    if not here:
        return  # the front door lists names and loads them when they are used
    assert here in FLOOR, f"{here} has no floor yet; give it one in this test"
    for name in imports(path, everywhere=True):
        there = room_of(name) if name.startswith("adaptive_lora.") else ""
        if there and there != here and there in FLOOR:
            assert FLOOR[there] < FLOOR[here], f"{path.name} ({here}) imports {name}, which is not below it"


def test_no_circles_inside_rooms() -> None:
    """A package's own `__init__` may list its modules; they may not look back up to it."""
    known = {module_name(path) for path in FILES} - {"adaptive_lora"}
    paths = {module_name(path): path for path in FILES}
    graph = {name: imports(paths[name], everywhere=True) & known - {name} for name in known}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def without_torch(path: Path) -> bool:
    """Rooms of the reading wing, and of `study` all but what trains."""
    name = module_name(path).removeprefix("adaptive_lora.")
    trains = ("study.engines", "study.estimate", "study.prepare", "study.runner")
    return room_of(module_name(path)) in WITHOUT_TORCH or (name.startswith("study") and not name.startswith(trains))


@pytest.mark.parametrize("path", [p for p in FILES if without_torch(p)], ids=lambda p: str(p.relative_to(SOURCE)))
def test_reading_and_planning_rooms_import_nothing_heavy(path: Path) -> None:
    heavy = {name.split(".")[0] for name in imports(path, everywhere=False)} & HEAVY
    assert not heavy, f"{path.name} imports {heavy} when it is loaded"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_rooms_and_functions_stay_small(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= 300, f"{path.name} has {lines} lines; split it"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            doc = ast.get_docstring(node)
            body = (node.end_lineno or 0) - node.lineno - (doc.count("\n") + 1 if doc else 0)
            assert body <= 60, f"{path.name}: {node.name} has {body} lines"
            arguments = [a for a in node.args.args + node.args.kwonlyargs if a.arg not in ("self", "cls")]
            verb = any("app.command" in ast.unparse(d) or "data_app" in ast.unparse(d) for d in node.decorator_list)
            public = node.name in MANY_KEYWORDS.get(str(path.relative_to(SOURCE)), ())
            assert len(arguments) <= 8 or verb or public, f"{path.name}: {node.name} has {len(arguments)} parameters"


def test_one_builder_of_lora_configs() -> None:
    makers = [p.name for p in FILES if re.search(r"\bLoraConfig\(", p.read_text())]
    assert makers == ["plan.py"]


def test_no_global_randomness() -> None:
    banned = re.compile(
        r"\b(torch\.manual_seed|np\.random\.(seed|rand|choice|normal)|random\.(seed|random|choice|shuffle))\("
    )
    for path in FILES:
        assert not banned.search(path.read_text()), path.name


def test_public_functions_are_documented() -> None:
    missing = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{path} has no docstring"
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node) and node.name != "Silent":
                missing.append(f"{path.name}: {node.name}")
    assert not missing


def test_recipes_are_the_studies_folder() -> None:
    studies = SOURCE.parent.parent / "studies"
    assert {p.name for p in studies.glob("*.yaml")} == {p.name for p in (SOURCE / "recipes").glob("*.yaml")}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_bench_runs_every_script_that_needs_no_argument() -> None:
    root = SOURCE.parent.parent
    told = subprocess.run(["make", "--dry-run", "bench"], cwd=root, capture_output=True, text=True, check=True).stdout
    needs_none = [p for p in (root / "bench").glob("*.py") if not re.search(r'add_argument\("[a-z]', p.read_text())]
    assert set(re.findall(r"bench/\w+\.py", told)) == {f"bench/{p.name}" for p in needs_none}


def test_all_public_names_exist() -> None:
    import adaptive_lora

    for name in adaptive_lora.__all__:
        assert getattr(adaptive_lora, name) is not None
    assert set(adaptive_lora.__all__) == set(adaptive_lora._PLACES)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        adaptive_lora.nothing  # noqa: B018
