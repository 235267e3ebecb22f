"""Translation and summarization, by models with an encoder and by decoder-only ones."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import polars as pl
import pytest
import torch
from torch.nn.functional import cross_entropy

from schemas.errors import RecipeError
from schemas.loading import validate_recipe
from tasks.batches import TokenTable
from tasks.families import IGNORED, Loss
from tasks.families.summarization import Summarization, first_sentence
from tasks.families.translation import Translation, TranslationTask
from tasks.latency import served_model
from tasks.predict import predict
from tasks.tokenizer import Base
from tasks.tokens_part import encode_file
from tests.learning import WORDS, tiny_decoder, tiny_translator

FAMILY = Translation()
TASK = TranslationTask(target_language="Capitals", max_new_tokens=10)
META = {
    **FAMILY.describe(TASK, pl.LazyFrame()), **TASK.notes(), "max_seq_length": 32, "overlong": "truncate",
    "stride": None, "pad_token_id": 0, "max_target_tokens": 10,
}  # fmt: skip
TEXTS = ["good film", "so very awful today it all was bad", "the"]
TARGETS = [text.upper() for text in TEXTS]
KINDS = ["t5", "marian", "decoder"]


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    base = folder / "base"
    if request.param == "decoder":
        tiny_decoder(base)
    else:
        tiny_translator(base, request.param)
    rows = pl.DataFrame({"id": ["a", "b", "c"], "text": TEXTS, "target": TARGETS})
    rows.write_parquet(folder / "rows.parquet")
    tokenizer = Base(base).tokenizer
    encode_file(FAMILY, META, tokenizer, vocab_size=None, rows=folder / "rows.parquet", out=folder / "test.arrow")
    (folder / "meta.json").write_text(json.dumps(META))
    return request.param, base, folder


def test_what_is_learnt_is_shown(case):
    kind, base, _ = case
    shown = FAMILY.example({"text": "good film", "target": "GOOD"}, META, Base(base).tokenizer)
    asked = "<|user|> Translate from English to Capitals.\n\ngood film <|end|>\n<|assistant|> «GOOD <|end|>»\n"
    assert shown == (asked if kind == "decoder" else "good film «GOOD»")


def test_what_is_wanted_ends_and_what_is_read_is_not_learnt(case):
    kind, _, folder = case
    table = TokenTable(folder / "test.arrow", 0)
    learnt = [[label for label in table.batch([row])["labels"][0].tolist() if label != IGNORED] for row in range(3)]
    end = 2 if kind == "decoder" else 1
    assert [len(labels) for labels in learnt] == [3, 9, 2]
    assert all(labels[-1] == end for labels in learnt)


def test_what_is_to_be_written_has_a_width_of_its_own(case):
    kind, _, folder = case
    batch = TokenTable(folder / "test.arrow", 0).batch([0, 2])
    if kind == "decoder":
        assert batch["labels"].shape == batch["input_ids"].shape
    else:
        assert batch["input_ids"].shape == (2, 3)
        assert batch["labels"].tolist() == [[17, 26, 1], [25, 1, IGNORED]]


def test_losses_are_those_of_transformers(case):
    kind, base, folder = case
    table = TokenTable(folder / "test.arrow", 0)
    model: Any = FAMILY.load_model(str(base), META).eval()
    batch = table.batch([0, 1, 2])
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    with torch.inference_mode():
        logits = model(**given).logits
        shift = kind == "decoder"
        logits, labels = (logits[:, :-1], batch["labels"][:, 1:]) if shift else (logits, batch["labels"])
        wanted = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        assert FAMILY.loss_sum(model, batch, Loss()).item() == pytest.approx(wanted.item(), rel=1e-5)
        alone = sum(FAMILY.loss_sum(model, table.batch([row]), Loss()).item() for row in range(3))
    assert alone == pytest.approx(wanted.item(), rel=1e-5)


def test_what_is_served_is_what_is_recorded(case, tmp_path):
    _, base, folder = case
    predict(emit=print, family="translation", model=str(base), tokens={str(folder / "test.arrow"): str(tmp_path / "p")})
    recorded = pl.read_parquet(tmp_path / "p")
    assert recorded["truth"].to_list() == TARGETS
    model = FAMILY.load_model(str(base), META)
    tokenizer = _tokenizer(base)
    FAMILY.finish(model, tokenizer, META)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "hone.json").write_text(json.dumps(META))
    served = served_model(FAMILY.serving, tmp_path / "model")
    found = served.predict(None, pd.DataFrame({"text": [*TEXTS, None, " "]}))
    assert FAMILY.disagreements(found.head(3).to_dict("records"), recorded, META) == []
    assert found["text"].isna().tolist() == [False] * 3 + [True] * 2
    told = FAMILY.from_served(found.head(3).to_dict("records"), pl.read_parquet(folder / "rows.parquet"), META)
    assert FAMILY.score(told, META)["chrf"] == pytest.approx(FAMILY.score(recorded, META)["chrf"])
    shorter = served.predict(None, pd.DataFrame({"text": TEXTS}), {"max_new_tokens": 1, "num_beams": 2})
    assert all(len(text.split()) <= 1 for text in shorter["text"])


def _tokenizer(base):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


@pytest.mark.parametrize("kind", ["t5", "marian"])
def test_a_mapping_is_learnt_nearly_perfectly(kind, tmp_path):
    """Loss, writing and measures together: words in capitals, by a model that knew nothing."""
    base = tiny_translator(tmp_path / "base", kind)
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 4, (1_500,), generator=draw).tolist()
    texts = [" ".join(WORDS[int(i)] for i in torch.randint(0, len(WORDS), (n,), generator=draw)) for n in lengths]
    rows = pl.DataFrame({"id": [str(i) for i in range(1_500)], "text": texts, "target": [t.upper() for t in texts]})
    for name, part in (("train", rows.head(1_440)), ("test", rows.tail(60))):
        part.write_parquet(tmp_path / "rows.parquet")
        tokenizer = Base(base).tokenizer
        out = tmp_path / f"{name}.arrow"
        encode_file(FAMILY, META, tokenizer, vocab_size=None, rows=tmp_path / "rows.parquet", out=out)
    table = TokenTable(tmp_path / "train.arrow", 0)
    model: Any = FAMILY.load_model(str(base), META)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    steps = 1_200
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 30) * (1 - step / steps))
    for _ in range(steps):
        batch = table.batch(torch.randint(0, len(table), (32,), generator=draw).numpy())
        loss = FAMILY.loss_sum(model, batch, Loss()) / FAMILY.loss_count(batch["labels"], Loss())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval().save_pretrained(tmp_path / "learnt")
    _tokenizer(base).save_pretrained(tmp_path / "learnt")
    (tmp_path / "meta.json").write_text(json.dumps(META))
    files = {str(tmp_path / "test.arrow"): str(tmp_path / "p")}
    predict(emit=print, family="translation", model=str(tmp_path / "learnt"), tokens=files)
    scores = FAMILY.score(pl.read_parquet(tmp_path / "p"), META)
    assert scores["exact_match"] > 0.9
    assert scores["perplexity"] < 1.1


# Rows, recipes and trivial models.


def test_trivial_models_copy_or_lead(tmp_path):
    rows = pl.DataFrame({"id": ["a", "b"], "text": ["One. Two.", "no end"], "target": ["One", "x"]})
    rows.write_parquet(tmp_path / "test.parquet")
    for family, name, wanted in (
        (Translation(), "copy", ["One. Two.", "no end"]),
        (Summarization(), "lead", ["One.", "no end"]),
    ):
        assert family.baselines(tmp_path, META, "chrf", tmp_path) == {name: {}}
        found = pl.read_parquet(tmp_path / f"{name}.parquet")
        assert found["prediction"].to_list() == wanted
        assert found["truth"].to_list() == ["One", "x"]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("It is 3.5 m. High!", "It is 3.5 m."),
        ("What? No.", "What?"),
        ("Two\n lines  here. More", "Two lines here."),
        ("好。再见。", "好。"),
        ("", ""),
    ],
)
def test_a_sentence_ends_at_its_mark(text, first):
    assert first_sentence(text) == first


def recipe(**task: Any) -> Any:
    return validate_recipe(
        {
            "name": "tiny", "task": task, "collect": {"source": {"kind": "jsonl", "path": "rows.jsonl"}},
            "model": {"base": "./base"},
        }
    )  # fmt: skip


def test_what_is_asked_names_the_languages_unless_the_recipe_says_otherwise():
    asked = recipe(family="translation", target_language="French").task
    assert asked.instruction == "Translate from English to French."
    own = recipe(family="translation", target_language="French", instruction="En français :").task
    assert own.instruction == "En français :"
    assert recipe(family="summarization").metric == "rouge_l"
    with pytest.raises(RecipeError, match="target_language"):
        recipe(family="translation")
