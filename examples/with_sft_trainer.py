"""TRL's SFTTrainer on a rank plan.

adaptive-lora plan --model MODEL --strategy linear-decay --budget rank:8 --peft my-plan
python examples/with_sft_trainer.py MODEL my-plan RECORDS.jsonl OUT   # records have `prompt` and `completion`
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

model_name, plan, records, out = sys.argv[1:]
rows = [json.loads(line) for line in Path(records).read_text(encoding="utf-8").splitlines()]
trainer = SFTTrainer(
    model=model_name,
    args=SFTConfig(
        out,
        learning_rate=1e-3,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        max_length=512,  # TRL leaves out records whose completion this cuts away
        bf16=torch.cuda.is_available(),  # TRL says yes by itself, and a CPU is refused
        report_to="none",
    ),
    train_dataset=Dataset.from_list(rows),
    peft_config=LoraConfig.from_pretrained(plan),
)
trainer.model.print_trainable_parameters()  # what the plan costs
trainer.train()
trainer.save_model(out)
