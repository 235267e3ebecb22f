from __future__ import annotations

from importlib.metadata import EntryPoint

import polars as pl
import pytest

from schemas.errors import EnvironmentMistake, RecipeError
from tasks.rules import personal_data, redaction


def hide_ids(text: str) -> str:
    return text.replace("ID-1", "<ID>")


@pytest.fixture(autouse=True)
def forgetful():
    personal_data.redactor_of.cache_clear()
    yield
    personal_data.redactor_of.cache_clear()


def test_another_package_brings_a_redactor(monkeypatch):
    point = EntryPoint("my-ids", f"{__name__}:hide_ids", personal_data.GROUP)
    monkeypatch.setattr(personal_data, "entry_points", lambda group: [point])
    found = redaction.redactors(["email", "my-ids"])
    texts = pl.Series(["ID-1 kim@example.com", None])
    for redactor in found.values():
        texts = personal_data.redact(texts, redactor)
    assert texts.to_list() == ["<ID> <EMAIL>", None]
    assert found["my-ids"].module == __name__


def test_a_redactor_that_does_not_load_is_a_mistake(monkeypatch):
    point = EntryPoint("my-ids", "no_such_module:x", personal_data.GROUP)
    monkeypatch.setattr(personal_data, "entry_points", lambda group: [point])
    with pytest.raises(EnvironmentMistake, match="does not load: No module named 'no_such_module'"):
        redaction.redactors(["my-ids"])


def test_an_unknown_redactor_is_named_with_those_there_are():
    with pytest.raises(RecipeError) as caught:
        redaction.redactors(["email", "passport"])
    assert str(caught.value).startswith(
        "clean.redact = 'passport': no redactor of this name; name some of card, email, ip, phone"
    )
