from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from schemas.errors import Fault, Mistake
from tasks import onnx_export
from tasks.families.text_classification import TextClassification
from tests.tiny_classifier import LABELS, WORDS, tiny_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TEXTS = [" ".join(WORDS[(i * 7 + j * 3) % 60] for j in range(1 + i)) for i in range(40)]
"""Of 1 to 40 words; the models read 16 tokens."""
OTHERS = ["w5 w9", "w1", " ".join(WORDS[10:21])]
"""Of lengths and a number that the export does not see."""

SERVING = """
from pathlib import Path

import torch
import transformers


class Model:
    def load_context(self, context):
        folder = Path(context.artifacts["model"])
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.HEAD.from_pretrained(folder, dtype=torch.float32).eval()

    def predict(self, context, rows, params=None):
        texts = [rows[column].tolist() for column in rows.columns]
        batch = self.tokenizer(*texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
        with torch.inference_mode():
            self.model(**batch)


MODEL = Model()
"""
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 40, "initializer_range": 0.5, "pad_token_id": 0,
}  # fmt: skip
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
MODERN = {"local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3}


def export(folder: Path, serving: Path, **columns: list[str]) -> dict[str, Any]:
    rows, out = folder / "rows.parquet", folder / "onnx"
    pl.DataFrame(columns).write_parquet(rows)
    out.mkdir()
    return onnx_export.export_onnx(
        emit=lambda *args: None,
        serving=str(serving),
        model=str(folder / "model"),
        rows=str(rows),
        columns=list(columns),
        out=str(out),
    )


def said_by_file(folder: Path, *texts: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    """What the ONNX file says of texts, by nothing but what lies beside it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "onnx" / "tokenizer.json"))
    encoded = tokenizer.encode_batch(list(zip(*texts, strict=True)) if len(texts) > 1 else texts[0])
    known = {
        "input_ids": [each.ids for each in encoded],
        "attention_mask": [each.attention_mask for each in encoded],
        "token_type_ids": [each.type_ids for each in encoded],
    }
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    feed = {each.name: np.array(known[each.name]) for each in session.get_inputs()}
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, feed), strict=True))


def said_by_model(folder: Path, head: str, *texts: list[str]) -> Mapping[str, torch.Tensor]:
    """What transformers say of the same texts."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    batch = tokenizer(*texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    model = getattr(transformers, head).from_pretrained(folder / "model", dtype=torch.float32).eval()
    with torch.inference_mode():
        found: Mapping[str, torch.Tensor] = model(**batch)
    return found


def test_the_file_of_a_classifier_needs_onnxruntime_and_tokenizers_alone(tmp_path: Path) -> None:
    tiny_model(tmp_path, seed=1, pad_token_id=0)
    about = export(tmp_path, TextClassification.serving, text=TEXTS)
    assert [(each["name"], each["axes"]) for each in about["inputs"]] == [
        ("input_ids", ["batch", "sequence"]),
        ("attention_mask", ["batch", "sequence"]),
    ]
    assert about["outputs"] == [{"name": "logits", "type": "tensor(float)", "axes": ["batch", 2]}]
    assert (about["labels"], about["max_seq_length"]) == (LABELS, 16)
    checked = about["checked"]
    assert checked["shapes"] == [[1, 3], [1, 16], [2, 16], [7, 16], [32, 16]]
    assert (checked["rows"], 0 < checked["largest_difference"] < 1e-4) == (40, True)

    for texts in (OTHERS, [" ".join(WORDS[:30])], TEXTS):
        expected = said_by_model(tmp_path, "AutoModelForSequenceClassification", texts)
        assert said_by_file(tmp_path, texts)["logits"] == pytest.approx(expected["logits"].numpy(), abs=1e-4)


def other_model(folder: Path, head: str, kind: str) -> None:
    """A random model of another architecture or another head, with the tokenizer of the tiny classifier."""
    import transformers

    tiny_model(folder, seed=1)
    changed = {"distilbert": DISTIL, "modernbert": MODERN}.get(kind, {})
    torch.manual_seed(2)
    config = transformers.AutoConfig.for_model(kind, **SIZES | changed, num_labels=2 if head == HEADS[2] else 3)
    getattr(transformers, head).from_config(config).save_pretrained(folder / "model")


HEADS = ["AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModelForQuestionAnswering"]


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "modernbert"])
def test_every_encoder_is_exported_as_it_computes(tmp_path: Path, head: str, kind: str) -> None:
    import transformers

    other_model(tmp_path, head, kind)
    serving = tmp_path / "serve.py"
    serving.write_text(SERVING.replace("HEAD", head))
    pair = [TEXTS[::-1]] if head == HEADS[2] else []
    about = export(tmp_path, serving, text=TEXTS, **({"other": pair[0]} if pair else {}))
    texts = [OTHERS, OTHERS[::-1]] if pair else [OTHERS]
    given = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")(*texts, padding=True)
    assert {each["name"] for each in about["inputs"]} == set(given)
    mask = np.array(given["attention_mask"])[:, :16]
    expected = said_by_model(tmp_path, head, *texts)
    found = said_by_file(tmp_path, *texts)
    assert set(found) == ({"start_logits", "end_logits"} if pair else {"logits"})
    for name, value in found.items():
        real = mask == 1 if value.shape[:2] == mask.shape else np.full(len(value), fill_value=True)
        assert value[real] == pytest.approx(expected[name].numpy()[real], abs=1e-4)


class Network(torch.nn.Module):
    def __init__(self, *, fork: bool = False) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(9, 2)
        self.fork = fork

    def forward(self, input_ids: torch.Tensor, use_cache: bool | None = None) -> dict[str, torch.Tensor]:
        found = self.embedding(input_ids).sum(1)
        return {"logits": found * 2 if self.fork and found.sum() > 0 else found}


BATCH = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}


def refused(refusal: pytest.ExceptionInfo[Mistake]) -> str:
    (problem,) = refusal.value.problems
    line = str(problem)
    assert "\n" not in line
    assert line.endswith("; leave registry.onnx out")
    return line


def test_a_network_that_decides_by_what_it_reads_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(Mistake) as refusal:
        onnx_export._export(Network(fork=True), BATCH, ["logits"], tmp_path / "model.onnx")
    assert "registry.onnx = True: Network cannot be exported to ONNX" in refused(refusal)


def test_a_network_that_is_handed_more_than_tensors_is_refused() -> None:
    network = Network()
    served = SimpleNamespace(model=network, predict=lambda *args: network(BATCH["input_ids"], use_cache=True))
    with pytest.raises(Mistake) as refusal:
        onnx_export._handed_over(served, onnx_export._network_of(served), [pl.DataFrame({"text": ["a"]}).to_pandas()])
    assert "use_cache is handed to it, which is no tensor" in refused(refusal)


def test_a_served_model_of_several_networks_is_refused() -> None:
    with pytest.raises(Mistake) as refusal:
        onnx_export._network_of(SimpleNamespace(one=Network(), other=Network()))
    assert "it has 2 networks" in refused(refusal)


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    network = Network()
    onnx_export._export(network, BATCH, ["logits"], tmp_path / "model.onnx")
    session = onnx_export._session(tmp_path / "model.onnx")
    longer = {"input_ids": torch.tensor([[7, 8, 1, 2, 3]])}
    assert onnx_export._compared(network, session, [BATCH, longer]) < 1e-6
    for wrong in (0.01, float("nan")):
        network.embedding.weight.data[8] += wrong  # only the second batch reads it
        assert onnx_export._compared(network, session, [BATCH]) < 1e-6
        with pytest.raises(Fault, match=r"differs from the model by (0\.01|nan), which is more than 0\.001"):
            onnx_export._compared(network, session, [BATCH, longer])


def test_the_tokenizer_reads_long_texts_in_the_windows_of_training(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tiny_model(tmp_path, seed=1, overlong="window", stride=4)
    about = onnx_export._write_tokenizer(tmp_path / "model", tmp_path)
    assert about == {"labels": LABELS, "max_seq_length": 16, "stride": 4}
    first = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(" ".join(WORDS[:30]))
    read = [[word for word in each.tokens if word in WORDS] for each in (first, *first.overflowing)]
    assert read == [WORDS[:14], WORDS[10:24], WORDS[20:30]]
    assert {len(each.ids) for each in (first, *first.overflowing)} == {16}


def test_of_a_pair_only_the_second_text_is_cut(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tiny_model(tmp_path, seed=1)
    onnx_export._write_tokenizer(tmp_path / "model", tmp_path, pairs=True)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    read = tokenizer.encode(" ".join(WORDS[:9]), " ".join(WORDS[20:40]))
    words = [word for word in read.tokens if word in WORDS]
    assert words[:9] == WORDS[:9]
    assert words[9:] == WORDS[20 : 20 + len(words) - 9]
    assert len(words) > 9
    assert len(read.ids) == 16
