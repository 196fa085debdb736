"""The pictures in README and the documentation are those of the committed results, drawn without torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.committed import RESULTS
from tests.fresh import NEVER_ASKED, READING, fresh

SCRIPT = RESULTS.parent / "scripts" / "figures.py"


def script() -> Any:
    spec = importlib.util.spec_from_file_location("figures_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_bytes_are_drawn_without_torch() -> None:
    """One of them; CI looks at all."""
    program = f"import sys, runpy\nsys.argv = {[str(SCRIPT), '--check', 'alpaca-babyllama']!r}\n"
    done = fresh(READING).run(f"{program}runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n{NEVER_ASKED}")
    assert done.stdout == "all pictures are those of the committed results\n", done.stderr


def test_other_bytes_are_found(tmp_path: Path) -> None:
    made = script()
    texts = {"same": "a", "other": "b", "missing": "c"}

    def draw(name: str, out: Path) -> list[Path]:
        path = out / name / "overview.svg"
        path.parent.mkdir(parents=True)
        path.write_text(texts[name])
        return [path]

    made.draw = draw
    draw("same", tmp_path)
    made.check(["same"], tmp_path)
    draw("other", tmp_path)[0].write_text("a")
    with pytest.raises(SystemExit, match=r"give: \S+other/overview.svg, \S+missing/overview.svg. `make figures`"):
        made.check(list(texts), tmp_path)


def test_every_picture_that_is_shown_is_drawn_by_it() -> None:
    made = script()
    drawn = {f"{name}/{figure}.svg" for name, figures in made.STUDIES.items() for figure in figures}
    drawn |= {f"bench/{name}{form}" for name in made.PLANTED for form in (".svg", ".png", "-map.svg")}
    drawn.add(f"{made.CEILINGS}.svg")
    kept = {str(path.relative_to(RESULTS)) for kind in ("svg", "png") for path in RESULTS.rglob(f"*.{kind}")}
    assert {path for path in kept if not path.startswith("superseded/")} <= drawn
    missing = {path for path in drawn if (RESULTS / path).parent.is_dir()} - kept
    assert not missing
