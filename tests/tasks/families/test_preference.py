from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid

from schemas.loading import validate_recipe
from tasks import learner, probe
from tasks.batches import TokenTable
from tasks.families import IGNORED, REFERENCE, Loss
from tasks.families.causal_lm import CausalLm
from tasks.families.preference import Preference, PreferenceTask, apart
from tasks.predict import predict
from tasks.rules import chat
from tasks.rules.part import clean_part
from tasks.sources import Batch
from tasks.sources.conversations import composed
from tasks.tokenizer import Base
from tasks.tokens_part import encode_rows
from tests.learning import BAD, GOOD, tiny_decoder
from tests.taught import silent

FAMILY = Preference()
META = {
    "chat_template": None, "generation": {"max_new_tokens": 4, "num_beams": 1}, "bleu_tokenize": "13a",
    "max_seq_length": 40, "overlong": "truncate", "stride": None, "pad_token_id": 0,
}  # fmt: skip


def said(*turns: str) -> str:
    messages = [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(turns)]
    return chat.written({"messages": messages})


def batch_of(**columns: Any) -> Batch:
    values = pl.DataFrame(columns)
    return Batch(list(columns), values.with_row_index(offset=1)["index"].to_numpy(), values)


PAIRS = pl.DataFrame(
    {
        "id": ["a", "b", "c"],
        "text": ["x", "y", "z"],
        "conversation": [
            said("the film", "good"),
            said("so", "bad", "was it", "very great"),
            said("all", "it was fine"),
        ],
        "rejected": [said("the film", "bad so awful"), said("so", "bad", "was it", "poor"), said("all", "is bad")],
    }
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_decoder(tmp_path_factory.mktemp("base"))


def tokens_of(folder, base, rows, side="train"):
    encoded = encode_rows(FAMILY, META, Base(base).tokenizer, rows)
    with pa.ipc.new_stream(folder / f"{side}.arrow", encoded.schema) as stream:
        stream.write_batch(encoded)
    (folder / "meta.json").write_text(json.dumps(META))
    return folder / f"{side}.arrow"


@pytest.fixture
def table(base, tmp_path):
    return TokenTable(tokens_of(tmp_path, base, PAIRS), 0)


# Rows.


def test_every_format_becomes_two_conversations():
    parts = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    plain = batch_of(prompt=["hi", "hi", None], chosen=["yes", "", "no"], rejected=["no", "no", "yes"])
    found = composed(plain, parts).values
    assert found["conversation"].to_list()[:2] == [said("hi", "yes"), None]
    assert found["rejected"].to_list()[:2] == [said("hi", "no"), None]
    assert found["text"][0] == "hi\n\nyes"

    asked, answer = ([{"role": role, "content": "so"}] for role in ("user", "assistant"))
    other = [{"from": "gpt", "value": "no"}]
    listed = batch_of(prompt=[json.dumps(asked)], chosen=[json.dumps(answer)], rejected=[json.dumps(other)])
    assert composed(listed, parts).values.select("conversation", "rejected").row(0) == (
        said("so", "so"),
        said("so", "no"),
    )

    whole = batch_of(chosen=[said("a", "b")], rejected=[json.dumps(asked + answer)])
    named = {"chosen": "chosen", "rejected": "rejected"}
    assert composed(whole, named).values.select("conversation", "rejected").row(0) == (said("a", "b"), said("so", "so"))
    told = batch_of(prompt=["hi"], chosen=["[1] yes"], rejected=["{no}"], system=["Be brief."])
    first = json.loads(composed(told, parts | {"system": "system"}).values["conversation"][0])["messages"]
    assert [turn["content"] for turn in first] == ["Be brief.", "hi", "[1] yes"]


def test_pairs_that_teach_nothing_are_set_aside(tmp_path):
    rows = pl.DataFrame(
        {
            "id": list("abcd"), "source": ["s"] * 4, "row": pl.Series([1, 2, 3, 4], dtype=pl.UInt32),
            "text": ["hi  there", "q", "q", "q"],
            "conversation": [said("hi&amp;there", "ho"), said("q", "x"), said("q", "x"), said("q", "x")],
            "rejected": [said("hi&amp;there", "h&amp;a"), said("q", "x"), said("other", "y"), "no JSON"],
        }
    )  # fmt: skip
    rows.write_parquet(tmp_path / "rows.parquet")
    (tmp_path / "out").mkdir()
    rules = recipe(clean={"collapse_whitespace": False, "min_chars": 1}).clean
    clean_part(rules, PreferenceTask(), tmp_path / "rows.parquet", tmp_path / "out")
    kept = pl.read_parquet(tmp_path / "out" / "rows.parquet")
    assert kept.select("conversation", "rejected").rows() == [(said("hi&there", "ho"), said("hi&there", "h&a"))]
    reasons = pl.read_parquet(tmp_path / "out" / "quarantine.parquet").sort("id")["reason"].to_list()
    assert reasons == ["same_answer", "other_question", "not_a_conversation"]


def test_only_the_last_answers_are_learnt_and_both_are_read_as_if_alone(base, table):
    found = apart(table.batch([0, 1, 2]))
    assert found["input_ids"].shape[0] == 6
    alone = CausalLm()
    for row in range(3):
        for place, column in ((row, "conversation"), (row + 3, "rejected")):
            one = PAIRS[row].select("id", "text", conversation=column)
            encoded = encode_rows(alone, META, Base(base).tokenizer, one)
            ids = encoded["input_ids"][0].as_py()
            size = int(found["attention_mask"][place].sum())
            assert found["input_ids"][place, :size].tolist() == ids
            assert found["input_ids"][place, size:].sum() == 0
            learnt = [label for label in found["labels"][place].tolist() if label != IGNORED]
            answer = json.loads(one["conversation"][0])["messages"][-1]["content"]
            assert learnt == Base(base).tokenizer.placed([f"{answer} <|end|>"])[0][0]


def test_a_pair_is_shown(base):
    shown = FAMILY.example(PAIRS.row(0, named=True), META, Base(base).tokenizer)
    assert "«good <|end|>»\n\nrather than\n<|user|> the film" in shown
    assert "«bad so awful <|end|>»" in shown


# The loss.


def by_hand(model, table, row):
    """Log-likelihood of both answers, from all logits."""
    found = apart(table.batch([row]))
    logits = model(input_ids=found["input_ids"], attention_mask=found["attention_mask"]).logits[:, :-1]
    labels = found["labels"][:, 1:]
    each = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return -each.view(labels.shape).sum(1)


@pytest.mark.parametrize(("beta", "smoothing"), [(0.1, 0.0), (2.0, 0.0), (0.5, 0.2)])
def test_the_loss_is_that_of_the_paper(base, table, beta, smoothing):
    model = FAMILY.load_model(str(base), META).eval()
    table.add(REFERENCE, np.array([[3.0, 9.0], [8.0, 2.0], [20.0, 20.5]], np.float32))
    expected = []
    for row, reference in enumerate([[3.0, 9.0], [8.0, 2.0], [20.0, 20.5]]):
        better, worse = by_hand(model, table, row)
        margin = beta * ((better + reference[0]) - (worse + reference[1]))
        expected.append(-(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin))
    how = Loss(preference_beta=beta, label_smoothing=smoothing)
    together = FAMILY.loss_sum(model, table.batch([0, 1, 2]), how)
    assert together.item() == pytest.approx(sum(expected).item(), rel=1e-5)
    apart_sum = sum(FAMILY.loss_sum(model, table.batch([row]), how).item() for row in range(3))
    assert apart_sum == pytest.approx(together.item(), rel=1e-5)
    labels = torch.from_numpy(table.labels_of().copy())
    assert FAMILY.loss_count(labels, how) == 3


def test_the_untaught_model_has_no_margin_over_itself(base, table):
    model = FAMILY.load_model(str(base), META).eval()
    with torch.inference_mode():
        outputs, _ = FAMILY.outputs(model, table.batch([0, 1, 2]), Loss())
        assert np.isnan(outputs[:, 4]).all() or np.isfinite(outputs[:, 4]).all()
        table.add(REFERENCE, FAMILY.reference(outputs).astype(np.float32))
        again, loss = FAMILY.outputs(model, table.batch([0, 1, 2]), Loss())
    assert again[:, 4] == pytest.approx([0, 0, 0], abs=1e-5)
    assert loss.item() == pytest.approx(3 * math.log(2), rel=1e-5)


def test_the_loss_is_that_of_trl(base, tmp_path):
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer

    from schemas.recipe import FullFineTuning
    from tasks.methods import apply

    pair = {"conversation": said("the film", "good so"), "rejected": said("the film", "bad")}
    rows = pl.DataFrame([{"id": "a", "text": "x", **pair}])
    table = TokenTable(tokens_of(tmp_path, base, rows), 0)
    model = FAMILY.load_model(str(base), META).eval()
    with torch.inference_mode():
        outputs, _ = FAMILY.outputs(model, table.batch([0]), Loss())
    table.add(REFERENCE, FAMILY.reference(outputs).astype(np.float32))
    moved = apply(FullFineTuning(), FAMILY.load_model(str(base), META).eval(), [])
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    ours = FAMILY.loss_sum(moved, table.batch([0]), Loss(preference_beta=0.3)).item()

    messages = json.loads(rows["conversation"][0])["messages"], json.loads(rows["rejected"][0])["messages"]
    data = Dataset.from_list([{"prompt": messages[0][:1], "chosen": messages[0][1:], "rejected": messages[1][1:]}])
    settings = trl.DPOConfig(
        output_dir=str(tmp_path / "trl"), beta=0.3, report_to="none", use_cpu=True, bf16=False, max_length=64,
        per_device_train_batch_size=1, disable_dropout=True,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        model=moved, ref_model=model, args=settings, train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(base),
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, batch).item()
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert abs(ours - math.log(2)) > 0.01


# Learning.


@pytest.mark.parametrize("method", ["full", {"kind": "lora", "r": 8}])
def test_it_learns_what_is_preferred(base, tmp_path, method):
    draw = np.random.default_rng(0)
    better, worse = draw.choice(GOOD, 120), draw.choice(BAD, 120)
    asked = [" ".join(draw.choice(["the", "film", "was", "so", "it", "all"], 3)) for _ in range(120)]
    rows = pl.DataFrame({"id": [str(i) for i in range(120)], "text": asked}).with_columns(
        conversation=pl.Series([said(q, a) for q, a in zip(asked, better, strict=True)]),
        rejected=pl.Series([said(q, a) for q, a in zip(asked, worse, strict=True)]),
    )
    tokens_of(tmp_path, base, rows[:90])
    tokens_of(tmp_path, base, rows[90:], "validation")
    spec = {
        "emit": silent, "task": PreferenceTask().model_dump(mode="json"), "model": {"base": ""}, "base": str(base),
        "tokens": str(tmp_path), "metric": "preference_likelihood",
        "train": {
            "learning_rate": 3e-3, "global_batch_size": 16, "precision": "fp32", "max_steps": 40, "eval_steps": 20,
            "method": method,
        },
    }  # fmt: skip
    (tmp_path / "work").mkdir()
    plan = probe.plan_training(**spec)
    record = learner.train(**spec, plan=plan, work=str(tmp_path / "work"), out=str(tmp_path), save_minutes=1e9)
    found = record["validation"]
    assert found["reward_accuracy"] > 0.95
    assert found["preference_accuracy"] > 0.95
    assert found["preference_likelihood"] > 0.53
    assert found["loss"] < math.log(2)
    assert np.load(tmp_path / "work" / "reference-train.npy").shape == (90, 2)

    job = {"emit": silent, "family": "preference", "tokens": {str(tmp_path / "validation.arrow"): str(tmp_path / "p")}}
    predict(**job, model=str(base))
    untaught = FAMILY.score(pl.read_parquet(tmp_path / "p"), META)
    predict(**job, model=str(tmp_path / "model"))
    predictions = pl.read_parquet(tmp_path / "p")
    taught = FAMILY.score(predictions, META)
    assert taught["preference_accuracy"] > max(0.95, untaught["preference_accuracy"])
    assert predictions["prediction"].null_count() == 0
    assert FAMILY.row_scores(predictions, META).mean() == pytest.approx(taught["preference_accuracy"])
    served = FAMILY.from_served([{"text": "x"}] * 30, rows[90:], META)
    assert "preference_accuracy" not in FAMILY.score(served, META)


def recipe(**sections: Any) -> Any:
    parts: dict[str, Any] = {
        "name": "tiny", "task": {"family": "preference"},
        "collect": {"source": {"kind": "jsonl", "path": "rows.jsonl"}},
        "clean": {"collapse_whitespace": False}, "model": {"base": "./base"},
    }  # fmt: skip
    return validate_recipe(parts | sections)


def test_a_recipe_names_what_is_compared():
    made = recipe(task={"family": "preference", "prompt_column": None}, train={"preference_beta": 0.3})
    assert made.task.parts() == {"chosen": "chosen", "rejected": "rejected"}
    assert (made.metric, made.learns_by) == ("preference_accuracy", "preference_likelihood")
