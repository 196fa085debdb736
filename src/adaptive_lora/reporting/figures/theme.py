"""The one look of all figures: colour-blind safe, readable in grey, and the same bytes every time."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.text import Text

from adaptive_lora.files import write_atomically

# Okabe and Ito, "Color Universal Design", jfly.uni-koeln.de/color; yellow left out, too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
Dash = str | tuple[int, tuple[int, ...]]
DASHES: Sequence[Dash] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RANK_COLOURS = "viridis"
_ARM, _POINT = "arm:", "|"
LEFT_OUT_COLOUR = "#e4e4e4"  # not in viridis: no rank at all is not a low rank

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "legend.frameon": False,
    "text.hinting": "no_hinting",  # else texts are measured narrower at screen size than they are written
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "adaptive-lora",
}
_UNDATED: dict[str, dict[str, Any]] = {
    "pdf": {"metadata": {"CreationDate": None}},
    "svg": {"metadata": {"Date": None}},
    # A fifth larger than at Pillow's own compression, in less time.
    "png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 2}},
}


@contextlib.contextmanager
def themed() -> Iterator[None]:
    """The theme's settings while a figure is drawn or written."""
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def mark(artist: Artist, arm: str, point: str | None = None) -> None:
    """Says which arm an artist belongs to, and what a raw point is, for pages that toggle arms and show points.

    In SVG it becomes `<g class="arm" data-arm="ARM"><title>POINT</title>`; elsewhere it changes nothing.
    """
    artist.set_gid(f"{_ARM}{arm}" if point is None else f"{_ARM}{arm}{_POINT}{point}")


def settle(figure: Figure) -> None:
    """Lays the figure out once and for all, so that writing it in several forms does not do it for each.

    Without ligatures, for which a PDF embeds a font a second time, and which hide words from a search.
    """
    engine = figure.get_layout_engine()
    if engine is None:
        return
    with themed():
        for text in figure.findobj(Text):
            if hasattr(text, "set_fontfeatures"):  # from matplotlib 3.11 on
                text.set_fontfeatures(("-liga",))
        engine.execute(figure)
        figure.set_layout_engine(None)  # "none" would leave a placeholder, for which saving draws everything twice


def to_svg(figure: Figure) -> str:
    """The figure as the text of an SVG file, with a group for each mark."""
    return re.sub(f'<g id="{_ARM}([^"]*)">', _marked, _written(figure, "svg").decode())


def _marked(found: re.Match[str]) -> str:
    arm, _, point = found.group(1).partition(_POINT)  # escaped by matplotlib already
    title = f"<title>{point}</title>" if point else ""
    return f'<g class="arm" data-arm="{arm}">{title}'


def _written(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    with themed():
        figure.savefig(buffer, format=kind, **_UNDATED[kind])
    return buffer.getvalue()


def save(figure: Figure, stem: Path, kinds: Sequence[str] = ("pdf", "svg", "png")) -> list[Path]:
    """Writes PDF, SVG and a 300 dpi PNG beside each other, or some of them."""
    paths = [stem.with_suffix(f".{kind}") for kind in kinds]
    for path, kind in zip(paths, kinds, strict=True):
        write_atomically(path, to_svg(figure) if kind == "svg" else _written(figure, kind))
    return paths
