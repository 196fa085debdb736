"""Which way is better, for the metrics that tools of the field write."""

from __future__ import annotations

import re

from adaptive_lora.errors import UsageError

_LOWER = "loss nll perplexity ppl bits_per_byte bpb brier_score error err wer cer ter forgetting drift".split()
_HIGHER = """acc accuracy acc_norm acc_mutual_info exact_match em f1 bleu chrf rouge rouge1 rouge2 rougeL pass mcc score
             answer_match dino_similarity correct""".split()


def higher_is_better(metric: str, asked: str | None = None) -> bool:
    """By what the user says, else by the metric's name; UsageError for a name that does not say it.

    >>> higher_is_better("test accuracy"), higher_is_better("test_loss"), higher_is_better("value", "higher")
    (True, False, True)
    """
    if asked is not None:
        if asked not in ("higher", "lower"):
            raise UsageError(f"--better is `higher` or `lower`, got {asked!r}.")
        return asked == "higher"
    name = metric.partition(",")[0].lower()
    words = {name, *re.split(r"[\s_@.-]+", name)}
    lower, higher = (bool(words & {known.lower() for known in names}) for names in (_LOWER, _HIGHER))
    if lower == higher:
        raise UsageError(
            f"Nothing says whether a higher {metric!r} is better. Say it: --better higher or --better lower."
        )
    return higher
