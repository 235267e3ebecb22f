"""Language codes around texts, as transformers' own tokenizers put them there."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from schemas.errors import RecipeError
from tasks.languages import languages, refuse_unnamed
from tasks.rules.writing import framed
from tasks.tokenizer import Base
from tests.learning import tiny_decoder, tiny_multilingual, tiny_translator

CODES = {"mbart50": ("en_XX", "fr_XX"), "mbart": ("en_XX", "fr_XX"), "nllb": ("eng_Latn", "fra_Latn")}


@pytest.mark.parametrize("kind", CODES)
def test_texts_are_framed_as_transformers_frames_them(kind, tmp_path):
    source, target = CODES[kind]
    folder = tiny_multilingual(tmp_path, kind)
    ours = Base(folder).tokenizer
    told = languages(source, target, ours, None)
    theirs = AutoTokenizer.from_pretrained(folder, src_lang=source, tgt_lang=target)
    expected = theirs("good film", text_target="GOOD", max_length=20)
    (read,), (written,) = ours.bare_ids(["good film"]), ours.bare_ids(["GOOD"])
    assert framed(read, told["read"], 20) == expected["input_ids"]
    labels = expected["labels"]
    # The oldest mBART's decoder starts from what is last among its labels, and writes no more after the end.
    labels = labels[:-1] if kind == "mbart" else labels
    assert framed(written, told["written"], 20) == labels


def test_a_decoder_starts_from_the_code_or_is_forced_to_begin_with_it(tmp_path):
    first, last = (Base(tiny_multilingual(tmp_path / kind, kind)).tokenizer for kind in ("mbart50", "mbart"))
    assert languages("en_XX", "fr_XX", first, None)["generation"] == {
        "decoder_start_token_id": 2, "forced_bos_token_id": first.added["fr_XX"],
    }  # fmt: skip
    assert languages("en_XX", "fr_XX", first, 0)["generation"]["decoder_start_token_id"] == 0
    assert languages("en_XX", "fr_XX", last, 2)["generation"] == {"decoder_start_token_id": last.added["fr_XX"]}


def test_the_cut_spares_codes_and_end():
    assert framed([5, 6, 7], [[1], [2]], 4) == [1, 5, 6, 2]
    assert framed([5], [[], [2, 1]], 2) == [2, 1]


def test_codes_may_be_named_without_their_marks(tmp_path):
    tokenizer = Base(tiny_multilingual(tmp_path, "plain")).tokenizer
    assert languages("en", "fr", tokenizer, 2) == languages("__en__", "__fr__", tokenizer, 2)


def test_what_is_no_code_is_refused_with_those_like_it(tmp_path):
    tokenizer = Base(tiny_multilingual(tmp_path / "m")).tokenizer
    with pytest.raises(RecipeError) as told:
        languages("en_XX", "fr_FR", tokenizer, 2)
    assert str(told.value).startswith(
        "task.target_code = 'fr_FR': the base model's tokenizer has no such language code; set it to one of its 52, "
        "such as fr_XX"
    )
    with pytest.raises(RecipeError, match=r"^task.source_code = '</s>': .* no such"):
        languages("</s>", "fr_XX", tokenizer, 2)
    with pytest.raises(RecipeError, match=r"no language codes; leave source_code and target_code out"):
        languages("en_XX", "fr_XX", Base(tiny_translator(tmp_path / "t5")).tokenizer, 0)


def test_a_multilingual_model_has_to_be_told_its_languages(tmp_path):
    with pytest.raises(RecipeError, match=r"^task.target_code: the base model writes 52 languages, .* such as ar_AR"):
        refuse_unnamed(Base(tiny_multilingual(tmp_path / "m")).tokenizer)
    refuse_unnamed(Base(tiny_translator(tmp_path / "t5")).tokenizer)
    refuse_unnamed(Base(tiny_decoder(tmp_path / "decoder")).tokenizer)
