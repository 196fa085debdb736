"""Makes the embedded demo model: a small GPT-2 and its tokenizer, trained on the pretraining tasks.

    python scripts/pretrain_demo.py --out src/adaptive_lora/demo/model

Seeded: the same torch version and thread count give the same weights. Every record is fresh, so
that exact match on new records is a measure of what was learnt and not of what was stored (the
families of facts are finite: there the facts themselves are what is learnt). The tokenizer sees the
words of all families; the weights see the pretraining families alone. About half an hour on two cores.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import math
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from adaptive_lora.data.encoding import Encoder
from adaptive_lora.data.sources import from_dicts
from adaptive_lora.data.templates import PROMPTS
from adaptive_lora.demo.tasks import generate, stream
from adaptive_lora.streams import derive_seed
from adaptive_lora.training.batches import collate, sequence_losses

CONTEXT, WIDTH, LAYERS, HEADS, VOCABULARY = 128, 128, 6, 4, 768
END = "<|endoftext|>"


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the tasks' own words, digits apart, the fixed parts of the prompts whole."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    corpus = (
        text for row in generate("all", 20_000, seed) for text in (row["instruction"], row["input"], row["output"])
    )
    pieces = [piece for prompt in itertools.chain(*PROMPTS.values()) for piece in fixed_pieces(prompt)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(set(pieces)),
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in dict.fromkeys(pieces)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def fixed_pieces(prompt: str) -> list[str]:
    """The text of a prompt between its placeholders."""
    return [piece for part in prompt.split("{instruction}") for piece in part.split("{input}") if piece]


def exact_match(model: GPT2LMHeadModel, encoder: Encoder, rows: list[dict[str, str]]) -> dict[str, float]:
    """Share of exactly right answers per family."""
    right: dict[str, list[bool]] = collections.defaultdict(list)
    examples = list(encoder.encode_all(from_dicts(rows, "demo").records))
    model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), 100):
            batch = collate(examples[start : start + 100])
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            for row, exact in zip(rows[start:], sequence_losses(logits, batch.labels).exact.tolist(), strict=False):
                right[row["category"]].append(exact)
    model.train()
    return {family: sum(values) / len(values) for family, values in sorted(right.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=9_000, help="optimizer steps of 64 records")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(derive_seed(options.seed, "pretrain"))
    tokenizer = make_tokenizer(options.seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
            bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    encoder = Encoder(tokenizer, CONTEXT, "alpaca")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, encoder, options.steps, options.seed)
    save(model, tokenizer, encoder, options)


def train(model: GPT2LMHeadModel, encoder: Encoder, steps: int, seed: int) -> None:
    """AdamW, cosine from 2e-3 with 200 steps of warm-up, clipping at 1."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 200) * 0.5 * (1 + math.cos(math.pi * s / steps)) + 1e-3
    )
    records = stream("pretraining", seed)
    started = time.monotonic()
    for step in range(steps):
        rows = list(itertools.islice(records, 64))
        batch = collate(list(encoder.encode_all(from_dicts(rows, "demo").records)))
        losses = sequence_losses(
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits, batch.labels
        )
        loss = losses.nll.sum() / losses.tokens.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 200 == 0:
            scores = exact_match(model, encoder, generate("pretraining", 400, seed + 1)) if step % 1000 == 0 else {}
            mean = f", exact match {sum(scores.values()) / len(scores):.3f}" if scores else ""
            print(f"step {step} loss {loss.item():.4f}{mean}, {time.monotonic() - started:.0f} s", flush=True)


def save(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, encoder: Encoder, options: argparse.Namespace
) -> None:
    """Half-precision weights, tokenizer, and a card with the exact match per family."""
    model.half().float()  # the card speaks of the weights as they will be read back
    card = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": options.steps,
        "seed": options.seed,
        "torch": torch.__version__,
        "exact_match_pretraining": exact_match(model, encoder, generate("pretraining", 4000, options.seed + 2)),
        "exact_match_fine_tuning": exact_match(model, encoder, generate("fine-tuning", 2000, options.seed + 2)),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(options.out, safe_serialization=True)
    tokenizer.save_pretrained(options.out)
    (options.out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    for group in ("pretraining", "fine_tuning"):
        scores = card[f"exact_match_{group}"]
        print(group, f"{sum(scores.values()) / len(scores):.3f}", json.dumps(scores), flush=True)


if __name__ == "__main__":
    main()
