from __future__ import annotations

import gzip
import io
import json

import polars as pl
import pyarrow as pa
import pytest

from tasks.row_search import Terms, search_file, search_rows

SECRET = "My name is Ann Example, call me!"
LIKENESS = "my name is ann example call me"
OTHERS = ["a fine day", "so so", "my name is", "Ann Example"]


def rows(texts: list[str], **columns: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"id": [f"r{i}" for i in range(len(texts))], "text": texts} | columns)


def found_in(content: str | pl.DataFrame, name: str, **terms: str) -> int:
    wanted = Terms(**{kind: frozenset([value]) for kind, value in terms.items()})
    if isinstance(content, str):
        return search_file(io.BytesIO(content.encode()), name, wanted).rows
    file = io.BytesIO()
    content.write_parquet(file)
    return search_file(file, name, wanted).rows


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", f'id,text\n1,a fine day\n2,"{SECRET}"\n'),
        ("rows.csv", 'link,text\nhttp://a.b/c,"MY NAME  is Ann Example; call me http://t.co/x"\n'),
        ("rows.jsonl", json.dumps({"text": "a"}) + "\n" + json.dumps({"u": "http://a.b", "text": SECRET}) + "\n"),
        ("rows.jsonl", json.dumps({"text": "My name is\nAnn Example:\tcall me"})),
        ("report.md", "x " * 2**20 + SECRET + " x" * 2**20),
        ("rows.parquet", rows([*OTHERS, "@bob my NAME is Ann Example - call me"])),
        ("quarantine.parquet", pl.DataFrame({"source": ["a"], "raw": [f'1,"{SECRET}",oops']})),
        ("quarantine.parquet", pl.DataFrame({"source": ["a"], "raw": [json.dumps({"text": SECRET})]})),
    ],
)
def test_a_text_is_found_however_it_is_written(name, content):
    assert found_in(content, name, texts=LIKENESS) == 1
    assert found_in(content, name, texts="nobody said this") == 0


def test_a_text_that_is_a_part_of_another_is_not_that_text():
    assert found_in(rows([SECRET]), "rows.parquet", texts="my name is ann example") == 0
    assert found_in("an example caller", "notes.txt", texts="example call") == 0


def test_a_text_with_accents_is_found_in_escaped_json():
    assert found_in(json.dumps({"text": "Zoë 😀 von Au"}), "rows.jsonl", texts="zoë von au") == 1


def test_compressed_copies_are_searched():
    packed = io.BytesIO(gzip.compress(SECRET.encode()))
    assert search_file(packed, "rows.csv.gz", Terms(texts=frozenset([LIKENESS]))).rows == 1


def test_weights_are_not_searched():
    assert found_in(f"\0\0{SECRET}", "model.safetensors", texts=LIKENESS) == 0


def test_an_id_is_found_as_a_whole_word_only():
    assert found_in("1,reader12,x\n", "a.csv", ids="reader12") == 1
    assert found_in("1,reader123,x\n1,areader12,x\n1,reader12-4,x\n", "a.csv", ids="reader12") == 0
    assert found_in(rows(OTHERS), "a.parquet", ids="r2") == 1


def test_what_is_short_is_looked_for_in_tables_alone():
    assert found_in('{"rows": 12, "label": "so so"}', "manifest.json", ids="12") == 0
    assert found_in('{"rows": 12, "label": "so so"}', "manifest.json", texts="so so") == 0
    assert found_in(rows(OTHERS), "a.parquet", texts="so so") == 1


def test_a_label_is_no_text(tmp_path):
    labelled = rows(["a", "good"], label=["good", "bad"])
    assert search_rows(labelled, Terms(texts=frozenset(["good"])), ["text"]).ids == {"r1"}


def test_a_row_whose_raw_line_quotes_another_is_not_that_row():
    quarantined = rows(["b", "c"], raw=[f"7,{SECRET},8", None])
    hits = search_rows(quarantined, Terms(texts=frozenset([LIKENESS])), ["text"])
    assert (hits.rows, hits.ids, hits.raws) == (1, set(), {f"7 {LIKENESS} 8"})


def test_arrow_files_are_searched_by_id(tmp_path):
    batch = pa.RecordBatch.from_pydict({"id": ["r1", "r2"], "input_ids": [[1], [2]]})
    with pa.ipc.new_stream(tmp_path / "train.arrow", batch.schema) as stream:
        stream.write_batch(batch)
    with (tmp_path / "train.arrow").open("rb") as file:
        assert search_file(file, "train.arrow", Terms(ids=frozenset(["r2", "r7"]))).ids == {"r2"}


def test_a_row_that_resembles_the_one_looked_for_is_another_persons():
    leaked = rows(["b", "c"], twin=["r7", "r8"])
    hits = search_rows(leaked, Terms(ids=frozenset(["r7"])))
    assert (hits.rows, hits.ids, hits.texts) == (1, set(), set())
