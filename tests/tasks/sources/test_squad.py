from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import DataError
from schemas.sources import SquadSource
from tasks.home import Home
from tasks.sources import pieces, squad

ANSWER = {"text": "x", "answer_start": 0}
ALL = {f"task.{name}_column": name for name in squad.COLUMNS}


def file_of(paragraphs: list[Any], version: str = "v2.0") -> dict[str, Any]:
    return {"version": version, "data": [{"title": "Paris", "paragraphs": paragraphs}]}


def read(folder: Path, content: Any, name: str = "train.json", wanted: dict[str, str] = ALL):
    """(number, *values) of each question, and (number, raw, reason) of what is none."""
    path = folder / name
    written = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(gzip.compress(written) if name.endswith(".gz") else written)
    (piece,) = pieces(SquadSource(path=str(path)), Home.open(folder))
    batches = list(piece.read(wanted))
    rows = [(int(n), *values) for b in batches for n, values in zip(b.numbers, b.values.rows(), strict=True)]
    return rows, [entry for batch in batches for entry in batch.unreadable]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("name", ["train.json", "train.json.gz"])
def test_both_versions_are_read_with_several_answers_and_none(tmp_path, name):
    answers = [{"text": "in Paris", "answer_start": 6}, {"text": "Paris", "answer_start": 9}]
    asked = {"id": "q1", "question": "Where is it?", "answers": answers}
    silent = {"id": "q2", "question": "When?", "answers": [], "is_impossible": True, "plausible_answers": answers}
    rows, unreadable = read(tmp_path, file_of([{"context": "It is in Paris 😀.", "qas": [asked, silent]}]), name)
    assert rows == [
        (1, "q1", "Paris", "It is in Paris 😀.", "Where is it?", json.dumps(answers), "false"),
        (2, "q2", "Paris", "It is in Paris 😀.", "When?", "[]", "true"),
    ]
    assert unreadable == []


def test_what_is_no_question_is_set_aside_with_its_place_and_the_others_keep_their_numbers(tmp_path):
    good = {"id": 7, "question": "q", "answers": []}
    broken = [
        ({"id": "a", "answers": []}, "no_question"),
        ({"id": "b", "question": "q"}, "no_answers"),
        ({"id": "c", "question": "q", "answers": [ANSWER], "is_impossible": True}, "contradicts_is_impossible"),
        ({"id": "d", "question": "q", "answers": [], "is_impossible": False}, "contradicts_is_impossible"),
        ("e", "not_an_object"),
    ]  # fmt: skip
    content = file_of([{"context": "x", "qas": [entry for entry, _ in broken] + [good]}, {"qas": [good]}, "p"])
    content["data"].append({"title": "no paragraphs"})
    rows, unreadable = read(tmp_path, content)
    assert [(number, identity) for number, identity, *_ in rows] == [(6, "7")]
    assert [(number, reason) for number, _, reason in unreadable] == [
        *enumerate((reason for _, reason in broken), start=1),
        (7, "no_context"),
        (8, "not_an_object"),
        (9, "not_an_object"),
    ]
    assert unreadable[2][1].startswith('data[0].paragraphs[0].qas[2]: {"id": "c"')
    assert unreadable[-1][1].startswith("data[1]: ")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b'{"data": [', "is not one JSON value"),
        (b'{"question": "q"}\n{"question": "r"}\n', "is not one JSON value"),
        (b"[1, 2]", "it has no list 'data'"),
        (b'{"data": {}}', "it has no list 'data'"),
        (b"PAR1 and so on", "is Parquet, not squad"),
    ],
)
def test_another_file_is_refused(tmp_path, content, rule):
    with pytest.raises(DataError, match=r"collect\.source\.path") as caught:
        read(tmp_path, content)
    assert rule in str(caught.value)


def test_a_column_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"task.context_column = 'text': train.json has no such column"):
        read(tmp_path, file_of([]), wanted={"task.context_column": "text"})
