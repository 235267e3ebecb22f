"""Rows of a query: streamed, in a read-only transaction, with values given as parameters.

Whether the rows changed is told by `version_query`, by the watermark of an append-only table, or by a snapshot of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from schemas.errors import DataError, EnvironmentMistake, Fault, HoneError, Problem
from schemas.sources import SqlSource
from tasks.home import Home
from tasks.rows import BATCH_ROWS
from tasks.sources import Batch, Piece, Wanted, asked, require_columns, watermark
from tasks.sources.snapshot import as_text, numbered, read, snapshot, text_frame

if TYPE_CHECKING:
    import polars as pl
    from sqlalchemy import URL, Connection, Engine
    from sqlalchemy.exc import SQLAlchemyError

URL_FIELD = "collect.source.url"
QUERY_FIELD = "collect.source.query"
VERSION_FIELD = "collect.source.version_query"
WATERMARK_FIELD = "collect.source.watermark_column"
PARAMETERS_FIELD = "collect.source.parameters"
READ_ONLY = frozenset({"postgresql", "sqlite"})
"""Databases that refuse to write in the transactions made here; for others the query's first word is checked."""
READING_WORDS = frozenset({"select", "with", "values", "table"})
COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
NO_RETRY = re.compile(
    r"password|authentication|no pg_hba\.conf entry|(role|database|user) .*does not exist|access denied"
    r"|unknown database|permission denied|not permitted|unable to open database file",
    re.IGNORECASE,
)
"""In the reason why a connection failed: another try would fail as well."""
BUSY = re.compile(r"locked|busy|disk i/o", re.IGNORECASE)
"""In an error of SQLite: another try can help."""


def pieces(source: SqlSource, home: Home) -> list[Piece]:
    """The rows of the query: one piece, or one for each range of the watermark.

    Raises:
        DataError: The query, its parameters or the database's name are wrong.
        EnvironmentMistake: A driver or the password is missing, or the database does not let hone in.
        Fault: The database did not answer.
    """
    engine = _engine(source)
    name = source.shown()
    identity = [source.url, _bare(source.query), source.parameters]
    if source.watermark_column is not None:
        return _ranges(source, source.watermark_column, engine, home, identity)
    if source.version_query is not None:
        said = _version(source, engine)
        return [Piece(name, _digest([*identity, said]), QUERY_FIELD, None, partial(_read, source, engine, name))]
    path, digest = snapshot(home, _snapshot_frames(source, engine))
    return [Piece(name, digest, QUERY_FIELD, None, partial(read, path, name))]


def _ranges(source: SqlSource, column: str, engine: Engine, home: Home, identity: list[Any]) -> list[Piece]:
    """A piece for each range of the watermark that was ever seen, and one for what is new."""
    quoted = engine.dialect.identifier_preparer.quote(column)

    def ask(select: str, values: Mapping[str, Any]) -> Sequence[Any]:
        sql = f"SELECT {select.format(column=quoted)} FROM {_subquery(source)}"  # noqa: S608  the recipe's own query
        with _connected(source, engine, WATERMARK_FIELD) as connection:
            row: Sequence[Any] = connection.execute(_statement(source, sql, WATERMARK_FIELD, values)).one()
            return row

    note = home.journal / "watermarks" / f"{_digest([*identity, column])}.json"
    found = []
    for seen in watermark.ranges(note, column, ask):
        name = f"{source.shown()} {column} {seen}"
        reading = partial(_read, source, engine, name, within=(quoted, seen))
        found.append(Piece(name, _digest([*identity, column, seen.as_json()]), QUERY_FIELD, None, reading))
    return found


def _version(source: SqlSource, engine: Engine) -> list[list[str | None]]:
    query = _bare(source.version_query or "")
    with _connected(source, engine, VERSION_FIELD) as connection:
        result = connection.execute(_statement(source, query, VERSION_FIELD))
        if not result.returns_rows:
            raise _mistake(VERSION_FIELD, query, "gives no rows", "write a SELECT")
        rows = result.fetchmany(BATCH_ROWS)
    return [[as_text(value, VERSION_FIELD, VERSION_FIELD) for value in row] for row in rows]


def _read(
    source: SqlSource,
    engine: Engine,
    name: str,
    wanted: Wanted,
    within: tuple[str, watermark.Range] | None = None,
) -> Iterator[Batch]:
    """The rows of the query, or those of one range of a (quoted) column."""
    query, values = _bare(source.query), dict[str, Any]()
    if within is not None:
        column, seen = within
        condition, values = seen.condition(column)
        query = f"SELECT * FROM {_subquery(source)} WHERE {condition} ORDER BY {column}"  # noqa: S608
    done = 0
    with closing(_stream(source, engine, query, values)) as streamed:
        columns = next(streamed)
        require_columns(wanted, columns, name)
        names = asked(wanted)
        places = [columns.index(column) for column in names]
        frames = (text_frame([[row[at] for at in places] for row in rows], names, QUERY_FIELD) for rows in streamed)
        for batch in numbered(columns, frames, text_frame([], names, QUERY_FIELD)):
            done += batch.values.height
            yield batch
    if within is not None and done != within[1].rows:
        raise Fault(f"{name} had {within[1].rows} rows when they were counted and {done} when they were read")


def _snapshot_frames(source: SqlSource, engine: Engine) -> Iterator[pl.DataFrame]:
    with closing(_stream(source, engine, _bare(source.query), {})) as streamed:
        columns = next(streamed)
        twice = next((column for column in columns if columns.count(column) > 1), None)
        if twice is not None:
            rule = "the query gives two columns of this name"
            raise _mistake(QUERY_FIELD, twice, rule, "name one of them anew with AS")
        yield text_frame([], columns, QUERY_FIELD)
        for rows in streamed:
            yield text_frame(rows, columns, QUERY_FIELD)


def _stream(source: SqlSource, engine: Engine, query: str, values: Mapping[str, Any]) -> Generator[Any, None, None]:
    """First the names of the columns, then lists of rows; never more than a batch in memory."""
    with _connected(source, engine, QUERY_FIELD) as connection:
        options = {"stream_results": True, "max_row_buffer": BATCH_ROWS}
        result = connection.execute(_statement(source, query, QUERY_FIELD, values), execution_options=options)
        if not result.returns_rows:
            raise _mistake(QUERY_FIELD, source.query, "gives no rows", "write a SELECT")
        yield list(result.keys())
        yield from result.partitions(BATCH_ROWS)


def _statement(source: SqlSource, query: str, field: str, values: Mapping[str, Any] | None = None) -> Any:
    """The query with its values; the recipe's parameters must be those that it names."""
    from sqlalchemy import text

    own = values or {}
    statement = text(query)
    named = set(statement.compile().params) - set(own)
    missing = sorted(named - set(source.parameters))
    if missing:
        remedy = r"give it a value, or write \: for a colon that is text"
        raise _mistake(PARAMETERS_FIELD, dict(source.parameters), f"{field} names :{missing[0]}", remedy)
    everywhere = set(text(source.query).compile().params) | set(text(source.version_query or "").compile().params)
    unused = sorted(set(source.parameters) - everywhere)
    if unused:
        remedy = "remove it, or name it in the query"
        raise _mistake(PARAMETERS_FIELD, dict(source.parameters), f"no query names :{unused[0]}", remedy)
    return statement.bindparams(**{name: source.parameters[name] for name in named}, **own)


def _engine(source: SqlSource) -> Engine:
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        url = _with_password(source, sqlalchemy.make_url(source.url))
        dialect = url.get_backend_name()
        if dialect not in READ_ONLY:
            _check_first_word(source)
        if dialect == "sqlite":
            url = _read_only_file(source, url)
        return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, hide_parameters=True)
    except NoSuchModuleError as error:
        rule = f"SQLAlchemy knows no database {source.url.partition('://')[0]!r}"
        remedy = "install its dialect, or write postgresql+psycopg:// or sqlite://"
        raise EnvironmentMistake(Problem(URL_FIELD, source.url, rule, remedy)) from error
    except (ArgumentError, ValueError) as error:
        remedy = "write postgresql+psycopg://user@host/database, or sqlite:///rows.db"
        raise _mistake(URL_FIELD, source.url, "is no SQLAlchemy URL", remedy) from error
    except ModuleNotFoundError as error:
        remedy = "pip install 'hone[postgres]'" if "psycopg" in str(error.name) else f"pip install {error.name}"
        problem = Problem(URL_FIELD, source.url, f"its driver {error.name!r} is not installed", remedy)
        raise EnvironmentMistake(problem) from error


def _with_password(source: SqlSource, url: URL) -> URL:
    if url.drivername == "postgresql":  # SQLAlchemy 2.0 and 2.1 mean different drivers by it
        url = url.set(drivername="postgresql+psycopg")
    if source.password_env is None:
        return url
    password = os.environ.get(source.password_env)
    if not password:
        rule = "this environment variable is not set"
        raise EnvironmentMistake(
            Problem("collect.source.password_env", source.password_env, rule, "set it to the database's password")
        )
    return url.set(password=password)


def _read_only_file(source: SqlSource, url: URL) -> URL:
    """The same file, opened so that SQLite itself refuses to write."""
    if not url.database or url.database == ":memory:":
        raise _mistake(URL_FIELD, source.url, "is a database without rows", "name a file: sqlite:///rows.db")
    path = Path(url.database).resolve()
    if not path.is_file():
        raise _mistake(URL_FIELD, source.url, "there is no such file", "name an existing database")
    return url.set(database=f"file:{quote(str(path))}", query={**url.query, "mode": "ro", "uri": "true"})


def _check_first_word(source: SqlSource) -> None:
    for field, query in ((QUERY_FIELD, source.query), (VERSION_FIELD, source.version_query or "select")):
        words = COMMENT.sub(" ", query).replace("(", " ").split()
        if not words or words[0].lower() not in READING_WORDS:
            raise _mistake(field, query, "does more than read", "write a SELECT")


@contextmanager
def _connected(source: SqlSource, engine: Engine, field: str) -> Iterator[Connection]:
    """A connection whose transaction only reads and is rolled back; what goes wrong is said in one line."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        connection = engine.connect()
    except SQLAlchemyError as error:
        raise _connection_failed(source, error) from error
    with connection:
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(postgresql_readonly=True)
        try:
            yield connection
        except SQLAlchemyError as error:
            raise _query_failed(source, field, error) from error


def _connection_failed(source: SqlSource, error: SQLAlchemyError) -> HoneError:
    reason = _first_line(source, error)
    if NO_RETRY.search(reason):
        remedy = "check the database's name, the user in the URL, and password_env"
        return EnvironmentMistake(Problem(URL_FIELD, source.url, f"cannot be opened: {reason}", remedy))
    return Fault(f"{source.shown()} cannot be reached: {reason}")


def _query_failed(source: SqlSource, field: str, error: SQLAlchemyError) -> HoneError:
    from sqlalchemy.exc import DBAPIError, OperationalError

    reason = _first_line(source, error)
    broken = isinstance(error, DBAPIError) and error.connection_invalidated
    on_file = source.url.startswith("sqlite")
    if broken or (isinstance(error, OperationalError) and (BUSY.search(reason) if on_file else True)):
        return Fault(f"{source.shown()} broke off: {reason}")
    value = {VERSION_FIELD: source.version_query, WATERMARK_FIELD: source.watermark_column}.get(field, source.query)
    return _mistake(field, value, f"the database says: {reason}", "put the query right and try it there")


def _first_line(source: SqlSource, error: SQLAlchemyError) -> str:
    """The driver's own words; a password in them is masked."""
    lines = str(getattr(error, "orig", None) or error).split("\n")
    # psycopg names the failures of several addresses on lines of their own.
    text = " ".join(" ".join(lines[:2] if lines[0].endswith(":") else lines[:1]).split())
    password = os.environ.get(source.password_env or "", "")
    return text.replace(password, "***") if password else text


def _bare(query: str) -> str:
    return query.strip().rstrip(";").rstrip()


def _subquery(source: SqlSource) -> str:
    """The query as a table; on lines of its own, so that a comment at its end ends there."""
    return f"(\n{_bare(source.query)}\n) AS hone"


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _mistake(field: str, value: object, rule: str, remedy: str) -> DataError:
    return DataError(Problem(field, value, rule, remedy))
