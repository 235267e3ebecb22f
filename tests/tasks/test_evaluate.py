from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pandera.errors import SchemaErrors

from schemas.recipe import Evaluate
from tasks import evaluate
from tasks.families.text_classification import TextClassificationTask

LABELS = ["no", "yes"]
TASK = TextClassificationTask()
EVALUATE = Evaluate(bootstrap_resamples=400)


def predictions(truth: str, prediction: str, labels: list[str] = LABELS) -> pl.DataFrame:
    """One letter a row: the first letter of the label."""
    named = {label[0]: label for label in labels}
    return pl.DataFrame(
        {
            "id": [f"r{i}" for i in range(len(truth))],
            "truth": [named[letter] for letter in truth],
            "prediction": [named[letter] for letter in prediction],
            "probabilities": [[0.5, 0.5]] * len(truth),
        }
    )


TRUTH = "yyyynnnnnn"
MODEL = predictions(TRUTH, "yyynnnnnnn")
MAJORITY = predictions(TRUTH, "nnnnnnnnnn")


class Folders:
    def __init__(self, root: Path) -> None:
        self.tokens, self.model, self.baseline, self.out = (root / n for n in ("tokens", "model", "baseline", "out"))
        for folder in (self.tokens, self.model, self.baseline, self.out):
            folder.mkdir()
        (self.tokens / "meta.json").write_text(json.dumps({"labels": LABELS}))
        (self.model / "history.json").write_text(json.dumps([{"step": 1, "loss": 0.7, "macro_f1": 0.5}]))
        MAJORITY.write_parquet(self.baseline / "majority.parquet")
        self.asked: list[tuple[Path, Path]] = []

    def run(self, rows: pl.DataFrame = MODEL) -> dict[str, Any]:
        def predict(model: Path, tokens: Path, out: Path) -> dict[str, Any]:
            self.asked.append((model, tokens))
            rows.write_parquet(out)
            return {"rows": rows.height}

        return evaluate.evaluate_model(
            task=TASK, evaluate=EVALUATE, metric="macro_f1", tokens=self.tokens, model=self.model,
            baseline=self.baseline, predict=predict, out=self.out,
        )  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def test_the_test_rows_are_predicted_with_the_model_that_serves(folders: Folders) -> None:
    folders.run()
    assert folders.asked == [(folders.model / "model", folders.tokens / "test.arrow")]
    assert pl.read_parquet(folders.out / "predictions.parquet").equals(MODEL)


def test_the_summary_has_metrics_worked_by_hand(folders: Folders) -> None:
    summary = folders.run()
    metrics = summary["metrics"]
    # yes: 3 of 4 found, none wrongly: f1 = 6/7. no: 6 found, 1 wrongly: f1 = 12/13.
    assert metrics["accuracy"] == pytest.approx(0.9)
    assert metrics["f1/yes"] == pytest.approx(6 / 7)
    assert metrics["f1/no"] == pytest.approx(12 / 13)
    assert metrics["macro_f1"] == pytest.approx((6 / 7 + 12 / 13) / 2)
    assert metrics["support/yes"] == 4
    assert metrics["accuracy_low"] < metrics["accuracy"] <= metrics["accuracy_high"] == 1
    assert "f1/yes_low" not in metrics
    assert {f"{name}{end}" for name in TASK.metrics for end in ("", "_low", "_high")} <= metrics.keys()
    assert (summary["rows"], summary["metric"]) == (10, "macro_f1")
    assert summary["seconds_predict"] >= 0


def test_the_summary_sets_the_model_beside_the_baselines(folders: Folders) -> None:
    summary = folders.run()
    majority = summary["baselines"]["majority"]
    assert majority["accuracy"] == pytest.approx(0.6)
    assert majority["macro_f1"] == pytest.approx(0.75 / 2)
    assert majority["macro_f1_low"] < majority["macro_f1"] < majority["macro_f1_high"]
    gain = summary["gains"]["majority"]
    assert gain["value"] == pytest.approx(summary["metrics"]["macro_f1"] - majority["macro_f1"])
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert gain["mcnemar_p"] == pytest.approx(2 * 0.5**3)  # three rows gained, none lost


def test_the_summary_is_json_and_the_same_again(folders: Folders) -> None:
    first = json.loads(json.dumps(folders.run(), allow_nan=False))
    assert {**folders.run(), "seconds_predict": 0} == {**first, "seconds_predict": 0}


def test_metrics_json_has_every_interval(folders: Folders) -> None:
    folders.run()
    found = json.loads((folders.out / "metrics.json").read_text())
    assert found["metrics"]["f1/yes"]["value"] == pytest.approx(6 / 7)
    assert found["metrics"]["f1/yes"]["low"] < found["metrics"]["f1/yes"]["high"]
    assert found["baselines"]["majority"]["accuracy"]["value"] == pytest.approx(0.6)
    assert (found["rows"], found["confidence"], found["bootstrap_resamples"]) == (10, 0.95, 400)
    assert found["mcnemar_p"]["majority"] == pytest.approx(0.25)


def test_the_report_is_a_page_with_its_pictures_beside_it(folders: Folders) -> None:
    folders.run()
    page = (folders.out / "report.md").read_text(encoding="utf-8")
    assert "**macro_f1 0.8901** (95% interval " in page
    assert "on 10 test rows" in page
    assert "the best baseline, majority: +0.5151 (" in page
    assert "| `accuracy` | 0.9000 | " in page
    assert "| true ╲ predicted | no | yes |" in page
    assert "| no | **6** | 0 |" in page
    assert "| yes | 1 | **3** |" in page
    for picture in ("confusion_matrix", "learning_curve"):
        assert f"]({picture}.png)" in page
        assert (folders.out / f"{picture}.png").stat().st_size > 1000


def test_a_model_trained_elsewhere_has_no_learning_curve(folders: Folders) -> None:
    (folders.model / "history.json").unlink()
    folders.run()
    assert "learning_curve" not in (folders.out / "report.md").read_text(encoding="utf-8")


def test_two_predictions_of_one_row_are_refused(folders: Folders) -> None:
    with pytest.raises(SchemaErrors, match="unique"):
        folders.run(pl.concat([MODEL, MODEL[:1]]))


def test_a_row_without_a_prediction_is_refused(folders: Folders) -> None:
    with pytest.raises(SchemaErrors, match="null"):
        folders.run(MODEL.with_columns(prediction=pl.when(pl.col("id") != "r3").then("prediction")))


def told(model: str, baseline: str, truth: str = TRUTH) -> str:
    family = evaluate.family_of(TASK)
    found = evaluate.measure(
        family, {"labels": LABELS}, evaluate=EVALUATE, metric="accuracy",
        predictions=predictions(truth, model),
        baselines={"nobody": predictions(truth, "ynnnnyyyyy"), "rival": predictions(truth, baseline)},
    )  # fmt: skip
    return evaluate.report(found).split("\n\n")[1]


def test_the_headline_claims_no_more_than_the_interval_shows() -> None:
    assert "It is better than the best baseline, rival: +0.7000" in told(TRUTH, "nnnnnnyyyn")
    assert "It is worse than the best baseline, rival: -0.7000" in told("nnnnnnyyyn", TRUTH)
    assert "It is not clearly different from the best baseline, rival: +0.0000" in told(TRUTH, TRUTH)


def report_of(labels: list[str]) -> str:
    rows = pl.DataFrame(
        {
            "id": [f"r{i}" for i in range(len(labels) + 2)],
            "truth": [*labels, labels[0], labels[0]],
            "prediction": [*labels, labels[1], labels[1]],
        }
    )
    family = evaluate.family_of(TASK)
    measured = evaluate.measure(
        family, {"labels": labels}, evaluate=EVALUATE, metric="accuracy", predictions=rows, baselines={}
    )
    return evaluate.report(measured)


def test_many_labels_get_their_most_frequent_confusions_instead_of_a_matrix() -> None:
    page = report_of([f"intent {i}" for i in range(13)])
    assert "## Most frequent confusions" in page
    assert "| intent 0 | intent 1 | 2 |" in page
    assert "╲" not in page
    assert "╲" in report_of([f"intent {i}" for i in range(12)])


def test_a_label_cannot_break_the_table() -> None:
    page = report_of(["a|b", "<script>", "*c*"])
    assert "| a\\|b | " in page
    assert "\\<script>" in page
    assert "\\*c\\*" in page


def test_without_baselines_there_is_no_section_of_them() -> None:
    assert "Baselines" not in report_of(["a", "b"])


def test_baselines_are_fitted_and_scored_once_for_all_models(tmp_path: Path) -> None:
    split, out = tmp_path / "split", tmp_path / "out"
    split.mkdir()
    out.mkdir()
    (split / "meta.json").write_text(json.dumps({"labels": LABELS}))
    rows = pl.DataFrame(
        {
            "id": [f"r{i}" for i in range(12)],
            "text": ["yes indeed", "not at all", "not now"] * 4,
            "label": ["yes", "no", "no"] * 4,
        }
    )
    for side in ("train", "validation", "test"):
        rows.write_parquet(split / f"{side}.parquet")
    summary = evaluate.baseline_predictions(task=TASK, metric="accuracy", split=split, out=out)
    assert summary["chosen"]["majority"]["label"] == "no"
    assert summary["test"]["majority"]["accuracy"] == pytest.approx(2 / 3)
    assert summary["test"]["tfidf"]["accuracy"] == 1
    assert sorted(file.name for file in out.iterdir()) == ["majority.parquet", "tfidf.parquet"]


def test_rows_dropped_for_their_length_count_for_no_baseline(folders: Folders) -> None:
    left = MODEL.head(8)
    dropped = {"id": ["r8", "r9", "r0"], "side": ["test", "test", "train"], "tokens": [300, 400, 500]}
    pl.DataFrame(dropped, schema_overrides={"tokens": pl.Int32}).write_parquet(folders.tokens / "overlong.parquet")
    summary = folders.run(left)
    assert summary["rows"] == 8
    # Of 8 rows 4 are no: the majority is right in half of them; the model errs once.
    assert summary["baselines"]["majority"]["accuracy"] == pytest.approx(0.5)
    assert summary["metrics"]["accuracy"] == pytest.approx(7 / 8)
    assert summary["gains"]["majority"]["mcnemar_p"] == pytest.approx(2 * 0.5**3)
