"""The figures and the table of what `recovery.py` found: SVG, of one PNG too, beside the JSON; prints Markdown.

`-map` is a heat map of strategies by truths, with numbers and what plans cost. In the other figure stands, left and by
strategy, the share of the oracle's gain: the mean over the concentrated truths with its 95 % interval over seeds, and
every truth by itself; right, the excess over uniform on the uniform truth. Truths on which the oracle's gain does not
exceed five standard errors are grey and named; means rest on them only while no other counts.

    python bench/recovery_figure.py results/bench/recovery-babyllama.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from adaptive_lora.errors import PaperError
from adaptive_lora.reporting.figures.planted import recovery_heat_map
from adaptive_lora.reporting.figures.recovery import recovery_figure
from adaptive_lora.reporting.figures.theme import save
from adaptive_lora.reporting.recovered import read_recovered, recovery_table
from adaptive_lora.reporting.tables import to_markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    asked = parser.parse_args()
    try:
        found = read_recovered(asked.json)
    except PaperError as error:
        raise SystemExit(str(error)) from None
    name = asked.json.stem
    save(recovery_heat_map(found), asked.json.with_name(f"{name}-map"), ("svg",))
    save(recovery_figure(found), asked.json.with_suffix(""), ("svg", "png"))
    print(to_markdown(recovery_table(found)))


if __name__ == "__main__":
    main()
