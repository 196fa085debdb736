#!/usr/bin/env bash
# What: `return_assistant_tokens_mask=True` marks only the first token of the last character of an answer. Where that is
#   written with several tokens (an emoji, a rare letter, a currency sign), the mask ends within the character.
# Version: transformers 5.23.0, tokenizers 0.23.3 (jinja2 3.1.6); a byte-level tokenizer, as Llama 3's and Qwen's are.
# Why it hurts: a model fine-tuned on this mask is not taught to finish such a character there, and what a person sees of the
#   trained part ends in a broken one. Only blocks that end in the character itself lose bytes: an end-of-turn token in
#   the block hides it, and so do the tokenizer's merges for common characters.
# Where: transformers/tokenization_utils_base.py, `apply_chat_template`: the end of a block is `char_to_token` of its last
#   character, which is the first of that character's tokens.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" -I - <<'PY'
import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

made = Tokenizer(models.BPE({letter: at for at, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
made.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
template = "{% for turn in messages %}{% if turn.role == 'user' %}Q: {{ turn.content }}\nA: {% else %}"
template += "{% generation %}{{ turn.content }}{% endgeneration %}\n{% endif %}{% endfor %}"

print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}; one token a byte")
print("Behaviour: an answer that ends in a character of several tokens is marked up to the first of them.")
print("Expected: all tokens of the answer are marked, and none of the rest.")
for answer, lost in [("It is 20 EUR", 0), ("It is 20 €", 2), ("Well done 👍", 3), ("touché", 1), ("touché!", 0)]:
    chat = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": answer}]
    found = tokenizer.apply_chat_template(
        chat, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    learnt = [token for token, marked in zip(found["input_ids"], found["assistant_masks"], strict=True) if marked]
    whole = len(tokenizer(answer)["input_ids"])
    print(f"Seen: {answer!r}: {len(learnt)} of {whole} tokens marked, which read {tokenizer.decode(learnt)!r}")
    assert whole - len(learnt) == lost, "changed: other tokens are marked"
PY
