from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pandera.errors import SchemaErrors

from schemas.recipe import Evaluate, Slices
from schemas.records import SliceScore
from tasks import evaluate
from tasks.evaluate import Measured
from tasks.evaluation_report import report
from tasks.families.text_classification import TextClassificationTask
from tasks.slices import from_membership

LABELS = ["no", "yes"]
TASK = TextClassificationTask()
EVALUATE = Evaluate(bootstrap_resamples=400)


def predictions(truth: str, prediction: str, labels: list[str] = LABELS, sure: float = 0.8) -> pl.DataFrame:
    """One letter a row: the first letter of the label. Every prediction has the probability `sure`."""
    named = {label[0]: label for label in labels}
    rest = (1 - sure) / (len(labels) - 1)
    return pl.DataFrame(
        {
            "id": [f"r{i}" for i in range(len(truth))],
            "truth": [named[letter] for letter in truth],
            "prediction": [named[letter] for letter in prediction],
            "probabilities": [[sure if label[0] == letter else rest for label in labels] for letter in prediction],
        }
    )


TRUTH = "yyyynnnnnn"
MODEL = predictions(TRUTH, "yyynnnnnnn")
MAJORITY = predictions(TRUTH, "nnnnnnnnnn")


SPEED = {
    "latency_ms_p50": 4.0, "latency_ms_p95": 9.5, "rows_per_second": 310.0, "size_mb": 90.9,
    "machine": {"cores": 2, "accelerators": []},
}  # fmt: skip


class Folders:
    """What the stages before leave: the model is right on nine of ten validation rows, and says so sure of 80 %."""

    def __init__(self, root: Path) -> None:
        names = ("split", "tokens", "model", "predictions", "speed", "baseline", "out")
        self.split, self.tokens, self.model, self.predictions, self.speed, self.baseline, self.out = (
            root / name for name in names
        )
        for name in names:
            (root / name).mkdir()
        (self.tokens / "meta.json").write_text(json.dumps({"labels": LABELS}))
        (self.model / "history.json").write_text(json.dumps([{"step": 1, "loss": 0.7, "macro_f1": 0.5}]))
        (self.speed / "speed.json").write_text(json.dumps(SPEED))
        MAJORITY.write_parquet(self.baseline / "majority.parquet")
        validation = predictions("yn" * 100, "yn" * 90 + "ny" * 10)
        validation.write_parquet(self.predictions / "validation.parquet")
        self.rows(validation).write_parquet(self.split / "validation.parquet")

    @staticmethod
    def rows(of: pl.DataFrame) -> pl.DataFrame:
        return of.select(
            "id", pl.format("text of {}", "id").alias("text"), pl.col("truth").alias("label"),
            pl.lit("f").alias("source"),
        )  # fmt: skip

    def run(self, rows: pl.DataFrame = MODEL, **asked: Any) -> dict[str, Any]:
        rows.write_parquet(self.predictions / "test.parquet")
        self.rows(MODEL).write_parquet(self.split / "test.parquet")
        return evaluate.evaluate_model(
            task=TASK, evaluate=EVALUATE.model_copy(update=asked), metric="macro_f1", split=self.split,
            tokens=self.tokens, model=self.model, predictions=self.predictions, speed=self.speed,
            baselines=[self.baseline], out=self.out,
        )  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def test_validation_and_test_are_predicted_with_the_model_that_serves(tmp_path: Path) -> None:
    asked = []

    def predict(model: Path, files: Mapping[Path, Path], *, work: Path) -> dict[str, Any]:
        asked.append((model, dict(files), work))
        return {"rows": 3, "tokens": 9, "seconds": 0.5, "more": 1}

    tokens, model, out = (tmp_path / name for name in ("tokens", "model", "out"))
    found = evaluate.model_predictions(task=TASK, tokens=tokens, model=model, predict=predict, work=tmp_path, out=out)
    files = {tokens / f"{side}.arrow": out / f"{side}.parquet" for side in ("validation", "test")}
    assert asked == [(model / "model", files, tmp_path)]
    assert found == {"rows": 3, "tokens": 9, "seconds": 0.5}


def test_what_is_recorded_is_calibrated_on_validation(folders: Folders) -> None:
    summary = folders.run()
    recorded = pl.read_parquet(folders.out / "predictions.parquet")
    assert recorded.drop("probabilities").equals(MODEL.drop("probabilities"))
    # Nine of ten are right: a temperature that makes 0.8 of 0.9 is log 4 / log 9.
    temperature = log(4) / log(9)
    assert summary["calibration"]["temperature"] == pytest.approx(temperature, abs=1e-3)
    assert recorded["probabilities"].list.max().to_list() == pytest.approx([0.9] * 10, abs=1e-3)
    kept = json.loads((folders.out / "calibration.json").read_text())
    assert kept == summary["calibration"]
    # 0.9 sure, and nine of ten are right.
    assert summary["metrics"]["ece"] == pytest.approx(0, abs=1e-3)


def test_without_calibration_the_model_is_recorded_as_it_is(folders: Folders) -> None:
    summary = folders.run(calibrate=False)
    assert summary["calibration"] == {}
    assert pl.read_parquet(folders.out / "predictions.parquet").equals(MODEL)
    assert "## Calibration" not in (folders.out / "report.md").read_text(encoding="utf-8")


def test_a_threshold_for_abstaining_is_told_with_what_it_does_to_the_test(folders: Folders) -> None:
    summary = folders.run(abstain_precision=0.8)
    assert summary["calibration"]["abstain"]["precision"] == 0.8
    assert summary["abstention"]["coverage"] == 1
    assert summary["abstention"]["precision"]["value"] == pytest.approx(0.9)
    page = (folders.out / "report.md").read_text(encoding="utf-8")
    assert "on the test rows it answers 100.0%, and is right on 90.0% of these." in page


def test_slices_are_measured_and_kept_for_the_gate(folders: Folders) -> None:
    summary = folders.run(slices=Slices(min_rows=5, weak=False))
    measured = {part["name"]: (part["rows"], part["value"]) for part in summary["slices"]}
    assert measured["label=no"] == (6, pytest.approx(1))
    assert "label=yes" not in measured  # four rows
    kept = from_membership(pl.read_parquet(folders.out / "slices.parquet"))
    by_name = {part.name: part.mask.sum() for part in kept}
    assert (by_name["label=no"], by_name["label=yes"]) == (6, 4)
    assert "| label=no | 6 | 1.0000 | " in (folders.out / "report.md").read_text(encoding="utf-8")


def test_a_weak_slice_of_validation_that_the_test_does_not_confirm_is_not_reported(folders: Folders) -> None:
    odd = SliceScore(name="has_url", kind="weak", rows=9, value=0.1, low=0.0, high=0.4, p_weaker=0.4)
    sure = odd.model_copy(update={"name": "word 'not'", "p_weaker": 0.001})
    page = report(replace(measured("yn", "yn", {}), slices=(odd, sure)))
    assert "has_url" not in page
    assert "| **word 'not'** | 9 | " in page


def test_speed_is_timed_through_the_serving_file_on_rows_of_the_test(tmp_path: Path) -> None:
    (tmp_path / "split").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(1_500_000))
    rows = pl.DataFrame({"id": [str(i) for i in range(2500)], "text": [f"text {i}" for i in range(2500)]})
    rows.write_parquet(tmp_path / "split" / "test.parquet")
    asked: dict[str, Any] = {}

    def run_job(job: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        asked.update(spec, job=job, read=pl.read_parquet(spec["rows"]))
        return {"latency_ms_p50": 1.0, "latency_ms_p95": 2.0, "rows_per_second": 3.0}

    speed = evaluate.model_speed(
        task=TASK, machine={"cores": 2}, identity="m", notes={}, split=tmp_path / "split",
        model=lambda: tmp_path / "model", run_job=run_job, out=tmp_path,
    )  # fmt: skip
    assert (asked["job"], asked["serving"]) == ("latency", str(evaluate.family_of(TASK).serving))
    assert asked["read"]["text"].to_list()[:2] == ["text 0", "text 2"]
    assert speed["size_mb"] == 1.5
    assert json.loads((tmp_path / "speed.json").read_text()) == speed


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
    assert summary["speed"] == SPEED


def test_the_summary_sets_the_model_beside_the_baselines(folders: Folders) -> None:
    summary = folders.run()
    majority = summary["baselines"]["majority"]
    assert majority["accuracy"] == pytest.approx(0.6)
    assert majority["macro_f1"] == pytest.approx(0.75 / 2)
    assert majority["macro_f1_low"] < majority["macro_f1"] < majority["macro_f1_high"]
    gain = summary["gains"]["majority"]
    assert gain["gain"]["value"] == pytest.approx(summary["metrics"]["macro_f1"] - majority["macro_f1"])
    assert gain["gain"]["low"] <= gain["gain"]["value"] <= gain["gain"]["high"]
    assert gain["test"] == "paired bootstrap"
    assert gain["se"] > 0


def test_the_summary_is_json_and_the_same_again(folders: Folders) -> None:
    first = json.loads(json.dumps(folders.run(), allow_nan=False))
    assert folders.run() == first


def test_metrics_json_has_every_interval(folders: Folders) -> None:
    folders.run()
    found = json.loads((folders.out / "metrics.json").read_text())
    assert found["metrics"]["f1/yes"]["value"] == pytest.approx(6 / 7)
    assert found["metrics"]["f1/yes"]["low"] < found["metrics"]["f1/yes"]["high"]
    assert found["baselines"]["majority"]["accuracy"]["value"] == pytest.approx(0.6)
    assert (found["rows"], found["confidence"], found["bootstrap_resamples"]) == (10, 0.95, 400)
    assert found["gains"]["majority"]["gain"]["value"] > 0


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
    for picture in ("confusion_matrix", "precision_recall", "reliability", "learning_curve"):
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


def measured(truth: str, model: str, baselines: dict[str, str], labels: list[str] = LABELS) -> Measured:
    return evaluate.measure(
        evaluate.family_of(TASK), {"labels": labels}, evaluate=EVALUATE, metric="accuracy",
        predictions=predictions(truth, model, labels),
        baselines={name: predictions(truth, baseline, labels) for name, baseline in baselines.items()},
        parts=[], calibration={}, speed=SPEED,
    )  # fmt: skip


def told(model: str, baseline: str, truth: str = TRUTH) -> str:
    return report(measured(truth, model, {"nobody": "ynnnnyyyyy", "rival": baseline})).split("\n\n")[1]


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
    found = evaluate.measure(
        evaluate.family_of(TASK), {"labels": labels}, evaluate=EVALUATE, metric="accuracy", predictions=rows,
        baselines={}, parts=[], calibration={}, speed=SPEED,
    )  # fmt: skip
    return report(found)


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
    assert summary["gains"]["majority"]["gain"]["value"] > 0
