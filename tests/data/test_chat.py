"""What is learnt of a conversation is what the model's own template writes for the answer."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.records import Record, Turn
from adaptive_lora.errors import DataError, UsageError
from tests.data.tokenizers_made import byte_level, with_space

IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
RECORD = Record("messages", "Which bird sings?", "", "A lark.")
LONGER = Record(
    "messages", "And by night?", "", "An owl.",
    turns=(Turn("system", "Be short."), Turn("user", "Which bird sings?"), Turn("assistant", "A lark.")),
)  # fmt: skip


def qwen(template: Any = QWEN, **more: Any) -> Any:
    return byte_level(IM, template, words=["<think>", "</think>"], eos_token="<|endoftext|>", **more)


def learnt(tokenizer: Any, example: Example) -> str:
    return str(tokenizer.decode([example.ids[i] for i in example.learnt]))


def spans(tokenizer: Any, example: Example) -> list[str]:
    """The learnt stretches, as text."""
    found, last = [], -2
    for at in example.learnt.tolist():
        if at != last + 1:
            found.append([])
        found[-1].append(example.ids[at])
        last = at
    return [str(tokenizer.decode(ids)) for ids in found]


def test_the_turn_ends_as_the_template_ends_it() -> None:
    for tokenizer, text in [
        (qwen(), "A lark.<|im_end|>\n"),
        (
            byte_level(
                ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], GEMMA, start="<bos>",
                bos_token="<bos>", eos_token="<eos>",
            ),
            "A lark.<end_of_turn>\n",
        ),
    ]:  # fmt: skip
        example = Encoder(tokenizer, 999).encode(RECORD)
        assert learnt(tokenizer, example) == text
        whole = tokenizer.apply_chat_template(
            [turn.message() for turn in (*RECORD.before(), RECORD.answer())], return_dict=False
        )
        asked = tokenizer.apply_chat_template(
            [turn.message() for turn in RECORD.before()], return_dict=False, add_generation_prompt=True
        )
        assert list(example.ids) == whole and list(example.ids[: example.prompt_length]) == asked


@pytest.mark.parametrize("form", ["alpaca", "question-answer", "prompt-completion", "messages", "text"])
def test_auto_takes_the_chat_template_of_a_model_that_has_one(form: str) -> None:
    encoder = Encoder(qwen(), 999)
    found = encoder.render(dataclasses.replace(RECORD, form=form))
    if form == "text":
        assert found == ("Which bird sings?", "A lark.") and encoder.notes(form) == []
    else:
        assert found[0].startswith("<|im_start|>user\nWhich") and found[1] == "A lark.<|im_end|>\n"
        assert "takes for models that have one" in encoder.notes(form)[0]
        assert encoder.facts(form) == {"template": "chat", "template_date": "26 Jul 2024"}
        assert Encoder(qwen(), 999, "question").render(dataclasses.replace(RECORD, form=form))[1] == "A lark."


@pytest.mark.parametrize("start", [None, "<s>", "</s>"])
def test_the_start_is_what_the_tokenizer_writes_itself(start: str | None) -> None:
    """Yi and SmolLM2 define a start and do not write it; OPT writes its end token as one."""
    tokenizer = byte_level(["<s>", "</s>"], start=start, bos_token="<s>", eos_token="</s>")
    example = Encoder(tokenizer, 999).encode(dataclasses.replace(RECORD, form="prompt-completion"))
    assert list(example.ids[: example.prompt_length]) == tokenizer("Which bird sings?")["input_ids"]
    assert (tokenizer.decode(example.ids[0]) == start) == (start is not None)
    assert learnt(tokenizer, example) == "A lark.</s>"


def test_a_tokenizer_without_an_end_is_warned_of() -> None:
    tokenizer = byte_level(["<s>"], bos_token="<s>")
    encoder = Encoder(tokenizer, 999)
    assert "no end token" in encoder.warnings("alpaca")[0]
    assert learnt(tokenizer, encoder.encode(dataclasses.replace(RECORD, form="alpaca"))) == "A lark."
    assert Encoder(byte_level(["<s>"], QWEN), 999).warnings("alpaca") == Encoder(qwen(None), 999).warnings("text") == []


def test_a_token_across_the_end_of_the_prompt_is_cut_there() -> None:
    """Generation starts from the prompt's own tokens: what is trained must too."""
    bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    tokenizer = byte_level(["</s>"], bare + "{% if add_generation_prompt %}assistant: {% endif %}", eos_token="</s>")
    record = dataclasses.replace(RECORD, completion="Yes")
    example = Encoder(tokenizer, 999).encode(record)
    prompt = Encoder(tokenizer, 999).render(record)[0]
    assert list(example.ids[: example.prompt_length]) == tokenizer(prompt)["input_ids"]
    assert tokenizer.decode(example.ids) == prompt + "Yes" and learnt(tokenizer, example) == "Yes"
    assert "ĠYes" in tokenizer.tokenize(prompt + "Yes") and "ĠYes" not in tokenizer.convert_ids_to_tokens(example.ids)


def test_no_space_is_put_before_an_answer_by_a_tokenizer_that_begins_with_one() -> None:
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    tokenizer = with_space(["</s>"], turns + "{% if add_generation_prompt %}[assistant]{% endif %}", eos_token="</s>")
    example = Encoder(tokenizer, 999).encode(RECORD)
    assert tokenizer.convert_ids_to_tokens([example.ids[i] for i in example.learnt])[:2] == ["A", "▁"]
    tokenizer.chat_template = turns.replace("]", "]: ") + "{% if add_generation_prompt %}[assistant]: {% endif %}"
    example = Encoder(tokenizer, 999).encode(dataclasses.replace(RECORD, completion="Yes"))
    assert "▁Y" in tokenizer.tokenize(" Yes")
    assert tokenizer.convert_ids_to_tokens(example.ids[example.prompt_length - 1 :])[:3] == ["▁", "Y", "e"]


def test_a_prompt_that_opens_a_think_block_does_not_move_the_answer() -> None:
    """DeepSeek's template writes `<think>` when it asks for an answer, and not before an answer that is there."""
    tokenizer = qwen(QWEN.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"))
    example = Encoder(tokenizer, 999).encode(dataclasses.replace(RECORD, completion="<b>A lark</b>"))
    assert learnt(tokenizer, example) == "<b>A lark</b><|im_end|>\n"


def test_two_dates_are_fixed_and_the_template_begins_as_before() -> None:
    for written, text in [
        ("{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%Y-%m-%d %A') }}", "26 Jul 2024|2024-07-26 Friday"),
        ("{%- if not date_string is defined %}{% set date_string = 'no' %}{% endif %}{{ date_string }}", "26 Jul 2024"),
        ("{% macro day() %}{{ strftime_now('%-d') }}{% endmacro %}\n\n  {{ day() }}", "\n  26"),
    ]:
        assert Encoder(qwen(written + QWEN), 999).render(RECORD)[0].startswith(text + "<|im_start|>")


def test_named_templates() -> None:
    named = {"tool_use": QWEN, "rag": "R" + QWEN}
    for form in ("alpaca", "messages"):
        with pytest.raises(UsageError, match="several chat templates and no default: rag, tool_use"):
            Encoder(qwen(named), 999).encode(dataclasses.replace(RECORD, form=form))
    assert Encoder(qwen(named), 999, "rag").render(RECORD)[0].startswith("R<|im_start|>")
    assert Encoder(qwen({**named, "default": "D" + QWEN}), 999).render(RECORD)[0].startswith("D<|im_start|>")
    assert "'rag'" in Encoder(qwen(named), 999, "rag").notes("messages")[0]
    with pytest.raises(UsageError, match=r"one of auto, alpaca.*its named ones are rag, tool_use.*got 'rga'"):
        Encoder(qwen(named), 999, "rga")
    with pytest.raises(UsageError, match=r"it has no named ones"):
        Encoder(qwen(), 999, "rag")


def test_a_template_that_refuses_a_record_is_explained() -> None:
    refuses = qwen("{{ raise_exception('no system here') }}")
    record = dataclasses.replace(RECORD, turns=(Turn("system", "x"),), row=6)
    with pytest.raises(DataError, match=r"Record 7: .*refuses a record with the turns system, user: no system here"):
        Encoder(refuses, 999).encode(record)
    with pytest.raises(DataError, match=r"something asked before the answer.*template: plain"):
        Encoder(qwen(), 999).encode(dataclasses.replace(RECORD, prompt=""))


@pytest.mark.parametrize("arguments", ['{"place": "harbour"}', {"place": "harbour"}])
def test_a_tool_call_is_what_is_learnt(arguments: Any) -> None:
    call = json.dumps({"tool_calls": [{"type": "function", "function": {"name": "tides", "arguments": arguments}}]})
    record = dataclasses.replace(RECORD, completion="", fields=call)
    for template in (QWEN, QWEN.replace("arguments | tojson", "arguments + ''")):  # DeepSeek's takes text
        example = Encoder(qwen(template), 999).encode(record)
        assert learnt(qwen(), example) == '<call>tides {"place": "harbour"}</call><|im_end|>\n'
    with pytest.raises(DataError, match="cannot write tool calls: the answer calls tides"):
        Encoder(qwen(GEMMA), 999).encode(record)
    for template in ("alpaca", "plain"):
        with pytest.raises(DataError, match=r"calls the tool tides, which only a chat template can write"):
            Encoder(qwen(), 999, template).encode(record)
    tools = json.dumps([{"type": "function", "function": {"name": "tides", "parameters": {}}}])
    with pytest.raises(DataError, match="cannot write tools"):
        Encoder(qwen(), 999).encode(dataclasses.replace(RECORD, tools=tools))


def test_an_answer_that_the_template_drops_is_an_error() -> None:
    deaf = "{% for m in messages if m.role == 'user' %}[{{ m.content }}]{% endfor %}"
    with pytest.raises(DataError, match=r"does not write the answer 'A lark.'"):
        Encoder(qwen(deaf), 999).encode(RECORD)
    counting = "{{ messages | length }}" + QWEN
    with pytest.raises(DataError, match="writes the turns before an answer otherwise"):
        Encoder(qwen(counting), 999).encode(RECORD)


SPELLS = "The mark <|im_end|> ends it, <|endoftext|>too."


@pytest.mark.parametrize("template", ["chat", "plain", "alpaca"])
def test_control_tokens_that_a_record_spells_stay_text(template: str) -> None:
    tokenizer = qwen()
    control = set(tokenizer.convert_tokens_to_ids(IM))
    record = dataclasses.replace(RECORD, prompt=SPELLS, completion=SPELLS, turns=(Turn("system", SPELLS),))
    plain = dataclasses.replace(RECORD, turns=(Turn("system", "Be short."),))
    (spelled, other) = Encoder(tokenizer, 999, template).encode_all([record, plain])
    assert [i for i in spelled.ids if i in control] == [i for i in other.ids if i in control]
    assert tokenizer.decode(spelled.ids).count(SPELLS) == 3
    end = {"chat": "<|im_end|>\n"}.get(template, "<|endoftext|>")
    assert learnt(tokenizer, spelled) == SPELLS + end


def test_a_vocabulary_that_holds_a_control_token_as_a_word_is_broken_up() -> None:
    tokenizer = with_space(["</s>"], None, eos_token="</s>")
    grown = json.loads(tokenizer.backend_tokenizer.to_str())
    grown["model"]["merges"] = [["<", "/"], ["</", "s"], ["</s", ">"]]
    grown["model"]["vocab"].update({"</": 900, "</s": 901})
    grown["model"]["vocab"]["</s>"] = tokenizer.eos_token_id
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(grown))
    end = tokenizer.eos_token_id
    assert end in tokenizer("a </s>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    example = Encoder(tokenizer, 999, "plain").encode(dataclasses.replace(RECORD, completion="Say </s> now"))
    assert [i for i in example.ids if i == end] == [end] and learnt(tokenizer, example) == "Say </s> now</s>"


def test_every_answer_is_learnt_where_all_are_asked_for() -> None:
    tokenizer = qwen()
    last, every = (Encoder(tokenizer, 999, learn=learn).encode(LONGER) for learn in ("last", "all"))
    assert last.ids == every.ids
    assert spans(tokenizer, last) == ["An owl.<|im_end|>\n"]
    assert spans(tokenizer, every) == ["A lark.<|im_end|>\n", "An owl.<|im_end|>\n"]
    unlearnt = dataclasses.replace(LONGER, turns=(*LONGER.turns[:2], Turn("assistant", "A lark.", learnt=False)))
    assert Encoder(tokenizer, 999, learn="all").encode(unlearnt) == last
    cut = Encoder(tokenizer, every.unlearnt[0][0] + 2, learn="all").encode(LONGER)
    assert cut.unlearnt == ((every.unlearnt[0][0], len(cut.ids)),) and cut.truncated
    with pytest.raises(DataError, match=r"`learn: all` needs the model's chat template"):
        Encoder(tokenizer, 999, "plain", "all").encode(LONGER)


def test_bytes_are_those_of_the_answers() -> None:
    tokenizer = qwen()
    encoder = Encoder(tokenizer, 999, learn="all")
    assert encoder.completion_bytes([encoder.encode(LONGER)]) == len("A lark.\nAn owl.\n")


def test_earlier_answers_that_a_template_writes_otherwise() -> None:
    ends = QWEN.replace("{% endif %}", "{% else %}<|endoftext|>{% endif %}")  # Phi-3 ends the text, once
    assert spans(qwen(), Encoder(qwen(ends), 999, learn="all").encode(LONGER)) == [
        "A lark.<|im_end|>\n", "An owl.<|im_end|>\n<|endoftext|>",
    ]  # fmt: skip
    opens = "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
    thinks = QWEN.replace("{{ m.content }}", opens)  # Qwen3 shows what the last answer thought, and no other
    assert spans(qwen(), Encoder(qwen(thinks), 999, learn="all").encode(LONGER)) == [
        "A lark.<|im_end|>\n", "<think>\n\n</think>\n\nAn owl.<|im_end|>\n",
    ]  # fmt: skip
    for kept in ("'(' ~ m.content ~ ')'", "'Once: ' ~ m.content"):
        forgets = QWEN.replace(
            "{{ m.content }}", "{{ m.content if loop.last or m.role != 'assistant' else " + kept + " }}"
        )
        with pytest.raises(DataError, match=r"writes turn 3 otherwise once other turns follow.*learn: last"):
            Encoder(qwen(forgets), 999, learn="all").encode(LONGER)


def calling(*calls: Any) -> str:
    return json.dumps({"tool_calls": calls})


TIDES = {"type": "function", "function": {"name": "tides", "arguments": {"place": "quay"}}}


@pytest.mark.parametrize("silent", ["", " \n", "<think>Say nothing.</think>"])
def test_an_earlier_answer_that_says_nothing_is_context_only(silent: str) -> None:
    tokenizer = qwen()
    quiet = dataclasses.replace(LONGER, turns=(*LONGER.turns[:2], Turn("assistant", silent)))
    last, every = (Encoder(tokenizer, 999, learn=learn).encode(quiet) for learn in ("last", "all"))
    assert every == last and spans(tokenizer, every) == ["An owl.<|im_end|>\n"]


def test_an_earlier_tool_call_is_learnt_or_refused() -> None:
    turns = (Turn("user", "High water?"), Turn("assistant", "", fields=calling(TIDES)), Turn("tool", "6:40"))
    record = dataclasses.replace(LONGER, turns=turns, row=3)
    tokenizer = qwen()
    example = Encoder(tokenizer, 999, learn="all").encode(record)
    assert spans(tokenizer, example)[0] == '<call>tides {"place": "quay"}</call><|im_end|>\n'
    with pytest.raises(DataError, match=r"Record 4: .*calls tides.*Leave such records out"):
        Encoder(qwen(QWEN.replace("m.tool_calls or []", "[]")), 999, learn="all").encode(record)


@pytest.mark.parametrize("call", ["tides", None, {"function": None}, {"function": "tides"}, {"function": {}}, ["x"]])
def test_a_tool_call_that_is_none_is_explained(call: Any) -> None:
    wrong = calling(call)
    answer = dataclasses.replace(RECORD, completion="", fields=wrong, row=8)
    before = dataclasses.replace(LONGER, turns=(*LONGER.turns[:2], Turn("assistant", "", fields=wrong)), row=8)
    for template in ("chat", "plain"):
        for record in (answer, before):
            with pytest.raises(DataError, match=r"Record 9: a tool call must be an object with a `function`"):
                Encoder(qwen(), 999, template).encode(record)


@pytest.mark.parametrize("function", [{"name": "lark"}, {"name": "sings"}, {"description": "Tides."}])
def test_tools_that_the_template_does_not_write_are_an_error_whatever_they_are_called(function: Any) -> None:
    tools = json.dumps([{"type": "function", "function": function}])
    record = dataclasses.replace(RECORD, tools=tools, row=1)
    with pytest.raises(DataError, match=r"Record 2: .*cannot write tools: its prompt is the same without them"):
        Encoder(qwen(), 999).encode(record)
    knows = "{% if tools %}{{ tools | tojson }}{% endif %}" + QWEN
    wants = "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}" + knows
    for template in (knows, {"default": QWEN, "tool_use": knows}, wants):
        assert json.dumps(function) in Encoder(qwen(template), 999).render(record)[0]
    for name in ("alpaca", "question", "plain"):
        with pytest.raises(DataError, match=r"Record 2: the record has `tools`.*Leave `tools` out"):
            Encoder(qwen(), 999, name).encode(record)


LOOP = "{% for m in messages %}"
AT_THE_QUAY = dataclasses.replace(
    RECORD, row=4, prompt="Thanks, and tides tomorrow?", completion="At 7:30.",
    turns=(
        Turn("system", "Speak\n plainly."), Turn("user", "High water?"), Turn("assistant", "", fields=calling(TIDES)),
        Turn("tool", 'at "6:40"\n'), Turn("assistant", '<think>Six.</think>At at "6:40".'),
    ),
)  # fmt: skip


@pytest.mark.parametrize("role", ["system", "user", "tool", "assistant"])
def test_an_earlier_turn_that_the_template_leaves_away_is_an_error(role: str) -> None:
    assert Encoder(qwen(), 999).encode(AT_THE_QUAY).completion_tokens
    at = {"system": 1, "user": 2, "tool": 4, "assistant": 5}[role]
    deaf = QWEN.replace(LOOP, f"{LOOP}{{% if m.role != '{role}' or m.content == 'At 7:30.' %}}")
    deaf = deaf.replace("<|im_end|>\n{% endfor %}", "<|im_end|>\n{% endif %}{% endfor %}")
    with pytest.raises(DataError, match=rf"Record 5: .* turn {at} \({role}\) says.*(another model|knows tools)"):
        Encoder(qwen(deaf), 999).encode(AT_THE_QUAY)


def test_an_earlier_call_that_the_template_writes_as_an_empty_turn_is_an_error() -> None:
    """SmolLM2's does; the name of the function stands in the next question here."""
    with pytest.raises(DataError, match=r"Record 5: .* turn 3 \(assistant\) calls.*template knows tools"):
        Encoder(qwen(QWEN.replace("m.tool_calls or []", "[]")), 999).encode(AT_THE_QUAY)


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("{{ m.content }}", "{{ m.content | trim if m.role != 'tool' else m.content | tojson }}"),  # Llama 3.1
        ("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}"),  # DeepSeek
        ("{{ m.content }}", "{{ m.content | replace('\n', ' ') }}"),
        (
            LOOP,
            "{% set first = messages[0].content %}{% for m in messages[1:] %}"
            "{% if loop.index0 == 4 %}{{ first }}\n\n{% endif %}",  # Mistral: before the last question
        ),
    ],
)
def test_turns_that_are_written_in_another_way_are_written(written: str, instead: str) -> None:
    example = Encoder(qwen(QWEN.replace(written, instead)), 999).encode(AT_THE_QUAY)
    assert learnt(qwen(), example) == "At 7:30.<|im_end|>\n"


def test_answers_of_several_tools_may_be_sorted() -> None:
    calls, tools = calling(TIDES, TIDES), (Turn("tool", "neap"), Turn("tool", "ebb"))
    record = dataclasses.replace(RECORD, turns=(Turn("user", "Both?"), Turn("assistant", "", fields=calls), *tools))
    swapped = "{% set messages = [messages[0], messages[1], messages[3], messages[2]] + messages[4:] %}" + QWEN
    assert Encoder(qwen(swapped), 999).encode(record).completion_tokens


STRIPS = QWEN.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
BESIDE = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"


def test_thoughts_that_the_template_does_not_write_are_counted() -> None:
    inside = dataclasses.replace(RECORD, completion="<think>\nIt is dawn.\n</think>\n\nA wren.")
    beside = dataclasses.replace(RECORD, completion="A wren.", fields='{"reasoning_content": "It is dawn."}')
    none = dataclasses.replace(RECORD, completion="<think>\n\n</think>\n\nA wren.")
    for template, name, lost in [
        (QWEN, "chat", [beside]), (STRIPS, "chat", [inside, beside]), (QWEN, "question", [beside]),
        (QWEN.replace("{{ m.content }}", BESIDE), "chat", []),
    ]:  # fmt: skip
        encoder = Encoder(qwen(template), 999, name)
        longer = dataclasses.replace(encoder, max_length=9999)  # as the profile of data takes it
        assert encoder.warnings("messages") == []
        assert len(list(longer.encode_all([inside, beside, none, RECORD, beside]))) == 5
        found = " ".join(encoder.warnings("messages"))
        assert (f"does not write what answers thought: {len(lost)} of those" in found) == bool(lost)


def test_a_thought_alone_that_the_template_does_not_write_is_an_error() -> None:
    alone = dataclasses.replace(RECORD, completion="<think>A wren?</think>", row=2)
    with pytest.raises(DataError, match=r"Record 3: the answer is a thought alone.*learn to say nothing.*Leave such"):
        Encoder(qwen(STRIPS), 999).encode(alone)
    assert learnt(qwen(), Encoder(qwen(), 999).encode(alone)) == "<think>A wren?</think><|im_end|>\n"
    call = dataclasses.replace(alone, fields=calling(TIDES))
    assert learnt(qwen(), Encoder(qwen(STRIPS), 999).encode(call)).startswith("<call>tides")
