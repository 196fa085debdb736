"""Transformers' Trainer on a rank plan.

adaptive-lora plan --model MODEL --strategy linear-decay --budget rank:8 --peft my-plan
python examples/with_trainer.py MODEL my-plan RECORDS.jsonl OUT   # records have `prompt` and `completion`
"""

import json
import sys
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

model_name, plan, records, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model_name)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_name), LoraConfig.from_pretrained(plan))
model.print_trainable_parameters()  # what the plan costs


def encode(row: dict[str, str]) -> dict[str, list[int]]:
    prompt = tokenizer(row["prompt"])["input_ids"]
    answer = [*tokenizer(row["completion"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}  # only the answer is learnt


rows = [json.loads(line) for line in Path(records).read_text(encoding="utf-8").splitlines()]
trainer = Trainer(
    model,
    TrainingArguments(out, learning_rate=1e-3, num_train_epochs=1, per_device_train_batch_size=4, report_to="none"),
    train_dataset=Dataset.from_list([encode(row) for row in rows]),
    data_collator=DataCollatorForSeq2Seq(tokenizer),
)
trainer.train()
model.save_pretrained(out)
