"""The threat page: every test that it names exists, and what the source never does, it never does."""

from __future__ import annotations

import ast
import functools
import json
import re
import shutil
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adaptive_lora.errors import ModelError, StudyFolderError
from adaptive_lora.export.snippets.fragment import snippet
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.reporting.paper.compiling import compile_pdf
from adaptive_lora.study.archive import read_archive
from adaptive_lora.study.json_schema import study_json_schema
from adaptive_lora.training.base import load_base
from tests.test_house import FILES, HEAVY, SOURCE, module_name

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
NETWORK = {"urllib.request", "http.client", "socket", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "telnetlib"}
MAY_ASK = {"adaptive_lora.doctor": {"urllib.request"}}
"""`doctor` asks the hub whether it answers, when it is called."""
MAY_SEND = {"adaptive_lora.publishing.hub"}
"""`export --push` uploads an export, when it is asked to."""


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """(name as it is written, call) of every call in a file."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]


def test_every_test_on_the_page_exists() -> None:
    assert len(NAMED) > 40
    for file, name in NAMED:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.M), f"{file} has no {name}"


def test_every_threat_has_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| threat")]
    assert len(rows) >= 18
    assert all("`tests/" in row for row in rows), [row for row in rows if "`tests/" not in row]


def test_no_code_of_a_model_is_run() -> None:
    loads = [(path, name, call) for path in FILES for name, call in calls(path)
             if re.search(r"\bAuto\w+\.from_(pretrained|config)$", name)]  # fmt: skip
    assert len(loads) > 3
    for path, name, call in loads:
        said = {word.arg: word.value for word in call.keywords}
        told = said.get("trust_remote_code")
        unpacked = None in said  # keywords that `gguf` and `base` give, where the file says so
        assert (isinstance(told, ast.Constant) and told.value is False) or unpacked, f"{path.name}: {name}"
    assert not any("trust_remote_code=True" in path.read_text() for path in FILES)


def test_a_model_that_brings_code_is_refused_and_the_code_not_run(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(model_folders["gpt2"], folder)
    (folder / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Own: pass\n")
    config = json.loads((folder / "config.json").read_text())
    places = {"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": places}))
    with pytest.raises(ModelError):
        load_base("own", folder)
    assert not ran.exists()


def test_nothing_is_unpickled_or_evaluated_but_what_is_our_own() -> None:
    allowed = {
        ("adaptive_lora.planning.strategies.registry", "exec"),  # a strategy's file, which the user names
        ("adaptive_lora.reporting.figures.making", "pickle.loads"),  # from this process, in a private folder
        # What was rendered here of names that are `repr`, to see what a tool would make of it.
        ("adaptive_lora.export.snippets.checking", "exec"),
        ("adaptive_lora.export.snippets.loading", "exec"),
        ("adaptive_lora.export.snippets.reading", "eval"),
    }
    banned = re.compile(r"(pickle|dill|joblib|marshal|shelve)\.loads?$|^(eval|exec)$|torch\.load$|__import__$")
    found = {(module_name(path), name) for path in FILES for name, _ in calls(path) if banned.search(name)}
    assert found <= allowed, found - allowed
    for path in FILES:
        for name, call in calls(path):
            if name.endswith(("np.load", "numpy.load")):
                assert "allow_pickle=False" in ast.unparse(call), path.name


def test_a_plan_cannot_write_python() -> None:
    evil = "x'\"\n\u2028import os\n{{ 7 * 7 }} \\"
    name = f"{evil}.a"
    modules = (ModuleShape(name, "mlp", 0, 8, 8),)
    told = {"model": evil, "budget": evil, "instead_of": evil}
    plan = RankPlan(evil, 64, modules, {name: 4}, Scaling(reference_rank=4.0), provenance=told)
    sound = RankPlan("uniform", 64, modules, {name: 4}, Scaling(reference_rank=4.0))
    for tool in ("peft", "trl", "ms-swift"):
        own, other = (ast.parse(snippet(one, tool, available=modules).text) for one in (plan, sound))
        assert ast.unparse(own) == ast.unparse(other)
        (table,) = [n.value for n in own.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "modules"]
        assert ast.literal_eval(table) == {name: (4, 8.0)}


def archive(path: Path, tables: Any) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tables.json", json.dumps(tables))
    return path


def test_an_archive_cannot_write_sql(tmp_path: Path) -> None:
    evil = "study (key, value) VALUES ('a', 'b'); --"
    for tables in ({evil: [{"key": "a"}]}, {"study": [{"key, value) SELECT 'a', sqlite_version() --": 1}]}):
        with pytest.raises(StudyFolderError, match="corrupt: it names a table or a column"):
            read_archive(archive(tmp_path / "ledger.npz", tables))


def test_an_archive_that_unpacks_to_more_than_any_study_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adaptive_lora.study.archive.LARGEST_ARCHIVE", 100_000)
    with zipfile.ZipFile(tmp_path / "ledger.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("tables.json", " " * 1_000_000)
    with pytest.raises(StudyFolderError, match="says that it unpacks to 1,000,000 bytes"):
        read_archive(tmp_path / "ledger.npz")


@pytest.mark.skipif(shutil.which("latexmk") is None or shutil.which("pdflatex") is None, reason="needs TeX")
def test_tex_reads_nothing_outside_its_folder() -> None:
    tries = "".join(
        rf"\openin\f={path} \ifeof\f\else\errmessage{{{path} is open}}\fi\closein\f "
        for path in ("/etc/passwd", "../x")
    )
    page = r"\documentclass{minimal}\begin{document}\newread\f \openin\f=own.txt \ifeof\f\errmessage{closed}\fi" + tries
    found = compile_pdf({"main.tex": (page + r"x\end{document}").encode(), "own.txt": b"mine"})
    assert found.complaints == () and found.pdf is not None


def test_no_shell_is_asked() -> None:
    for path in FILES:
        for name, call in calls(path):
            assert name not in ("os.system", "os.popen", "subprocess.getoutput"), path.name
            if name.startswith("subprocess."):
                assert "shell=" not in ast.unparse(call), path.name
                assert not call.args or not isinstance(call.args[0], ast.Constant | ast.JoinedStr), path.name


def test_nothing_is_sent_anywhere() -> None:
    for path in FILES:
        text, tree = path.read_text(), tree_of(path)
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
        assert names & NETWORK <= MAY_ASK.get(module_name(path), set()), path.name
        sends = re.search(r"\.(push_to_hub|upload_file|upload_folder|create_repo|create_commit)\(", text)
        assert not sends or module_name(path) in MAY_SEND, path.name


def test_a_study_file_has_no_place_for_a_secret() -> None:
    def keys(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from value.get("properties", {})
            for own in value.values():
                yield from keys(own)
        elif isinstance(value, list):
            for own in value:
                yield from keys(own)

    found = set(keys(study_json_schema()))
    assert len(found) > 40 and not [key for key in found if re.search("token$|secret|password|api_?key", key)]
    for path in (SOURCE / "cli").glob("*.py"):
        assert not re.search(r'"--[\w-]*(token|secret|password|key)', path.read_text()), path.name


def test_every_dependency_has_a_lower_bound_and_tests_a_pinned_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(one for own in project["optional-dependencies"].values() for one in own)]
    stubs = {"pandas-stubs", "scipy-stubs"}  # types alone, which go with what they are stubs of
    assert {one for one in asked if not re.search(r">=|==|^adaptive-lora\[", one)} <= stubs
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    assert pinned >= HEAVY
