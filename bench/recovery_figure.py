"""The figure and the table of what `recovery.py` found. Writes PNG and SVG beside the JSON, prints Markdown.

Left, by strategy, the share of the oracle's gain: the mean over the concentrated truths that count, with its 95 %
interval over seeds, and every truth that counts by itself. Right, the excess over uniform on the uniform truth.

    python bench/recovery_figure.py results/bench/recovery-babyllama.json [--all]

`--all` shows truths that do not count as well: for looking at a comparison that is not finished.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptive_lora.groundtruth.recovery import shares_by_seed
from adaptive_lora.groundtruth.truths import CONCENTRATED
from adaptive_lora.judging.stats import Interval, mean_interval
from adaptive_lora.telling.figures.theme import COLOURS, MARKERS, save, themed

CONTROLS = ("random", "shuffled", "inverted")
REFERENCES = ("oracle", "floor", "uniform")
GREY = "#8c8c8c"
SHARES, EXCESSES = (-1.5, 1.5), (-1.5, 3.0)
"""Widest limits: means beyond stand at the edge, as arrows, single truths beyond are left to the table."""
BELOW = 0.3
"""How far under the mean single truths stand, rows."""


@dataclass(frozen=True)
class Found:
    """What is drawn of a comparison."""

    truths: Mapping[str, Any]
    """As `summary` gives them."""
    results: Sequence[Mapping[str, Any]]
    counting: tuple[str, ...]
    """Truths that are shown, the concentrated ones first."""

    @property
    def concentrated(self) -> tuple[str, ...]:
        return tuple(t for t in self.counting if t in CONCENTRATED)

    def share(self, truth: str, name: str) -> float:
        return float(self.truths[truth]["strategies"][name]["share_of_oracle_gain"]["mean"])

    def concentrated_share(self, name: str) -> Interval | None:
        """Over seeds, of the mean over the concentrated truths; of seeds that have them all."""
        found = {(r["truth"], r["seed"]): r["divergence"] for r in self.results}
        seeds = [s for s in dict.fromkeys(s for _, s in found) if all((t, s) in found for t in self.concentrated)]
        if not self.concentrated or not seeds:
            return None
        shares = []
        for truth in self.concentrated:
            own = [found[truth, seed] for seed in seeds]
            apart, gains = ([d["uniform"] - d[other] for d in own] for other in (name, "oracle"))
            shares.append(shares_by_seed(apart, gains))
        return mean_interval(np.mean(shares, axis=0).tolist())

    def order(self) -> list[str]:
        """Strategies, the best on the concentrated truths first, and then the controls."""
        (first, *_) = self.truths.values()
        names = [n for n in first["strategies"] if n not in REFERENCES]
        shares = {n: i.mean if (i := self.concentrated_share(n)) else 0.0 for n in names}
        return sorted(names, key=lambda n: (n in CONTROLS, -shares[n]))


def read(path: Path, everything: bool) -> Found:
    """SystemExit where no concentrated truth counts."""
    held = json.loads(path.read_text())
    truths = held["truths"]
    counting = [t for t in truths if t != "uniform" and (everything or truths[t]["counts"])]
    counting.sort(key=lambda t: t not in CONCENTRATED)
    if not set(counting) & set(CONCENTRATED):
        raise SystemExit(
            f"No concentrated truth of {path} counts: the oracle's gain exceeds five standard errors on none. "
            f"Run more seeds, or look at what there is with --all."
        )
    return Found(truths, held["results"], tuple(counting))


def figure(found: Found) -> Figure:
    """Strategies by rows; shares left, uniform truth right."""
    names = found.order()
    controls = sum(n in CONTROLS for n in names)
    rows = {n: i + (0.6 if n in CONTROLS else 0) for i, n in enumerate(names)}
    with themed():
        drawn = Figure(figsize=(7.2, 1.3 + 0.27 * len(names)), layout="constrained")
        left, right = drawn.subplots(1, 2, sharey=True, width_ratios=(2.1, 1))
        _shares(left, found, rows)
        _excess(right, found, rows)
        for ax in (left, right):
            ax.set_yticks(list(rows.values()), list(rows))
            ax.tick_params(axis="y", length=0)
            ax.spines["left"].set_visible(False)
            for row in rows.values():
                ax.axhline(row, color="#ececec", lw=0.6, zorder=0)
            if controls:
                ax.axhline(len(names) - controls - 0.2, color=GREY, lw=0.6, ls=(0, (4, 3)), zorder=0)
        left.set_ylim(max(rows.values()) + 0.6, -0.6)
        for label in left.get_yticklabels():
            if label.get_text() in CONTROLS:
                label.set_color(GREY)
        handles, labels = left.get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=7.5)
    return drawn


def _shares(ax: Axes, found: Found, rows: Mapping[str, float]) -> None:
    floors = [found.share(t, "floor") for t in found.concentrated]
    ax.axvline(0, color="black", lw=0.8, zorder=1)
    ax.axvline(1, color="black", lw=0.8, zorder=1)
    ax.axvline(float(np.mean(floors)), color="black", lw=0.8, ls=":", zorder=1)
    _name_lines(ax, float(np.mean(floors)))
    ax.plot([], [], "o-", ms=5.5, lw=1.6, color=COLOURS[0], label="mean of the concentrated truths, 95 % interval")
    for name, row in rows.items():
        _dot(ax, found.concentrated_share(name), row, GREY if name in CONTROLS else COLOURS[0], SHARES)
    for index, truth in enumerate(found.counting, 1):
        first = truth in found.concentrated
        colour = COLOURS[1 + (index - 1) % 3] if first else GREY
        kept = [found.share(truth, n) if SHARES[0] <= found.share(truth, n) <= SHARES[1] else np.nan for n in rows]
        ax.plot(kept, [row + BELOW for row in rows.values()], MARKERS[index % len(MARKERS)], ms=3.6, mfc="none",
                mec=colour, mew=0.8, ls="none", zorder=3 if first else 2, label=truth)  # fmt: skip
    _limit(ax, SHARES)
    ax.set_xlabel("share of the oracle's gain over uniform")


def _name_lines(ax: Axes, floor: float) -> None:
    """The names of the three lines, floor and a near neighbour apart."""
    sides = {"uniform": 0, "oracle": 0, "floor": 0}
    for other, x in (("uniform", 0.0), ("oracle", 1.0)):
        if abs(floor - x) < 0.25:
            sides["floor"] = -1 if floor < x else 1
            sides[other] = -sides["floor"]
    for name, x in (("uniform", 0.0), ("oracle", 1.0), ("floor", floor)):
        side = sides[name]
        ax.annotate(
            name, (x, 1), xycoords=("data", "axes fraction"), xytext=(-4 * side, 3), textcoords="offset points",
            ha={-1: "right", 0: "center", 1: "left"}[side], va="bottom", fontsize=7.5,
        )  # fmt: skip


def _excess(ax: Axes, found: Found, rows: Mapping[str, float]) -> None:
    ax.axvline(0, color="black", lw=0.8, zorder=1)
    ax.set_xlabel("excess over uniform\non the uniform truth")
    held = found.truths.get("uniform")
    if held is None or held["strategies"]["uniform"]["excess"]["mean"] is None:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=GREY)
        return
    for name, row in rows.items():
        value = held["strategies"][name]["excess"]
        _dot(ax, Interval(value["mean"], value["low"], value["high"], held["seeds"], 0.95), row,
             GREY if name in CONTROLS else COLOURS[0], EXCESSES)  # fmt: skip
    _limit(ax, EXCESSES)


def _dot(ax: Axes, value: Interval | None, row: float, colour: str, limits: tuple[float, float]) -> None:
    """Mean and interval; an arrow at the edge where the mean lies beyond the limits."""
    if value is None:
        return
    low, high = limits
    if value.low is not None and value.high is not None and value.low < high and value.high > low:
        ends = [max(value.low, low), min(value.high, high)]
        ax.plot(ends, [row, row], color=colour, lw=1.6, solid_capstyle="butt", zorder=4)
    mark = "<" if value.mean < low else ">" if value.mean > high else "o"
    ax.plot(min(max(value.mean, low), high), row, mark, ms=5.5, color=colour, mec="white", mew=0.5, zorder=5)


def _limit(ax: Axes, widest: tuple[float, float]) -> None:
    """What is drawn and a little more, within the widest limits and a little more."""
    low, high = ax.dataLim.intervalx
    room = 0.03 * (min(high, widest[1]) - max(low, widest[0]))
    ax.set_xlim(max(low, widest[0]) - room, min(high, widest[1]) + room)


def table(found: Found) -> str:
    """Strategies by rows, truths by columns, planning in seconds; Markdown."""
    uniform = ["uniform"] if "uniform" in found.truths else []
    head = ["strategy", "concentrated", *found.counting, *(f"{t} (excess)" for t in uniform), "planning, s"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name in (*found.order(), "floor"):
        of_truth = {t: found.truths[t]["strategies"][name] for t in (*found.counting, *uniform)}
        mean = found.concentrated_share(name)
        seconds = np.median([x["plan_seconds"] for x in of_truth.values()])
        lines.append(
            [
                f"*{name}*" if name in (*CONTROLS, "floor") else name,
                _cell(vars(mean)) if mean else "",
                *(_cell(of_truth[t]["share_of_oracle_gain"]) for t in found.counting),
                *(_cell(of_truth[t]["excess"]) for t in uniform),
                f"{seconds:.2g}" if name != "floor" else "",
            ]
        )
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    left_out = [t for t, x in found.truths.items() if not x["counts"] and t != "uniform"]
    note = ", ".join(f"{t} ({_gain(found.truths[t])})" for t in left_out)
    return text + (f"\n\nTruths that do not count, with the oracle's gain in nats per token: {note}." if note else "")


def _cell(value: Mapping[str, Any]) -> str:
    if value["mean"] is None:
        return ""
    interval = f" [{value['low']:.2f}, {value['high']:.2f}]" if value["low"] is not None else ""
    return f"{value['mean']:.2f}{interval}".replace("-", "−")


def _gain(truth: Mapping[str, Any]) -> str:
    error = truth["standard_error"]
    known = error is not None and np.isfinite(error)
    return f"{truth['oracle_gain']:.4f}".replace("-", "−") + (f" ± {error:.4f}" if known else ", one seed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("--all", action="store_true", help="truths that do not count as well")
    asked = parser.parse_args()
    found = read(asked.json, asked.all)
    save(figure(found), asked.json.with_suffix(""), ("svg", "png"))
    print(table(found))


if __name__ == "__main__":
    main()
