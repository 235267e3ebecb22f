from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from schemas.errors import RecipeError
from schemas.loading import validate_recipe
from tasks.batches import TokenTable
from tasks.families import IGNORED, Loss
from tasks.families.causal_lm import CausalLm, CausalLmTask
from tasks.predict import outputs_of, predict
from tasks.rules import chat, writing
from tasks.rules.part import clean_part
from tasks.sources import Batch
from tasks.sources.conversations import composed
from tasks.tokenizer import Base
from tasks.tokens_part import encode_file
from tests.learning import tiny_decoder

FAMILY = CausalLm()
META = {
    "chat_template": None, "generation": {"max_new_tokens": 6, "num_beams": 1}, "bleu_tokenize": "13a",
    "max_seq_length": 40, "overlong": "truncate", "stride": None, "pad_token_id": 0,
}  # fmt: skip


def said(*turns: str) -> str:
    messages = [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(turns)]
    return chat.written({"messages": messages})


TALKS = [said("good film", "bad"), said("so", "very awful", "was it", "all today"), said("the the the", "poor poor")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_decoder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def table(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    pl.DataFrame({"id": ["a", "b", "c"], "text": TALKS, "conversation": TALKS}).write_parquet(folder / "rows.parquet")
    tokenizer = Base(base).tokenizer
    encode_file(FAMILY, META, tokenizer, vocab_size=None, rows=folder / "rows.parquet", out=folder / "test.arrow")
    (folder / "meta.json").write_text(json.dumps(META))
    return TokenTable(folder / "test.arrow", 0), folder


# Rows.


def batch(**columns: Any) -> Batch:
    values = pl.DataFrame(columns)
    return Batch(list(columns), values.with_row_index(offset=1)["index"].to_numpy(), values)


def test_every_format_becomes_one_conversation_and_its_text():
    sharegpt = json.dumps([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}])
    found = composed(batch(talk=[sharegpt, said("a", "b", "c"), "{}", None]), {"conversation": "talk"}).values
    assert found["conversation"].to_list() == [said("hi", "ho"), said("a", "b"), "{}", None]
    assert found["text"].to_list() == ["hi\n\nho", "a\n\nb", "{}", None]

    alpaca = batch(instruction=["Shorten:", "Sing.", " "], input=["long", None, "x"], output=["short", "la", "y"])
    parts = {"prompt": "instruction", "completion": "output", "input": "input"}
    found = composed(alpaca, parts).values
    assert found["conversation"].to_list() == [said("Shorten:\n\nlong", "short"), said("Sing.", "la"), None]


def test_messages_are_put_right_one_by_one_and_what_teaches_nothing_is_set_aside(tmp_path):
    broken = said("hi  there", "fine&amp;dandy\n  indeed")
    bad = ["no JSON", json.dumps([{"role": "user", "content": "hi"}]), json.dumps([{"role": "x", "content": "hi"}])]
    values = composed(batch(messages=[broken, *bad]), {"conversation": "messages"}).values
    place = [pl.lit("s").alias("source"), pl.int_range(1, 5).cast(pl.UInt32).alias("row")]
    rows = values.select(pl.Series("id", list("abcd")), *place, "text", "conversation")
    rows.write_parquet(tmp_path / "rows.parquet")
    rules = recipe(clean={"collapse_whitespace": False, "min_chars": 1}).clean
    out = tmp_path / "out"
    out.mkdir()
    clean_part(rules, CausalLmTask(), tmp_path / "rows.parquet", out)
    kept = pl.read_parquet(out / "rows.parquet")
    messages = chat.read(kept["conversation"][0])["messages"]
    assert [message["content"] for message in messages] == ["hi  there", "fine&dandy\n  indeed"]
    assert kept["text"][0] == "hi  there\n\nfine&dandy\n  indeed"
    quarantine = pl.read_parquet(out / "quarantine.parquet")
    assert quarantine["reason"].to_list() == ["not_a_conversation", "no_answer", "unknown_role"]


def test_what_is_learnt_is_shown(base):
    row = {"conversation": said("good film", "bad")}
    shown = FAMILY.example(row, META, Base(base).tokenizer)
    assert shown == "<|user|> good film <|end|>\n<|assistant|> «bad <|end|>»\n"


# Learning.


def test_only_answers_have_labels(table):
    rows, _ = table
    learnt = [[label for label in rows.batch([row])["labels"][0].tolist() if label != IGNORED] for row in range(3)]
    end = 2
    assert [len(labels) for labels in learnt] == [2, 3 + 3, 3]
    assert all(labels[-1] == end for labels in learnt)
    assert int(FAMILY.loss_count(torch.from_numpy(rows.labels_of().copy()), Loss())) == 2 + 6 + 3


def test_a_row_s_loss_is_the_same_in_any_batch(base, table):
    rows, _ = table
    model = FAMILY.load_model(str(base), META).eval()
    together = FAMILY.loss_sum(model, rows.batch([0, 1, 2]), Loss()).item()
    alone = sum(FAMILY.loss_sum(model, rows.batch([row]), Loss()).item() for row in range(3))
    assert together == pytest.approx(alone, rel=1e-5)
    outputs, mean = outputs_of(model, FAMILY, rows, None)
    found = outputs.part(slice(0, 3))
    assert found[:, 1].tolist() == [2, 6, 3]
    assert (found[:, 0] * found[:, 1]).sum() == pytest.approx(together, rel=1e-5)
    assert mean == pytest.approx(together / 11, rel=1e-5)


def test_an_untaught_model_answers_and_is_measured(base, table, tmp_path):
    _rows, folder = table
    predict(emit=print, family="causal-lm", model=str(base), tokens={str(folder / "test.arrow"): str(tmp_path / "p")})
    found = pl.read_parquet(tmp_path / "p")
    assert found["truth"].to_list() == ["bad", "all today", "poor poor"]
    assert found["tokens"].to_list() == [2, 6, 3]
    assert found["prediction"].null_count() == 0
    scores = FAMILY.score(found, META)
    assert scores["perplexity"] == pytest.approx(1 / scores["likelihood"])
    assert 0 <= scores["chrf"] <= 1
    untold = found.with_columns(prediction=pl.lit(None, pl.String))
    assert set(FAMILY.score(untold, META)) == {"likelihood", "loss", "perplexity"}
    report = "\n".join(FAMILY.report_sections(found, {"base": found}, META))
    assert "texts were broken off at 6 tokens" in report
    assert f"1.\n\n- wanted: bad\n- written: {found['prediction'][0]}\n- base: {found['prediction'][0]}" in report


def test_an_interrupted_evaluation_writes_only_what_is_left(base, table, tmp_path, monkeypatch):
    _rows, folder = table
    asked: list[int] = []
    write = writing.write

    def counted(model, prompts, settings, **options):
        for number, written in write(model, prompts, settings, **options):
            if len(asked) == 2:
                raise KeyboardInterrupt
            asked.append(number)
            yield number, written

    monkeypatch.setattr(writing, "write", counted)
    job = {
        "emit": print, "family": "causal-lm", "model": str(base), "work": str(tmp_path),
        "tokens": {str(folder / "test.arrow"): str(tmp_path / "test.parquet")},
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        predict(**job)
    assert not (tmp_path / "test.parquet").exists()
    asked[:] = [0]
    predict(**job)
    assert asked == [0, 0]  # one more
    monkeypatch.undo()
    predict(**job | {"work": None, "tokens": {str(folder / "test.arrow"): str(tmp_path / "whole.parquet")}})
    found, whole = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("test", "whole"))
    assert found.drop("margin", "loss").equals(whole.drop("margin", "loss"))


def test_examples_come_before_the_question_and_their_likelihood_is_not_told(base, table, tmp_path):
    _rows, folder = table
    shown = FAMILY.examples(pl.DataFrame({"id": ["a", "b", "c"], "text": TALKS, "conversation": TALKS}), META, 5)
    assert [turn["content"] for turn in shown] == ["good film", "bad", "the the the", "poor poor"]  # the shorter half
    predict(
        emit=print, family="causal-lm", model=str(base), tokens={str(folder / "test.arrow"): str(tmp_path / "p")},
        shown=shown,
    )  # fmt: skip
    found = pl.read_parquet(tmp_path / "p")
    assert set(found.columns) == {"id", "truth", "prediction", "ended", "margin"}
    answerer = writing.Answerer(*loaded(base), META | {"shown": shown})
    question = chat.read(TALKS[0])
    alone = writing.Answerer(*loaded(base), META)
    assert answerer.prompt(chat.asked(question), None) == alone.prompt(
        chat.asked({"messages": [*shown, *question["messages"]]}), None
    )


def loaded(base):
    return AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)


def test_what_is_served_otherwise_is_told_unless_two_tokens_were_all_but_equal():
    was = {"id": "a", "prediction": "yes", "margin": 0.5}
    assert FAMILY.difference(was, {"text": "yes"}, META) is None
    assert FAMILY.difference(was, {"text": "no"}, META) == "'yes' was recorded, 'no' is served"
    assert FAMILY.difference(was | {"margin": 1e-5}, {"text": "no"}, META) is None
    assert FAMILY.difference(was | {"margin": 1e-5}, {"text": None}, META) is not None


# Recipes.


def recipe(**sections: Any) -> Any:
    parts: dict[str, Any] = {
        "name": "tiny", "task": {"family": "causal-lm"}, "collect": {"source": {"kind": "jsonl", "path": "rows.jsonl"}},
        "clean": {"collapse_whitespace": False}, "model": {"base": "./base"},
    }  # fmt: skip
    return validate_recipe(parts | sections)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"clean": {}}, "clean.collapse_whitespace would join the lines of answers"),
        ({"tokenize": {"overlong": "window"}}, "tokenize.overlong 'window' is not for causal-lm"),
        ({"registry": {"onnx": True}}, "registry.onnx is not for causal-lm"),
        ({"task": {"family": "causal-lm", "prompt_column": "q"}}, "belong together"),
        ({"task": {"family": "causal-lm", "input_column": "q"}}, "input_column and system_column go with"),
        ({"task": {"family": "causal-lm", "top_p": 0.5}}, "top_p and top_k say among which tokens is drawn"),
        ({"task": {"family": "causal-lm", "temperature": 1, "num_beams": 2}}, "temperature draws and num_beams 2"),
        ({"evaluate": {"metric": "likelihood", "shots": 3}}, "evaluate.shots goes by what is written"),
        ({"train": {"label_smoothing": 0.1}}, "train.label_smoothing is 0.1"),
        ({"evaluate": {"metric": "f1"}}, "evaluate.metric is 'f1': causal-lm has rouge_l, chrf, bleu"),
    ],
)
def test_what_does_not_fit_is_refused(sections, told):
    with pytest.raises(RecipeError, match=told):
        recipe(**sections)


def test_the_best_checkpoint_is_picked_by_likelihood():
    asked = recipe()
    assert (asked.metric, asked.learns_by) == ("rouge_l", "likelihood")
