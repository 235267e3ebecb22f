from __future__ import annotations

import pytest

from schemas.errors import RecipeError
from tasks.families import IGNORED
from tasks.rules import chat
from tasks.supervision import encode_conversations, lesson, template_of
from tasks.tokenizer import Base
from tests.learning import CHAT, WORDS, tiny_decoder

MARKED = (
    "{% for message in messages %}<|{{ message['role'] }}|> "
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }} <|end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }} <|end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
END = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return Base(tiny_decoder(tmp_path_factory.mktemp("base")))


def said(*turns):
    messages = [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(turns)]
    return {"messages": messages}


SYSTEM = {"messages": [{"role": "system", "content": "so very good"}, *said("was it", "all bad today")["messages"]]}
TALK = said("the film", "fine", "today", "so so poor", "it was", "all")
ANSWERED = said("good", "bad awful")


@pytest.mark.parametrize("template", [CHAT, MARKED])
@pytest.mark.parametrize(
    ("conversation", "tokens", "learnt"),
    [
        (ANSWERED, 3 + 4, ["bad awful <|end|>"]),
        (SYSTEM, 5 + 4 + 5, ["all bad today <|end|>"]),
        (TALK, 4 + 3 + 3 + 5 + 4 + 3, ["fine <|end|>", "so so poor <|end|>", "all <|end|>"]),
    ],
)
def test_tokens_that_are_learnt_counted_by_hand(base, template, conversation, tokens, learnt):
    tokenizer = base.tokenizer
    ids, labels = lesson(template, conversation, tokenizer)
    assert len(ids) == len(labels) == tokens
    index = {word: i for i, word in enumerate(WORDS, 7)} | {"<|end|>": END}
    assert [label for label in labels if label != IGNORED] == [index[w] for text in learnt for w in text.split()]
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))


def test_an_end_that_the_template_lacks_is_learnt_all_the_same(base):
    bare = CHAT.replace(" <|end|>", "")
    ids, labels = lesson(bare, ANSWERED, base.tokenizer)
    assert (ids[-1], labels[-1]) == (END, END)
    assert len(ids) == 2 + 3 + 1


def test_a_long_conversation_loses_its_oldest_turns(base):
    meta = {"max_seq_length": 15, "chat_template": None}
    found = encode_conversations([TALK], meta, base.tokenizer, "task.chat_template")
    shorter, labels = lesson(CHAT, said("today", "so so poor", "it was", "all"), base.tokenizer)
    assert found.input_ids == [shorter]
    assert found.columns["labels"].to_pylist() == [labels]
    assert (list(found.uncut), list(found.pieces)) == ([22], [1])


@pytest.mark.parametrize(
    ("conversation", "longest", "kept"),
    [
        (ANSWERED, 7, "<|user|> good <|end|> <|assistant|> bad awful <|end|>"),
        (ANSWERED, 5, "<|end|> <|assistant|> bad awful <|end|>"),
        (ANSWERED, 4, "<|assistant|> bad awful <|end|>"),
        (
            said("good", "all it today was film the so very fine poor"),
            8,
            "<|end|> <|assistant|> all it today was film the",
        ),
    ],
)
def test_the_end_of_the_question_and_the_answer_are_kept(base, conversation, longest, kept):
    meta = {"max_seq_length": longest, "chat_template": None}
    found = encode_conversations([conversation], meta, base.tokenizer, "task.chat_template")
    (ids,), (labels,) = found.input_ids, found.columns["labels"].to_pylist()
    assert [base.tokenizer.backend.id_to_token(token) for token in ids] == kept.split()
    answer = kept.partition("<|assistant|> ")[2].split()
    assert [label for label in labels if label != IGNORED] == ids[-len(answer) :]
    assert list(found.uncut) == [len(lesson(CHAT, conversation, base.tokenizer)[0])]


def test_templates_that_do_not_tell_are_refused(base):
    forgetful = (
        "{% for m in messages %}{% if loop.last or m['role'] == 'user' %}{{ m['content'] }} {% endif %}{% endfor %}"
    )
    meta = {"max_seq_length": 64, "chat_template": forgetful}
    with pytest.raises(RecipeError, match="generation"):
        encode_conversations([TALK], meta, base.tokenizer, "task.chat_template")


def test_the_recipe_s_template_comes_before_the_model_s_and_a_plain_one_last(base, tmp_path):
    assert template_of({"chat_template": "mine"}, base.tokenizer) == "mine"
    assert template_of({"chat_template": None}, base.tokenizer) == CHAT
    without = Base(tiny_decoder(tmp_path, template=None))
    assert template_of({}, without.tokenizer) == chat.PLAIN


def test_what_a_tokenizer_says_of_special_tokens_is_known(base):
    tokenizer = base.tokenizer
    assert tokenizer.special["eos_token"] == "<|end|>"
    assert tokenizer.stop == (END,)
    assert not tokenizer.encoder_decoder
