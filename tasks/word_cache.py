"""Token ids from a cache of words, for tokenizers to which a space is always a border.

To such a tokenizer a text is the tokens of its words, one after the other, and a few words make most of any text:
looking them up costs less than tokenizing every text anew. Covers BERT's kind alone; tokenizers that keep the space,
as those of GPT and SentencePiece do, are asked for every text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_WORDS = 200_000
"""Words kept, some 40 MB: the first ones, among which the frequent ones are."""
NORMALIZERS = frozenset({None, "BertNormalizer", "Lowercase"})
"""They change characters one by one, or never beyond a space."""
SPLITTING = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
"""Pre-tokenizers that split at every space and drop it."""
MODELS = frozenset({"WordPiece", "WordLevel"})


class WordCache:
    """Token ids of texts, special tokens included, by their words.

    Args:
        backend: A tokenizer that `splits_at_spaces` and neither cuts nor pads when it is called.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._words: dict[str, list[int]] = {}
        around = backend.encode("").ids
        alone = (backend.encode(word).ids for word in sorted(backend.get_vocab()))
        # A word that is one of the special tokens itself would not show where it stands among them.
        example = next(ids for ids in alone if len(ids) == len(around) + 1 and not set(ids) <= set(around))
        place = next((i for i, token in enumerate(around) if example[i] != token), len(around))
        self._before, self._after = around[:place], around[place:]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, uncut."""
        split = [text.split(" ") for text in texts]
        new = list({word for words in split for word in words} - self._words.keys())
        encoded = self._backend.encode_batch_fast(new, add_special_tokens=False)
        self._words.update(zip(new, (encoding.ids for encoding in encoded), strict=True))
        known, before, after = self._words.__getitem__, self._before, self._after
        found = [[*before, *chain.from_iterable(map(known, words)), *after] for words in split]
        if len(self._words) > MAX_WORDS:
            for word in new:
                del self._words[word]
        return found


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
