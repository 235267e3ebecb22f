"""The recipe's sections about data: collect, clean, split, tokenize."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Label, Locations, PlainUnion, Section
from schemas.sources import Source

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Collect(Section):
    """Where the rows come from."""

    source: Source
    """What is read, and how."""
    id_column: str | None = None
    """Column that names a row for good; default: a digest of the row's texts."""
    group_column: str | None = None
    """Rows of one group stay on one side of the split (an author, a document); default: each row alone."""
    time_column: str | None = None
    """Column with the time of a row (ISO 8601, or seconds since 1970), for splits by time and drift."""
    split_column: str | None = None
    """Column that says train, validation or test, where the source has official splits in one file."""
    keep: Annotated[tuple[str, ...], Field(title="Keep columns")] = ()
    """Further columns kept with each row, for slices and reports."""
    corrections: Locations = ()
    """CSV or JSONL files that put rows right: column id, then any of the task's columns, or drop with a true value."""


class Expectations(Section):
    """What the clean rows as a whole must look like; the run stops with every one that is not met."""

    min_rows: PositiveInt = 1
    """Fewest rows."""
    min_rows_per_label: Count = 0
    """Fewest rows of each label."""
    max_label_share: OpenShare | None = None
    """Largest share of the rows that one label may have."""
    max_missing: dict[str, Share] = Field(default={})
    """Column → largest share of the collected rows that may lack a value there."""


class Clean(Section):
    """Which rows are fit to learn from. A row that is not goes to `quarantine.parquet` with its reason."""

    fix_text: bool = True
    """Repair mojibake and HTML entities, normalise Unicode, drop control and bidirectional characters (ftfy)."""
    unicode_form: Literal["NFC", "NFKC"] = "NFC"
    """NFKC also folds full-width letters, ligatures and superscripts."""
    strip_markup: bool = False
    """Remove HTML tags, comments, scripts and styles; text between them stays."""
    collapse_whitespace: bool = True
    """Every run of white space becomes one space; none at the ends."""
    redact: tuple[str, ...] = ()
    """Personal data replaced by a placeholder: email, phone, card, ip, or a name that a package registered."""
    languages: tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...] = ()
    """ISO 639 codes of the languages kept; empty: all. Needs the extra `language`."""
    label_aliases: dict[str, Label] = Field(default={})
    """Spelling of a label in the source → the label meant; compared without case and outer white space."""
    min_chars: PositiveInt = 1
    """Shortest text kept, in characters after repair."""
    max_chars: PositiveInt = 20_000
    """Longest text kept, in characters after repair."""
    drop_duplicates: bool = True
    """Of rows with the same text and label, one stays."""
    drop_contradictions: bool = True
    """Rows with the same text and different labels all go: nobody knows which is right."""
    max_quarantined: Share = 0.2
    """Share of the rows that may fall out before the run stops."""
    expect: Expectations = Expectations()
    """What the clean rows as a whole must look like."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars ({self.min_chars}) must not exceed max_chars ({self.max_chars})")
        return self


class NearDuplicates(Section):
    """Texts alike but for a few words, found by banded MinHash over sets of words, whose order does not count."""

    search: bool = True
    """Quarantine training rows that resemble a held-out row, and all but one of those that resemble each other."""
    threshold: Annotated[float, Field(ge=0.3, le=1)] = 0.6
    """Jaccard similarity (words in common / words in either) from which two texts are near duplicates."""
    permutations: Annotated[int, Field(ge=16, le=512)] = 128
    """Length of a signature; a similarity s that it estimates is off by about √(s(1-s)/permutations): 0.04."""
    bands: Annotated[int, Field(ge=1, le=256)] = 32
    """Parts of a signature; texts that share one are compared. More find more and compare more."""

    @model_validator(mode="after")
    def _bands_are_whole(self) -> Self:
        if self.permutations % self.bands:
            raise ValueError(f"permutations ({self.permutations}) must be a multiple of bands ({self.bands})")
        return self


class _AnySplit(Section):
    version: PositiveInt = 1
    """Frozen. Another number deals all rows anew and makes old and new test metrics incomparable."""
    near_duplicates: NearDuplicates = NearDuplicates()
    """What is done about texts that resemble each other across sides, and within train."""
    min_rows: PositiveInt = 1
    """Fewest rows of each side."""
    min_rows_per_label: Count = 0
    """Fewest rows of each label on each side; train needs each label in any case."""


class HashSplit(_AnySplit, title="By hash"):
    """Sides decided by a hash of the row's group or normalised text: a row never changes sides as the data grows."""

    kind: Literal["hash"] = "hash"
    validation: Annotated[OpenShare, Field(title="Validation share")] = 0.1
    """Share of the rows for validation: early stopping, best checkpoint, choices."""
    test: Annotated[OpenShare, Field(title="Test share")] = 0.1
    """Share of the rows for the test, touched by evaluation alone."""

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.validation + self.test >= 0.9:
            raise ValueError(
                f"validation + test is {self.validation + self.test:g}: at least 0.1 must be left to train"
            )
        return self


class OfficialSplit(_AnySplit, title="Official"):
    """The source's own sides, by `collect.split_column` or by `validation_path` and `test_path`."""

    kind: Literal["official"] = "official"
    validation: Annotated[OpenShare, Field(title="Validation share")] = 0.1
    """Share of the training rows taken by hash for validation, where the source has no validation split."""


class TimeSplit(_AnySplit, title="By time"):
    """Sides by time: the latest rows test, those before them validate, the rest train. Needs `collect.time_column`."""

    kind: Literal["time"] = "time"
    validation_from: datetime
    """First moment of validation; without a time zone, UTC."""
    test_from: datetime
    """First moment of the test; without a time zone, UTC."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        from datetime import UTC

        def aware(moment: datetime) -> datetime:
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

        if aware(self.validation_from) >= aware(self.test_from):
            raise ValueError(f"validation_from ({self.validation_from}) must lie before test_from ({self.test_from})")
        return self


Split = Annotated[HashSplit | OfficialSplit | TimeSplit, Field(discriminator="kind"), PlainUnion("kind")]


SPECIAL_TOKENS = 2
"""Those that most encoders put around a text; tokenizing counts the base model's own."""


class Tokenize(Section):
    """Text to tokens."""

    max_seq_length: Annotated[int, Field(ge=8, le=1_048_576)] = 128
    """Longest sequence in tokens, special tokens counted."""
    overlong: Annotated[Literal["truncate", "window", "drop", "raise"], Field(title="Overlong texts")] = "truncate"
    """What becomes of a longer text: its end is cut off, it becomes windows, the row is set aside, or the run stops."""
    stride: Count = 32
    """Tokens that neighbouring windows of a text share; fewer than a window has room for beside the special tokens."""
    max_truncated: Share = 0.02
    """Share of the rows that may be cut or set aside before the run stops."""

    @model_validator(mode="after")
    def _windows_get_on(self) -> Self:
        room = self.max_seq_length - SPECIAL_TOKENS
        if self.overlong == "window" and self.stride >= room:
            raise ValueError(
                f"stride ({self.stride}) must be less than {room}: max_seq_length less {SPECIAL_TOKENS} special tokens"
            )
        return self
