"""Tables of studies that nobody trained, in the form the ledger gives them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from adaptive_lora.reporting.figures.looks import Looks, looks_of
from adaptive_lora.stats.arms import ArmSummary, summarise
from adaptive_lora.stats.run_table import RUN_COLUMNS
from adaptive_lora.streams import numpy_stream
from adaptive_lora.study.results import COST_COLUMNS

NAMES = [
    "uniform", "linear-decay", "empirical", "attention-heavy", "eva", "gora", "inverted", "lora-drop", "fim",
    "stable-rank", "marginal-gain", "adalora", "spectral", "posthoc-svd", "attention-only", "mlp-only",
    "linear-growth", "valley", "fixed-from-a-paper", "random", "shuffled",
]  # fmt: skip
ROLES = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
         "mlp.up_proj", "mlp.down_proj"]  # fmt: skip
SIZES = {"rank:4": 46_720, "rank:8": 93_440, "rank:16": 186_880, "rank:2": 23_360}
RANK_COLUMNS = ["run_id", "phase", "arm", "budget", "seed", "module", "kind", "depth", "rank", "scaling", "parameters",
                "score"]  # fmt: skip
CURVE_COLUMNS = ["run_id", "arm", "budget", "seed", "step", "loss"]
STABILITY_COLUMNS = ["arm", "budget", "scaling", "learning_rate", "seed", "phase", "diverged", "spikes",
                     "gradient_norm", "clipped", "excess"]  # fmt: skip
MEASURING = ("empirical", "eva", "gora", "fim", "stable-rank", "marginal-gain", "adalora", "spectral")


class MadeStudy:
    """A study of so many arms, with losses, ranks, curves and costs drawn from fixed streams."""

    def __init__(self, arms: int = 8, budgets: tuple[str, ...] = ("rank:4", "rank:8"), seeds: int = 10,
                 blocks: int = 12, rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)) -> None:  # fmt: skip
        self.names = [*NAMES[: arms - 2], "random", "shuffled"] if arms > 2 else NAMES[:arms]
        self.budgets, self.seeds, self.blocks, self.rates = budgets, range(seeds), blocks, rates
        self.looks: Looks = looks_of(self.names)
        self.runs = pd.DataFrame(self._evaluations() + self._tuning(), columns=list(RUN_COLUMNS))
        self.arms: list[ArmSummary] = summarise(self.runs, "uniform")
        self.chosen = {(arm, budget): rates[len(rates) // 2] for arm in self.names for budget in budgets if rates}

    def _run(self, phase: str, arm: str, budget: str, seed: int, rate: float) -> dict[str, object]:
        draw = numpy_stream(seed, phase, arm, budget, str(rate))
        place = self.names.index(arm)
        loss = 1.9 - 0.06 * np.log2(SIZES[budget] / 46_720) + 0.004 * place + 0.01 * numpy_stream(seed).normal()
        loss += 0.006 * draw.normal() + 0.03 * abs(np.log10(rate / 3e-3))
        diverged = phase == "tuning" and rate == max(self.rates) and place % 5 == 4
        return {
            "run_id": f"{phase}-{arm}-{budget}-{seed}-{rate}", "phase": phase, "arm": arm, "strategy": arm,
            "budget": budget, "seed": seed, "replica": 0, "learning_rate": rate, "scaling": "constant",
            "trainable_parameters": None if diverged else SIZES[budget],
            "status": "diverged" if diverged else "completed",
            "base_loss": 2.9715, "validation_loss": None if diverged else loss + 0.02,
            "test_loss": loss if phase == "evaluation" else None,
            "plan_seconds": 3.0 + place / 4 if arm in MEASURING else 0.0015,
            "train_seconds": 14 + draw.uniform() + place / 10, "engine": "reference", "device": "cpu", "step": 150,
        }  # fmt: skip

    def _evaluations(self) -> list[dict[str, object]]:
        runs = [
            self._run("evaluation", arm, budget, seed, 3e-3)
            for seed in self.seeds for budget in self.budgets for arm in self.names
        ]  # fmt: skip
        extra = [budget for budget in ("rank:2", "rank:16") if budget not in self.budgets and len(self.budgets) > 1]
        return runs + [
            self._run("evaluation", "uniform", budget, seed, 3e-3) for seed in self.seeds for budget in extra
        ]

    def _tuning(self) -> list[dict[str, object]]:
        return [
            self._run("tuning", arm, budget, seed, rate)
            for budget in self.budgets for arm in self.names for rate in self.rates for seed in (1000, 1001, 1002)
        ]  # fmt: skip

    @property
    def ranks(self) -> pd.DataFrame:
        """As `ranks_table`."""
        rows = []
        for arm in self.names:
            for budget in self.budgets:
                for seed in list(self.seeds)[:3]:
                    draw = numpy_stream(seed, arm, "ranks")
                    for depth in range(self.blocks):
                        for role in ROLES:
                            kind = "attention" if "attn" in role else "mlp"
                            score = float(np.exp(draw.normal() - depth / 4)) if arm in MEASURING else None
                            rank = max(1, round(6 + 3 * np.log(score))) if score else int(draw.integers(1, 16))
                            rank = 0 if arm == "attention-only" and kind == "mlp" else rank
                            rows.append({
                                "run_id": f"{arm}{budget}{seed}", "phase": "evaluation", "arm": arm, "budget": budget,
                                "seed": seed, "module": f"model.layers.{depth}.{role}", "kind": kind, "depth": depth,
                                "rank": rank, "scaling": 2.0, "parameters": rank * 256, "score": score,
                            })  # fmt: skip
        return pd.DataFrame(rows, columns=RANK_COLUMNS)

    @property
    def curves(self) -> pd.DataFrame:
        """As `curves_table`."""
        parts = []
        evaluations = self.runs[self.runs["phase"] == "evaluation"]
        for run_id, arm, budget, seed, end in zip(
            *(evaluations[name] for name in ("run_id", "arm", "budget", "seed", "test_loss")), strict=True
        ):
            steps = np.arange(150)
            noise = 0.08 * numpy_stream(seed, "curve").normal(size=150) + 0.01 * self.names.index(arm)
            loss = end - 0.1 + 1.2 * np.exp(-steps / 25) + noise
            parts.append(pd.DataFrame({"run_id": run_id, "arm": arm, "budget": budget, "seed": seed, "step": steps,
                                       "loss": loss}))  # fmt: skip
        return pd.concat(parts) if parts else pd.DataFrame(columns=CURVE_COLUMNS)

    @property
    def costs(self) -> pd.DataFrame:
        """As `costs_table`."""
        own = self.runs[self.runs["phase"] == "evaluation"]
        size = [2**20 * (1.5 + self.names.index(arm)) if arm in MEASURING else None for arm in own["arm"]]
        return own.assign(measure_seconds=None, score_bytes=size)[list(COST_COLUMNS)]

    @property
    def stability(self) -> pd.DataFrame:
        """As `stats.stability` gives it."""
        tuned = self.runs[self.runs["phase"] == "tuning"]
        rows = []
        for run in tuned.to_dict("records"):
            draw = numpy_stream(int(run["seed"]), str(run["run_id"]), "stability")
            diverged = run["status"] == "diverged"
            rows.append({
                **{name: run[name] for name in ("arm", "budget", "scaling", "learning_rate", "seed", "phase")},
                "diverged": diverged, "spikes": int(draw.integers(0, 4)),
                "gradient_norm": float(np.exp(draw.normal() / 3) * 100 * run["learning_rate"]),
                "clipped": min(1.0, 60 * run["learning_rate"] * draw.uniform(0.5, 1.5)),
                "excess": float("nan") if diverged else 0.02 * draw.normal(),
            })  # fmt: skip
        return pd.DataFrame(rows, columns=STABILITY_COLUMNS)
