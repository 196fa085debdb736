#!/usr/bin/env bash
# What: functions and dates that are given to `apply_chat_template` reach the template as text. A function is called in
#   vain (TypeError); a `datetime.date` is written as "<date>" into the prompt, without a warning.
# Version: transformers 5.23.0 (jinja2 3.1.6). In 4.57.6 both were handed on as they are.
# Why it hurts: templates such as Llama 3's ask `strftime_now` for today's date. To train on the same prompts every day one
#   passes a function of that name; now that fails, and who passes a date object trains on the literal text "<date>".
# Where: transformers/utils/chat_template_utils.py, `_plain_template_data`: a deliberate shield against templates that call
#   methods of the caller's objects. What helps: pass dates as text, or put a macro `strftime_now` before the template.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" -I - <<'PY'
import datetime

import jinja2
import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?")))
user = [{"role": "user", "content": "Which day is it?"}]


def written(template, **given):
    """What the template writes for a chat with these variables, or the error."""
    try:
        return tokenizer.apply_chat_template(user, chat_template=template, tokenize=False, **given)
    except TypeError as error:
        return f"TypeError: {error}"


asks = "Today is {{ strftime_now('%Y-%m-%d') }}."
own = written(asks)
function = written(asks, strftime_now=lambda pattern: "2024-07-26")
date = written("Today is {{ date }}.", date=datetime.date(2024, 7, 26))
text = written("Today is {{ date }}.", date="2024-07-26")
macro = written("{% macro strftime_now(pattern) %}2024-07-26{% endmacro %}" + asks)

print(f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}")
print("Behaviour: a function given to a chat template cannot be called, and a date object becomes the text '<date>'.")
print("Expected: both work as they do in Jinja, or `apply_chat_template` refuses what it will not hand on.")
print(f"Seen: own function: {own!r}; one given: {function!r}; date object: {date!r}; text: {text!r}; macro: {macro!r}")
assert own.startswith("Today is 2"), "changed: templates have no date of their own"
assert function == "TypeError: 'str' object is not callable", "changed: functions"
assert date == "Today is <date>.", "changed: dates"
assert text == macro == "Today is 2024-07-26.", "changed: the ways around it"
PY
