from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path

import pytest

from schemas.errors import DataError, EnvironmentMistake, Fault
from schemas.sources import SqlSource
from tasks import sources
from tasks.home import Home
from tasks.sources.snapshot import FOLDER

WANTED = {"task.text_column": "text", "task.label_column": "label"}
QUERY = "SELECT id, text, label FROM rows ORDER BY id"


class Database:
    """An SQLite file with a table of rows, and sources that read it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "my rows #1.db"
        self.home = Home(folder / "home")
        self.execute("CREATE TABLE rows (id INTEGER, text TEXT, label TEXT)")
        self.add((1, "good", "pos"), (2, "bad", "neg"), (3, None, "neg"))

    def execute(self, sql: str, *values: object) -> list[tuple]:
        with sqlite3.connect(self.path) as connection:
            return connection.execute(sql, *values).fetchall()

    def add(self, *rows: tuple) -> None:
        for row in rows:
            self.execute("INSERT INTO rows VALUES (?, ?, ?)", row)

    def pieces(self, **fields) -> list[sources.Piece]:
        return sources.pieces(SqlSource(**{"url": f"sqlite:///{self.path}", "query": QUERY} | fields), self.home)

    @property
    def notes(self) -> list[Path]:
        return sorted((self.home.journal / "watermarks").glob("*.json"))


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path)


def rows(piece: sources.Piece, wanted: dict[str, str] = WANTED) -> list[tuple]:
    return [row for batch in piece.read(wanted) for row in batch.values.rows()]


def message(caught: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_rows_of_a_query_come_as_text_with_all_columns_known(database):
    (piece,) = database.pieces()
    assert rows(piece) == [("good", "pos"), ("bad", "neg"), (None, "neg")]
    assert rows(piece, {"collect.id_column": "id"}) == [("1",), ("2",), ("3",)]
    (batch,) = piece.read(WANTED)
    assert (list(batch.columns), batch.numbers.tolist()) == (["id", "text", "label"], [1, 2, 3])
    assert (piece.field, piece.side) == ("collect.source.query", None)


def test_an_unchanged_table_gives_the_same_digest_and_a_changed_one_another(database):
    first = database.pieces()[0].digest
    assert database.pieces()[0].digest == first
    database.execute("UPDATE rows SET text = 'better' WHERE id = 1")
    assert database.pieces()[0].digest != first


def test_parameters_are_values_and_never_sql(database):
    database.add((4, "x' OR '1'='1", "odd"))
    query = "SELECT * FROM rows WHERE label = :label AND id >= :least AND text NOT LIKE '%\\:%'"
    (piece,) = database.pieces(query=query, parameters={"label": "odd", "least": 2})
    assert rows(piece) == [("x' OR '1'='1", "odd")]
    (none,) = database.pieces(query=query, parameters={"label": "odd' OR '1'='1", "least": 2})
    assert rows(none) == []
    assert [b.values.columns for b in none.read(WANTED)] == [["text", "label"]], "no rows, but columns"
    with pytest.raises(DataError, match=r"collect\.source\.query names :least"):
        database.pieces(query=query, parameters={"label": "odd"})
    with pytest.raises(DataError, match="no query names :lest"):
        database.pieces(query=query, parameters={"label": "odd", "least": 1, "lest": 2})


def test_a_version_query_decides_alone_and_the_rows_are_read_only_when_asked_for(database):
    asked = {"version_query": "SELECT MAX(id), COUNT(*) FROM rows;"}
    (first,) = database.pieces(**asked)
    database.execute("UPDATE rows SET text = 'better' WHERE id = 1")
    (again,) = database.pieces(**asked)
    assert again.digest == first.digest
    assert not (database.home.root / FOLDER).exists(), "nothing was read"
    assert rows(again)[0] == ("better", "pos")
    database.add((4, "new", "pos"))
    (newer,) = database.pieces(**asked)
    (other,) = database.pieces(**asked, query="SELECT text, label FROM rows")
    assert len({first.digest, newer.digest, other.digest}) == 3


@pytest.mark.parametrize("ask", ["query", "version_query"])
@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM rows RETURNING *", "DELETE FROM rows", "DROP TABLE rows", "INSERT INTO rows VALUES (9, 'a', 'b')"],
)
def test_the_database_itself_refuses_to_write(database, statement, ask):
    with pytest.raises(DataError, match="attempt to write a readonly database") as caught:
        database.pieces(**{ask: statement})
    assert message(caught).startswith(f"collect.source.{ask} = ")
    assert len(database.execute(QUERY)) == 3


def test_a_database_that_may_not_be_read_only_is_asked_nothing_but_selects(database, monkeypatch):
    monkeypatch.setattr("tasks.sources.sql.READ_ONLY", frozenset())
    for statement in ("DROP TABLE rows", "-- SELECT\n DELETE FROM rows", "/* */"):
        with pytest.raises(DataError, match="does more than read"):
            database.pieces(query=statement)
    assert len(rows(database.pieces(query="-- all of it\nSELECT * FROM rows")[0])) == 3


MISTAKES = {
    "SELECT * FROM nowhere": "the database says: no such table: nowhere",
    "SELEKT 1": 'the database says: near "SELEKT": syntax error',
    "SELECT text, label, id AS text FROM rows": "the query gives two columns of this name",
}


@pytest.mark.parametrize("query", MISTAKES)
def test_a_wrong_query_is_one_line_in_the_databases_words(database, query):
    with pytest.raises(DataError) as caught:
        database.pieces(query=query)
    assert MISTAKES[query] in message(caught)


def test_a_column_that_the_query_does_not_give_is_a_mistake(database):
    for fields in ({}, {"version_query": "SELECT 1"}, {"watermark_column": "id"}):
        with pytest.raises(DataError, match=r"task\.text_column = 'txt': .*did you mean 'text'"):
            rows(database.pieces(**fields)[0], {"task.text_column": "txt"})


def test_places_that_cannot_be_opened_are_mistakes(database, tmp_path, monkeypatch):
    (tmp_path / "no.db").write_text("this is no database, but a text of more than a hundred bytes" * 20)
    for url, error, rule in (
        (f"sqlite:///{tmp_path}/nowhere.db", DataError, "there is no such file"),
        ("sqlite://", DataError, "is a database without rows"),
        ("sqlite:///:memory:", DataError, "is a database without rows"),
        (f"sqlite:///{tmp_path}/no.db", DataError, "file is not a database"),
        ("klingon://host/db", EnvironmentMistake, "SQLAlchemy knows no database 'klingon'"),
        ("mysql+pymysql://host/db", EnvironmentMistake, "its driver 'pymysql' is not installed; pip install pymysql"),
        ("postgresql+psycopg://h:port/db", DataError, "is no SQLAlchemy URL"),
    ):
        with pytest.raises(error) as caught:
            database.pieces(url=url)
        assert rule in message(caught)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(EnvironmentMistake, match=r"hone\[postgres\]"):
        database.pieces(url="postgresql://host/db")


def test_a_password_that_is_not_set_is_a_mistake(database, monkeypatch):
    monkeypatch.delenv("SHOP_PASSWORD", raising=False)
    with pytest.raises(EnvironmentMistake, match=r"password_env = 'SHOP_PASSWORD': .* is not set"):
        database.pieces(password_env="SHOP_PASSWORD")


def test_a_locked_database_is_worth_another_try(database):
    with sqlite3.connect(database.path) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Fault, match="database is locked"):
            database.pieces(url=f"sqlite:///{database.path}?timeout=0")


def test_rows_are_streamed(database, monkeypatch):
    import tracemalloc

    monkeypatch.setattr("tasks.sources.sql.BATCH_ROWS", 1000)
    query = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)"
        " SELECT printf('%0200d', i) AS text, 'a' AS label FROM n"
    )
    (piece,) = database.pieces(query=query, version_query="SELECT 1")
    tracemalloc.start()
    count = sum(batch.values.height for batch in piece.read(WANTED))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 50_000
    assert peak < 3_000_000, "of 10,000,000 bytes of text"


def test_a_growing_table_gives_one_more_piece_and_leaves_the_old_ones_alone(database):
    (first,) = database.pieces(watermark_column="id")
    assert [p.digest for p in database.pieces(watermark_column="id")] == [first.digest], "nothing new, no piece"
    database.add((7, "new", "pos"), (5, "newer", "neg"))
    old, new = database.pieces(watermark_column="id")
    assert old.digest == first.digest
    assert rows(old) == [("good", "pos"), ("bad", "neg"), (None, "neg")]
    assert rows(new) == [("newer", "neg"), ("new", "pos")]
    assert old.name.endswith(".db id <= 3")
    assert new.name.endswith(".db id > 3, <= 7")
    assert [b.numbers.tolist() for b in new.read(WANTED)] == [[1, 2]]
    (note,) = database.notes
    assert json.loads(note.read_text()) == [
        {"above": None, "up_to": {"type": "int", "value": 3}, "rows": 3},
        {"above": {"type": "int", "value": 3}, "up_to": {"type": "int", "value": 7}, "rows": 2},
    ]


def test_an_empty_table_has_no_pieces_yet(database):
    database.execute("DELETE FROM rows")
    assert database.pieces(watermark_column="id") == []
    database.add((1, "good", "pos"))
    assert len(database.pieces(watermark_column="id")) == 1


@pytest.mark.parametrize(
    ("marks", "later"), [(["a", "ä", "ab"], "ö"), ([1.5, 2, -3], 2.5), (["2024-01-02 00:00:00"] * 3, "2024-01-03")]
)
def test_watermarks_keep_their_type(database, marks, later):
    database.execute("CREATE TABLE marks (at, text, label)")
    for mark in marks:
        database.execute("INSERT INTO marks VALUES (?, 'a', 'b')", (mark,))
    asked = {"query": "SELECT * FROM marks -- all", "watermark_column": "at"}
    assert sum(len(rows(piece)) for piece in database.pieces(**asked)) == 3
    database.execute("INSERT INTO marks VALUES (?, 'c', 'd')", (later,))
    _, new = database.pieces(**asked)
    assert rows(new) in ([("c", "d")], [("c", "d"), ("a", "b")])
    assert sum(len(rows(piece)) for piece in database.pieces(**asked)) == 4


def test_a_row_that_appears_late_or_goes_has_its_own_range_read_again(database):
    database.pieces(watermark_column="id")
    for n in (10, 20, 30):
        database.add((n, f"row {n}", "pos"))
        database.pieces(watermark_column="id")
    before = database.pieces(watermark_column="id")
    database.add((15, "late", "neg"))
    after = database.pieces(watermark_column="id")
    assert [a.digest == b.digest for a, b in zip(after, before, strict=True)] == [True, True, False, True]
    assert rows(after[2]) == [("late", "neg"), ("row 20", "pos")]
    with pytest.raises(Fault, match="had 1 rows when they were counted and 2 when they were read"):
        rows(before[2])
    database.execute("DELETE FROM rows WHERE id = 1")
    gone = database.pieces(watermark_column="id")
    assert [a.digest == b.digest for a, b in zip(gone, after, strict=True)] == [False, True, True, True]
    assert [p.digest for p in database.pieces(watermark_column="id")] == [p.digest for p in gone]


def test_what_is_no_watermark_is_a_mistake(database):
    database.pieces(watermark_column="id")
    with pytest.raises(DataError, match="holds bytes values"):
        database.pieces(query="SELECT x'00' AS mark, text FROM rows", watermark_column="mark")
    database.execute("DELETE FROM rows WHERE id = 3")
    (note,) = database.notes
    with pytest.raises(DataError) as caught:
        database.pieces(watermark_column="id")
    assert f"its maximum was 3 and is 2: the table was not only appended to; to read it anew, delete {note}" in message(
        caught
    )
    note.unlink()
    assert len(rows(database.pieces(watermark_column="id")[0])) == 2
    database.execute("INSERT INTO rows VALUES (NULL, 'unseen', 'pos')")
    with pytest.raises(DataError, match="1 of 3 rows have none: no run would ever read them"):
        database.pieces(watermark_column="id")
    database.execute("UPDATE rows SET id = 'text' WHERE id IS NULL")
    with pytest.raises(DataError, match="its maximum was 2 and is 'text'"):
        database.pieces(watermark_column="id")
    with pytest.raises(DataError, match="no such column: nowhere") as caught:
        database.pieces(query="SELECT id, text FROM rows", watermark_column="nowhere")
    assert message(caught).startswith("collect.source.watermark_column = 'nowhere'")
