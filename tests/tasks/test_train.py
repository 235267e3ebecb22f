from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from schemas.errors import EnvironmentMistake
from schemas.loading import validate_recipe
from schemas.recipe import Train
from tasks import train
from tasks.clean import clean
from tasks.collect import collect
from tasks.context import Context
from tasks.home import Home
from tasks.split import split
from tasks.tokenize import tokenize
from tests.learning import CHAT, WORDS, tiny_decoder, tiny_translator


def test_an_optimiser_that_is_not_installed_is_one_line_that_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentMistake) as refused:
        train.libraries_of(Train(optimizer="adamw-8bit"))
    assert str(refused.value) == (
        "train.optimizer = 'adamw-8bit': bitsandbytes is not installed; "
        "pip install 'hone[bitsandbytes]', or choose adafactor"
    )


def test_weights_of_4_bits_need_it_too_and_both_are_told_at_once(monkeypatch):
    wanted = Train.model_validate({"optimizer": "adamw-8bit", "method": "qlora"})
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentMistake) as refused:
        train.libraries_of(wanted)
    assert [problem.field for problem in refused.value.problems] == ["train.optimizer", "train.method"]
    assert str(refused.value.problems[1]) == (
        "train.method = 'qlora': bitsandbytes is not installed; "
        "pip install 'hone[bitsandbytes]' on a machine with a CUDA GPU, or choose lora"
    )


def test_an_optimiser_from_elsewhere_is_part_of_the_key(monkeypatch):
    monkeypatch.setattr(train, "find_spec", lambda name: object())
    assert "bitsandbytes" in train.libraries_of(Train(optimizer="adamw-8bit"))
    assert "bitsandbytes" in train.libraries_of(Train.model_validate({"method": "qlora"}))
    assert "bitsandbytes" not in train.libraries_of(Train.model_validate({"optimizer": "muon", "method": "dora"}))


# What trains a model that writes anew, and what does not.


PLAN = {
    "device": "cpu", "precision": "fp32", "attention": "sdpa", "threads": 1, "global_batch_size": 8,
    "micro_batch_tokens": 512, "steps": 4, "steps_per_epoch": 2, "warmup_steps": 1, "decay_steps": 0, "eval_steps": 2,
    "class_weights": None, "optimizer": "adamw", "label_smoothing": 0.0, "focal_gamma": 0.0, "preference_beta": 0.1,
    "activation_checkpointing": False, "memory_bytes": 0, "reasons": {},
}  # fmt: skip
LATE = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "bleu_tokenize": "char", "repetition_penalty": 1.2}


class Trained:
    """Runs the stages up to training of a recipe whose task is changed, and tells which jobs a child was given."""

    def __init__(self, folder, monkeypatch, task, base):
        base(folder / "base")
        pairs = [(f"the {first} {second}", first) for first in WORDS for second in WORDS]
        if task["family"] == "causal-lm":
            talks = [({"role": "user", "content": a}, {"role": "assistant", "content": b}) for a, b in pairs]
            rows = [{"messages": talk} for talk in talks]
        else:
            rows = [{"text": a, "target": b} for a, b in pairs]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        self.task, self.folder, self.jobs = task, folder, []
        monkeypatch.setattr(train, "children", SimpleNamespace(run=self._run))
        self.home = Home.open(folder / "home")

    def _run(self, logs, job, spec, event):
        self.jobs.append(job)
        assert not any(name in spec["task"] and spec["task"][name] == value for name, value in LATE.items())
        return PLAN if job == "plan" else {"steps": 4}

    def after(self, **change):
        """The jobs that a run with this change needs."""
        self.jobs.clear()
        recipe = validate_recipe(
            {
                "name": "tiny", "task": {**self.task, **change}, "model": {"base": str(self.folder / "base")},
                "collect": {"source": {"kind": "jsonl", "path": str(self.folder / "rows.jsonl")}},
                "clean": {"collapse_whitespace": False, "min_chars": 1, "max_quarantined": 0.5},
                "split": {"kind": "hash", "near_duplicates": {"search": False}}, "tokenize": {"max_seq_length": 48},
            }
        )  # fmt: skip
        context = Context(recipe, self.home, run_id="")
        cleaned = clean(context, collect(context))
        tokens = tokenize(context, cleaned, split(context, cleaned))
        train.train(context, tokens)
        self.meta = json.loads((context.path(tokens) / "meta.json").read_text())
        return self.jobs


@pytest.mark.parametrize(
    ("task", "base", "teaches"),
    [
        ({"family": "causal-lm"}, tiny_decoder, {"chat_template": CHAT}),
        ({"family": "translation", "target_language": "X"}, tiny_decoder, {"instruction": "Say it."}),
        ({"family": "summarization"}, tiny_decoder, {"instruction": "Briefly."}),
        ({"family": "summarization"}, tiny_translator, {"prefix": "so "}),
        # With an encoder the target is cut there, so that tokens and weights depend on it.
        ({"family": "summarization"}, tiny_translator, {"max_new_tokens": 1}),
    ],
    ids=["conversations", "translation", "summaries", "prefix", "cut"],
)
def test_how_texts_are_written_and_measured_trains_nothing_anew(task, base, teaches, tmp_path, monkeypatch):
    trained = Trained(tmp_path, monkeypatch, task, base)
    assert trained.after() == ["plan", "train"]
    assert trained.after(**LATE) == []
    assert trained.after(num_beams=4, length_penalty=2.0, no_repeat_ngram_size=3) == []
    if base is tiny_decoder:
        assert trained.after(max_new_tokens=7) == []
    assert not {"generation", "bleu_tokenize"} & trained.meta.keys()
    assert trained.after(**teaches) == ["plan", "train"]
