"""A trained model's folder as it is served."""

from __future__ import annotations

import json

from tasks.served_folder import as_served


def test_what_the_recipe_says_of_answering_is_added_and_the_model_stays_as_it_was(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "hone.json").write_text(json.dumps({"prefix": "so "}))
    with as_served(model, {"generation": {"max_new_tokens": 3}}, tmp_path) as folder:
        assert (folder / "model.safetensors").read_bytes() == b"weights"
        assert json.loads((folder / "hone.json").read_text()) == {"prefix": "so ", "generation": {"max_new_tokens": 3}}
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    assert json.loads((model / "hone.json").read_text()) == {"prefix": "so "}


def test_a_model_with_nothing_to_be_told_is_served_from_its_own_folder(tmp_path):
    with as_served(tmp_path, {}, tmp_path) as folder:
        assert folder == tmp_path
