from __future__ import annotations

import json

import pytest

from tasks.rules import chat

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}[{{ message['role'] }}]"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}$ {% endgeneration %}"
    "{% else %}{{ message['content'] }} {% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
FORGETFUL = (  # as templates that leave out what was thought in earlier turns
    "{% for message in messages %}{% if loop.last or message['role'] == 'user' %}"
    "{{ message['role'] }}: {{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SPECIAL = {"eos_token": "</s>"}


def said(*turns: str) -> chat.Conversation:
    """Turns of user and assistant, by turns."""
    return {"messages": [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(turns)]}


# Formats.


@pytest.mark.parametrize(
    "value",
    [
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        json.dumps([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]),
        {"messages": [{"role": "user", "content": "hi", "likes": 3}, {"role": "assistant", "content": "ho"}]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "GPT", "value": "ho"}]},
        [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "ho"}, {"from": "human", "value": "and?"}],
        chat.of_parts("hi", "ho"),
    ],
)
def test_every_format_says_the_same(value):
    assert chat.read(value) == said("hi", "ho")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no JSON", "not_a_conversation"),
        ("3", "not_a_conversation"),
        ("[]", "not_a_conversation"),
        ('["hi", "ho"]', "not_a_conversation"),
        ({"turns": []}, "not_a_conversation"),
        ([{"role": "user", "content": ["a picture"]}], "not_a_conversation"),
        ([{"role": "wizard", "content": "hi"}], "unknown_role"),
        ([{"from": "wizard", "value": "hi"}], "unknown_role"),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": " \n"}], "empty_turn"),
        ([{"role": "user", "content": "hi"}], "no_answer"),
    ],
)
def test_what_is_no_conversation_is_named(value, reason):
    assert chat.fault_of(value) == reason


def test_tools_calls_and_thoughts_stay():
    call = {"type": "function", "function": {"name": "clock", "arguments": {}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "tool_calls": [call], "content": None, "reasoning_content": "ask"},
        {"role": "tool", "content": "noon", "tool_call_id": "1"},
        {"role": "assistant", "content": "Noon."},
    ]
    found = chat.read({"messages": messages, "tools": [{"type": "function"}]})
    assert found["tools"] == [{"type": "function"}]
    assert found["messages"][2] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [call],
        "reasoning_content": "ask",
    }
    assert found["messages"][3] == messages[3]
    assert chat.read(chat.written(found)) == found
    assert chat.texts(found) == ["Be brief.", "Time?", "ask", "noon", "Noon."]
    assert chat.texts(chat.mapped(found, str.upper)) == ["BE BRIEF.", "TIME?", "ASK", "NOON", "NOON."]


def test_an_instruction_has_its_input_and_what_is_said_beforehand():
    found = json.loads(chat.of_parts("Shorten:", "b", system="Be kind.", more="a long text"))
    assert [message["content"] for message in found["messages"]] == ["Be kind.", "Shorten:\n\na long text", "b"]


# What is asked.


def test_the_answer_that_is_there_is_not_heeded():
    assert chat.asked(said("hi", "ho", "and?", "so")) == said("hi", "ho", "and?")
    with pytest.raises(chat.UnreadableError, match="nothing_asked"):
        chat.asked({"messages": [{"role": "assistant", "content": "ho"}]})


def test_the_oldest_turns_go_first_and_what_the_system_says_stays():
    system = {"role": "system", "content": "Be brief."}
    long = {"messages": [system, *said("a", "b", "c", "d", "e")["messages"]]}
    shorter = chat.without_oldest(long)
    assert shorter == {"messages": [system, *said("c", "d", "e")["messages"]]}
    assert chat.without_oldest(chat.without_oldest(shorter)) is None


# What is learnt.


@pytest.mark.parametrize(
    ("template", "whole", "learnt"),
    [
        (
            CHATML,
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n"
            "<|im_start|>assistant\nso<|im_end|>\n",
            ["ho<|im_end|>", "so<|im_end|>"],
        ),
        (MARKED, "[user]hi [assistant]ho$ [user]and? [assistant]so$ ", ["ho$ ", "so$ "]),
        (
            chat.PLAIN,
            "### Instruction:\nhi\n\n### Response:\nho</s>\n\n### Instruction:\nand?\n\n### Response:\nso</s>\n\n",
            ["ho</s>", "so</s>"],
        ),
    ],
)
def test_only_what_the_assistant_writes_is_learnt_and_that_it_ends(template, whole, learnt):
    text, spans = chat.learnt(template, said("hi", "ho", "and?", "so"), SPECIAL)
    assert text == whole
    assert [text[start:end] for start, end in spans] == learnt


def test_a_conversation_that_the_assistant_begins_is_learnt_from_its_words_on():
    messages = [{"role": "assistant", "content": "Welcome!"}, *said("hi", "ho")["messages"]]
    text, spans = chat.learnt(CHATML, {"messages": messages}, SPECIAL)
    assert [text[start:end] for start, end in spans] == ["Welcome!<|im_end|>", "ho<|im_end|>"]


def test_a_template_that_forgets_turns_cannot_tell_what_is_learnt():
    assert chat.learnt(FORGETFUL, said("hi", "ho"), SPECIAL)[0] == "user: hi\nassistant: ho\n"
    with pytest.raises(chat.UntellableError):
        chat.learnt(FORGETFUL, said("hi", "ho", "and?", "so"), SPECIAL)


def test_a_refusal_of_the_template_is_told():
    with pytest.raises(ValueError, match="refuses it: roles must alternate"):
        chat.render("{{ raise_exception('roles must alternate') }}", said("hi"), SPECIAL)


def test_examples_follow_what_the_system_says():
    talk = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "tools": [1]}
    example = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert [m["content"] for m in chat.after(talk, example)["messages"]] == ["s", "x", "y", "u"]
    assert chat.after(talk, example)["tools"] == [1]
    assert chat.after(talk, []) == talk
