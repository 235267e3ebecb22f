"""Where rows come from: one section per kind of source, none of which may hold a credential."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator

from schemas.base import CallableLocation, DatabaseUrl, Location, Locations, PlainUnion, Section


class AnySource(Section):
    """What all sources have in common."""

    def shown(self) -> str:
        """The place, in one line for people."""
        raise NotImplementedError


class FileSource(AnySource):
    """What sources made of files have in common."""

    path: Locations
    """Files, folders or globs: local, relative to the recipe; `package://<package>/<file>`; s3://, gs://, https://."""
    validation_path: Location | None = None
    """Rows of the official validation split, when the source ships one as a file of its own."""
    test_path: Location | None = None
    """Rows of the official test split, when the source ships one as a file of its own."""

    def shown(self) -> str:
        """Names of the files."""
        return ", ".join(PurePath(p).name if PurePath(p).is_absolute() else p for p in self.path)


class CsvSource(FileSource, title="CSV"):
    """Rows from CSV or TSV files with a header line; bytes that are not UTF-8 become U+FFFD."""

    kind: Literal["csv"] = "csv"
    separator: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """The single character between two fields."""


class JsonlSource(FileSource, title="JSON lines"):
    """Rows from files with one JSON object per line."""

    kind: Literal["jsonl"] = "jsonl"


class ParquetSource(FileSource, title="Parquet"):
    """Rows from Parquet files."""

    kind: Literal["parquet"] = "parquet"


class SquadSource(FileSource, title="SQuAD"):
    """Questions from SQuAD JSON, 1.1 or 2.0: columns id, title, context, question, answers and is_impossible."""

    kind: Literal["squad"] = "squad"


class GettextSource(FileSource, title="gettext"):
    """Rows from gettext catalogs (.mo, .po): columns source, target, context, language and catalog."""

    kind: Literal["gettext"] = "gettext"


class ConllSource(FileSource, title="CoNLL"):
    """Sentences from files with a token on each line and a blank line after each sentence: text, tags and document."""

    kind: Literal["conll"] = "conll"
    word_column: Annotated[int, Field(gt=0)] = 1
    """Number of the column with the words, from 1."""
    tag_column: int = -1
    """Number of the column with the tags, from 1; -1 is the last one."""
    comment: str = "# "
    """What a comment before a sentence begins with; empty: there are none."""

    @field_validator("tag_column")
    @classmethod
    def _is_a_number(cls, value: int) -> int:
        if value == 0:
            raise ValueError("columns are numbered from 1, or from -1 for the last one")
        return value


class HubSource(AnySource, title="Hugging Face hub"):
    """Rows of a dataset on the Hugging Face hub; the token comes from HF_TOKEN."""

    kind: Literal["hub"] = "hub"
    dataset: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")]
    """Name on the hub, such as stanfordnlp/imdb."""
    config: str | None = None
    """Configuration of the dataset, where it has several."""
    revision: str | None = None
    """Commit, tag or branch; pin a commit, so that the same recipe means the same rows."""
    splits: tuple[str, ...] = ("train",)
    """Splits to read; with several, each row's split is its official side."""

    def shown(self) -> str:
        """Name and revision of the dataset."""
        return f"hf://datasets/{self.dataset}" + (f"@{self.revision}" if self.revision else "")


class SqlSource(AnySource, title="SQL"):
    """Rows of a query, streamed in a read-only transaction; PostgreSQL, SQLite and whatever SQLAlchemy speaks."""

    kind: Literal["sql"] = "sql"
    url: DatabaseUrl
    """SQLAlchemy URL without a password, such as postgresql+psycopg://db.example/shop or sqlite:///rows.db."""
    password_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable that holds the password."""
    query: Annotated[str, Field(min_length=1)]
    """A SELECT; values are written as :name and given as parameters."""
    parameters: dict[str, str | int | float | bool] = Field(default={})
    """Values of the query's :names."""
    version_query: str | None = None
    """A cheap SELECT whose result changes when the rows do; default: the rows are read every run and compared."""
    watermark_column: str | None = None
    """Column that only grows in a table that is only appended to: each run reads the rows above the last one seen."""

    def shown(self) -> str:
        """The database, without a user or a query."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}"


class PythonSource(AnySource, title="Python"):
    """Rows that a Python function yields as dictionaries, for what no other source covers."""

    kind: Literal["python"] = "python"
    callable: CallableLocation
    """`python://<module>:<function>`; the module is installed, or lies beside the recipe."""
    arguments: dict[str, JsonValue] = Field(default={})
    """Keyword arguments of the function."""
    version: CallableLocation | None = None
    """Function of the same arguments that says, cheaply, which version the rows have; default: read and compared."""

    def shown(self) -> str:
        """The function."""
        return self.callable


Source = Annotated[
    CsvSource
    | JsonlSource
    | ParquetSource
    | SquadSource
    | GettextSource
    | ConllSource
    | HubSource
    | SqlSource
    | PythonSource,
    Field(discriminator="kind"),
    PlainUnion("kind"),
]
