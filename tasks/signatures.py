"""Signatures: a few bytes that stand for the words of a text, so that texts alike can be found without comparing all.

MinHash as datasketch defines it (its permutations, its scheme `affine32`), computed for whole batches at once: its own
loop over rows takes four times as long. Of each minimum the last byte is kept (b-bit minwise hashing, Li and König
2010, https://arxiv.org/abs/0910.3349): a quarter of the room, and an estimate hardly worse. Does not know
synonyms, nor the order of words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.rows import BATCH_ROWS, batches, count

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl

LINK_OR_MENTION = r"https?://\S+|www\.\S+|\brt\s+@\w+|@\w+"
NOT_ALPHANUMERIC = r"(?:[^\p{L}\p{M}\p{N}]|[\x{FE00}-\x{FE0F}])+"
"""Combining marks are part of words in many scripts; variation selectors are part of emoji."""
SPACELESS = r"[\p{Han}\p{Hiragana}\p{Katakana}\x{30FC}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
"""A character of a script that puts no space between words."""
SEED = 1
VALUES = "signatures.npy"
BANDS = "bands.npy"
PAIRS_AT_ONCE = 1 << 13
"""Signatures compared at once: 2 MiB at 128 permutations, which stays in the processor's cache."""


def normalised(text: pl.Expr) -> pl.Expr:
    """What near-identical texts have in common: letters and digits, lower-case, without links and mentions.

    A text that has none of these stands for itself.
    """
    import polars as pl

    lower = text.str.to_lowercase()
    bare = lower.str.replace_all(LINK_OR_MENTION, " ").str.replace_all(NOT_ALPHANUMERIC, " ").str.strip_chars()
    return pl.when(bare == "").then(lower).otherwise(bare)


def digests(texts: pl.Series) -> npt.NDArray[np.uint64]:
    """A number for each text, the same on every machine and for ever: the first 64 bits of its BLAKE2b, big-endian."""
    import numpy as np

    joined = b"".join([hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts])
    return np.frombuffer(joined, ">u8").astype(np.uint64)


def signatures_of(file: Path, text_column: str, permutations: int, bands: int, out: Path) -> dict[str, Any]:
    """Write the signatures of a file's rows, in their order.

    `signatures.npy` [rows, permutations] u8 has the last byte of every minimum, for estimates; `bands.npy`
    [bands, rows] u32 a hash of each band of whole minima, for the search.

    Args:
        file: Parquet file of clean rows.
        text_column: What is compared.
        permutations: Length of a signature.
        bands: Parts of a signature.
        out: Where to write.

    Returns:
        The number of `rows`.
    """
    import numpy as np
    import polars as pl

    rows = count([file])
    if not rows:  # an empty file cannot be mapped into memory
        np.save(out / VALUES, np.empty((0, permutations), np.uint8))
        np.save(out / BANDS, np.empty((bands, 0), np.uint32))
        return {"rows": 0}
    values = np.lib.format.open_memmap(out / VALUES, "w+", np.uint8, (rows, permutations))
    banded = np.lib.format.open_memmap(out / BANDS, "w+", np.uint32, (bands, rows))
    start = 0
    for batch in batches([file], [text_column], BATCH_ROWS):
        here = slice(start, start + batch.height)
        found = minima(*shingles(batch.select(normalised(pl.col(text_column))).to_series()), permutations)
        values[here] = found.T.astype(np.uint8)
        banded[:, here] = _band_hashes(found, bands)
        start += batch.height
    values.flush()
    banded.flush()
    return {"rows": rows}


def signature_part(
    *,
    file: str,
    sha256: str,
    text_column: str,
    permutations: int,
    bands: int,
    folder: Callable[[], Path],
    out: Path,
) -> dict[str, Any]:
    """`signatures_of` for the store, which knows a file by its content: `folder` is where it is, asked when needed."""
    del sha256  # part of the key, which the file's name is not
    return signatures_of(folder() / file, text_column, permutations, bands, out)


def shingles(texts: pl.Series) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """What a normalised text is compared by: its words; in scripts without spaces its characters and pairs of them.

    Words alone find more edited tweets than word pairs or character n-grams do at the same number of wrong pairs.

    Returns:
        The hashes of all texts' shingles, one text after the other, and where each text's begin; none is without.
    """
    import numpy as np
    import polars as pl

    spaceless = bool(texts.str.contains(SPACELESS).any())
    if spaceless:
        texts = texts.str.replace_all(f"({SPACELESS})", " $1 ").str.replace_all(r"\s+", " ").str.strip_chars()
    listed = texts.str.split(" ")
    words = listed.explode().alias("word").to_frame()
    distinct = words.unique(maintain_order=False)
    hashed = (digests(distinct["word"]) >> np.uint64(32)).astype(np.uint32)
    distinct = distinct.with_columns(pl.Series("hash", hashed), alone=pl.col("word").str.contains(f"^{SPACELESS}$"))
    words = words.join(distinct, on="word", how="left", maintain_order="left")
    hashes = words["hash"].to_numpy()
    lengths = listed.list.len().to_numpy().astype(np.int64)
    if spaceless:
        return _with_pairs(hashes, lengths, words["alone"].to_numpy())
    return hashes, np.cumsum(lengths) - lengths


def minima(hashes: npt.NDArray[np.uint32], starts: npt.NDArray[np.int64], permutations: int) -> npt.NDArray[np.uint32]:
    """MinHash of each set of hashes, as `datasketch.MinHash(permutations, seed=1, scheme="affine32")` computes it.

    Args:
        hashes: The sets' members, one set after the other.
        starts: Where each set begins.
        permutations: How many minima.

    Returns:
        [permutations, sets].
    """
    import numpy as np
    from datasketch import MinHash

    factors, terms = MinHash(permutations, seed=SEED, scheme="affine32").permutations
    mixed = _mixed(hashes)
    found = np.empty((permutations, len(starts)), np.uint32)
    for number, (factor, term) in enumerate(zip(factors, terms, strict=True)):
        found[number] = np.minimum.reduceat(mixed * factor + term, starts)
    return found


@dataclass(frozen=True)
class Signatures:
    """The signatures of all rows, mapped from disk.

    Attributes:
        values: Of each part [rows, permutations] u8.
        bands: Of each part [bands, rows] u32.
        starts: First row of each part.
    """

    values: Sequence[npt.NDArray[np.uint8]]
    bands: Sequence[npt.NDArray[np.uint32]]
    starts: npt.NDArray[np.int64]

    @classmethod
    def open(cls, folders: Sequence[Path]) -> Signatures:
        """What `signatures_of` wrote, one folder per part, in the order of the rows."""
        import numpy as np

        values = [np.load(folder / VALUES, mmap_mode="r").view(np.ndarray) for folder in folders]
        lengths = np.array([len(part) for part in values])
        kept = [number for number, length in enumerate(lengths) if length]
        return cls(
            values=[values[number] for number in kept],
            bands=[np.load(folders[number] / BANDS, mmap_mode="r").view(np.ndarray) for number in kept],
            starts=(np.cumsum(lengths) - lengths)[kept],
        )

    @property
    def band_count(self) -> int:
        """Number of bands."""
        return len(self.bands[0])

    def band(self, number: int) -> npt.NDArray[np.uint32]:
        """One band of all rows."""
        import numpy as np

        return np.concatenate([part[number] for part in self.bands])

    def similarity(self, left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Estimated Jaccard similarity of pairs of rows: off by about √(s(1-s)/permutations) where it is s."""
        import numpy as np

        found = np.empty(len(left), np.float32)
        for start in range(0, len(left), PAIRS_AT_ONCE):
            here = slice(start, start + PAIRS_AT_ONCE)
            same = self._take(left[here]) == self._take(right[here])
            found[here] = np.einsum("ij->i", same.view(np.int8), dtype=np.int32)  # twice as fast as `sum`
        found /= self.values[0].shape[1]
        return (found - 1 / 256) / (1 - 1 / 256)  # one byte in 256 agrees by chance

    def _take(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        import numpy as np

        if len(self.values) == 1:
            only: npt.NDArray[np.uint8] = self.values[0][rows]
            return only
        parts = np.searchsorted(self.starts, rows, side="right") - 1
        taken = np.empty((len(rows), self.values[0].shape[1]), np.uint8)
        for part in np.flatnonzero(np.bincount(parts)).tolist():
            here = parts == part
            taken[here] = self.values[part][rows[here] - self.starts[part]]
        return taken


def _with_pairs(
    hashes: npt.NDArray[np.uint32], lengths: npt.NDArray[np.int64], alone: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Shingles and starts with one shingle more for every two neighbouring characters of a text that stand `alone`."""
    import numpy as np

    rows = np.repeat(np.arange(len(lengths)), lengths)
    first = np.flatnonzero(alone[:-1] & alone[1:] & (rows[:-1] == rows[1:]))
    pairs = _mixed(_mixed(hashes[first]) + hashes[first + 1])
    order = np.argsort(np.concatenate([rows, rows[first]]), kind="stable")
    lengths = lengths + np.bincount(rows[first], minlength=len(lengths))
    return np.concatenate([hashes, pairs])[order], np.cumsum(lengths) - lengths


def _band_hashes(found: npt.NDArray[np.uint32], bands: int) -> npt.NDArray[np.uint32]:
    import numpy as np

    hashed = np.zeros((bands, found.shape[1]), np.uint32)
    for line in np.moveaxis(found.reshape(bands, -1, found.shape[1]), 1, 0):
        hashed = _mixed(hashed * np.uint32(31) + line)
    return hashed


def _mixed(values: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """MurmurHash3's finaliser, a bijection."""
    import numpy as np

    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    values = (values ^ (values >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))
