from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.subset import numbers_of, subset_rows

RARE = 2
LABELS = [RARE, *[i % 2 for i in range(399)]]
IDS = [f"row-{i}" for i in range(400)]


def write(folder: Path, ids: Sequence[str], labels: Sequence[Any], windows: int = 1) -> Path:
    """A tokenize artifact; every text is cut into so many windows."""
    folder.mkdir(parents=True)
    kind = pa.float64() if isinstance(labels[0], float) else pa.int64()
    table = pa.table(
        {
            "id": [name for name in ids for _ in range(windows)],
            "input_ids": pa.array([[7]] * len(ids) * windows, pa.list_(pa.int32())),
            "length": pa.array([1] * len(ids) * windows, pa.int32()),
            "labels": pa.array([label for label in labels for _ in range(windows)], kind),
        }
    )
    with pa.ipc.new_stream(folder / "train.arrow", table.schema) as stream:
        for batch in table.to_batches(max_chunksize=7):
            stream.write_batch(batch)
    for name in ("validation.arrow", "test.arrow", "meta.json"):
        (folder / name).write_text(name)
    return folder


def subset(tokens: Path, share: float, seed: int = 0) -> tuple[dict[str, Any], pa.Table]:
    out = tokens / f"{share}-{seed}"
    out.mkdir()
    found = subset_rows(share=share, seed=seed, tokens=tokens, out=out)
    with pa.memory_map(str(out / "train.arrow")) as source, pa.ipc.open_stream(source) as stream:
        return found, stream.read_all()


def ids_of(tokens: Path, share: float, seed: int = 0) -> list[str]:
    return subset(tokens, share, seed)[1]["id"].to_pylist()


def test_a_share_is_contained_in_every_larger_one_and_has_about_its_size(tmp_path: Path) -> None:
    tokens = write(tmp_path / "t", IDS, LABELS)
    chosen = [set(ids_of(tokens, share)) for share in (0.01, 0.1, 0.3, 0.7, 1.0)]
    assert all(smaller < larger for smaller, larger in pairwise(chosen))
    assert [len(rows) for rows in chosen] == pytest.approx([5, 40, 120, 280, 400], abs=30)
    assert chosen[-1] == set(IDS)


def test_no_label_is_lost_however_small_the_share(tmp_path: Path) -> None:
    tokens = write(tmp_path / "t", IDS, LABELS)
    for seed in range(5):
        found, table = subset(tokens, 1e-9, seed)
        assert (sorted(table["labels"].to_pylist()), found["rows"]) == ([0, 1, RARE], 3)


def test_the_row_that_stays_is_the_one_with_the_smallest_number(tmp_path: Path) -> None:
    def number(name: str) -> int:
        return int.from_bytes(hashlib.blake2b(f"0:{name}".encode(), digest_size=8).digest(), "big")

    ones = [name for name, label in zip(IDS, LABELS, strict=True) if label == 1]
    assert min(ones, key=number) in ids_of(write(tmp_path / "t", IDS, LABELS), 1e-9)


def test_another_seed_chooses_other_rows(tmp_path: Path) -> None:
    tokens = write(tmp_path / "t", IDS, LABELS)
    first, second = set(ids_of(tokens, 0.3, 0)), set(ids_of(tokens, 0.3, 1))
    assert len(first & second) == pytest.approx(0.09 * 400, abs=20)


def test_where_labels_are_no_classes_one_row_stays(tmp_path: Path) -> None:
    assert len(ids_of(write(tmp_path / "t", IDS, [0.5] * 400), 1e-9)) == 1


def test_all_windows_of_a_text_come_along_and_the_rest_is_the_same(tmp_path: Path) -> None:
    tokens = write(tmp_path / "t", IDS, LABELS, windows=3)
    found, table = subset(tokens, 0.2)
    assert (found["examples"], found["tokens"]) == (3 * found["rows"], table.num_rows)
    assert (tokens / "0.2-0" / "test.arrow").read_text() == "test.arrow"
    assert sorted(path.name for path in (tokens / "0.2-0").iterdir()) == [
        "meta.json", "test.arrow", "train.arrow", "validation.arrow",
    ]  # fmt: skip


@given(st.randoms(use_true_random=False), st.floats(0.01, 1), st.integers(1, 400))
def test_a_row_that_is_chosen_stays_chosen_in_any_order_and_as_the_data_grows(
    draw: random.Random, share: float, many: int
) -> None:
    rows = draw.sample(IDS, many)
    alone = dict(zip(rows, numbers_of(rows, 3) < share, strict=True))
    together = dict(zip(IDS, numbers_of(IDS, 3) < share, strict=True))
    assert all(together[name] == chosen for name, chosen in alone.items())
