from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest
from seqeval.metrics.sequence_labeling import get_entities
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tasks.rules import tagging

CORPUS = [
    "the émigré's caf\u00e9 — 😀 naïve O'Neill paid $3.50 !",
    "don't un-do it , please ( now )",
    "plain words only",
] * 3
TEXTS = [
    "the café",
    "  don't   pay $3.50 !",
    "😀 naïve\u00a0émigré's 😀😀 ( now )",
    "x \u200d y",  # a joiner alone is a word, of which BERT leaves no token
    "unheard-of zzz",
]


def special(tokenizer, first, last):
    ids = [(name, tokenizer.token_to_id(name)) for name in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=ids)
    return tokenizer


def bert():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    train = trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.train_from_iterator(CORPUS, train)
    return special(tokenizer, "[CLS]", "[SEP]")


def byte_level(*, trim, prefix):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    train = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, train)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=trim, add_prefix_space=prefix)
    return tokenizer


def sentencepiece():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    train = trainers.UnigramTrainer(vocab_size=80, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, train)
    return special(tokenizer, "<s>", "</s>")


TOKENIZERS = {
    "bert": bert,
    "roberta": lambda: byte_level(trim=True, prefix=False),
    "roberta with a space before": lambda: byte_level(trim=True, prefix=True),
    "gpt2": lambda: byte_level(trim=False, prefix=False),
    "sentencepiece": sentencepiece,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_word_is_told_by_the_token_that_begins_it(kind):
    tokenizer = TOKENIZERS[kind]()
    for text in [*TEXTS, *CORPUS[:3]]:
        encoding = tokenizer.encode(text)
        words = tagging.bounds_of(text)
        assert [text[begin:end] for begin, end in words] == text.split()
        first = tagging.first_tokens(words, encoding.offsets)
        told = [word for word in first if word != tagging.NO_WORD]
        lost = [word for word, (begin, end) in enumerate(words) if text[begin:end] == "\u200d" and kind == "bert"]
        assert told == [word for word in range(len(words)) if word not in lost]
        for token, word in enumerate(first):
            if word != tagging.NO_WORD:
                # Whatever the tokenizer counts to it, its first letter is that of the word.
                begin, end = encoding.offsets[token]
                assert text[begin:end].lstrip()[:1] == text[words[word][0]]


def test_a_window_that_begins_within_a_word_does_not_tell_it():
    words = tagging.bounds_of("abcd ef")
    assert tagging.first_tokens(words, [(2, 4), (4, 6), (6, 7), (0, 0)]) == [-1, 1, -1, -1]


def test_of_several_windows_the_one_furthest_from_a_cut_counts():
    windows = [[-1, 0, 1, 2, 3, -1], [-1, 2, 3, 4, 5, -1], [-1, 4, 5, -1]]
    assert tagging.places_of(windows, 6) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (1, 4)]
    # The end of the text is no cut: 4 is three tokens from one in the second window, one in the third.
    assert tagging.places_of(windows[:1], 6)[4:] == [None, None]


# By hand, after conlleval.
ENTITIES = [
    ("O O", []),
    ("B-A I-A O B-B", [("A", 0, 2), ("B", 3, 4)]),
    ("B-A B-A I-A", [("A", 0, 1), ("A", 1, 3)]),
    ("I-A I-A O I-B", [("A", 0, 2), ("B", 3, 4)]),  # I- begins an entity, too
    ("B-A I-B", [("A", 0, 1), ("B", 1, 2)]),
    ("S-A B-A I-A E-A E-A", [("A", 0, 1), ("A", 1, 4), ("A", 4, 5)]),
    ("B-A-B I-A-B", [("A-B", 0, 2)]),  # a type may have a dash
]


@pytest.mark.parametrize(("tags", "entities"), ENTITIES)
def test_entities_are_those_that_conlleval_sees(tags, entities):
    assert tagging.entities_of(tags.split(), "bio") == entities


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
def test_entities_are_those_of_seqeval(prefixes):
    draw = random.Random(3)
    tags = ["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in "XY")]
    for _ in range(500):
        row = draw.choices(tags, k=draw.randint(1, 9))
        theirs = [(kind, begin, end + 1) for kind, begin, end in get_entities(row)]
        assert tagging.entities_of(row, "bio") == theirs


def test_without_a_scheme_every_word_is_an_entity():
    assert tagging.entities_of(["NN", "O"], "none") == [("NN", 0, 1), ("O", 1, 2)]


@pytest.mark.parametrize(
    ("scheme", "whole", "broken"),
    [
        ("bio", ["O B-A I-A B-A", "B-A B-B"], ["I-A", "O I-A", "B-A I-B"]),
        ("iob1", ["O I-A I-A B-A", "I-A I-B"], ["B-A", "I-A O B-A", "I-A B-B"]),
        ("bioes", ["S-A B-A I-A E-A O", "B-A E-A S-B"], ["B-A", "B-A O", "B-A E-B", "I-A E-A", "E-A", "B-A S-A"]),
        ("none", ["I-A", "NN O E-B"], []),
    ],
)
def test_what_a_scheme_allows(scheme, whole, broken):
    assert [tagging.is_broken(tags.split(), scheme) for tags in whole] == [False] * len(whole)
    assert [tagging.is_broken(tags.split(), scheme) for tags in broken] == [True] * len(broken)


@pytest.mark.parametrize("scheme", ["bio", "iob1", "bioes"])
def test_the_most_probable_sequence_that_the_scheme_allows_is_found(scheme):
    """Against all sequences there are."""
    tags = ["O", *(f"{prefix}-{kind}" for kind in "XY" for prefix in ("BIES" if scheme == "bioes" else "BI"))]
    random = np.random.default_rng(5)
    for _ in range(10):
        probabilities = random.dirichlet(np.full(len(tags), 0.5), size=3)
        allowed = [
            places
            for places in product(range(len(tags)), repeat=3)
            if not tagging.is_broken([tags[place] for place in places], scheme)
        ]
        best = max(allowed, key=lambda places: np.log(probabilities[range(3), places]).sum())
        found, scores = tagging.tagged([probabilities], [[0, 1, 2]], 3, tags, scheme)
        assert found == [tags[place] for place in best]
        assert scores == pytest.approx(probabilities[range(3), best])


def test_a_word_that_was_cut_lies_outside_and_parts_what_is_around_it():
    certain = np.eye(5)[[1, 2, 3]]  # B, I, E
    tags = ["O", "B-A", "I-A", "E-A", "S-A"]
    assert tagging.tagged([certain], [[0, 1, 2]], 4, tags, "bioes") == (
        ["B-A", "I-A", "E-A", "O"],
        [1.0, 1.0, 1.0, 0.0],
    )
    found, scores = tagging.tagged([certain], [[0, 2, 3]], 4, tags, "bioes")
    assert (found[1], scores[1]) == ("O", 0.0)
    assert not tagging.is_broken(found, "bioes")
    assert tagging.tagged([certain], [[-1, -1, -1]], 2, tags, "bioes") == (["O", "O"], [0.0, 0.0])
