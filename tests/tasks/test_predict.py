from __future__ import annotations

import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from schemas import frames
from tasks import predict
from tasks.batches import TokenTable, micro_batches
from tasks.families.text_classification import TextClassification
from tests.learning import tiny_encoder, token_files

META = {"labels": ["negative", "positive"], "pad_token_id": 0}


class Counting(TextClassification):
    """Gives each row a probability by its first token t alone: t % for positive."""

    def outputs(self, model, batch, weights):
        positive = batch["input_ids"][:, 0].float() / 100
        return torch.stack([1 - positive, positive], 1).numpy(), batch["labels"].sum().float()


MODEL = torch.nn.Linear(1, 1)


def token_file(path: Path, rows: list[tuple[str, int, int]], chunk: int = 3) -> TokenTable:
    """A table of rows (id, token, label) of 1, 3 … 11 tokens, and again."""
    ids = [[token] * (1 + 2 * i % 12) for i, (_, token, _) in enumerate(rows)]
    table = pa.table(
        {
            "id": [name for name, _, _ in rows],
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "length": pa.array([len(row) for row in ids], pa.int32()),
            "labels": pa.array([label for _, _, label in rows], pa.int64()),
        }
    )
    with pa.ipc.new_stream(path, table.schema) as stream:
        for batch in table.to_batches(max_chunksize=chunk):
            stream.write_batch(batch)
    return TokenTable(path, 0)


WINDOWED = [
    ("a", 10, 0),
    ("b", 80, 1), ("b", 20, 1), ("b", 26, 1),
    ("c", 90, 0),
    ("d", 40, 1), ("d", 80, 1),
]  # fmt: skip


def test_the_windows_of_a_text_are_one_prediction_their_mean(tmp_path):
    rows, loss = predict.predictions_of(MODEL, Counting(), token_file(tmp_path / "t.arrow", WINDOWED), META, None)
    assert rows["id"].to_list() == ["a", "b", "c", "d"]
    assert rows["truth"].to_list() == ["negative", "positive", "negative", "positive"]
    # b: (0.8 + 0.2 + 0.26) / 3 = 0.42, d: (0.4 + 0.8) / 2 = 0.6
    assert rows["prediction"].to_list() == ["negative", "negative", "positive", "positive"]
    assert np.array(rows["probabilities"].to_list()) == pytest.approx(
        np.array([[0.9, 0.1], [0.58, 0.42], [0.1, 0.9], [0.4, 0.6]]), abs=1e-7
    )
    assert loss == pytest.approx(5 / 7)  # over windows, which are what is learnt from


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_parts_never_cut_a_text(tmp_path, monkeypatch, at_once):
    table = token_file(tmp_path / "t.arrow", WINDOWED)
    whole, _ = predict.predictions_of(MODEL, Counting(), table, META, None)
    monkeypatch.setattr(predict, "TEXTS_AT_ONCE", at_once)
    outputs, _ = predict.outputs_of(MODEL, Counting(), table, None)
    parts = list(predict.frames_of(Counting(), table, outputs, META))
    assert [part.height for part in parts] == [at_once] * (4 // at_once) + ([4 % at_once] if 4 % at_once else [])
    assert pl.concat(parts).equals(whole)


def test_outputs_of_any_shape_are_joined():
    outputs = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    found = predict.Windows(outputs, np.array([0, 3]), {}).means()
    assert found.dtype == np.float32
    assert np.array_equal(found, [outputs[:3].mean(0), outputs[3]])


class Echoing(TextClassification):
    """Predicts for every token its id and its place."""

    def outputs(self, model, batch, loss):
        width = batch["input_ids"].shape[1]
        both = torch.stack([batch["input_ids"].float(), torch.arange(width).expand_as(batch["input_ids"]).float()], 2)
        lengths = batch["attention_mask"].sum(1).tolist()
        return [row[:length].numpy() for row, length in zip(both, lengths, strict=True)], torch.zeros(())

    def predictions(self, windows, meta):
        ends = [*windows.starts.tolist(), len(windows.outputs)]
        texts = [windows.outputs[begin:end] for begin, end in itertools.pairwise(ends)]
        return {"truth": windows.of_texts("labels"), "prediction": [[w.tolist() for w in text] for text in texts]}


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_what_is_predicted_of_every_token_comes_back_window_by_window(tmp_path, monkeypatch, at_once):
    table = token_file(tmp_path / "t.arrow", WINDOWED)
    monkeypatch.setattr(predict, "TEXTS_AT_ONCE", at_once)
    rows, _ = predict.predictions_of(MODEL, Echoing(), table, META, None)
    expected = [[[token, place] for place in range(1 + 2 * i % 12)] for i, (_, token, _) in enumerate(WINDOWED)]
    assert rows["prediction"].to_list() == [expected[:1], expected[1:4], expected[4:5], expected[5:]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model as training leaves it, and token files of two sides."""
    folder = tmp_path_factory.mktemp("predict")
    tokens = token_files(folder / "tokens", {"validation": 230, "test": 90})
    meta = json.loads((tokens / "meta.json").read_text())
    model = TextClassification().load_model(str(tiny_encoder(folder / "base")), meta)
    model.save_pretrained(folder / "model")
    (folder / "model" / "hone.json").write_text(json.dumps(meta))
    return folder / "model", tokens


def run(trained, out: Path, sides: list[str]) -> tuple[dict, dict[str, pl.DataFrame]]:
    model, tokens = trained
    out.mkdir()
    files = {str(tokens / f"{side}.arrow"): str(out / f"{side}.parquet") for side in sides}
    found = predict.predict(emit=None, family="text-classification", model=str(model), tokens=files)
    return found, {side: pl.read_parquet(out / f"{side}.parquet") for side in sides}


def test_several_files_are_predicted_as_each_alone_in_any_order(trained, tmp_path, monkeypatch):
    alone = {side: run(trained, tmp_path / side, [side])[1][side] for side in ("validation", "test")}
    loaded = []
    load = TextClassification.load_model
    monkeypatch.setattr(TextClassification, "load_model", lambda *args: loaded.append(1) or load(*args))
    for number, order in enumerate(itertools.permutations(alone)):
        found, together = run(trained, tmp_path / str(number), list(order))
        assert found["rows"] == 320
        assert all(rows.equals(alone[side]) for side, rows in together.items())
    assert len(loaded) == 2
    for side, rows in alone.items():
        table = TokenTable(trained[1] / f"{side}.arrow", 0)
        assert rows["id"].to_list() == table.ids.to_pylist()
        assert rows["truth"].to_list() == [META["labels"][label] for label in table.labels_of()]
        frames.Predictions.validate(rows, lazy=True)
    assert found["tokens"] == sum(int(TokenTable(trained[1] / f"{s}.arrow", 0).lengths.sum()) for s in alone)


def test_rows_without_windows_get_exactly_the_models_outputs(trained):
    model, tokens = trained
    table = TokenTable(tokens / "validation.arrow", 0)
    meta = json.loads((model / "hone.json").read_text())
    loaded = TextClassification().load_model(str(model), meta).eval()
    expected = np.empty((len(table), 2), np.float32)
    with torch.inference_mode():
        for rows in micro_batches(np.arange(len(table)), table.lengths, predict.PREDICT_TOKENS["cpu"]):
            batch = table.batch(rows)
            logits = loaded(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            expected[rows] = logits.softmax(-1).numpy()
    found, _ = predict.predictions_of(loaded, TextClassification(), table, meta, None)
    assert np.array_equal(np.array(found["probabilities"].to_list(), np.float32), expected)


def test_many_outputs_lie_in_a_file_that_leaves_nothing_behind(trained, tmp_path, monkeypatch):
    in_memory = run(trained, tmp_path / "memory", ["test"])[1]["test"]
    monkeypatch.setattr(predict, "IN_MEMORY_BYTES", 100)
    made = []
    monkeypatch.setattr(predict, "_room", lambda *args, room=predict._room: made.append(room(*args)) or made[-1])
    assert run(trained, tmp_path / "file", ["test"])[1]["test"].equals(in_memory)
    assert [type(array) for array in made] == [np.memmap]
    assert [path.name for path in (tmp_path / "file").iterdir()] == ["test.parquet"]


def test_memory_grows_by_the_numbers_alone(tmp_path, monkeypatch):
    """Two float32 outputs are 8 bytes a row; numbering and sorting the rows takes up to 28 more for a while."""
    monkeypatch.setattr(predict, "TEXTS_AT_ONCE", 1_000)
    peaks = {}
    for rows in (10_000, 30_000):
        table = token_file(tmp_path / f"{rows}.arrow", [(f"{i:032x}", 7, 0) for i in range(rows)], chunk=2_000)
        tracemalloc.start()
        outputs, _ = predict.outputs_of(MODEL, Counting(), table, None)
        for _ in predict.frames_of(Counting(), table, outputs, META):
            pass
        peaks[rows] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (peaks[30_000] - peaks[10_000]) / 20_000 < 40
