from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from schemas.errors import DataError
from tasks.held_out import known_by
from tasks.replay import _refuse_nothing, count_new, replay_rows

TEXTS = [f"text number {i}" for i in range(200)]
Replay = Callable[..., tuple[dict[str, Any], pa.Table]]


def write(folder: Path, texts: Sequence[str], windows: int = 1, alone: str = "") -> tuple[Path, Path]:
    """A split and its tokens; every text becomes so many windows, one alone has its label."""
    split, tokens = folder / "split", folder / "tokens"
    for made in (split, tokens):
        made.mkdir(parents=True)
        (made / "meta.json").write_text(json.dumps({"text_column": "text"}))
    ids = [f"id-{text}" for text in texts]
    pl.DataFrame({"id": ids, "text": list(texts)}).write_parquet(split / "train.parquet")
    labels = [2 if text == alone else i % 2 for i, text in enumerate(texts)]
    table = pa.table(
        {
            "id": [name for name in ids for _ in range(windows)],
            "input_ids": pa.array([[i, w] for i in range(len(ids)) for w in range(windows)], pa.list_(pa.int32())),
            "length": pa.array([2] * len(ids) * windows, pa.int32()),
            "labels": pa.array([label for label in labels for _ in range(windows)], pa.int64()),
        }
    )
    with pa.ipc.new_stream(tokens / "train.arrow", table.schema) as stream:
        for batch in table.to_batches(max_chunksize=7):  # windows of one text in two batches
            stream.write_batch(batch)
    for side in ("validation", "test"):
        (tokens / f"{side}.arrow").write_bytes(side.encode())
    return split, tokens


def hashes(texts: Sequence[str]) -> Any:
    return np.unique(known_by(texts))


def share_of(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


@pytest.fixture
def replay(tmp_path: Path) -> Replay:
    def act(split: Path, tokens: Path, learnt: Sequence[str], share: float) -> tuple[dict[str, Any], pa.Table]:
        out = tmp_path / f"out-{share}-{len(learnt)}"
        out.mkdir()
        found = replay_rows(share=share, known="k", learnt=hashes(learnt), split=split, tokens=tokens, out=out)
        assert sorted(path.name for path in out.iterdir()) == [
            "meta.json", "test.arrow", "train.arrow", "validation.arrow",
        ]  # fmt: skip
        assert (out / "test.arrow").read_bytes() == b"test"
        with pa.memory_map(str(out / "train.arrow")) as source, pa.ipc.open_stream(source) as stream:
            return found, stream.read_all()

    return act


def test_new_rows_are_all_there_and_of_the_known_ones_those_that_their_text_chooses(
    replay: Replay, tmp_path: Path
) -> None:
    split, tokens = write(tmp_path, TEXTS)
    found, table = replay(split, tokens, TEXTS[:150], 0.3)
    again = [text for text in TEXTS[:150] if share_of(text) < 0.3]
    assert table["id"].to_pylist() == [f"id-{text}" for text in TEXTS if text in again or text in TEXTS[150:]]
    assert found == {"new": 50, "known": 150, "replayed": len(again), "tokens": 2 * table.num_rows}
    assert 25 < len(again) < 65


def test_a_row_that_is_chosen_stays_chosen_as_the_data_grows(replay: Replay, tmp_path: Path) -> None:
    before = replay(*write(tmp_path / "a", TEXTS[:100]), TEXTS[:50], 0.3)[1]["id"].to_pylist()
    after = replay(*write(tmp_path / "b", list(reversed(TEXTS))), TEXTS[:100], 0.3)[1]["id"].to_pylist()
    assert [name for name in before if name in {f"id-{t}" for t in TEXTS[:50]}] == [
        name for name in reversed(after) if name in {f"id-{t}" for t in TEXTS[:50]}
    ]


def test_all_windows_of_a_text_come_along_and_count_once(replay: Replay, tmp_path: Path) -> None:
    found, table = replay(*write(tmp_path, TEXTS, windows=3), TEXTS[:199], 1.0)
    assert (found["new"], found["known"], found["replayed"]) == (1, 199, 199)
    assert table.num_rows == 600
    found, table = replay(*write(tmp_path / "b", TEXTS, windows=3), TEXTS[:198], 0.0)
    assert (found["new"], found["replayed"], table["input_ids"].to_pylist()) == (
        2, 0, [[198, 0], [198, 1], [198, 2], [199, 0], [199, 1], [199, 2]],
    )  # fmt: skip


def test_no_label_is_left_without_a_row(replay: Replay, tmp_path: Path) -> None:
    split, tokens = write(tmp_path, TEXTS, alone=TEXTS[0])
    assert share_of(TEXTS[0]) > 0.01
    found, table = replay(split, tokens, [TEXTS[0], *TEXTS[3:]], 0.0)
    assert (found["new"], found["replayed"]) == (2, 1)
    assert (table["id"].to_pylist(), table["labels"].to_pylist()) == ([f"id-{text}" for text in TEXTS[:3]], [2, 1, 0])


def test_a_training_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match=r"retrain\.replay = 0\.0: leaves nothing to learn: .*start_from to base"):
        _refuse_nothing(0.0, 0)


def test_new_rows_are_counted_by_their_normalised_text(tmp_path: Path) -> None:
    split, _ = write(tmp_path, ["Good film!", "good  film", "new"])
    assert count_new(split, hashes(["good film"])) == (1, 3)
    assert count_new(split, hashes([])) == (3, 3)


def test_memory_does_not_grow_with_the_length_of_the_rows(tmp_path: Path) -> None:
    split, tokens = write(tmp_path, [str(i) for i in range(40_000)], windows=5)
    out = tmp_path / "out"
    out.mkdir()
    tracemalloc.start()
    replay_rows(share=0.5, known="k", learnt=hashes(["0"]), split=split, tokens=tokens, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000
