"""Rows of data sets on the Hugging Face hub, one piece for each split; a commit of the repository is what they are.

Asking for the commit is the only thing that happens when nothing changed, and not even that where it is pinned. The
token comes from the environment, by the library itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import DataError, EnvironmentMistake, Fault, HoneError, Problem
from schemas.sources import HubSource
from tasks.home import Home
from tasks.rows import BATCH_ROWS
from tasks.sources import Batch, Piece, Wanted, asked, require_columns
from tasks.sources.snapshot import as_text, numbered

if TYPE_CHECKING:
    import polars as pl

FOLDER = Path("cache", "hub")
FIELD = "collect.source.dataset"
REVISION_FIELD = "collect.source.revision"
SPLITS_FIELD = "collect.source.splits"
CONFIG_FIELD = "collect.source.config"
COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT_S = 60
SAYS_CONFIG = re.compile(r"BuilderConfig .* not found|Config name is missing")
SAYS_SPLIT = re.compile(r"Unknown split|Bad split")
SAYS_GATED = re.compile(r"is a gated dataset")
SAYS_UNKNOWN = re.compile(r"doesn't exist on the Hub")
SAYS_REVISION = re.compile(r"^Revision .* doesn't exist")
"""What `datasets` says without the error that it came from."""


def pieces(source: HubSource, home: Home) -> list[Piece]:
    """The splits asked for, at one commit; with several, each is an official side.

    Raises:
        DataError: The data set or its revision is not there, or not for this token.
        EnvironmentMistake: The hub may not be asked.
        Fault: The hub did not answer.
    """
    commit = source.revision if COMMIT.fullmatch(source.revision or "") else _commit(source)
    found = []
    for split in source.splits:
        name = f"hf://datasets/{source.dataset}{f'/{source.config}' if source.config else ''}:{split}"
        content = json.dumps([source.dataset, commit, source.config, split])
        digest = hashlib.sha256(content.encode()).hexdigest()[:32]
        side = split if len(source.splits) > 1 else None
        reading = partial(_read, source, home, str(commit), split=split, name=name)
        found.append(Piece(name, digest, FIELD, side, reading))
    return found


def _commit(source: HubSource) -> str:
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(source.dataset, revision=source.revision, timeout=TIMEOUT_S).sha)
    except Exception as error:
        raise _refused(source, error) from error


def _read(source: HubSource, home: Home, commit: str, wanted: Wanted, *, split: str, name: str) -> Iterator[Batch]:
    import polars as pl

    rows = _loaded(source, home, commit, split)
    columns = list(rows.column_names)
    require_columns(wanted, columns, name)
    names = asked(wanted)
    chosen = rows.select_columns(names)
    labels = {column: feature.names for column, feature in chosen.features.items() if hasattr(feature, "names")}
    tables = chosen.with_format("arrow").iter(BATCH_ROWS)
    frames = (_as_text_frame(pl.DataFrame(table), labels) for table in tables)
    yield from numbered(columns, frames, pl.DataFrame(schema=dict.fromkeys(names, pl.String)))


def _loaded(source: HubSource, home: Home, commit: str, split: str) -> Any:
    """The split as a memory-mapped Arrow data set, downloaded unless it was before."""
    import datasets

    if Path(source.dataset).exists():
        remedy = "run hone from another folder"
        raise _mistake(FIELD, source.dataset, "a file or folder of this name would be read in its place", remedy)
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        folder = str(home.root / FOLDER)
        builder = datasets.load_dataset_builder(source.dataset, source.config, revision=commit, cache_dir=folder)
        builder.download_and_prepare()
        rows = builder.as_dataset(split=split)
    except Exception as error:
        raise _refused(source, error, split) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    if builder.hash != commit:  # away from the hub, the library is content with any commit that it has
        raise Fault(f"{source.shown()}: the hub could not be asked for commit {commit}")
    return rows


def _as_text_frame(frame: pl.DataFrame, labels: dict[str, list[str]]) -> pl.DataFrame:
    """All columns as text: classes by their names, -1 (no label) as null, lists and structs as JSON."""
    import polars as pl

    def column(name: str, dtype: pl.DataType) -> pl.Series:
        values = frame[name]
        if name in labels:
            return values.cast(pl.Int64).replace_strict(
                dict(enumerate(labels[name])), default=None, return_dtype=pl.String
            )
        if dtype.is_nested() or dtype in {pl.Binary, pl.Object}:
            return pl.Series(name, [as_text(value, name, FIELD) for value in values.to_list()], pl.String)
        return values.cast(pl.String)

    return pl.DataFrame([column(name, dtype) for name, dtype in frame.schema.items()])


def _refused(source: HubSource, error: Exception, split: str | None = None) -> HoneError:  # noqa: PLR0911
    """Why the hub or the library gave no rows: a mistake where another try would end the same."""
    import huggingface_hub.errors as hub
    from huggingface_hub import constants

    causes = _causes(error)
    said = " ".join(str(error).split())[:300].rstrip(".")
    status = next((e.response.status_code for e in causes if isinstance(e, hub.HfHubHTTPError)), None)
    if constants.HF_HUB_OFFLINE or _any(causes, hub.OfflineModeIsEnabled):
        rule = "is not in the cache, and HF_HUB_OFFLINE forbids asking the hub"
        return EnvironmentMistake(Problem(FIELD, source.dataset, rule, "unset HF_HUB_OFFLINE"))
    if _any(causes, hub.GatedRepoError) or status == 403 or SAYS_GATED.search(said):
        page = f"{constants.ENDPOINT}/datasets/{source.dataset}"
        remedy = f"accept its terms at {page} and set HF_TOKEN to a token that may read it"
        return _mistake(FIELD, source.dataset, "is gated", remedy)
    if _any(causes, hub.RevisionNotFoundError) or SAYS_REVISION.search(said):
        remedy = "name a commit, tag or branch of it"
        return _mistake(REVISION_FIELD, source.revision, f"{source.dataset} has no such revision", remedy)
    if _any(causes, hub.RepositoryNotFoundError, hub.HFValidationError) or SAYS_UNKNOWN.search(said):
        remedy = "check its name; for a private one set HF_TOKEN"
        return _mistake(FIELD, source.dataset, "the hub has no such data set, or not for this token", remedy)
    if SAYS_CONFIG.search(said):
        return _mistake(CONFIG_FIELD, source.config, said, "name one of them")
    if SAYS_SPLIT.search(said):
        return _mistake(SPLITS_FIELD, split, said, "name splits that it has")
    on_the_way = status is not None or any(type(cause).__module__.startswith("httpx") for cause in causes)
    if on_the_way or _any(causes, ConnectionError, TimeoutError) or not _any(causes, *_unreadable()):
        return Fault(f"{source.shown()}: {type(error).__name__}: {said}")
    deepest = " ".join(str(causes[-1]).split())[:300].rstrip(".")
    return _mistake(FIELD, source.dataset, f"cannot be read: {deepest}", "name a data set of text files or Parquet")


def _unreadable() -> tuple[type[Exception], ...]:
    """Errors of the library about what is in the data set."""
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DatasetsError

    return DatasetsError, EmptyDatasetError, RuntimeError, ValueError, NotImplementedError


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it came from, the deepest last."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return found


def _any(errors: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(error, kinds) for error in errors)


def _mistake(field: str, value: object, rule: str, remedy: str) -> DataError:
    return DataError(Problem(field, value, rule, remedy))
