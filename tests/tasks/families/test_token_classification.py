from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

from schemas.data import Clean
from schemas.errors import DataError
from tasks import learner, probe
from tasks.batches import TokenTable
from tasks.families import IGNORED, Loss
from tasks.families.token_classification import TokenClassification, TokenClassificationTask
from tasks.predict import predictions_of
from tasks.rows import files
from tasks.tokenizer import Base
from tests.tasks.test_clean import run
from tests.tiny_tagger import META, sentences, serving, tiny_base, tiny_model, token_files

FAMILY = TokenClassification()
LENIENT = Clean(max_quarantined=1.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def raw(pairs):
    return pl.DataFrame(
        {
            "id": [f"r{i}" for i in range(len(pairs))],
            "source": "x.conll",
            "row": pl.Series(range(1, len(pairs) + 1), dtype=pl.UInt32),
            "text": [text for text, _ in pairs],
            "tags": [tags for _, tags in pairs],
        }
    )


def cleaned(folder, pairs, rules=LENIENT, **task):
    summary, kept, quarantine = run(folder, raw(pairs), rules, TokenClassificationTask(**task))
    return summary, kept, dict(zip(quarantine["id"], quarantine["reason"], strict=True))


def meta_of(folder):
    return json.loads((folder / "out" / "meta.json").read_text())


GOOD = [("Ada met Lin", "B-P O B-P"), ("in Rome", "O B-L")]


def test_rows_that_cannot_teach_are_set_aside_with_the_reason(tmp_path):
    bad = [
        ("Ada met", "B-P"),
        ("Ada met", None),
        ("Ada met him", "O I-P O"),
        ("Ada met her", "B-P I-L O"),
        ("Ada met it", "B-P O B-X"),
        ("Ada met us", "B-P NN O"),
        ("Ada <b>", "B-P O"),  # without its markup the row has a word less than tags
    ]
    _, kept, reasons = cleaned(
        tmp_path, [*GOOD, *bad], Clean(max_quarantined=1.0, strip_markup=True), scheme="bio", types=["P", "L"]
    )
    assert kept.height == 2
    assert reasons == {
        "r2": "words_and_tags_differ", "r3": "missing_tags", "r4": "broken_tags", "r5": "broken_tags",
        "r6": "unknown_tag", "r7": "unknown_tag", "r8": "words_and_tags_differ",
    }  # fmt: skip
    assert meta_of(tmp_path)["tags"] == ["O", "B-P", "I-P", "B-L", "I-L"]


def test_a_row_of_another_scheme_than_the_recipe_names_has_unknown_tags(tmp_path):
    _, _, reasons = cleaned(tmp_path, [*GOOD, ("a Ada", "O S-P")], scheme="bio")
    assert reasons == {"r2": "unknown_tag"}


@pytest.mark.parametrize(
    ("more", "scheme", "tags"),
    [
        ([], "bio", ["O", "B-L", "I-L", "B-P", "I-P"]),
        ([("x Ada", "B-P I-L")], "bio", ["O", "B-L", "I-L", "B-P", "I-P"]),  # set aside as broken
    ],
)
def test_the_scheme_is_told_from_the_rows(tmp_path, more, scheme, tags):
    cleaned(tmp_path, [*GOOD, *more])
    assert meta_of(tmp_path)["scheme"] == scheme
    assert meta_of(tmp_path)["tags"] == tags


def test_single_and_ending_tags_tell_bioes(tmp_path):
    cleaned(tmp_path, [("Ada Lin met", "B-P E-P O"), ("in Rome", "O S-L"), ("so it is", "O O O")])
    assert meta_of(tmp_path)["scheme"] == "bioes"
    assert meta_of(tmp_path)["tags"][:5] == ["O", "B-L", "I-L", "E-L", "S-L"]


def test_tags_without_prefixes_stand_for_themselves(tmp_path):
    cleaned(tmp_path, [("Ada met", "PROPN VERB"), ("in -", "ADP O")])
    assert meta_of(tmp_path) | {"text_rules": None} == {
        "scheme": "none", "types": ["ADP", "O", "PROPN", "VERB"], "tags": ["ADP", "O", "PROPN", "VERB"],
        "text_column": "text", "target_columns": ["tags"], "text_rules": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([("Ada met", "B-P O"), ("she ran", "PRON VERB")], "B-P begins as tags of entities do, PRON does not"),
        ([("Ada Lin", "B-P E-P"), ("met Ada", "O B-P")], "1 others fit B- and I- alone"),
        ([("so it", "O O"), ("is not", "O O")], "no other tag than O"),
    ],
)
def test_rows_that_are_of_no_scheme_or_of_several_are_refused(tmp_path, pairs, told):
    with pytest.raises(DataError, match=told):
        cleaned(tmp_path, pairs)


def test_iob1_is_what_the_recipe_must_name(tmp_path):
    pairs = [("Ada Lin met", "I-P B-P O"), ("in Rome", "O I-L")]
    _, kept, _ = cleaned(tmp_path, pairs, scheme="iob1")
    assert kept.height == 2
    with pytest.raises(DataError, match="broken_tags 2"):
        other = tmp_path / "other"
        other.mkdir()
        cleaned(other, pairs)


def test_tags_that_are_numbers_get_their_names_from_the_recipe(tmp_path):
    rules = Clean(max_quarantined=1.0, label_aliases={"0": "O", "1": "B-P", "2": "B-L"})
    _, kept, _ = cleaned(tmp_path, [("Ada met Lin", "1  0 1"), ("in Rome", "0 2")], rules)
    assert sorted(kept["tags"]) == ["B-P O B-P", "O B-L"]


def test_types_named_twice_are_refused():
    with pytest.raises(ValidationError, match="types names P more than once"):
        TokenClassificationTask(types=["P", "P"])


def test_the_first_token_of_each_word_is_labelled(base, tmp_path):
    table = TokenTable(token_files(tmp_path, base, {"train": 20}) / "train.arrow", 0)
    rows = sentences(20)
    for place, (text, tags) in enumerate(rows.select("text", "tags").iter_rows()):
        expected = []
        for word, tag in zip(text.split(), tags.split(), strict=True):
            pieces = 2 if word in {"kim", "ada", "lin", "moe"} else 1
            expected += [META["tags"].index(tag), *[IGNORED] * (pieces - 1)]
        assert table.labels_of(slice(place, place + 1)).tolist() == [IGNORED, *expected, IGNORED]


def test_the_loss_is_the_mean_over_words(base, tmp_path):
    table = TokenTable(token_files(tmp_path, base, {"train": 8}) / "train.arrow", 0)
    model = FAMILY.load_model(str(base), META).eval()
    rows = np.arange(8)
    batch = table.batch(rows)
    weights = torch.tensor([0.5, 1.0, 2.0, 1.0, 3.0])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.detach()
    for loss, of_tag in ((Loss(), torch.ones(5)), (Loss(weights), weights)):
        total, count = 0.0, 0.0
        for row in range(8):
            for token, tag in enumerate(batch["labels"][row].tolist()):
                if tag != IGNORED:
                    total -= float(of_tag[tag] * logits[row, token].log_softmax(-1)[tag])
                    count += float(of_tag[tag])
        assert FAMILY.loss_sum(model, batch, loss).item() == pytest.approx(total, rel=1e-4)
        labels = torch.from_numpy(np.array(table.labels_of(rows)))
        assert float(FAMILY.loss_count(labels, loss)) == pytest.approx(count)


def test_weights_are_a_matter_of_the_recipe_alone():
    labels = np.array([0] * 90 + [1] * 10 + [IGNORED] * 50)
    assert FAMILY.loss_weights(labels, META, "auto")[0] is None
    weights, _ = FAMILY.loss_weights(labels, META, "balanced")
    assert weights[1] / weights[0] == pytest.approx(9)
    assert (90 * weights[0] + 10 * weights[1]) / 100 == pytest.approx(1)
    assert weights[2:] == (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def learnt(base, tmp_path_factory):
    """A tiny model that has learnt: its folder, its tokens, the record of its training."""
    folder = tmp_path_factory.mktemp("learnt")
    tokens = token_files(folder / "tokens", base, {"train": 500, "validation": 120, "test": 120})
    train = {"learning_rate": 3e-3, "global_batch_size": 16, "epochs": 3, "precision": "fp32"}
    spec = {
        "task": {"family": "token-classification"}, "model": {"base": ""}, "train": train,
        "base": str(base), "tokens": str(tokens), "metric": "f1",
    }  # fmt: skip
    plan = probe.plan_training(emit=lambda *a, **k: None, **spec)
    for name in ("work", "out"):
        (folder / name).mkdir()
    record = learner.train(
        emit=lambda *a, **k: None,
        plan=plan,
        work=str(folder / "work"),
        out=str(folder / "out"),
        save_minutes=1e9,
        **spec,
    )
    return folder / "out", tokens, record


def test_persons_and_towns_are_learnt(learnt):
    assert learnt[2]["validation"]["f1"] > 0.98
    assert learnt[2]["validation"]["macro_f1"] > 0.98


def predicted(out, tokens, meta):
    model = FAMILY.load_model(str(out / "model"), meta).eval()
    return predictions_of(model, FAMILY, TokenTable(tokens / "test.arrow", 0), meta, None)[0]


@pytest.mark.parametrize("overlong", ["truncate", "window"])
def test_what_is_served_is_what_was_recorded(base, tmp_path, overlong):
    about = {"overlong": overlong, "max_seq_length": 16, "stride": 6}
    out = tiny_model(tmp_path / "model", base, **about)
    tokens = token_files(tmp_path / "tokens", base, {"test": 150}, **about)
    recorded = predicted(out, tokens, META | about)
    rows = sentences(150)
    assert recorded["truth"].to_list() == [tags.split() for tags in rows["tags"]]
    cut = [0.0 in scores for scores in recorded["confidence"].to_list()]
    assert any(cut) == (overlong == "truncate")
    served = serving(out).predict(None, rows.to_pandas()[["text"]]).to_dict(orient="records")
    assert FAMILY.disagreements(served, recorded, META) == []
    assert FAMILY.from_served(served, rows, META)["prediction"].to_list() == recorded["prediction"].to_list()


def test_a_model_that_serves_something_else_is_found_out(learnt, base, tmp_path):
    out, tokens, _ = learnt
    recorded = predicted(out, tokens, META)
    rows = pl.DataFrame({"text": sentences(120, 2)["text"]}).to_pandas()
    served = serving(out).predict(None, rows).to_dict(orient="records")
    assert FAMILY.disagreements(served, recorded, META) == []
    other = serving(tiny_model(tmp_path, base)).predict(None, rows).to_dict(orient="records")
    assert len(FAMILY.disagreements(other, recorded, META)) > 100


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"tags": ["O", "B-P"], "scores": [0.9, 0.50003]}, None),  # as probable as each other
        ({"tags": ["O", "B-P"], "scores": [0.9, 0.8]}, "B-T was recorded for word 2, B-P is served"),
        ({"tags": ["O", "B-T"], "scores": [0.9, 0.6]}, "the probability of word 2 differs by 0.1"),
        ({"tags": ["O", "B-T"], "scores": [float("nan"), 0.5]}, "the probability of word 1 differs by nan"),
        ({"tags": ["O"], "scores": [0.9]}, "2 tags were recorded, 1 are served"),
        ({"tags": ["B-P", "B-T"], "scores": [0.9, 0.5]}, "O was recorded for word 1, B-P is served"),
    ],
)
def test_what_differs_beyond_rounding(now, told):
    recorded = pl.DataFrame({"id": ["a"], "prediction": [["O", "B-T"]], "confidence": [[0.9, 0.49999]]})
    found = FAMILY.disagreements([now], recorded, META)
    assert found == ([] if told is None else [("a", told)])


def test_the_clean_rows_of_a_text_with_white_space_kept_are_tagged_word_by_word(base, tmp_path):
    rules = Clean(max_quarantined=1.0, collapse_whitespace=False)
    cleaned(tmp_path, [("mr  kim\nw1", "O B-P O"), ("of ada", "O B-T")], rules)
    kept = pl.concat(pl.read_parquet(file) for file in files(tmp_path / "out" / "rows")).sort("row")
    encoded = FAMILY.encode(kept, META, Base(base).tokenizer)
    assert encoded.columns["words"].to_pylist()[0] == [-1, 0, 1, -1, 2, -1]
