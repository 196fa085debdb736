"""Which template a chat model's answers are least surprising by, before any training. Prints JSON.

The frozen model's loss on the same Alpaca answers, in nats per token and per byte of the answer: answers of
different templates have different tokens, as a chat template's end of turn counts too.

    adaptive-lora fetch smollm2
    ADAPTIVE_LORA_ASSETS=... python bench/template_loss.py [--model smollm2] [--records 100]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

import numpy as np

from adaptive_lora.data.encoding import Encoder
from adaptive_lora.data.splits import make_splits
from adaptive_lora.errors import ModelError
from adaptive_lora.models.locate import model_note
from adaptive_lora.study.prepare import open_base, open_records
from adaptive_lora.training.evaluate import evaluate

TEMPLATES = ("chat", "alpaca", "alpaca-short", "plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--records", type=int, default=100)
    asked = parser.parse_args()
    assets = os.environ.get("ADAPTIVE_LORA_ASSETS")
    if assets is None:
        sys.exit("set ADAPTIVE_LORA_ASSETS to the folder with data/alpaca/alpaca_random_9k.json")
    try:
        base = open_base(asked.model)
    except ModelError as error:
        sys.exit(str(error))
    source = open_records(f"{assets}/data/alpaca/alpaca_random_9k.json")
    found: dict[str, Any] = {}
    for template in TEMPLATES:
        # Long enough that no template has a record without room: all have the same ones.
        encoder = Encoder(base.tokenizer, 2048, template)
        test = make_splits(source, encoder, train=1, validation=1, test=asked.records).test
        result, size = evaluate(base.model, test, base.device), encoder.completion_bytes(test)
        nll, tokens = float(np.sum(result.nll)), int(np.sum(result.tokens))
        found[template] = {"nats_per_token": nll / tokens, "nats_per_byte": nll / size, "tokens": tokens, "bytes": size}
        print(f"{template}: {nll / tokens:.4f} nats per token, {nll / size:.4f} per byte", file=sys.stderr)
    print(
        json.dumps({"model": asked.model, "note": model_note(asked.model), "records": asked.records, **found}, indent=2)
    )


if __name__ == "__main__":
    main()
