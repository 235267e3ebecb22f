"""Which test rows a model has not learnt, known by hashes that travel with every registered model.

Ten million training rows are 80 MB of hashes, in memory and on disk.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl

    Hashes = npt.NDArray[np.uint64]

DIGEST_BYTES = 8
"""Of a row's hash: beside a billion training rows, one test row in eighteen billion is left out by mistake."""
BATCH_ROWS = 100_000
TENSOR = "training_hashes"
"""Name of the hashes in their safetensors file."""


def common_rows(hashes: pl.DataFrame, trained_on_champion: Hashes, trained_on_new: Hashes) -> tuple[pl.Series, int]:
    """Ids of the test rows that neither model was trained on, and how many others there are.

    Args:
        hashes: Of the test rows, see `test_hashes`.
        trained_on_champion: Hashes of the champion's training rows, sorted.
        trained_on_new: Hashes of the challenger's, sorted.
    """
    import polars as pl

    asked = hashes["hash"].to_numpy()
    seen = among(asked, trained_on_champion) | among(asked, trained_on_new)
    kept = hashes["id"].filter(pl.Series(~seen))
    return kept, hashes.height - len(kept)


def among(asked: Hashes, known: Hashes) -> npt.NDArray[np.bool_]:
    """Mask `[asked]`: true where a hash is among the known ones, which are sorted."""
    import numpy as np

    if not len(known):
        return np.zeros(len(asked), bool)
    order = np.argsort(asked)  # a search for ascending values is many times as fast
    places = np.searchsorted(known, asked[order]).clip(max=len(known) - 1)
    found = np.empty(len(asked), bool)
    found[order] = known[places] == asked[order]
    return found


def training_hashes(split: Path) -> Hashes:
    """What the training rows are known by: hashes of their normalised text, `[texts]` uint64, sorted, each once.

    They are kept with the model, so that a later test leaves out what it has learnt, however the text is written.

    Args:
        split: Folder of the split artifact.
    """
    import numpy as np

    return np.unique(np.concatenate([np.empty(0, np.uint64), *(hashes for _, hashes in row_hashes(split, "train"))]))


def test_hashes(split: Path) -> pl.DataFrame:
    """`id` (String) and `hash` (UInt64) of each test row, in the rows' order; see `training_hashes`."""
    import polars as pl

    empty = pl.DataFrame(schema={"id": pl.String, "hash": pl.UInt64})
    parts = [pl.DataFrame({"id": ids, "hash": hashes}) for ids, hashes in row_hashes(split, "test")]
    return pl.concat([empty, *parts])


def known_by(likenesses: Iterable[str]) -> Hashes:
    """The hash of each normalised text: `[texts]` uint64, in their order."""
    import numpy as np

    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest() for text in likenesses)
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def write_hashes(hashes: Hashes, file: Path) -> None:
    """Keep training hashes as a safetensors file."""
    from safetensors.numpy import save_file

    save_file({TENSOR: hashes}, file)


def read_hashes(file: Path) -> Hashes:
    """Training hashes, sorted: what `write_hashes` wrote, or lines of hexadecimal digits, as versions had them before.

    Args:
        file: `.safetensors`, or `.txt.gz`.
    """
    import numpy as np
    from safetensors.numpy import load_file

    if file.suffix == ".safetensors":
        found: Hashes = load_file(file)[TENSOR]
        return found
    lines = gzip.decompress(file.read_bytes()).decode("ascii")
    return np.unique(np.frombuffer(bytes.fromhex(lines), ">u8").astype(np.uint64))


def row_hashes(split: Path, side: str) -> Iterator[tuple[pl.Series, Hashes]]:
    """Ids of a side's rows and the hashes of their normalised texts, in the rows' order, a batch at a time."""
    import polars as pl

    from tasks.rows import batches
    from tasks.signatures import normalised

    column = json.loads((split / "meta.json").read_text())["text_column"]
    for batch in batches([split / f"{side}.parquet"], ["id", column], BATCH_ROWS):
        yield batch["id"], known_by(batch.select(normalised(pl.col(column))).to_series())
