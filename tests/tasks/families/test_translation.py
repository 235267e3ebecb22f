"""A multilingual model that learns to write in one language or another, as its recipe's codes say."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from schemas.errors import RecipeError
from schemas.loading import validate_recipe
from tasks.batches import TokenTable
from tasks.families import IGNORED, Loss
from tasks.families.translation import Translation, TranslationTask
from tasks.latency import served_model
from tasks.predict import predict
from tasks.tokenizer import Base
from tasks.tokens_part import encode_file, encode_rows
from tests.learning import WORDS, tiny_decoder, tiny_multilingual
from tests.taught import LENGTH, taught

FAMILY = Translation()
SAID = {"fr_XX": str.upper, "de_DE": lambda text: " ".join(reversed(text.split()))}
"""Language → how it says a text: in capitals, or from its end."""
STEPS = 900


def section(code: str | None = "fr_XX", **more: Any) -> TranslationTask:
    codes = {} if code is None else {"source_code": "en_XX", "target_code": code}
    return TranslationTask(target_language="Capitals", max_new_tokens=8, **codes, **more)


def meta_of(base: Any, task: TranslationTask) -> dict[str, Any]:
    made = FAMILY.describe(task, pl.LazyFrame()) | FAMILY.of_base(task, Base(base)) | task.notes()
    return made | LENGTH | {"pad_token_id": 1}


def rows_of(count: int, code: str, seed: int = 0) -> pl.DataFrame:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 4, (count,), generator=draw).tolist()
    texts = [" ".join(WORDS[int(i)] for i in torch.randint(0, len(WORDS), (n,), generator=draw)) for n in lengths]
    targets = [SAID[code](text) for text in texts]
    return pl.DataFrame({"id": [str(i) for i in range(count)], "text": texts, "target": targets})


def tokens_of(base: Any, code: str, rows: pl.DataFrame, folder: Any) -> TokenTable:
    folder.mkdir(exist_ok=True)
    meta = meta_of(base, section(code))
    rows.write_parquet(folder / "rows.parquet")
    (folder / "meta.json").write_text(json.dumps(meta))
    tokenizer, file = Base(base).tokenizer, folder / "test.arrow"
    encode_file(FAMILY, meta, tokenizer, vocab_size=None, rows=folder / "rows.parquet", out=file)
    return TokenTable(file, 1)


@pytest.fixture(scope="module")
def bilingual(tmp_path_factory):
    """A model that writes both languages well, as an mBART does."""
    folder = tmp_path_factory.mktemp("bilingual")
    base = tiny_multilingual(folder / "random")
    tables = [tokens_of(base, code, rows_of(1_500, code), folder / code) for code in SAID]
    model: Any = FAMILY.load_model(str(base), meta_of(base, section()))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 30) * (1 - step / STEPS))
    draw = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        for table in tables:
            batch = table.batch(torch.randint(0, len(table), (24,), generator=draw).numpy())
            (FAMILY.loss_sum(model, batch, Loss()) / FAMILY.loss_count(batch["labels"], Loss())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval().save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "base")
    return folder / "base"


def found_by(base: Any, code: str, rows: pl.DataFrame, folder: Any) -> pl.DataFrame:
    tokens_of(base, code, rows, folder)
    files = {str(folder / "test.arrow"): str(folder / "predicted.parquet")}
    predict(emit=print, family="translation", model=str(base), tokens=files)
    return pl.read_parquet(folder / "predicted.parquet")


@pytest.mark.parametrize("code", SAID)
def test_the_target_code_says_what_is_written(code, bilingual, tmp_path):
    rows = rows_of(60, code, seed=1)
    found = found_by(bilingual, code, rows, tmp_path / "right")
    scores = FAMILY.score(found, {"bleu_tokenize": "13a"})
    assert scores["exact_match"] > 0.9
    assert scores["perplexity"] < 1.2
    (other,) = SAID.keys() - {code}
    wrong = found_by(bilingual, other, rows, tmp_path / "wrong")
    assert FAMILY.score(wrong, {"bleu_tokenize": "13a"})["exact_match"] < 0.3
    as_other = wrong.with_columns(truth=pl.Series([SAID[other](text) for text in rows["text"]]))
    assert FAMILY.score(as_other, {"bleu_tokenize": "13a"})["exact_match"] > 0.9


def test_training_evaluation_serving_and_transformers_alone_agree(bilingual, tmp_path):
    rows = rows_of(96, "fr_XX", seed=2)
    task = section().model_dump(mode="json")
    learnt = taught(FAMILY, task, bilingual, tmp_path / "learnt", rows, rows.head(40), epochs=1, learning_rate=1e-4)
    recorded, folder = learnt.predicted, tmp_path / "learnt" / "model"
    assert recorded["prediction"].to_list() == recorded["truth"].to_list()
    assert learnt.record["validation"]["likelihood"] > 0.8

    served = served_model(FAMILY.serving, folder).predict(None, rows.head(40).select("text").to_pandas())
    assert served["text"].to_list() == recorded["prediction"].to_list()

    saved = GenerationConfig.from_pretrained(folder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert saved.forced_bos_token_id == tokenizer.convert_tokens_to_ids("fr_XX")
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == ("en_XX", "fr_XX")
    given = tokenizer(rows["text"].head(40).to_list(), return_tensors="pt", padding=True)
    alone = tokenizer.batch_decode(model.generate(**given, max_new_tokens=8), skip_special_tokens=True)
    assert alone == recorded["prediction"].to_list()


def test_losses_are_those_of_transformers(bilingual, tmp_path):
    rows = rows_of(5, "fr_XX", seed=3)
    table = tokens_of(bilingual, "fr_XX", rows, tmp_path / "tokens")
    model: Any = FAMILY.load_model(str(bilingual), meta_of(bilingual, section())).eval()
    tokenizer = AutoTokenizer.from_pretrained(bilingual, src_lang="en_XX", tgt_lang="fr_XX")
    given = tokenizer(rows["text"].to_list(), text_target=rows["target"].to_list(), padding=True, return_tensors="pt")
    labels = given["labels"].masked_fill(given["labels"] == 1, IGNORED)
    start = torch.full((5, 1), 2)
    shifted = torch.cat([start, given["labels"][:, :-1]], dim=1)
    asked = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}
    with torch.inference_mode():
        logits = model(**asked, decoder_input_ids=shifted).logits
        wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        assert FAMILY.loss_sum(model, table.batch(range(5)), Loss()).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["mbart", "plain"])
def test_other_kinds_of_codes_are_learnt_and_served_alike(kind, tmp_path):
    base = tiny_multilingual(tmp_path / "base", kind)
    codes = ("en", "fr") if kind == "plain" else ("en_XX", "fr_XX")
    task = TranslationTask(target_language="X", source_code=codes[0], target_code=codes[1], max_new_tokens=8)
    rows = rows_of(48, "fr_XX")
    learnt = taught(FAMILY, task.model_dump(mode="json"), base, tmp_path / "learnt", rows, rows.head(24), epochs=8)
    folder = tmp_path / "learnt" / "model"
    served = served_model(FAMILY.serving, folder).predict(None, rows.head(24).select("text").to_pandas())
    assert FAMILY.disagreements(served.to_dict("records"), learnt.predicted, learnt.meta) == []
    saved = GenerationConfig.from_pretrained(folder)
    wanted = Base(base).tokenizer.added["__fr__" if kind == "plain" else "fr_XX"]
    assert (saved.forced_bos_token_id if kind == "plain" else saved.decoder_start_token_id) == wanted
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)
    given = tokenizer(rows["text"].head(24).to_list(), return_tensors="pt", padding=True)
    given.pop("token_type_ids", None)
    alone = tokenizer.batch_decode(model.generate(**given, max_new_tokens=8), skip_special_tokens=True)
    assert [text.strip() for text in alone] == served["text"].to_list()


def test_what_is_learnt_is_shown_with_its_codes(bilingual):
    shown = FAMILY.example({"text": "good", "target": "GOOD"}, meta_of(bilingual, section()), Base(bilingual).tokenizer)
    assert shown == "en_XX good «fr_XX GOOD»"


def test_a_text_that_is_broken_off_is_known_for_it(bilingual, tmp_path):
    rows = pl.DataFrame({"id": ["a"], "text": ["good film today"], "target": ["GOOD FILM TODAY"]})
    tokens_of(bilingual, "fr_XX", rows, tmp_path / "tokens")
    meta = json.loads((tmp_path / "tokens" / "meta.json").read_text())
    meta["generation"]["max_new_tokens"] = 3
    (tmp_path / "tokens" / "meta.json").write_text(json.dumps(meta))
    files = {str(tmp_path / "tokens" / "test.arrow"): str(tmp_path / "p")}
    predict(emit=print, family="translation", model=str(bilingual), tokens=files)
    assert pl.read_parquet(tmp_path / "p").select("prediction", "ended").row(0) == ("GOOD FILM", False)


# What is refused.


def test_codes_come_in_pairs():
    with pytest.raises(RecipeError, match="source_code and target_code belong together"):
        validate_recipe(
            {
                "name": "tiny", "task": {"family": "translation", "target_language": "X", "target_code": "fr_XX"},
                "collect": {"source": {"kind": "jsonl", "path": "rows.jsonl"}}, "model": {"base": "./base"},
            }
        )  # fmt: skip


def test_a_model_without_an_encoder_takes_no_codes(tmp_path):
    with pytest.raises(RecipeError) as told:
        FAMILY.of_base(section(), Base(tiny_decoder(tmp_path)))
    first, second = str(told.value).splitlines()
    assert first.startswith("task.source_code = 'en_XX': the base model has no encoder")
    assert second.startswith("task.target_code = 'fr_XX': the base model has no encoder")


def test_a_multilingual_model_without_codes_is_refused_before_anything_is_learnt(tmp_path):
    base = tiny_multilingual(tmp_path)
    with pytest.raises(RecipeError, match=r"^task.target_code: the base model writes 52 languages"):
        encode_rows(FAMILY, meta_of(base, section(None)), Base(base).tokenizer, rows_of(2, "fr_XX"))
