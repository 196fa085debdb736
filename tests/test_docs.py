"""The documentation is true: commands exist, links lead somewhere, examples run, references are whole."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML
from typer.testing import CliRunner

from adaptive_lora.cli.main import app
from adaptive_lora.export.snippets.trainers import TRAINERS
from adaptive_lora.export.tools import TOOLS, find_tool
from adaptive_lora.planning.strategies import STRATEGIES
from adaptive_lora.study.json_schema import study_json_schema
from adaptive_lora.study.study_file import load_study, parse_study

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\b.*?\n(.*?)^```$", TEXT[page], flags=re.S | re.M)


def commands(page: str) -> list[list[str]]:
    """Every command in a page, in blocks and in the text, as words."""
    lines = [line for text in blocks(page, "bash") for line in text.splitlines()]
    lines += re.findall(r"`(adaptive-lora [^`]+)`", re.sub(r"^```.*?^```$", "", TEXT[page], flags=re.S | re.M))
    words = [shlex.split(" ".join(line.split()), comments=True) for line in lines]
    return [found[1:] for found in words if found and found[0].removeprefix(".venv/bin/") == "adaptive-lora"]


SERVING = [page for page in TEXT if ".venv/bin/mlx_lm" in TEXT[page]]
"""Pages with the way from a clone to an answer that is served."""


@pytest.mark.parametrize("page", SERVING)
def test_the_way_to_a_served_answer_hangs_together(page: str) -> None:
    """Six commands at most; each uses what the one before has made. What they do was tried by hand in a fresh clone."""
    (text,) = [text for text in blocks(page, "bash") if ".venv/bin/mlx_lm" in text]
    clone, enter, *steps = [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]
    assert len(steps) <= 4 and clone[:2] == ["git", "clone"] and enter == ["cd", clone[-1]]
    made: set[str] = set()
    for words in steps:
        tool, named = words[0].removeprefix(".venv/bin/"), dict(itertools.pairwise(words))
        if tool == "make":
            assert re.search(rf"^{words[1]}: \$\(READY\)$", (ROOT / "Makefile").read_text(), flags=re.M)
        elif tool == "mlx_lm.generate":
            assert named["--model"] in made
            told = find_tool("mlx").accepts["merged"]
            assert {word for word in words if word.startswith("--")} <= set(told.split())
        elif words[1] == "run":
            load_study(ROOT / words[2])
            made.add(named["--out"])
        else:
            assert words[1] == "export" and words[2] in made and named["--form"] in find_tool(named["--for"]).accepts
            made.add(named["--out"])
    assert steps[-1][0] == ".venv/bin/mlx_lm.generate" and "--prompt" in steps[-1]


@pytest.mark.parametrize("page", [page for page in TEXT if commands(page)])
def test_every_command_exists_with_its_options(page: str) -> None:
    for words in commands(page):
        here: Any = typer.main.get_command(app)
        told, words = " ".join(words), list(words)
        while hasattr(here, "commands") and words and not words[0].startswith("--"):
            if (word := words.pop(0)) == "VERB":
                break
            assert word in here.commands, f"{page}: adaptive-lora {told}"
            here = here.commands[word]
        known = {name for parameter in here.params for name in parameter.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known, f"{page}: adaptive-lora {told}"


QUICK = ("strategies", "plan", "data", "init", "schema")
"""Verbs that take no longer than a plan."""


@pytest.mark.parametrize("page", ["README.md", "docs/quick-start.md"])
def test_quick_commands_work(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quick = [words for words in commands(page) if words[0] in QUICK]
    assert len(quick) >= 4
    for words in quick:
        found = CliRunner().invoke(app, words)
        assert found.exit_code == 0, f"{words}: {found.output}"
    assert (tmp_path / "my-plan" / "adapter_config.json").is_file() and (tmp_path / "my-study.yaml").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/python-api.md"])
def test_python_that_plans_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "".join(text for text in blocks(page, "python") if "load_" not in text)
    assert "adaptive_lora.plan(" in code
    if "export_adapter" in code:
        code += "\nassert found.untrained and found.check.passed and found.check.modules == 24\n"
    code += "\nassert plan.trainable_parameters <= 98_304 and len(config.rank_pattern) == 24\n"
    exec(code, {})


@pytest.mark.parametrize("page", TEXT)
def test_links_lead_to_files_of_the_repository(page: str) -> None:
    generated = {"reference/study-file.md", "reference/commands.md", "contributing.md", "changelog.md"}
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", TEXT[page], flags=re.S | re.M)
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)}
    missing = {
        link
        for link in links - generated - {""}
        if ":" not in link and not (ROOT / page).parent.joinpath(link).exists()
    }
    assert not missing


def test_files_that_are_named_exist() -> None:
    """The log is a record of its day; in examples of the guide files are yet to be written."""
    for page, text in TEXT.items():
        if page not in ("docs/LOG.md", "docs/adding-a-strategy.md"):
            named = re.findall(r"(?<![\w/.-])((?:tests|bench|scripts|src|results/bench)/[\w./-]+\w)", text)
            assert [path for path in named if not (ROOT / path).exists()] == [], page


def test_studies_in_the_documentation_are_valid(tmp_path: Path) -> None:
    for page in ("README.md", "docs/study-file.md"):
        whole = [text for text in blocks(page, "yaml") if text.startswith("name:")]
        assert whole
        for text in whole:
            parse_study(text, tmp_path / "study.yaml")


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """The hook that makes pages of the code."""
    spec = importlib.util.spec_from_file_location("docs_pages", ROOT / "scripts" / "docs_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_references_have_every_key_every_option_every_strategy_and_every_verb(pages: ModuleType) -> None:
    schema = study_json_schema()
    keys = pages.study_file_reference(schema)
    for part in (schema, *schema["$defs"].values()):
        for key in part.get("properties", {}):
            assert f"`{key}` |" in keys or key in ("min_rank", "max_rank"), key
    assert re.search(r"^\| `train` \| whole number ≥ 1 \| \*\*required\*\* \| Training records", keys, flags=re.M)
    assert "| `margin` | number > 0 or `half-budget` | `half-budget` | Differences within it do not matter" in keys
    assert all(f"`{name}` |" in pages.strategies_table() for name in STRATEGIES)
    verbs = pages.commands_reference()
    assert "## data profile\n" in verbs and "| `--strategy` | `uniform` |" in verbs and "## schema\n" in verbs
    assert "Missing" not in verbs and "None" not in verbs


def test_every_training_tool_is_in_the_table_and_has_its_text(pages: ModuleType) -> None:
    table, text = pages.trainers_table(), pages.snippets_text()
    for name, trainer in TRAINERS.items():
        assert f"| `{name}` | {trainer.title} {trainer.version} |" in table
        (body,) = re.findall(rf"^### {trainer.title}\n\n```{trainer.language}\n(.*?)^```$", text, flags=re.S | re.M)
        compile(body, name, "exec") if trainer.language == "python" else YAML(typ="safe").load(body)
        assert body.startswith("# linear-decay, rank:4: 9 modules, 1 left out") is (trainer.expresses == "any ranks")
    markdown = pages.on_page_markdown(
        TEXT["docs/training-tools.md"], SimpleNamespace(file=SimpleNamespace(src_uri="x.md"))
    )
    assert table in markdown and text in markdown and "<!--" not in markdown


def test_every_tool_that_exports_are_for_is_in_the_table_of_what_was_run(pages: ModuleType) -> None:
    table = pages.compat_table()
    for tool in TOOLS:
        (line,) = [line for line in table.splitlines() if line.startswith(f"| `{tool.name}` |")]
        assert ("not run | read in the release's code: `" in line) is (tool.evidence == "read")
    (line,) = [line for line in table.splitlines() if line.startswith("| `llama.cpp` |")]
    assert re.search(r"\| `peft` \(llama, qwen3, gemma3\), `unit` \(.*\): off by up to \d", line)
    markdown = pages.on_page_markdown(TEXT["docs/export.md"], SimpleNamespace(file=SimpleNamespace(src_uri="x.md")))
    assert table in markdown and "<!--" not in markdown


def test_python_of_the_page_on_training_tools_runs() -> None:
    (code,) = blocks("docs/training-tools.md", "python")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["made"].concession is None and "learning_rate: 0.0003\n" in names["made"].text


def test_the_site_is_built_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    html = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")}
    assert len(html) >= len(TEXT)
    for name, text in html.items():
        fetched = re.findall(r"<(?:script|img|iframe)[^>]+src=\"?(?:https?:)?//[^\">]+", text)
        fetched += re.findall(r"<link[^>]+href=\"?(?:https?:)?//[^\">]+", text)
        assert not fetched, f"{name} asks the network: {fetched[:3]}"
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style.name
