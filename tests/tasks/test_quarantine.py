from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import DataError
from schemas.loading import validate_recipe
from schemas.recipe import Recipe
from tasks.clean import clean
from tasks.collect import collect
from tasks.context import Context
from tasks.home import Home
from tasks.quarantine import GONE, Replay, _scratch, export, groups, last_set_aside, replay
from tasks.split import split

FINE = [
    (f"{a} {b} {c}", ("pos", "neg")[(i + j + k) % 2])
    for i, a in enumerate(("red", "green", "blue", "black", "white"))
    for j, b in enumerate(("cat", "dog", "cow", "hen", "pig"))
    for k, c in enumerate(("runs", "jumps", "eats", "sleeps", "sings"))
]
UNFIT = [("said twice", "pos"), ("said twice", "neg"), FINE[0], ("hi", "pos"), ("odd mood", "happy"), ("", "neg")]
SPLIT = {"kind": "hash", "validation": 0.2, "test": 0.2, "near_duplicates": {"search": False}}


def write(folder: Path, rows: list[tuple[str, str]], *, more: str = "a,ragged,row\n") -> None:
    with (folder / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("body", "mood"), *rows])
        file.write(more)


def recipe_of(
    folder: Path, *, corrections: tuple[str, ...] = (), labels: tuple[str, ...] = ("neg", "pos"), **clean: Any
) -> Recipe:
    return validate_recipe(
        {
            "name": "r",
            "task": {"family": "text-classification", "text_column": "body", "label_column": "mood", "labels": labels},
            "collect": {"source": {"kind": "csv", "path": str(folder / "x.csv")}, "corrections": corrections},
            "clean": {"min_chars": 3, **clean},
            "split": SPLIT,
            "model": {"base": "b"},
        }
    )


@pytest.fixture
def home(tmp_path, monkeypatch) -> Home:
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    return Home.open(tmp_path)


@pytest.fixture
def prepared(tmp_path, home) -> Recipe:
    write(tmp_path, FINE + UNFIT)
    recipe = recipe_of(tmp_path)
    prepare(recipe, home)
    return recipe


def prepare(recipe: Recipe, home: Home) -> None:
    context = Context(recipe, home, "run")
    split(context, clean(context, collect(context)))


def played(recipe: Recipe, home: Home, reason: str | None = None) -> Replay:
    return replay(last_set_aside(recipe, home), home, reason=reason)


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "cache" not in path.parts}


AS_BEFORE = {
    "contradicting_label": {"contradicting_label": 2},
    "duplicate": {"duplicate": 1},
    "missing_text": {"missing_text": 1},
    "ragged_row": {"ragged_row": 1},
    "too_short": {"too_short": 1},
    "unknown_label": {"unknown_label": 1},
}


def test_rows_are_listed_by_reason_with_examples(prepared, home):
    found = last_set_aside(prepared, home)
    told = {group.reason: group for group in groups(found, examples=1)}
    assert {reason: group.rows for reason, group in told.items()} == {
        reason: sum(n.values()) for reason, n in AS_BEFORE.items()
    }
    first = told["contradicting_label"]
    assert (first.stage, first.share, first.sources) == ("clean", 2 / 132, {"x.csv": 2})
    assert len(first.examples) == 1
    example = first.examples[0]
    assert (example["source"], example["row"], example["text"]) == ("x.csv", 126, "said twice")
    assert told["ragged_row"].examples[0]["text"] == "a,ragged,row"
    assert (found.collected, found.kept, found.stale) == (132, 125, False)


def test_one_reason_can_be_asked_for_and_an_unknown_one_is_a_mistake(prepared, home):
    found = last_set_aside(prepared, home)
    assert [group.reason for group in groups(found, reason="too_short")] == ["too_short"]
    with pytest.raises(DataError, match="did you mean too_short"):
        groups(found, reason="to_short")


def test_a_leaked_row_is_shown_with_the_row_it_resembles(tmp_path, home):
    write(tmp_path, [*FINE, *((f"{text}!", label) for text, label in FINE)], more="")
    recipe = recipe_of(tmp_path, drop_duplicates=False)
    official = {"kind": "official", "near_duplicates": {"search": False}}
    (tmp_path / "test.csv").write_text('body,mood\n"Red, cat runs",pos\n"red cat eats again",neg\n')
    data = recipe.model_dump(mode="json")
    data["collect"]["source"]["test_path"] = str(tmp_path / "test.csv")
    recipe = validate_recipe(data | {"split": official})
    prepare(recipe, home)
    leaked = [group for group in groups(last_set_aside(recipe, home), examples=1) if group.stage == "split"]
    shown = next(group for group in leaked if group.reason == "duplicate_of_test").examples[0]
    assert (shown["text"].rstrip("!"), shown["twin_text"]) == ("red cat runs", "Red, cat runs")


def test_before_the_first_run_the_remedy_is_to_run(tmp_path, home):
    write(tmp_path, FINE)
    with pytest.raises(DataError, match="hone run RECIPE"):
        last_set_aside(recipe_of(tmp_path), home)


def test_rows_collected_since_but_not_cleaned_make_the_listing_stale(tmp_path, prepared, home):
    write(tmp_path, FINE[:50] + UNFIT)
    strict = recipe_of(tmp_path, max_quarantined=0.01)
    with pytest.raises(DataError, match="max_quarantined"):
        prepare(strict, home)
    assert last_set_aside(strict, home).stale


def test_rows_cleaned_anew_but_not_split_are_shown_without_the_old_leaks(tmp_path, prepared, home):
    recipe = recipe_of(tmp_path, min_chars=2)
    context = Context(recipe, home, "run")
    clean(context, collect(context))
    found = last_set_aside(recipe, home)
    assert (found.split, found.kept, list(found.files)) == (None, None, ["clean"])


def test_an_export_has_each_id_once_and_no_label_that_is_in_doubt(tmp_path, prepared, home):
    wrote = export(last_set_aside(prepared, home), tmp_path / "fixes.csv")
    with (tmp_path / "fixes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "body", "mood", "drop"]
    assert [(row["body"], row["mood"], row["drop"]) for row in rows if row["body"] == "said twice"] == [
        ("said twice", "", "")
    ]
    assert {row["body"] for row in rows} == {"said twice", FINE[0][0], "hi", "odd mood", ""}
    assert (wrote.rows, wrote.without_id) == (5, 1)


def test_an_export_of_one_reason_holds_no_other(tmp_path, prepared, home):
    assert export(last_set_aside(prepared, home), tmp_path / "fixes.csv", reason="too_short").rows == 1
    assert "odd mood" not in (tmp_path / "fixes.csv").read_text()


def test_an_export_overwrites_nothing(tmp_path, prepared, home):
    (tmp_path / "fixes.csv").write_text("my work")
    with pytest.raises(DataError, match="is there already"):
        export(last_set_aside(prepared, home), tmp_path / "fixes.csv")
    assert (tmp_path / "fixes.csv").read_text() == "my work"
    with pytest.raises(DataError, match=r"name a \.csv file"):
        export(last_set_aside(prepared, home), tmp_path / "fixes.xlsx")
    with pytest.raises(DataError, match="No such file or directory"):
        export(last_set_aside(prepared, home), tmp_path / "nowhere" / "fixes.csv")


def test_a_replay_of_the_same_rules_changes_no_fate_and_nothing_in_the_home(tmp_path, prepared, home):
    before = contents(home.root)
    again = played(prepared, home)
    assert again == Replay(AS_BEFORE, 125, [])
    assert contents(home.root) == before


def test_a_replay_says_what_edited_rules_would_keep(tmp_path, prepared, home):
    edited = recipe_of(tmp_path, min_chars=1, drop_contradictions=False)
    again = played(edited, home)
    assert again.fates == AS_BEFORE | {"contradicting_label": {"kept": 2}, "too_short": {"kept": 1}}
    assert again.kept == 128
    assert played(edited, home, "too_short").fates == {"too_short": {"kept": 1}}


def test_an_exported_file_that_nobody_edited_changes_no_fate(tmp_path, prepared, home):
    export(last_set_aside(prepared, home), tmp_path / "fixes.csv")
    again = played(recipe_of(tmp_path, corrections=(str(tmp_path / "fixes.csv"),)), home)
    assert again.fates == AS_BEFORE


def test_a_replay_says_what_an_edited_export_would_keep(tmp_path, prepared, home):
    export(last_set_aside(prepared, home), tmp_path / "fixes.csv")
    text = (tmp_path / "fixes.csv").read_text()
    text = (
        text.replace("said twice,,", "said twice,neg,")
        .replace("odd mood,happy", "odd mood,pos")
        .replace("hi,pos,", "hi,pos,true")
    )
    (tmp_path / "fixes.csv").write_text(text)
    again = played(recipe_of(tmp_path, corrections=(str(tmp_path / "fixes.csv"),)), home)
    assert again.fates == AS_BEFORE | {
        "contradicting_label": {"kept": 1, "duplicate": 1},
        "too_short": {"dropped_by_correction": 1},
        "unknown_label": {"kept": 1},
    }


def test_a_row_put_right_in_the_source_is_found_again_and_a_deleted_one_is_gone(tmp_path, prepared, home):
    rows = FINE + UNFIT[:-1]
    rows[-2] = ("hi there", "pos")
    write(tmp_path, rows, more="")
    again = played(prepared, home)
    assert again.fates == AS_BEFORE | {"too_short": {"kept": 1}, "missing_text": {GONE: 1}, "ragged_row": {GONE: 1}}


def test_a_bound_that_stops_a_run_does_not_stop_a_replay(tmp_path, prepared, home):
    again = played(recipe_of(tmp_path, max_quarantined=0.01), home)
    assert again.fates == AS_BEFORE
    assert len(again.stops) == 1
    assert again.stops[0].startswith("clean.max_quarantined = 0.01")


def test_rows_that_cannot_be_split_are_replayed_through_cleaning_alone(tmp_path, prepared, home):
    again = played(recipe_of(tmp_path, labels=("neg", "pos", "never"), min_chars=1), home)
    assert again.fates == AS_BEFORE | {"too_short": {"kept": 1}}
    assert again.kept == 126
    assert any("no training row has this label" in problem for problem in again.stops)


def test_a_mistake_in_the_corrections_is_told(tmp_path, prepared, home):
    (tmp_path / "fixes.csv").write_text("id,colour\n1,red\n")
    with pytest.raises(DataError, match="colour"):
        played(recipe_of(tmp_path, corrections=(str(tmp_path / "fixes.csv"),)), home)
    assert not list(home.work.iterdir())


def test_a_replay_knows_what_was_seen_and_forgotten_and_cannot_change_it(home):
    (home.journal / "watermarks").mkdir()
    (home.journal / "watermarks" / "w.json").write_text("[]")
    (home.journal / "forgotten.jsonl").write_text("{}")
    with _scratch(home) as scratch:
        assert (scratch.journal / "watermarks" / "w.json").read_text() == "[]"
        (scratch.journal / "forgotten.jsonl").write_text("changed")
        (scratch.root / "cache" / "kept").write_text("")
    assert (home.journal / "forgotten.jsonl").read_text() == "{}"
    assert (home.root / "cache" / "kept").exists()
    assert not scratch.root.exists()
