from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from tasks.batches import BUCKET_STEPS, EpochBatches, TokenTable, micro_batches, padded_width
from tests.learning import token_files


@pytest.fixture
def table(tmp_path):
    return TokenTable(token_files(tmp_path, {"train": 230}) / "train.arrow", pad_token_id=0)


def test_rows_are_read_across_arrow_chunks_as_they_were_written(table, tmp_path):
    import pyarrow as pa

    written = pa.ipc.open_stream(tmp_path / "train.arrow").read_all().column("input_ids").to_pylist()
    assert [table.row(i).tolist() for i in range(len(table))] == written


@pytest.mark.parametrize("chunk", [1, 2, 3, 10])
def test_rows_of_one_id_one_after_the_other_are_windows_of_one_text(tmp_path, chunk):
    import pyarrow as pa

    names = ["a", "b", "b", "b", "c", "b"]
    rows = pa.table({"id": names, "input_ids": [[1]] * 6, "length": pa.array([1] * 6, pa.int32()), "labels": [0] * 6})
    with pa.ipc.new_stream(tmp_path / "t.arrow", rows.schema) as stream:
        for batch in rows.to_batches(max_chunksize=chunk):
            stream.write_batch(batch)
    assert TokenTable(tmp_path / "t.arrow", 0).text_starts.tolist() == [0, 1, 4, 5]


@pytest.fixture
def rich(tmp_path):
    """Rows of 3, 1 and 2 tokens with a label for each token, two numbers, token types and a text, in two chunks."""
    import pyarrow as pa

    rows = pa.table(
        {
            "id": ["a", "b", "c"],
            "input_ids": pa.array([[4, 5, 6], [7], [8, 9]], pa.list_(pa.int32())),
            "length": pa.array([3, 1, 2], pa.int32()),
            "labels": pa.array([[-100, 1, 0], [-100], [2, 1]]),
            "span": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int64(), 2)),
            "token_type_ids": pa.array([[0, 1, 1], [0], [1, 1]]),
            "score": pa.array([0.5, 1.5, 2.5], pa.float32()),
            "context": ["first", None, "third"],
        }
    )
    with pa.ipc.new_stream(tmp_path / "t.arrow", rows.schema) as stream:
        for batch in rows.to_batches(max_chunksize=2):
            stream.write_batch(batch)
    return TokenTable(tmp_path / "t.arrow", 0)


def test_what_a_family_adds_reaches_the_model_padded_as_it_must_be(rich):
    batch = {name: tensor.tolist() for name, tensor in rich.batch(np.array([0, 2])).items()}
    assert batch == {
        "input_ids": [[4, 5, 6], [8, 9, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[-100, 1, 0], [2, 1, -100]],
        "span": [[1, 2], [5, 6]],
        "token_type_ids": [[0, 1, 1], [1, 1, 0]],
        "score": [0.5, 2.5],
    }


def test_labels_of_tokens_are_told_one_row_after_the_other(rich):
    assert rich.labels_of().tolist() == [-100, 1, 0, -100, 2, 1]
    assert rich.labels_of(np.array([2, 1])).tolist() == [2, 1, -100]


def test_labels_of_a_fixed_number_are_told_row_by_row(tmp_path):
    import pyarrow as pa

    labels = pa.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], pa.list_(pa.float32(), 2))
    rows = pa.table({"id": ["a", "b", "c"], "input_ids": [[1]] * 3, "length": [1] * 3, "labels": labels})
    with pa.ipc.new_stream(tmp_path / "t.arrow", rows.schema) as stream:
        for batch in rows.to_batches(max_chunksize=2):
            stream.write_batch(batch)
    table = TokenTable(tmp_path / "t.arrow", 0)
    assert table.labels_of().tolist() == [[1, 0], [0, 1], [1, 1]]
    assert table.batch([2, 0])["labels"].tolist() == [[1, 1], [1, 0]]


def test_predictions_get_what_was_encoded_texts_included(rich):
    found = rich.columns_of(slice(1, 3))
    assert [row.tolist() for row in found["labels"]] == [[-100], [2, 1]]
    assert (found["context"], found["score"]) == ([None, "third"], [1.5, 2.5])


def test_a_batch_is_padded_to_its_longest_row_and_no_further(table):
    rows = np.array([0, 7, 120])
    batch = table.batch(rows)
    assert batch["input_ids"].shape == (3, table.lengths[rows].max())
    assert batch["attention_mask"].sum(1).tolist() == table.lengths[rows].tolist()
    assert torch.equal(batch["input_ids"] == 0, batch["attention_mask"] == 0)


def test_widths_lie_on_a_grid_so_that_shapes_recur():
    asked = (1, 2, 31, 32, 33, 63, 64, 65, 100, 128, 129, 257, 512)
    assert [padded_width(n) for n in asked] == [1, 2, 31, 32, 34, 64, 64, 68, 100, 128, 136, 272, 512]
    assert len({padded_width(n) for n in range(1, 513)}) == 32 + 4 * 16
    assert all(n <= padded_width(n) <= (1 + 1 / 16) * n for n in range(1, 2_000))


def test_a_batch_is_never_wider_than_the_longest_row_of_the_table(tmp_path):
    # What was cut to the longest sequence that the model reads must not be padded beyond it.
    table = TokenTable(token_files(tmp_path, {"train": 230}) / "train.arrow", pad_token_id=0)
    table.lengths = table.lengths.copy()
    table.longest = 5
    rows = np.flatnonzero(table.lengths <= 5)
    assert table.batch(rows)["input_ids"].shape[1] == 5


def test_a_step_is_shared_out_equally():
    cuts = micro_batches(np.arange(32), np.full(32, 200), budget=4_096)
    assert [len(cut) for cut in cuts] == [16, 16]  # 19 would fit
    assert [len(cut) for cut in micro_batches(np.arange(100), np.full(100, 10), budget=100)] == [10] * 10


def test_micro_batches_keep_every_row_once_and_stay_within_the_budget(table):
    rows = np.arange(64)
    cuts = micro_batches(rows, table.lengths, budget=100)
    assert sorted(np.concatenate(cuts).tolist()) == rows.tolist()
    assert max(len(cut) * table.lengths[cut].max() for cut in cuts) <= 100
    assert len(cuts) > 1


def test_a_row_longer_than_the_budget_goes_alone():
    cuts = micro_batches(np.arange(3), np.array([200, 10, 10]), budget=50)
    assert [cut.tolist() for cut in cuts] == [[0], [2, 1]]


def test_an_epoch_has_every_row_once_and_the_next_one_another_order(table):
    batches = EpochBatches(table.lengths, 16, seed=3)
    first = list(batches)
    batches.set_epoch(1)
    second = list(batches)
    assert len(first) == len(batches) == 15
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(230))
    assert first != second


def test_the_order_follows_from_seed_and_epoch_alone(table):
    one, other = EpochBatches(table.lengths, 16, seed=3), EpochBatches(table.lengths, 16, seed=3)
    list(one)
    one.set_epoch(1)
    other.set_epoch(1)
    assert list(one) == list(other)
    assert list(EpochBatches(table.lengths, 16, seed=4)) != list(EpochBatches(table.lengths, 16, seed=3))


CLASSES = np.repeat([0, 1, 2], [180, 40, 10])


def test_balanced_every_class_is_seen_equally_often_in_as_many_steps():
    lengths = np.arange(1, 231)
    batches = EpochBatches(lengths, 16, seed=3, balance=CLASSES)
    drawn = list(batches)
    assert len(drawn) == len(batches) == len(EpochBatches(lengths, 16, seed=3))
    assert [len(rows) for rows in drawn].count(16) == 14
    assert np.bincount(CLASSES[list(chain(*drawn))]).tolist() == [77, 77, 76]


def test_balanced_no_row_is_seen_again_before_all_others_of_its_class():
    batches = EpochBatches(np.ones(230, int), 16, seed=3, balance=CLASSES)
    times = np.zeros(230, int)
    for epoch in range(5):
        batches.set_epoch(epoch)
        times += np.bincount(list(chain(*batches)), minlength=230)
        assert all(np.ptp(times[name == CLASSES]) <= 1 for name in range(3))
    assert times.sum() == 5 * 230


def test_balanced_the_order_follows_from_seed_and_epoch_alone():
    def epoch(number, seed=3):
        batches = EpochBatches(np.ones(230, int), 16, seed=seed, balance=CLASSES)
        batches.set_epoch(number)
        return list(batches)

    assert epoch(4) == epoch(4)
    assert epoch(4) != epoch(5)
    assert epoch(4) != epoch(4, seed=4)


def test_like_lengths_share_a_batch_so_that_little_is_padding():
    lengths = np.random.default_rng(0).integers(3, 120, size=64 * BUCKET_STEPS)
    batches = [np.array(rows) for rows in EpochBatches(lengths, 64, seed=0)]
    padded = sum(len(rows) * lengths[rows].max() for rows in batches)
    assert padded / lengths.sum() < 1.03


def test_the_rows_of_a_step_are_the_same_on_any_number_of_processes(table):
    alone = [sorted(rows) for rows in EpochBatches(table.lengths, 16, seed=3)]
    shared = zip(*(EpochBatches(table.lengths, 16, seed=3, rank=r, world=2) for r in range(2)), strict=True)
    assert [sorted(a + b) for a, b in shared] == alone
