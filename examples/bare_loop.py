"""A loop of one's own on a rank plan.

adaptive-lora plan --model MODEL --strategy linear-decay --budget rank:8 --peft my-plan
python examples/bare_loop.py MODEL my-plan RECORDS.jsonl OUT   # records have `prompt` and `completion`
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

model_name, plan, records, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model_name)
model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_name), LoraConfig.from_pretrained(plan))
model.print_trainable_parameters()  # what the plan costs
model.train()
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)

for step, line in enumerate(Path(records).read_text(encoding="utf-8").splitlines()):
    row = json.loads(line)
    prompt = tokenizer(row["prompt"])["input_ids"]
    answer = [*tokenizer(row["completion"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ids = torch.tensor([prompt + answer])
    labels = torch.tensor([[-100] * len(prompt) + answer])  # only the answer is learnt
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 0:
        print(f"step {step}: {loss.item():.3f} nats per token")
model.save_pretrained(out)
