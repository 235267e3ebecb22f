from __future__ import annotations

import gzip
import hashlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tasks import held_out


def hashes(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_rows_that_either_model_was_trained_on_are_not_common_ground() -> None:
    asked = pl.DataFrame({"id": ["a", "b", "c", "d"], "hash": hashes(9, 2, 2**64 - 1, 4)})
    kept, excluded = held_out.common_rows(asked, hashes(0, 2, 5), hashes(4, 2**64 - 1))
    assert (kept.to_list(), excluded) == (["a"], 3)
    kept, excluded = held_out.common_rows(asked, hashes(), hashes())
    assert (kept.to_list(), excluded) == (["a", "b", "c", "d"], 0)


@pytest.mark.parametrize("seed", range(5))
def test_membership_is_that_of_a_set(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known, asked = np.unique(rng.integers(0, 60, 30, np.uint64)), rng.integers(0, 60, 40, np.uint64)
    assert held_out.among(asked, known).tolist() == [value in set(known.tolist()) for value in asked.tolist()]


def test_rows_are_known_by_their_normalised_text(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(json.dumps({"text_column": "text"}))
    train = ["Good film!", "good FILM", "bad film"]
    pl.DataFrame({"id": ["a", "b", "c"], "text": train}).write_parquet(tmp_path / "train.parquet")
    pl.DataFrame({"id": ["d", "e"], "text": ["good, film", "new"]}).write_parquet(tmp_path / "test.parquet")
    trained, tested = held_out.training_hashes(tmp_path), held_out.test_hashes(tmp_path)
    assert trained.dtype == np.uint64
    assert trained.tolist() == sorted(set(trained.tolist()))
    assert len(trained) == 2
    assert tested["id"].to_list() == ["d", "e"]
    assert held_out.among(tested["hash"].to_numpy(), trained).tolist() == [True, False]


def test_a_side_without_rows_has_no_hashes(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(json.dumps({"text_column": "text"}))
    for side in ("train", "test"):
        pl.DataFrame(schema={"id": pl.String, "text": pl.String}).write_parquet(tmp_path / f"{side}.parquet")
    assert len(held_out.training_hashes(tmp_path)) == 0
    assert held_out.test_hashes(tmp_path).schema == {"id": pl.String, "hash": pl.UInt64}


def test_hashes_never_change() -> None:
    """Those of versions registered before would match no row any more."""
    digest = hashlib.blake2b(b"good film", digest_size=8).hexdigest()
    assert held_out.known_by(["good film", "x"])[0] == int(digest, 16)
    assert held_out.known_by([]).tolist() == []


def test_hashes_are_read_back_as_they_were_kept(tmp_path: Path) -> None:
    for kept in (hashes(), hashes(0, 7, 2**64 - 1)):
        held_out.write_hashes(kept, tmp_path / "h.safetensors")
        assert held_out.read_hashes(tmp_path / "h.safetensors").tolist() == kept.tolist()


def test_the_text_of_versions_of_before_is_read(tmp_path: Path) -> None:
    lines = sorted(hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for text in ("one", "two", "three"))
    file = tmp_path / "training_hashes.txt.gz"
    file.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    assert held_out.read_hashes(file).tolist() == [int(line, 16) for line in lines]


def test_a_million_hashes_take_little_more_than_their_bytes(tmp_path: Path) -> None:
    kept = np.unique(np.random.default_rng(0).integers(0, 2**64, 1_000_000, np.uint64, endpoint=False))
    held_out.write_hashes(kept, tmp_path / "h.safetensors")
    asked = pl.DataFrame({"id": ["a", "b"], "hash": [int(kept[5]), 0]}, schema_overrides={"hash": pl.UInt64})
    tracemalloc.start()
    found = held_out.read_hashes(tmp_path / "h.safetensors")
    assert held_out.common_rows(asked, found, found)[1] == 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000_000  # as Python's strings they take over 70 MB, and a set of them 130 MB
