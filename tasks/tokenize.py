"""Tokenize: text to token ids, once; texts longer than `max_seq_length` are measured, and refused above a limit.

Such a text is cut, or its row set aside, or the run stops, as the recipe says. Writes Arrow streams that
`datasets.Dataset.from_file` maps into memory. Reads and writes a batch of rows at a time.
Does not cover tokenizers that have no fast (Rust) implementation, nor padding, which is the collator's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from schemas.base import TaskSection
from schemas.data import Tokenize
from schemas.errors import DataError, Problem, RecipeError
from schemas.records import Artifact
from tasks.base_model import base_model
from tasks.context import Context
from tasks.families import MEASURING, Family, Meta, family_of
from tasks.stage import stage_task
from tasks.word_cache import WordCache, splits_at_spaces

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from tokenizers import Tokenizer

    SetAside = Callable[[pl.Series, np.ndarray[Any, Any]], None]

SIDES = ("train", "validation", "test")
BATCH_ROWS = 2_000
OVERLONG = "overlong.parquet"
"""Rows set aside for their length, where the recipe says so."""
SHOWN_IDS = 5
"""Overlong rows that an error names."""
OFFSET_BY_PADDING = frozenset({"camembert", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"})
"""Architectures that number positions from after the padding token's id: they read that many tokens fewer."""


def tokenize_rows(
    tokenize: Tokenize,
    task: TaskSection,
    *,
    base_digest: str,  # noqa: ARG001  # part of the key: another model's tokens are other tokens
    split: Path,
    base: Path,
    trust_remote_code: bool,
    out: Path,
) -> dict[str, Any]:
    """Write `train.arrow`, `validation.arrow`, `test.arrow` (`id`, `input_ids`, `length`, `labels`) and `meta.json`.

    With `overlong: drop`, `overlong.parquet` (`id`, `side`, `tokens`) has the rows that are in none of them.

    Args:
        tokenize: Length of a sequence, what becomes of a longer one, and how many may be longer.
        task: The recipe's task; its family says what is encoded.
        base_digest: Digest of the base model.
        split: Folder with the rows of each side.
        base: Folder of the base model.
        trust_remote_code: Whether a tokenizer that comes as Python code may run.
        out: Where to write.

    Returns:
        `rows` and real `tokens` of each side, `longest` of them, `lengths` of all rows uncut, the share `truncated`
        and the number `dropped` of each side.

    Raises:
        DataError: A row is overlong where none may be, more than `max_truncated` are, or none of a side is left.
        RecipeError: The base model cannot read sequences this long, has no fast tokenizer, or that of another model.
    """
    import numpy as np

    config = read_config(base)
    _refuse_unreadable_length(tokenize, config)
    tokenizer = load_tokenizer(base, config, trust_remote_code=trust_remote_code)
    meta = json.loads((split / "meta.json").read_text())
    meta |= {"pad_token_id": tokenizer.pad_token_id, "max_seq_length": tokenize.max_seq_length}

    limit = longest_input(config)
    with _policy(tokenize, limit, out / OVERLONG) as policy:
        sides = {
            side: encode_side(
                family_of(task),
                meta,
                tokenizer,
                vocab_size=config.get("vocab_size"),
                rows=split / f"{side}.parquet",
                out=out / f"{side}.arrow",
                set_aside=policy(side),
            )
            for side in SIDES
        }
    uncut = np.concatenate([lengths.uncut for lengths in sides.values()])
    _refuse_silent_loss(tokenize, uncut, limit)
    _refuse_empty_sides(tokenize, sides)
    (out / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1))
    dropped = {side: len(lengths.uncut) - len(lengths.cut) for side, lengths in sides.items()}
    truncated = {
        side: int((lengths.uncut > tokenize.max_seq_length).sum()) - dropped[side] for side, lengths in sides.items()
    }
    return {
        "rows": {side: len(lengths.cut) for side, lengths in sides.items()},
        "tokens": {side: int(lengths.cut.sum(dtype=np.int64)) for side, lengths in sides.items()},
        "longest": max(int(lengths.cut.max()) for lengths in sides.values()),
        "lengths": {
            "median": int(np.median(uncut)),
            "p95": int(np.percentile(uncut, 95)),
            "longest_uncut": int(uncut.max()),
        },
        "truncated": {side: truncated[side] / len(lengths.uncut) for side, lengths in sides.items()},
        "truncated_rows": sum(truncated.values()),
        "dropped": dropped,
    }


def dropped_rows(tokens: Path, side: str) -> pl.DataFrame:
    """`id` and `tokens` of a side's rows that `overlong: drop` left out of the tokenize artifact in `tokens`."""
    import polars as pl

    file = tokens / OVERLONG
    rows = pl.read_parquet(file, glob=False) if file.exists() else pl.DataFrame(schema=_overlong_schema())
    return rows.filter(pl.col("side") == side).drop("side")


@dataclass(frozen=True)
class BaseTokenizer:
    """The base model's tokenizer, which neither cuts nor pads of its own accord.

    Attributes:
        truncation_side: The end that the cut takes text from.
    """

    backend: Tokenizer
    pad_token_id: int
    truncation_side: Literal["left", "right"]

    @cached_property
    def _words(self) -> WordCache | None:
        return WordCache(self.backend) if splits_at_spaces(self.backend) else None

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, uncut."""
        if self._words is not None:
            return self._words.ids(texts)
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts))]

    def cut_ids(self, texts: Sequence[str], longest: int) -> list[list[int]]:
        """Token ids of each text, special tokens included and spared by the cut to `longest` tokens."""
        self.backend.enable_truncation(longest, direction=self.truncation_side)
        try:
            return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts))]
        finally:
            self.backend.no_truncation()


@dataclass(frozen=True)
class Lengths:
    """Tokens of each row of a side.

    Attributes:
        uncut: Of all rows, `[rows]`.
        cut: Of the rows that were not set aside, after the cut.
    """

    uncut: np.ndarray[Any, Any]
    cut: np.ndarray[Any, Any]


def load_tokenizer(base: Path, config: Mapping[str, Any], *, trust_remote_code: bool) -> BaseTokenizer:
    """The tokenizer of the model in the folder `base`.

    A `tokenizer.json` is read as it is: transformers would import torch to do the same.

    Raises:
        RecipeError: It cannot be read, is not a fast one, or has no token to pad with.
    """
    if (base / "tokenizer.json").exists():
        backend, options = _from_json(base)
        pad_token_id = _pad_token_id(backend, options, config)
    else:
        backend, options = _from_transformers(base, trust_remote_code=trust_remote_code)
        pad_token_id = options["pad_token_id"]
    if pad_token_id is None:
        raise _unusable(base, "its tokenizer has no token to pad with", "add pad_token to its tokenizer_config.json")
    backend.no_truncation()  # sentence-transformers models carry a cut and a padding of their own
    backend.no_padding()
    return BaseTokenizer(backend, int(pad_token_id), "left" if options.get("truncation_side") == "left" else "right")


def read_config(base: Path) -> dict[str, Any]:
    """The model's `config.json`; that of its text part, where it has several."""
    config: dict[str, Any] = json.loads((base / "config.json").read_text())
    text_part: dict[str, Any] = config.get("text_config", {})
    return config | text_part


def longest_input(config: Mapping[str, Any]) -> int | None:
    """Most tokens the model can read in one sequence; none when it does not number positions."""
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions <= 0 or config.get("relative_attention"):
        return None
    if config.get("model_type") in OFFSET_BY_PADDING:
        return positions - int(config.get("pad_token_id") or 0) - 1
    return positions


def encode_side(
    family: Family,
    meta: Meta,
    tokenizer: BaseTokenizer,
    *,
    vocab_size: int | None,
    rows: Path,
    out: Path,
    set_aside: SetAside | None = None,
) -> Lengths:
    """Write the tokens of one side's rows, batch by batch.

    Args:
        family: Says what is encoded.
        meta: The task's, with `max_seq_length`.
        tokenizer: The base model's.
        vocab_size: Ids that the model knows; none where it does not say.
        rows: Parquet file of the side.
        out: Arrow stream to write; not written when no row is left.
        set_aside: Told the ids and lengths of a batch's overlong rows, which are left out; default: they are cut.

    Raises:
        RecipeError: The tokenizer makes an id that the model has no embedding for.
    """
    import numpy as np
    import pyarrow as pa

    from tasks.rows import batches

    uncut, cut = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    writer = None
    try:
        for batch in batches([rows], size=BATCH_ROWS):
            ids, labels, lengths = encode_rows(family, meta, tokenizer, batch, cut=set_aside is None)
            names = batch["id"]
            uncut.append(lengths)
            overlong = lengths > meta["max_seq_length"]
            if set_aside is not None and overlong.any():
                set_aside(names.filter(overlong), lengths[overlong])
                ids, labels = (list(compress(values, ~overlong)) for values in (ids, labels))
                names = names.filter(~overlong)
            if not ids:
                continue
            tokens = pa.array(ids, pa.list_(pa.int32()))
            _refuse_foreign_ids(vocab_size, int(pa.compute.max(tokens.flatten()).as_py() or 0))
            encoded = pa.RecordBatch.from_pydict(
                {
                    "id": pa.array(names.to_list(), pa.string()),
                    "input_ids": tokens,
                    "length": pa.compute.list_value_length(tokens),
                    "labels": pa.array(labels),
                }
            )
            writer = writer or pa.ipc.new_stream(str(out), encoded.schema)
            writer.write_batch(encoded)
            cut.append(encoded["length"].to_numpy())
    finally:
        if writer:
            writer.close()
    return Lengths(np.concatenate(uncut), np.concatenate(cut))


def encode_rows(
    family: Family, meta: Meta, tokenizer: BaseTokenizer, rows: pl.DataFrame, *, cut: bool
) -> tuple[list[list[int]], list[Any], np.ndarray[Any, Any]]:
    """Token ids, labels, and tokens before the cut, of each row; with `cut` none is longer than `max_seq_length`."""
    import numpy as np

    longest = meta["max_seq_length"]
    ids, labels = family.encode(rows, meta, tokenizer.ids)
    lengths = np.fromiter(map(len, ids), np.int32, len(ids))
    overlong = np.flatnonzero(lengths > longest).tolist() if cut else []
    if overlong:
        shorter, _ = family.encode(rows[overlong], meta, lambda texts: tokenizer.cut_ids(texts, longest))
        for place, tokens in zip(overlong, shorter, strict=True):
            ids[place] = tokens
    return ids, labels, lengths


def _from_json(base: Path) -> tuple[Tokenizer, dict[str, Any]]:
    from tokenizers import Tokenizer

    notes = base / "tokenizer_config.json"
    options: dict[str, Any] = json.loads(notes.read_text()) if notes.exists() else {}
    try:
        return Tokenizer.from_file(str(base / "tokenizer.json")), options
    except Exception as error:  # tokenizers raises nothing narrower
        remedy = "download the model again"
        raise _unusable(base, f"its tokenizer.json cannot be read: {_first_line(error)}", remedy) from error


def _from_transformers(base: Path, *, trust_remote_code: bool) -> tuple[Tokenizer, dict[str, Any]]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base, use_fast=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise _unusable(
            base, f"its tokenizer does not load: {_first_line(error)}", "name another base model"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise _unusable(base, "its tokenizer has no fast implementation", "convert it to a tokenizer.json")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return tokenizer.backend_tokenizer, {"pad_token_id": pad, "truncation_side": tokenizer.truncation_side}


def _pad_token_id(backend: Tokenizer, options: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    """What the tokenizer says, else the model; the end-of-text token for models that never padded."""
    for name in ("pad_token", "eos_token"):
        token = options.get(name)
        found = backend.token_to_id(token["content"] if isinstance(token, dict) else token) if token else None
        if found is not None:
            return found
        if name == "pad_token" and backend.padding:
            return int(backend.padding["pad_id"])
        if name == "pad_token" and config.get("pad_token_id") is not None:
            return int(config["pad_token_id"])
    return None


def _overlong_schema() -> pl.Schema:
    import polars as pl

    return pl.Schema({"id": pl.String, "side": pl.String, "tokens": pl.Int32})


@contextmanager
def _policy(tokenize: Tokenize, limit: int | None, file: Path) -> Iterator[Callable[[str], SetAside | None]]:
    """Side → what is done with its overlong rows: none for the cut; `file` takes those that are dropped."""
    import polars as pl

    from tasks.rows import Writer

    if tokenize.overlong == "truncate":
        yield lambda _: None
    elif tokenize.overlong == "raise":
        yield lambda side: partial(_refuse_overlong, tokenize, limit, side)
    else:
        with Writer(file, _overlong_schema()) as writer:

            def drop(side: str, ids: pl.Series, lengths: np.ndarray[Any, Any]) -> None:
                writer.write(pl.DataFrame({"id": ids, "side": [side] * len(ids), "tokens": lengths}))

            yield lambda side: partial(drop, side)


def _refuse_overlong(
    tokenize: Tokenize, limit: int | None, side: str, ids: pl.Series, lengths: np.ndarray[Any, Any]
) -> NoReturn:
    """Nothing after these rows was read: a longer one may follow."""
    longest = int(lengths.max())
    enough = longest + -longest % 8
    longer = f"raise tokenize.max_seq_length to {enough} or more, " if limit is None or enough <= limit else ""
    shown = ", ".join(ids.head(SHOWN_IDS)) + (" …" if len(ids) > SHOWN_IDS else "")
    rule = f"{side} rows have more than {tokenize.max_seq_length} tokens, up to {longest}: {shown}"
    remedy = f"{longer}shorten them, or set it to truncate or drop"
    raise DataError(Problem("tokenize.overlong", tokenize.overlong, rule, remedy))


def _refuse_empty_sides(tokenize: Tokenize, sides: Mapping[str, Lengths]) -> None:
    empty = [side for side, lengths in sides.items() if not len(lengths.cut)]
    if empty:
        rule = f"every row of {' and '.join(empty)} has more than {tokenize.max_seq_length} tokens"
        raise DataError(Problem("tokenize.overlong", tokenize.overlong, rule, "raise tokenize.max_seq_length"))


def _refuse_unreadable_length(tokenize: Tokenize, config: Mapping[str, Any]) -> None:
    limit = longest_input(config)
    if limit is not None and tokenize.max_seq_length > limit:
        rule = f"the base model reads at most {limit} tokens"
        raise RecipeError(
            Problem("tokenize.max_seq_length", tokenize.max_seq_length, rule, f"set it to {limit} or less")
        )


def _refuse_foreign_ids(vocab_size: int | None, largest: int) -> None:
    if vocab_size is not None and largest >= vocab_size:
        rule = f"the tokenizer makes token {largest}, the model knows {vocab_size}: they do not belong together"
        raise RecipeError(Problem("model.base", largest, rule, "put the tokenizer of this model into its folder"))


def _refuse_silent_loss(tokenize: Tokenize, uncut: np.ndarray[Any, Any], limit: int | None) -> None:
    import numpy as np

    share = float((uncut > tokenize.max_seq_length).mean())
    if share <= tokenize.max_truncated:
        return
    enough = int(np.quantile(uncut, 1 - tokenize.max_truncated, method="higher"))
    enough += -enough % 8
    longer = f"raise tokenize.max_seq_length to {enough} or " if limit is None or enough <= limit else ""
    happens = "lose text to the cut at" if tokenize.overlong == "truncate" else "are set aside for having more than"
    rule = (
        f"{share:.1%} of {len(uncut):,} rows {happens} {tokenize.max_seq_length} tokens "
        f"(95 % of the rows have up to {int(np.percentile(uncut, 95))}, the longest has {int(uncut.max())})"
    )
    remedy = f"{longer}raise tokenize.max_truncated above {share:.3f}"
    raise DataError(Problem("tokenize.max_truncated", tokenize.max_truncated, rule, remedy))


def _unusable(base: Path, rule: str, remedy: str) -> RecipeError:
    return RecipeError(Problem("model.base", str(base), rule, remedy))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


@stage_task
def tokenize(context: Context, sides: Artifact) -> Artifact:
    """Turn the rows' text into the base model's tokens."""
    recipe = context.recipe
    base, digest = base_model(recipe.model, context.home)
    return context.artifact(
        "tokenize",
        tokenize_rows,
        settings={"tokenize": recipe.tokenize, "task": recipe.task, "base_digest": digest},
        inputs={"split": sides},
        unkeyed={"base": base, "trust_remote_code": recipe.model.trust_remote_code},
        modules=(type(context.family).__module__,),
        apart_from=MEASURING,
        libraries=("polars", "pyarrow", "tokenizers"),
    )
