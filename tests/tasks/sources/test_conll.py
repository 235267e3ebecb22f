from __future__ import annotations

import bz2

import pytest

from schemas.errors import DataError
from schemas.sources import ConllSource
from tasks.home import Home
from tasks.sources import pieces, text
from tests.tasks.sources.test_files import rows_of

WANTED = {"task.text_column": "text", "task.tags_column": "tags", "collect.group_column": "document"}
TWO_SENTENCES = """-DOCSTART- -X- -X- O

EU NNP I-NP B-ORG
rejects VBZ I-VP O

Peter NNP I-NP B-PER
"""


def read(folder, content, name="rows.conll", wanted=WANTED, **options):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (piece,) = pieces(ConllSource(path=str(path), **options), Home.open(folder))
    return rows_of(piece, wanted)


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))


def test_sentences_are_rows_numbered_by_their_first_line(tmp_path):
    rows, unreadable = read(tmp_path, TWO_SENTENCES)
    assert rows == [(3, "EU rejects", "B-ORG O", "rows.conll:1"), (6, "Peter", "B-PER", "rows.conll:1")]
    assert unreadable == []


def test_columns_are_named_by_number(tmp_path):
    rows, _ = read(tmp_path, TWO_SENTENCES, tag_column=2, wanted={"a": "text", "b": "tags"})
    assert rows == [(3, "EU rejects", "NNP VBZ"), (6, "Peter", "NNP")]
    assert read(tmp_path, "B-PER Ada\n", word_column=2, tag_column=1)[0] == [(1, "Ada", "B-PER", None)]


@pytest.mark.parametrize(
    "content",
    [
        "Ada\tB-P\r\nmet\tO\r\n\r\n\r\n",
        "Ada   B-P  \nmet \t O",
        "\ufeffAda B-P\nmet O\n \t\n",
        bz2.compress(b"Ada B-P\nmet O\n"),
    ],
    ids=["tabs and CRLF", "any white space", "byte-order mark", "bzip2"],
)
def test_files_as_they_come(tmp_path, content):
    rows, unreadable = read(tmp_path, content)
    assert [row[1:3] for row in rows] == [("Ada met", "B-P O")]
    assert unreadable == []


def test_documents_part_sentences_even_without_a_blank_line(tmp_path):
    rows, _ = read(tmp_path, "a O\n-DOCSTART- O\nb O\n\n-DOCSTART- O\n\nc O\n")
    assert [(row[1], row[3]) for row in rows] == [("a", None), ("b", "rows.conll:1"), ("c", "rows.conll:2")]


def test_comments_stand_before_a_sentence_and_hash_signs_within(tmp_path):
    content = "# newdoc id = n1\n# text = # 1 #fun\n# NN\n1 CD\n#fun NN\n\n#tag NN\n"
    rows, unreadable = read(tmp_path, content)
    assert [row[1:] for row in rows] == [("1 #fun", "CD NN", "rows.conll:1"), ("#tag", "NN", "rows.conll:1")]
    assert unreadable == []
    rows, _ = read(tmp_path, "1 CD\n# NN\n\n# NN\n", comment="")
    assert [row[1] for row in rows] == ["1 #", "#"]


def test_words_written_as_one_and_words_left_out_of_conllu_are_no_words(tmp_path):
    lines = ["1-2\tdu\t_\t_", "1\tde\tde\tADP", "2\tle\tle\tDET", "2.1\tx\tx\tVERB", "3\tchat\tchat\tNOUN"]
    rows, _ = read(tmp_path, "\n".join(lines), word_column=2, tag_column=4)
    assert rows == [(1, "de le chat", "ADP DET NOUN", None)]


@pytest.mark.parametrize(
    ("broken", "number", "reason"),
    [
        ("Ada B-P\nmet\nLin B-P", 4, "missing_column"),
        ("Ada\tB-P\n\tO", 4, "empty_word"),
        ("Ada\tB-P\nmet\t", 4, "empty_tag"),
        ("Ada\tNNP\tB-P\nmet\tVBZ\t", 4, "empty_tag"),
        ("Ada Lovelace\tB-P", 3, "space_in_word"),
        ("Ada\u00a0L B-P", 3, "space_in_word"),
        ("Ada\tB P", 3, "space_in_tag"),
    ],
)
def test_a_sentence_with_a_broken_line_is_set_aside_as_a_whole(tmp_path, broken, number, reason):
    rows, unreadable = read(tmp_path, f"fine O\n\n{broken}\n\ntoo O\n")
    assert [row[1] for row in rows] == ["fine", "too"]
    assert unreadable == [(number, broken.strip("\n"), reason)]


def test_a_line_without_end_is_set_aside_and_memory_stays_flat(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAX_LINE_CHARS", 1000)
    monkeypatch.setattr(text, "MAX_RAW_CHARS", 50)
    rows, unreadable = read(tmp_path, f"a O\n\n{'x' * 3000} O\n\nb O\n")
    assert [row[1] for row in rows] == ["a", "b"]
    assert [(number, reason) for number, _, reason in unreadable] == [(3, "line_too_long")]


def test_sentences_that_lie_across_blocks_stay_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_CHARS", 10)
    rows, _ = read(tmp_path, "\n".join(f"w{i} O" + "\n" * (i % 7 == 6) for i in range(70)))
    assert [len(row[1].split()) for row in rows] == [7] * 10
    assert [row[0] for row in rows] == list(range(1, 80, 8))


def test_a_column_that_sentences_have_not_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"words.*no such column, but 'text', 'tags', 'document'"):
        read(tmp_path, TWO_SENTENCES, wanted={"task.text_column": "words"})


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="is Parquet, not conll"):
        read(tmp_path, b"PAR1" + bytes(100))


def test_columns_are_numbered_from_one():
    for wrong in ({"word_column": 0}, {"tag_column": 0}):
        with pytest.raises(ValueError, match="column"):
            ConllSource(path="x.conll", **wrong)


def test_a_folder_gives_its_conll_files(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("b.conllu", "a.conll.gz", "notes.txt"):
        (folder / name).write_text("x O\n")
    assert [piece.name for piece in pieces(ConllSource(path=str(folder)), Home.open(tmp_path))] == [
        "a.conll.gz",
        "b.conllu",
    ]
