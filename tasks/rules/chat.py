"""Conversations: read from the formats they come in, and written out as a model's chat template has them.

A conversation is JSON: `{"messages": [{"role": …, "content": …}, …], "tools": […]}`, roles as OpenAI's chat format has
them; tools are JSON schemas. This module travels with every model; it imports nothing of ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
SAID_BEFOREHAND = frozenset({"system", "developer"})
"""Roles that say how to answer."""
SHAREGPT = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "assistant": "assistant", "model": "assistant", "system": "system", "tool": "tool", "observation": "tool",
    "function_response": "tool",
}  # fmt: skip
"""What `from` says there → role."""
KEPT = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
"""What of a message is learnt from; other keys are notes of whoever collected it."""
TEXTS = ("content", "reasoning_content")
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""Mark of a template that says itself what the assistant wrote."""
PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}### Response:\n{{ message['content'] }}{{ eos_token }}\n\n"
    "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n"
    "{% else %}{{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
"""For a model that has no chat template of its own: the headings of Alpaca (Taori et al. 2023)."""

Message = dict[str, Any]
Conversation = dict[str, Any]
Span = tuple[int, int]


class UnreadableError(ValueError):
    """Something is no conversation; the message is the reason's name."""


class UntellableError(ValueError):
    """A template writes a turn otherwise once more turns follow, and does not mark what the assistant wrote."""


def read(value: Any) -> Conversation:
    """A conversation to learn from: what follows the last turn of the assistant teaches nothing and is left out.

    Args:
        value: See `read_any`.

    Raises:
        UnreadableError: Reasons of `read_any`, or no_answer where the assistant says nothing.
    """
    conversation = read_any(value)
    messages = list(conversation["messages"])
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise UnreadableError("no_answer")
    return {**conversation, "messages": messages}


def read_any(value: Any) -> Conversation:
    """A conversation out of JSON text or what it stands for: a list of messages, or an object that holds one.

    Messages are OpenAI's (`role`, `content`) or ShareGPT's (`from`, `value`).

    Raises:
        UnreadableError: not_a_conversation, unknown_role or empty_turn.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UnreadableError("not_a_conversation") from error
    tools = None
    if isinstance(value, Mapping):
        tools = value.get("tools")
        value = value.get("messages", value.get("conversations"))
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UnreadableError("not_a_conversation")
    messages = [_message(each) for each in value]
    return {"messages": messages, "tools": tools} if tools else {"messages": messages}


def fault_of(value: Any) -> str | None:
    """Why this is no conversation to learn from; none where it is one."""
    try:
        read(value)
    except UnreadableError as reason:
        return str(reason)
    return None


def written(conversation: Conversation) -> str:
    """The conversation as JSON text, the same for all ways of writing it."""
    return json.dumps(conversation, ensure_ascii=False, separators=(",", ":"))


def of_pair(prompt: Any, chosen: Any, rejected: Any, system: str | None = None) -> tuple[str, str] | None:
    """Two conversations, as JSON text, that end with the better and the worse answer to the same.

    Args:
        prompt: What is asked: text, messages, or none where both answers are whole conversations.
        chosen: The better answer: text or messages.
        rejected: The worse one.
        system: How to answer, said beforehand.

    Returns:
        None where something is missing.
    """
    before = [{"role": "system", "content": system}] if system and system.strip() else []
    if prompt is not None:
        before += _messages(prompt) or [{"role": "user", "content": prompt}]
    found = []
    for answer in (chosen, rejected):
        if answer is None or not str(answer).strip():
            return None
        found.append(written({"messages": before + (_messages(answer) or [{"role": "assistant", "content": answer}])}))
    return found[0], found[1]


def _messages(value: Any) -> list[Any] | None:
    """Messages as they come, JSON text or not; none where it is plain text."""
    if isinstance(value, str):
        if not value.lstrip().startswith(("[", "{")):
            return None
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if isinstance(value, Mapping):
        value = value.get("messages", value.get("conversations"))
    whole = isinstance(value, Sequence) and not isinstance(value, str) and value
    if not whole or not all(isinstance(each, Mapping) and ("role" in each or "from" in each) for each in value):
        return None
    return list(value)


def of_parts(prompt: str | None, completion: str | None, *, system: str | None = None, more: str | None = None) -> str:
    """The conversation of one question and its answer, as JSON text.

    Args:
        prompt: The question, or the instruction.
        completion: The answer.
        system: How to answer, said beforehand.
        more: What the instruction is about, such as Alpaca's `input`.
    """
    asked = "\n\n".join(part for part in (prompt, more) if part and part.strip())
    messages = [{"role": "system", "content": system}] if system and system.strip() else []
    messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": completion or ""}]
    return written({"messages": messages})


def asked(conversation: Conversation) -> Conversation:
    """The conversation up to the last turn that is not the assistant's: what is to be answered.

    Raises:
        UnreadableError: Nobody but the assistant says anything.
    """
    messages = list(conversation["messages"])
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise UnreadableError("nothing_asked")
    return {**conversation, "messages": messages}


def after(conversation: Conversation, examples: Sequence[Message]) -> Conversation:
    """The conversation with these turns before its own, behind what the system says."""
    messages = conversation["messages"]
    begins = next((i for i, message in enumerate(messages) if message["role"] not in SAID_BEFOREHAND), len(messages))
    return {**conversation, "messages": [*messages[:begins], *examples, *messages[begins:]]}


def without_oldest(conversation: Conversation) -> Conversation | None:
    """The conversation without its oldest turns, up to the next one of the user; none where only one is left.

    What the system says stays.
    """
    messages = conversation["messages"]
    kept = [message for message in messages if message["role"] in SAID_BEFOREHAND]
    turns = [message for message in messages if message["role"] not in SAID_BEFOREHAND]
    later = next((place for place, message in enumerate(turns) if place and message["role"] == "user"), None)
    return None if later is None else {**conversation, "messages": [*kept, *turns[later:]]}


def texts(conversation: Conversation) -> list[str]:
    """Every text of its messages."""
    return [message[name] for message in conversation["messages"] for name in TEXTS if message.get(name)]


def mapped(conversation: Conversation, change: Callable[[str], str]) -> Conversation:
    """The conversation with every text of its messages changed."""
    messages = [
        {name: change(value) if name in TEXTS and value else value for name, value in message.items()}
        for message in conversation["messages"]
    ]
    return {**conversation, "messages": messages}


def render(template: str, conversation: Conversation, special: Mapping[str, str], *, ask: bool = False) -> str:
    """What the model reads.

    Args:
        template: Jinja, as in `chat_template.jinja`.
        conversation: Its messages may end with any turn.
        special: Special tokens by the names that templates use: `bos_token`, `eos_token` …
        ask: Whether the assistant is to go on from here.

    Raises:
        ValueError: The template refuses the conversation.
    """
    return _rendered(template, conversation, special, ask=ask)[0]


def learnt(template: str, conversation: Conversation, special: Mapping[str, str]) -> tuple[str, list[Span]]:
    """What the model reads, and the characters of it that it learns to write: those of the assistant's turns.

    A turn's span begins where the template leaves off when it asks for an answer, and ends with the mark that ends the
    turn, but for white space behind that. Templates with `{% generation %}` say it themselves.

    Raises:
        UntellableError: The template writes earlier turns otherwise than it does when they are the last ones.
        ValueError: The template refuses the conversation.
    """
    if GENERATION.search(template):
        whole, spans = _rendered(template, conversation, special, mark=True)
        return whole, [(start, end) for start, end in spans if start < end]
    messages = conversation["messages"]
    whole, spans = render(template, conversation, special), []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        through = render(template, {**conversation, "messages": messages[: place + 1]}, special)
        if not whole.startswith(through):
            raise UntellableError
        spans.append((_asked(template, conversation, special, place, through), len(through.rstrip())))
    return whole, spans


def _asked(template: str, conversation: Conversation, special: Mapping[str, str], place: int, through: str) -> int:
    """Where the answer at this place begins."""
    messages = conversation["messages"]
    if place:
        before = render(template, {**conversation, "messages": messages[:place]}, special, ask=True)
        if through.startswith(before):
            return len(before)
    else:  # nobody has asked: the template's opening of the turn is whatever stands before its text
        found = through.find(messages[0].get("content") or "\0")
        if found >= 0:
            return found
    raise UntellableError


def _rendered(
    template: str, conversation: Conversation, special: Mapping[str, str], *, ask: bool = False, mark: bool = False
) -> tuple[str, list[Span]]:
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, spans = render_jinja_template(
            [conversation["messages"]],
            tools=conversation.get("tools"),
            chat_template=template,
            add_generation_prompt=ask,
            return_assistant_tokens_mask=mark,
            **special,
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise ValueError(f"the chat template refuses it: {error}") from error
    return texts[0], spans[0] if mark else []


def _message(value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise UnreadableError("not_a_conversation")
    if "from" in value and "role" not in value:
        role = SHAREGPT.get(str(value["from"]).lower())
        message: Message = {"role": role, "content": value.get("value")}
    else:
        message = {name: value[name] for name in KEPT if value.get(name) is not None}
        message.setdefault("content", "" if "tool_calls" in message else None)
    if message.get("role") not in ROLES:
        raise UnreadableError("unknown_role")
    text = message["content"]
    if not isinstance(text, str):
        raise UnreadableError("not_a_conversation")
    if not text.strip() and "tool_calls" not in message:
        raise UnreadableError("empty_turn")
    return message
