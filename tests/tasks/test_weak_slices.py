from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from schemas.recipe import Slices
from schemas.records import SliceScore
from tasks import slices, weak_slices
from tasks.labels import Labelled

FAMILY = SimpleNamespace(text_columns=("text",), labelled=Labelled("label"))
COLUMNS = Slices(columns=("channel", "price"))
WORDS = [f"{first}{second}{third}" for first in "bdkm" for second in "aeiou" for third in "lnrst"]
ROWS = 2_000


def described(seed: int, size: int = ROWS) -> pl.DataFrame:
    """Random texts of 1 to 40 words, with a channel and a price, a tenth of both missing."""
    rng = np.random.default_rng(seed)
    likely = 1 / np.arange(1, len(WORDS) + 1)
    texts = [" ".join(rng.choice(WORDS, count, p=likely / likely.sum())) for count in rng.integers(1, 41, size)]
    channels = [None if i == 9 else f"c{i % 4}" for i in rng.integers(0, 10, size)]
    places = rng.integers(0, 10, size)
    prices = [None if i == 9 else f"{value:.3f}" for i, value in zip(places, rng.exponential(30, size), strict=True)]
    rows = {"id": [f"r{seed}-{i:06}" for i in range(size)], "source": "web", "text": texts, "label": "good"}
    return slices.describe(pl.DataFrame(rows | {"meta.channel": channels, "meta.price": prices}), FAMILY, COLUMNS)


def scores(features: pl.DataFrame, weak: pl.Series, seed: int) -> np.ndarray:
    """Right in nine of ten rows, in six of ten weak ones."""
    rng = np.random.default_rng(seed)
    return (rng.random(features.height) < np.where(weak.fill_null(value=False).to_numpy(), 0.6, 0.9)).astype(float)


def confirmed(
    validation: pl.DataFrame, test: pl.DataFrame, rules: list[weak_slices.Rule], right: np.ndarray
) -> list[SliceScore]:
    """What the rules are worth on the test rows, beside the other slices, where they are surely weaker."""
    parts = [*slices.fit(validation).slices(test, min_rows=30), *(rule.slice(test) for rule in rules)]
    measured = slices.measure(right, parts, confidence=0.95, min_rows=30)
    return [one for one in measured if one.p_weaker <= 0.05 and one.kind == "weak"]


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("channel=c1", pl.col("meta.channel") == "c1"),
        ("channel is missing", pl.col("meta.channel").is_null()),
        ("price is no number", pl.col("meta.price").is_null()),
        ("word 'bun'", pl.col("text").str.contains(r"\bbun\b")),
        ("no word 'bal'", ~pl.col("text").str.contains(r"\bbal\b")),
    ],
)
def test_a_planted_weakness_is_found_as_it_was_planted_and_confirmed(name: str, planted: pl.Expr) -> None:
    validation, test = described(1), described(2)
    weak = [side.select(planted.fill_null(value=False)).to_series() for side in (validation, test)]
    (rule, *_) = weak_slices.find(validation, scores(validation, weak[0], 3), min_rows=30)
    assert rule.name == name
    assert rule.mask(test).tolist() == weak[1].to_list()
    found = slices.measure(scores(test, weak[1], 4), [rule.slice(test)], confidence=0.95, min_rows=30)
    assert found[0].value == pytest.approx(0.6, abs=0.12)
    assert found[0].p_weaker < 1e-6


@pytest.mark.parametrize("short", [True, False])
def test_a_weakness_by_length_is_found_with_about_its_bound_and_confirmed(short: bool) -> None:
    validation, test = described(1), described(2)
    weak = [side["length"] <= 30 if short else side["length"] > 120 for side in (validation, test)]
    (rule, *_) = weak_slices.find(validation, scores(validation, weak[0], 3), min_rows=30)
    (condition,) = rule.conditions
    assert condition.signal.feature == "length"
    assert (condition.high if short else condition.low) == pytest.approx(30 if short else 120, abs=6)
    found = confirmed(validation, test, [rule], scores(test, weak[1], 4))
    assert [one.name for one in found] == [rule.name]


def test_a_weakness_of_two_conditions_is_found_as_their_conjunction() -> None:
    validation, test = described(1, 6_000), described(2, 6_000)

    def weak(side: pl.DataFrame) -> pl.Series:
        return (side["meta.channel"] == "c2") & side["text"].str.contains(r"\bban\b")

    rules = weak_slices.find(validation, scores(validation, weak(validation), 3), min_rows=30)
    assert set(rules[0].name.split(" and ")) == {"channel=c2", "word 'ban'"}
    found = confirmed(validation, test, rules, scores(test, weak(test), 4))
    assert rules[0].name in {one.name for one in found}


def test_in_noise_hardly_anything_is_confirmed() -> None:
    sides = [(described(2 * i, 1_000), described(2 * i + 1, 1_000)) for i in range(4)]
    hits = believed = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        validation, test = sides[seed % 4]
        right = (rng.random((2, 1_000)) < 0.85).astype(float)
        rules = weak_slices.find(validation, right[0], min_rows=30)
        hits += bool(confirmed(validation, test, rules, right[1]))
        believed += bool(confirmed(validation, validation, rules, right[0]))
    assert hits <= 5
    assert believed >= 25  # what they seem to be worth where they were picked


def test_nothing_is_found_where_nothing_can_be() -> None:
    features = described(1, 100)
    assert weak_slices.find(features, np.ones(100), min_rows=30) == []
    assert weak_slices.find(features[:59], np.arange(59) % 2 * 1.0, min_rows=30) == []
    alternating = pl.Series(np.arange(100) % 2 == 0)
    same = features.select("id", "label", text=pl.lit("bal"), has_url=pl.lit(value=False))
    assert weak_slices.find(same, scores(same, alternating, 1), min_rows=30) == []


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_rows_changes_nothing(seed: int) -> None:
    features = described(1)
    rng = np.random.default_rng(seed)
    graded = rng.beta(8, 2, ROWS) - 0.1 * (features["meta.channel"] == "c1").fill_null(value=False).to_numpy()
    order = rng.permutation(ROWS)
    rules = weak_slices.find(features, graded, min_rows=30)
    assert rules
    assert weak_slices.find(features[order], graded[order], min_rows=30) == rules


def test_the_surest_rules_come_first_and_no_more_than_asked_for() -> None:
    features = described(1, 6_000)
    word, channel = features["text"].str.contains(r"\bbun\b"), features["meta.channel"].eq_missing("c1")
    right = scores(features, word, 3) * scores(features, word, 4) * (1 - 0.2 * channel.to_numpy())
    several = weak_slices.find(features, right, min_rows=30)
    assert [rule.name for rule in several[:2]] == ["word 'bun'", "channel=c1"]
    assert weak_slices.find(features, right, min_rows=30, most=1) == several[:1]


def test_what_is_weak_on_most_rows_is_no_weak_slice() -> None:
    features = described(1, 6_000)
    right = scores(features, features["meta.channel"] != "c3", 3)
    assert "channel is not c3" not in {rule.name for rule in weak_slices.find(features, right, min_rows=30)}


@pytest.mark.parametrize(("chance", "found"), [(0.04, False), (0.04 / 500, True)])
def test_chances_are_adjusted_for_all_asked(monkeypatch: pytest.MonkeyPatch, chance: float, found: bool) -> None:
    features = described(1)
    right = scores(features, features["meta.channel"] == "c1", 3)
    monkeypatch.setattr(weak_slices, "weaker", lambda _, leaves: np.full(len(leaves), chance))
    assert bool(weak_slices.find(features, right, min_rows=30)) == found


def test_graded_scores_are_searched_too() -> None:
    validation, test = described(1), described(2)
    rng = np.random.default_rng(3)
    graded = [
        rng.beta(8, 2, ROWS) - 0.2 * (side["meta.channel"] == "c1").fill_null(value=False).to_numpy()
        for side in (validation, test)
    ]
    rules = weak_slices.find(validation, graded[0], min_rows=30)
    assert [rule.name for rule in rules] == ["channel=c1"]


def test_rules_read_as_a_person_writes_them() -> None:
    length = weak_slices.Signal("number", "length", "length", whole=True)
    share = weak_slices.Signal("number", "share_upper", "share_upper")
    url = weak_slices.Signal("flag", "has_url", "has_url")
    source = weak_slices.Signal("value", "source", "source", "web")
    word = weak_slices.Signal("word", "text", "text", "not")
    rule = weak_slices.Rule(
        (
            weak_slices.Condition(length, low=25.0),
            weak_slices.Condition(share, low=0.05, high=0.3),
            weak_slices.Condition(url, high=0.5),
            weak_slices.Condition(source, low=0.5),
            weak_slices.Condition(word, low=0.5),
        )
    )
    assert rule.name == "length > 25 and 0.05 < share_upper <= 0.3 and not has_url and source=web and word 'not'"
    features = pl.DataFrame(
        {
            "length": [26, 25, 26, 26, 26, 26, 26],
            "share_upper": [0.3, 0.3, 0.05, 0.3, 0.3, 0.3, None],
            "has_url": [False, False, False, True, False, False, False],
            "source": ["web", "web", "web", "web", None, "web", "web"],
            "text": ["not", "not", "not", "not", "not", "nothing", "not"],
        }
    )
    assert rule.mask(features).tolist() == [True, *[False] * 6]
    assert rule.slice(features).kind == "weak"


def test_bounds_of_one_number_are_merged_and_hold_as_they_are_shown() -> None:
    features = described(1, 6_000)
    band = features["length"].is_between(41, 80)
    (rule, *_) = weak_slices.find(features, scores(features, band, 3), min_rows=30)
    (condition,) = rule.conditions
    low, high = int(condition.low), int(condition.high)
    assert (low, high) == (pytest.approx(40, abs=4), pytest.approx(80, abs=4))
    assert rule.name == f"{low} < length <= {high}"
    assert rule.mask(features).tolist() == ((features["length"] > low) & (features["length"] <= high)).to_list()


def test_huge_numbers_do_not_stop_the_search() -> None:
    features = described(1).with_columns(pl.Series("meta.price", [str(10.0 ** (i % 300)) for i in range(ROWS)]))
    rules = weak_slices.find(features, scores(features, features["meta.channel"] == "c1", 3), min_rows=30)
    assert rules[0].name == "channel=c1"


def test_a_small_part_that_is_very_weak_is_found_beside_larger_ones_that_are_less_so() -> None:
    features = described(1, size=6_000)
    draw = np.random.default_rng(5)
    large = (features["meta.channel"] == "c1").fill_null(value=False).to_numpy()
    small = draw.random(len(features)) < 0.025
    marked = features.with_columns(
        text=pl.when(pl.Series(small)).then(pl.format("{} kiosk", "text")).otherwise(pl.col("text"))
    )
    words = [features["text"].str.contains(rf"\b{word}\b").to_numpy() for word in WORDS[:3]]
    chance = np.where(small, 0.3, 0.85 - 0.12 * np.sum(words, axis=0) - 0.15 * large.astype(float))
    right = (draw.random(len(features)) < chance).astype(float)
    names = [rule.name for rule in weak_slices.find(marked, right, min_rows=30)]
    assert "word 'kiosk'" in names
    assert any("kiosk" not in name for name in names)
