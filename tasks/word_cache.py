"""Token ids from a cache of words, for tokenizers to which a space is always a border.

To such a tokenizer a text is the tokens of its words, one after the other, and a few words make most of any text:
looking them up costs less than tokenizing every text anew. Covers BERT's kind alone; tokenizers that keep the space,
as those of GPT and SentencePiece do, are asked for every text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    Ints = np.ndarray[Any, np.dtype[np.integer[Any]]]

MAX_WORDS = 200_000
"""Words kept, some 40 MB: the first ones, among which the frequent ones are."""
NORMALIZERS = frozenset({None, "BertNormalizer", "Lowercase"})
"""They change characters one by one, or never beyond a space."""
SPLITTING = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
"""Pre-tokenizers that split at every space and drop it."""
BEFORE, AFTER = 0, 1
"""Codes of what stands before every text and behind it: words as others are."""
MODELS = frozenset({"WordPiece", "WordLevel"})


class WordCache:
    """Token ids of texts, special tokens included, by their words.

    Args:
        backend: A tokenizer that `splits_at_spaces` and neither cuts nor pads when it is called.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._codes: dict[str, int] = {}
        self._tokens, self._ends = np.empty(0, np.int32), np.zeros(1, np.int64)
        around = backend.encode("").ids
        alone = (backend.encode(word).ids for word in sorted(backend.get_vocab()))
        # A word that is one of the special tokens itself would not show where it stands among them.
        example = next(ids for ids in alone if len(ids) == len(around) + 1 and not set(ids) <= set(around))
        place = next((i for i, token in enumerate(around) if example[i] != token), len(around))
        self._keep([around[:place], around[place:]])

    def ids(self, texts: Sequence[str]) -> pa.ListArray:
        """Token ids of each text, int32, special tokens included, uncut."""
        split = pa.compute.split_pattern(pa.array(texts, pa.string()), " ")
        words = split.flatten().dictionary_encode()
        distinct = words.dictionary.to_pylist()
        known = self._codes
        new = [word for word in distinct if word not in known]
        kept = len(self._ends)
        if new:
            encoded = self._backend.encode_batch_fast(new, add_special_tokens=False)
            known.update(zip(new, self._keep([encoding.ids for encoding in encoded]), strict=True))
        codes = np.fromiter(map(known.__getitem__, distinct), np.int64, len(distinct))
        found = self._joined(codes[words.indices.to_numpy()], split.offsets.to_numpy())
        if len(known) > MAX_WORDS:
            for word in new:
                del known[word]
            self._ends = self._ends[:kept]
            self._tokens = self._tokens[: self._ends[-1]]
        return found

    def _keep(self, words: Sequence[Sequence[int]]) -> range:
        """Keep the token ids of further words; the codes that they go by."""
        sizes = np.fromiter(map(len, words), np.int64, len(words))
        tokens = np.fromiter(chain.from_iterable(words), np.int32, sizes.sum())
        first = len(self._ends) - 1
        self._ends = np.concatenate([self._ends, self._ends[-1] + np.cumsum(sizes)])
        self._tokens = np.concatenate([self._tokens, tokens])
        return range(first, first + len(words))

    def _joined(self, words: Ints, offsets: Ints) -> pa.ListArray:
        """The token ids of each text, those of its words one after the other between the special ones.

        Args:
            words: Codes of all words, text after text.
            offsets: Where each text's words begin among them, and where the last one's end.
        """
        text = np.arange(len(offsets) - 1)
        first, last = offsets[:-1] + 2 * text, offsets[1:] + 2 * text + 1
        inner = np.ones(len(words) + 2 * len(text), bool)
        inner[first] = inner[last] = False
        codes = np.empty(len(inner), np.int64)
        codes[inner], codes[first], codes[last] = words, BEFORE, AFTER

        begins = self._ends[codes]
        sizes = self._ends[codes + 1] - begins
        reached = np.cumsum(sizes)
        # Of each token where its word begins among those kept, and how far into the word it is.
        places = np.repeat(begins - (reached - sizes), sizes)
        places += np.arange(len(places))
        return pa.ListArray.from_arrays(np.append(0, reached[last]).astype(np.int32), self._tokens[places])


def splits_at_spaces(backend: Tokenizer) -> bool:
    """Whether a text's tokens are those of its words between spaces, whatever stands beside them."""
    parts = json.loads(backend.to_str())
    kinds = {name: (parts[name] or {}).get("type") for name in ("normalizer", "pre_tokenizer", "model")}
    return (
        kinds["normalizer"] in NORMALIZERS
        and kinds["pre_tokenizer"] in SPLITTING
        and kinds["model"] in MODELS
        and not any(" " in token["content"] for token in parts["added_tokens"])
        and not any(token["single_word"] for token in parts["added_tokens"])
        and len(backend.encode("").ids) == backend.num_special_tokens_to_add(is_pair=False)
    )
