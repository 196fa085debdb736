"""Draws every picture that README and the documentation show anew, from committed results: what `make figures` does.

    python scripts/figures.py [--out FOLDER] [--check] [NAME ...]

Same results, same bytes, which `--check` compares with those that are there; needs no torch. Pictures of a report are
`make pages`, those of the paper `make paper`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from adaptive_lora.reporting.choices import ceilings_of
from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.figures.ceilings import several_ceilings
from adaptive_lora.reporting.figures.planted import recovery_heat_map
from adaptive_lora.reporting.figures.recovery import recovery_figure
from adaptive_lora.reporting.figures.theme import save
from adaptive_lora.reporting.paper.figures import study_figures
from adaptive_lora.reporting.recovered import read_recovered

ROOT = Path(__file__).resolve().parents[1]
STUDIES: Mapping[str, Sequence[str]] = {
    "alpaca-babyllama": ("overview",),
    "alpaca-babyllama-full": ("overview",),
    "ceiling-smollm2-reasoning": ("ceiling",),
    "ladder-babyllama": ("ladder",),
    "ladder-smollm2": ("ladder",),
}
"""Export -> the figures of it that are shown; exports that are not there have not been run."""
PLANTED = ("recovery-babyllama", "recovery-stories260K-equal-cost")
"""Files of planted ranks: a heat map and intervals of each."""
CEILINGS = "ceilings"
"""One figure of every export that has a ceiling."""
MODELS = ("smollm2", "babyllama", "stories260k")
"""In its order."""


def draw(name: str, out: Path) -> list[Path]:
    """The files of one study or one file of planted ranks, under `out` as they lie in `results`."""
    if name == CEILINGS:
        return save(_ceilings(), out / CEILINGS, ("svg",))
    if name in PLANTED:
        found = read_recovered(ROOT / "results" / "bench" / f"{name}.json")
        stem = out / "bench" / name
        return [
            *save(recovery_heat_map(found), stem.with_name(f"{name}-map"), ("svg",)),
            *save(recovery_figure(found), stem, ("svg", "png")),
        ]
    with open_findings(ROOT / "results" / name) as study:
        drawn = study_figures(study)
        return [path for figure in STUDIES[name] for path in save(drawn[figure][0], out / name / figure, ("svg",))]


def _ceilings() -> Figure:
    by_study = {}
    named = {path.name.removeprefix("ceiling-"): path for path in (ROOT / "results").glob("ceiling-*")}
    for name in sorted(named, key=lambda name: (MODELS.index(name.split("-")[0]), name)):
        with open_findings(named[name]) as study:
            by_study[name] = ceilings_of(study)
    figure = several_ceilings(by_study)
    assert figure is not None, "no export has a ceiling"
    return figure


def check(names: Sequence[str], out: Path) -> None:
    """Exits with a message where what would be drawn is not what lies in `out`."""
    changed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            for path in draw(name, Path(folder)):
                kept = out / path.relative_to(folder)
                if not kept.is_file() or kept.read_bytes() != path.read_bytes():
                    changed.append(str(kept))
    if changed:
        raise SystemExit(f"not what the committed results give: {', '.join(changed)}. `make figures` draws them anew.")
    print("all pictures are those of the committed results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name in STUDIES if (ROOT / "results" / name).is_dir()] + [*PLANTED, CEILINGS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a picture would change")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(known):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(known)}")
    if asked.check:
        check(asked.names or known, asked.out)
        return
    for name in asked.names or known:
        for path in draw(name, asked.out):
            print(path, flush=True)


if __name__ == "__main__":
    main()
