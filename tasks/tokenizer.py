"""The base model's tokenizer: text to token ids, whole, cut or in windows; and how long a sequence the model reads.

Does not cover tokenizers that have no fast (Rust) implementation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from schemas.errors import Problem, RecipeError

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

    from tasks.word_cache import WordCache

OFFSET_BY_PADDING = frozenset({"camembert", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"})
"""Architectures that number positions from after the padding token's id: they read that many tokens fewer."""

Spans = tuple[list[int], list[tuple[int, int]]]
"""Token ids of a window, and the characters of the text that each token stands for; special tokens stand for none."""


@dataclass(frozen=True)
class Base:
    """What the base model says of text, read when it is first asked for.

    Attributes:
        folder: Of the base model.
        trust_remote_code: Whether a tokenizer that comes as Python code may run.
    """

    folder: Path
    trust_remote_code: bool = False

    @cached_property
    def config(self) -> dict[str, Any]:
        """See `read_config`."""
        return read_config(self.folder)

    @cached_property
    def tokenizer(self) -> BaseTokenizer:
        """See `load_tokenizer`."""
        return load_tokenizer(self.folder, self.config, trust_remote_code=self.trust_remote_code)

    def release(self) -> None:
        """Give the tokenizer's memory back, that of its words above all; asked again, it is loaded again."""
        vars(self).pop("tokenizer", None)


@dataclass(frozen=True)
class BaseTokenizer:
    """The base model's tokenizer, which neither cuts nor pads of its own accord.

    Attributes:
        truncation_side: The end that the cut takes text from.
        special: Special tokens by the names that chat templates use: `bos_token`, `eos_token` …
        chat_template: Jinja, where the model has one.
        stop: Tokens that end what the model writes, its own end-of-text token first.
        encoder_decoder: Whether the model reads and writes in parts of their own.
        kind: Its class in transformers, where it says so.
    """

    backend: Tokenizer
    pad_token_id: int
    truncation_side: Literal["left", "right"]
    special: Mapping[str, str] = field(default_factory=dict)
    chat_template: str | None = None
    stop: tuple[int, ...] = ()
    encoder_decoder: bool = False
    kind: str = ""

    @cached_property
    def added(self) -> dict[str, int]:
        """Special tokens beside the vocabulary, those of languages among them → their ids."""
        found = self.backend.get_added_tokens_decoder()
        return {token.content: number for number, token in sorted(found.items()) if token.special}

    @cached_property
    def _words(self) -> WordCache | None:
        from tasks.word_cache import WordCache, splits_at_spaces

        return WordCache(self.backend) if splits_at_spaces(self.backend) else None

    @cached_property
    def special_tokens(self) -> int:
        """Special tokens around a text."""
        return int(self.backend.num_special_tokens_to_add(is_pair=False))

    def ids(self, texts: Sequence[str]) -> pa.ListArray:
        """Token ids of each text, int32, special tokens included, uncut."""
        import pyarrow as pa

        if self._words is not None:
            return self._words.ids(texts)
        encoded = self.backend.encode_batch_fast(list(texts))
        return pa.array([encoding.ids for encoding in encoded], pa.list_(pa.int32()))

    def bare_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, uncut, without special tokens but those in the text."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def cut_ids(self, texts: Sequence[str], longest: int) -> list[list[int]]:
        """Token ids of each text, special tokens included and spared by the cut to `longest` tokens."""
        with self._cutting(longest):
            return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts))]

    def windows(self, texts: Sequence[str], longest: int, stride: int) -> list[list[list[int]]]:
        """Token ids of the windows of each text, as transformers makes them with `return_overflowing_tokens`.

        Args:
            texts: What is encoded.
            longest: Most tokens of a window, its special tokens included.
            stride: Tokens that neighbouring windows share.
        """
        with self._cutting(longest, stride):
            return [
                [encoding.ids, *(further.ids for further in encoding.overflowing)]
                for encoding in self.backend.encode_batch_fast(list(texts))
            ]

    def placed(self, texts: Sequence[str]) -> list[Spans]:
        """Token ids of each text and the characters they stand for, without special tokens but those in the text."""
        return [
            (encoding.ids, encoding.offsets)
            for encoding in self.backend.encode_batch(list(texts), add_special_tokens=False)
        ]

    def spans(self, texts: Sequence[str], longest: int | None = None, stride: int = 0) -> list[list[Spans]]:
        """The windows of each text; one, which has all of it, where there is no `longest`.

        Args:
            texts: What is encoded.
            longest: Most tokens of a window, its special tokens included.
            stride: Tokens that neighbouring windows share.
        """
        with nullcontext() if longest is None else self._cutting(longest, stride):
            return [
                [(each.ids, each.offsets) for each in (encoding, *encoding.overflowing)]
                for encoding in self.backend.encode_batch(list(texts))
            ]

    @contextmanager
    def _cutting(self, longest: int, stride: int = 0) -> Iterator[None]:
        self.backend.enable_truncation(longest, stride=stride, direction=self.truncation_side)
        try:
            yield
        finally:
            self.backend.no_truncation()


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
        backend, options = _from_transformers(base, config, trust_remote_code=trust_remote_code)
        pad_token_id = options["pad_token_id"]
    if pad_token_id is None:
        raise _unusable(base, "its tokenizer has no token to pad with", "add pad_token to its tokenizer_config.json")
    backend.no_truncation()  # sentence-transformers models carry a cut and a padding of their own
    backend.no_padding()
    special = _special_tokens(options)
    return BaseTokenizer(
        backend,
        int(pad_token_id),
        "left" if options.get("truncation_side") == "left" else "right",
        special,
        _chat_template(base, options),
        _stop(base, config, backend.token_to_id(special["eos_token"]) if "eos_token" in special else None),
        bool(config.get("is_encoder_decoder")),
        str(options.get("tokenizer_class") or config.get("tokenizer_class") or ""),
    )


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


def _from_json(base: Path) -> tuple[Tokenizer, dict[str, Any]]:
    from tokenizers import Tokenizer

    notes = base / "tokenizer_config.json"
    options: dict[str, Any] = json.loads(notes.read_text()) if notes.exists() else {}
    try:
        return Tokenizer.from_file(str(base / "tokenizer.json")), options
    except Exception as error:  # tokenizers raises nothing narrower
        remedy = "download the model again"
        raise _unusable(base, f"its tokenizer.json cannot be read: {_first_line(error)}", remedy) from error


def _from_transformers(
    base: Path, config: Mapping[str, Any], *, trust_remote_code: bool
) -> tuple[Tokenizer, dict[str, Any]]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base, use_fast=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise _unusable(
            base, f"its tokenizer does not load: {_first_line(error)}", "name another base model"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise _unusable(base, "its tokenizer has no fast implementation", "convert it to a tokenizer.json")
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = _end_of_text(tokenizer.eos_token_id, config)
    options = {"pad_token_id": pad, "truncation_side": tokenizer.truncation_side}
    options |= {"tokenizer_class": type(tokenizer).__name__}
    return tokenizer.backend_tokenizer, options | dict(tokenizer.special_tokens_map)


def _pad_token_id(backend: Tokenizer, options: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    """What the tokenizer says, else the model; else the end-of-text token, see `_end_of_text`."""
    found = _id_of(backend, options.get("pad_token"))
    if found is not None:
        return found
    if backend.padding:
        return int(backend.padding["pad_id"])
    if config.get("pad_token_id") is not None:
        return int(config["pad_token_id"])
    return _end_of_text(_id_of(backend, options.get("eos_token")), config)


def _end_of_text(named: int | None, config: Mapping[str, Any]) -> int | None:
    """The token that ends texts, to pad a model with that never padded: attention is masked there, so any would do.

    None for encoders with a decoder, whose heads are read where texts end: they count these tokens.

    Args:
        named: The tokenizer's own.
        config: The model's.
    """
    if config.get("is_encoder_decoder"):
        return None
    if named is not None:
        return named
    known = config.get("eos_token_id")
    first = known[0] if isinstance(known, list) and known else known
    return first if isinstance(first, int) else None


def _special_tokens(options: Mapping[str, Any]) -> dict[str, str]:
    """Names of templates → special tokens."""
    named = {name: _content(token) for name, token in options.items() if name.endswith("_token")}
    return {name: token for name, token in named.items() if token}


def _chat_template(base: Path, options: Mapping[str, Any]) -> str | None:
    """The model's own: in a file of its own, or among the tokenizer's options, alone or named `default`."""
    file = base / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    found = options.get("chat_template")
    if isinstance(found, list):
        found = next((each["template"] for each in found if each.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _stop(base: Path, config: Mapping[str, Any], end: int | None) -> tuple[int, ...]:
    """Tokens that end what the model writes: the tokenizer's, and those that the model's own files name."""
    file = base / "generation_config.json"
    notes: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    named = [end]
    for known in (notes.get("eos_token_id"), config.get("eos_token_id")):
        named += known if isinstance(known, list) else [known]
    return tuple(dict.fromkeys(token for token in named if isinstance(token, int)))


def _id_of(backend: Tokenizer, token: Any) -> int | None:
    """Of a token as `tokenizer_config.json` names it; none where it is not in the vocabulary."""
    content = _content(token)
    return backend.token_to_id(content) if content else None


def _content(token: Any) -> str | None:
    """The text of a token as `tokenizer_config.json` names it."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _unusable(base: Path, rule: str, remedy: str) -> RecipeError:
    return RecipeError(Problem("model.base", str(base), rule, remedy))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
