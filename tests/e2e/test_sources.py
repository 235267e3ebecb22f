"""Sources on real servers: PostgreSQL from this machine's own binaries, and moto's S3 server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import DataError, EnvironmentMistake, Fault
from schemas.sources import CsvSource, SqlSource
from tasks import sources
from tasks.home import Home
from tasks.sources.snapshot import FOLDER
from tasks.store import Store
from tests.e2e.conftest import free_port
from tests.e2e.servers import PASSWORD, Postgres, running_postgres, running_s3

pytestmark = pytest.mark.e2e

WANTED = {"task.text_column": "text", "task.label_column": "label"}
QUERY = "SELECT id, text, label FROM rows ORDER BY id"


def rows(piece: sources.Piece, wanted: dict[str, str] = WANTED) -> list[tuple]:
    return [row for batch in piece.read(wanted) for row in batch.values.rows()]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running_postgres() as running:
        yield running


@pytest.fixture
def postgres(server: Postgres) -> Iterator[Postgres]:
    server.execute("CREATE TABLE rows (id bigint, text text, label text, at timestamptz, price numeric, tags jsonb)")
    server.execute(
        "INSERT INTO rows SELECT i, 'text ' || i, CASE WHEN i % 2 = 0 THEN 'pos' ELSE 'neg' END,"
        " timestamptz '2024-01-01 00:00:00.000001+00' + i * interval '1 hour', i / 4.0, jsonb_build_array(i, 'ü')"
        " FROM generate_series(1, 120000) AS i"
    )
    yield server
    server.execute("DROP TABLE rows")


@pytest.fixture
def pieces(postgres: Postgres, tmp_path: Path):
    """Lists the pieces of a query on the running server."""

    def of(**fields: Any) -> list[sources.Piece]:
        return sources.pieces(SqlSource(**{"url": postgres.url(), "query": QUERY} | fields), Home(tmp_path / "home"))

    return of


def test_postgresql_rows_are_streamed_in_batches_and_become_text(postgres, pieces):
    (piece,) = pieces(version_query="SELECT max(id) FROM rows")
    batches = list(piece.read(WANTED))
    assert [batch.values.height for batch in batches] == [50_000, 50_000, 20_000]
    assert batches[2].values.row(-1) == ("text 120000", "pos")
    assert batches[2].numbers[-1] == 120_000
    (typed,) = pieces(query="SELECT * FROM rows WHERE id = 2", version_query="SELECT 1")
    asked = {"a": "id", "b": "at", "c": "price", "d": "tags"}
    (row,) = rows(typed, asked)
    assert row[0] == "2"
    assert row[1].startswith("2024-01-01T02:00:00.000001+00")
    assert (float(row[2]), row[3]) == (0.5, '[2, "ü"]')


def test_postgresql_streams_by_a_cursor_of_the_server(postgres, pieces):
    """While a batch is read, the server holds the rest: the client never asked for it."""
    (piece,) = pieces(version_query="SELECT 1")
    reading = piece.read(WANTED)
    next(reading)
    running = [row[0] for row in postgres.execute("SELECT query FROM pg_stat_activity WHERE state LIKE 'idle in%'")]
    assert any("FETCH FORWARD" in query for query in running), running
    reading.close()
    assert postgres.execute("SELECT query FROM pg_stat_activity WHERE state LIKE 'idle in%'") == []


def test_postgresql_digests_follow_the_rows_or_the_version(postgres, pieces, tmp_path):
    by_rows, by_version = pieces()[0].digest, pieces(version_query="SELECT max(id) FROM rows")[0].digest
    assert pieces()[0].digest == by_rows
    postgres.execute("UPDATE rows SET text = 'changed' WHERE id = 7")
    assert pieces()[0].digest != by_rows
    shutil.rmtree(tmp_path / "home" / FOLDER)
    assert pieces(version_query="SELECT max(id) FROM rows")[0].digest == by_version
    assert not (tmp_path / "home" / FOLDER).exists(), "the rows were not read"


@pytest.mark.parametrize(
    ("field", "statement"),
    [
        ("version_query", "DELETE FROM rows RETURNING id"),
        ("version_query", "WITH gone AS (DELETE FROM rows RETURNING id) SELECT * FROM gone"),
        ("query", "SELECT purge()"),
        ("version_query", "SELECT purge()"),
    ],
)
def test_postgresql_itself_refuses_to_write(postgres, pieces, field, statement):
    postgres.execute("CREATE OR REPLACE FUNCTION purge() RETURNS int LANGUAGE sql AS 'DELETE FROM rows RETURNING 1'")
    with pytest.raises(DataError, match=r"cannot execute (DELETE|SELECT) in a read-only transaction") as caught:
        pieces(**{field: statement})
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"collect\.source\.query"):
        pieces(query="DELETE FROM rows RETURNING id, text, label")
    assert postgres.execute("SELECT count(*) FROM rows") == [(120_000,)]


def test_postgresql_parameters_are_bound_not_pasted(postgres, pieces):
    query = "SELECT text, label, id::text AS name FROM rows WHERE id <= :most AND label = :label AND text LIKE '%text%'"
    (piece,) = pieces(query=query, parameters={"most": 4, "label": "pos"})
    assert rows(piece) == [("text 2", "pos"), ("text 4", "pos")]
    (none,) = pieces(query=query, parameters={"most": 4, "label": "pos' OR 'a'='a"})
    assert rows(none) == []


@pytest.mark.parametrize("column", ["id", "at", "price", "text"])
def test_postgresql_appended_rows_are_one_new_piece(postgres, pieces, column):
    postgres.execute("DELETE FROM rows WHERE id > 9")
    asked = {"query": "SELECT * FROM rows", "watermark_column": column}
    (old,) = pieces(**asked)
    postgres.execute("INSERT INTO rows SELECT i, 'text ' || i, 'pos', now(), i, NULL FROM generate_series(91, 93) i")
    again, new = pieces(**asked)
    assert again.digest == old.digest
    assert rows(again) == [(f"text {i}", "pos" if i % 2 == 0 else "neg") for i in range(1, 10)]
    assert rows(new) == [(f"text {i}", "pos") for i in (91, 92, 93)]
    assert [piece.digest for piece in pieces(**asked)] == [again.digest, new.digest]
    postgres.execute("INSERT INTO rows SELECT 94, 'text 94', NULL, NULL, NULL, NULL" if column != "id" else
                     "INSERT INTO rows SELECT NULL, 'text 94', 'pos', now(), 94, NULL")  # fmt: skip
    if column != "text":
        with pytest.raises(DataError, match=f"watermark_column = '{column}': 1 of 13 rows have none"):
            pieces(**asked)
    postgres.execute("DELETE FROM rows WHERE id > 5 OR id IS NULL")
    with pytest.raises(DataError, match="the table was not only appended to"):
        pieces(**asked)


def test_postgresql_that_cannot_be_opened(postgres, pieces, monkeypatch):
    for fields, kind, says in (
        ({"url": postgres.url(database="nowhere")}, EnvironmentMistake, 'database "nowhere" does not exist'),
        ({"url": postgres.url(user="nobody")}, EnvironmentMistake, 'role "nobody" does not exist'),
        ({"url": postgres.url(user="reader")}, EnvironmentMistake, "no password supplied"),
        ({"url": f"postgresql://owner@127.0.0.1:{free_port()}/shop"}, Fault, "Connection refused"),
        ({"query": "SELECT * FROM nowhere"}, DataError, 'the database says: relation "nowhere" does not exist'),
        ({"query": "SELECT 1 / 0 AS text"}, DataError, "the database says: division by zero"),
    ):
        with pytest.raises(kind) as caught:
            pieces(**fields)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)

    asked = {
        "url": postgres.url(user="reader"),
        "password_env": "SHOP_PASSWORD",
        "query": "SELECT text, label FROM rows",
    }
    monkeypatch.setenv("SHOP_PASSWORD", "wrong-" + PASSWORD)
    with pytest.raises(EnvironmentMistake, match="password authentication failed") as caught:
        pieces(**asked)
    assert PASSWORD not in str(caught.value)
    monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
    with pytest.raises(DataError, match="permission denied for table rows"):
        pieces(**asked)
    postgres.execute("GRANT SELECT ON rows TO reader")
    assert len(rows(pieces(**asked)[0])) == 120_000


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with running_s3(monkeypatch) as client:
        yield client


def test_s3_files_are_read_and_an_unchanged_one_is_not_read_again(s3, tmp_path, monkeypatch):
    import s3fs

    downloads: list[str] = []
    download = s3fs.S3FileSystem._get_file

    async def counted(self: Any, rpath: str, *arguments: Any, **options: Any) -> Any:
        downloads.append(rpath)
        return await download(self, rpath, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_get_file", counted)
    for day, content in {"1": "text,label\ngood,pos\n", "2": "text,label\nbad,neg\n"}.items():
        s3.put_object(Bucket="data", Key=f"days/{day}.csv", Body=content.encode())
    s3.put_object(Bucket="data", Key="days/notes.txt", Body=b"no rows")

    def of(path: str) -> list[sources.Piece]:
        return sources.pieces(CsvSource(path=path), Home(tmp_path / "home"))

    first = of("s3://data/days/*.csv")
    assert downloads == []
    assert [rows(piece) for piece in first] == [[("good", "pos")], [("bad", "neg")]]
    assert downloads == ["data/days/1.csv", "data/days/2.csv"]
    assert [piece.digest for piece in of("s3://data/days")] == [piece.digest for piece in first]
    assert [piece.name for piece in first] == ["1.csv", "2.csv"]

    s3.put_object(Bucket="data", Key="days/2.csv", Body=b"text,label\nsad,neg\n")
    s3.put_object(Bucket="data", Key="days/3.csv", Body=b"text,label\nnew,pos\n")
    later = of("s3://data/days/*.csv")
    assert [piece.digest == before.digest for piece, before in zip(later, first, strict=False)] == [True, False]
    assert [rows(piece) for piece in later[1:]] == [[("sad", "neg")], [("new", "pos")]]
    assert downloads[2:] == ["data/days/2.csv", "data/days/3.csv"]
    for path in ("s3://data/nothing.csv", "s3://nowhere/rows.csv", "s3://data/nothing/*.csv"):
        with pytest.raises(DataError, match=r"collect\.source\.path"):
            [rows(piece) for piece in of(path)]


def test_the_store_keeps_artifacts_on_s3(s3, tmp_path):
    store = Store("s3://data/store", tmp_path / "here")
    with store.draft("clean", "k1") as draft:
        (draft / "rows").mkdir()
        (draft / "rows" / "00000.parquet").write_bytes(b"rows")
        store.publish(draft, "clean", "k1", ingredients={"a": 1}, summary={"rows": 1}, run_id="r")
    elsewhere = Store("s3://data/store", tmp_path / "there")
    found = elsewhere.find("clean", "k1")
    assert found is not None
    assert found.summary == {"rows": 1}
    assert (elsewhere.open("clean", "k1") / "rows" / "00000.parquet").read_bytes() == b"rows"
    assert elsewhere.find("clean", "k2") is None
    keys = {entry["Key"] for entry in s3.list_objects_v2(Bucket="data")["Contents"]}
    assert keys == {"store/clean/k1/manifest.json", "store/clean/k1/rows/00000.parquet"}
