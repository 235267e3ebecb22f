from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn import metrics as sk

from tasks import classification, plots
from tasks.families.text_classification import TextClassification

LABELS = ["negative", "neutral", "positive"]
PREDICTIONS = pl.DataFrame(
    {
        "truth": ["negative"] * 4 + ["neutral"] * 2 + ["positive"],
        "prediction": ["negative"] * 3 + ["neutral"] * 2 + ["negative"] + ["positive"],
    }
)
HISTORY = [
    {"step": 1, "loss": 1.1, "learning_rate": 1e-4},
    {"step": 2, "loss": 0.9, "learning_rate": 5e-5, "macro_f1": 0.5},
    {"step": 3, "loss": 0.8, "macro_f1": None},
    {"step": 4, "macro_f1": 0.7},
    {"step": 5, "macro_f1": 0.6},
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    original = plots.save

    def keep(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        return original(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    return figures


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_every_cell_shows_its_count_and_its_share_of_the_row(drawn: list[Figure], tmp_path: Path) -> None:
    path = plots.confusion_matrix(PREDICTIONS, LABELS, tmp_path / "confusion.png")
    assert path == tmp_path / "confusion.png"
    assert matplotlib.image.imread(path).shape[0] > 300
    cells = ["3\n75%", "1\n25%", "·", "1\n50%", "1\n50%", "·", "·", "·", "1\n100%"]
    assert texts(drawn[0]) == cells
    axes = drawn[0].axes[0]
    assert [name.get_text() for name in axes.get_xticklabels()] == LABELS
    assert [name.get_text() for name in axes.get_yticklabels()] == ["negative  (4)", "neutral  (2)", "positive  (1)"]
    assert np.asarray(axes.images[0].get_array()) == pytest.approx(
        np.array([[0.75, 0.25, 0], [0.5, 0.5, 0], [0, 0, 1]])
    )
    assert axes.get_title(loc="left") == "7 rows, 71.4% right"


def test_many_labels_are_thinned_rather_than_smeared(drawn: list[Figure], tmp_path: Path) -> None:
    labels = [f"intent {i}" for i in range(150)]
    plots.confusion_matrix(pl.DataFrame({"truth": labels, "prediction": labels}), labels, tmp_path / "c.png")
    assert texts(drawn[0]) == []
    assert len(drawn[0].axes[0].get_xticks()) == 50


def test_labels_are_shown_as_they_are_written_and_cut_when_long(drawn: list[Figure], tmp_path: Path) -> None:
    labels = ["$5 or $10", "a label that is far too long for a plot"]
    plots.confusion_matrix(pl.DataFrame({"truth": labels, "prediction": labels}), labels, tmp_path / "c.png")
    assert [name.get_text() for name in drawn[0].axes[0].get_xticklabels()] == [
        r"\$5 or \$10",
        "a label that is far too…",
    ]


def test_loss_and_metric_are_drawn_where_they_were_recorded(drawn: list[Figure], tmp_path: Path) -> None:
    path = plots.learning_curve(HISTORY, "macro_f1", tmp_path / "curve.png")
    assert matplotlib.image.imread(path).std() > 0
    upper, lower = drawn[0].axes
    assert upper.lines[0].get_xydata().tolist() == [[1, 1.1], [2, 0.9], [3, 0.8]]
    assert lower.lines[0].get_xydata().tolist() == [[2, 0.5], [4, 0.7], [5, 0.6]]
    assert texts(drawn[0]) == ["best 0.7000 at step 4"]


def test_a_noisy_loss_gets_a_line_through_it_that_looks_only_back(drawn: list[Figure], tmp_path: Path) -> None:
    history = [{"step": step, "loss": float(step % 2)} for step in range(1, 201)]
    plots.learning_curve(history, "macro_f1", tmp_path / "curve.png")
    raw, smooth = drawn[0].axes[0].lines
    assert raw.get_ydata()[:2].tolist() == [1, 0]
    assert smooth.get_ydata()[:4] == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    assert smooth.get_ydata()[-1] == pytest.approx(0.5)


def test_nothing_recorded_is_said_in_words(drawn: list[Figure], tmp_path: Path) -> None:
    plots.learning_curve([], "macro_f1", tmp_path / "curve.png")
    assert texts(drawn[0]) == ["no training loss was recorded", "the model was not evaluated while training"]


def drawn_predictions(labels: list[str], rows: int = 400, sure: float = 1.0) -> pl.DataFrame:
    rng = np.random.default_rng(len(labels))
    truth = np.arange(rows) % len(labels)
    logits = rng.normal(size=(rows, len(labels)))
    logits[np.arange(rows), truth] += 1.5
    spread = softmax(sure * logits, axis=1).astype(np.float32)
    names = np.array(labels)
    return pl.DataFrame(
        {
            "truth": names[truth],
            "prediction": names[spread.argmax(1)],
            "probabilities": pl.Series(spread).arr.to_list(),
        }
    )


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_precision_is_drawn_by_recall_for_each_label(drawn: list[Figure], tmp_path: Path) -> None:
    predictions = drawn_predictions(LABELS)
    path = plots.precision_recall(predictions, LABELS, tmp_path / "pr.png")
    assert matplotlib.image.imread(path).std() > 0
    spread = np.array(predictions["probabilities"].to_list())
    areas = {}
    for label, scores in zip(LABELS, spread.T, strict=True):
        positive = (predictions["truth"] == label).to_numpy()
        areas[label] = sk.average_precision_score(positive, scores)
        precision, recall, _ = sk.precision_recall_curve(positive, scores)
        (line,) = [line for line in drawn[0].axes[0].lines if line.get_label().endswith(label)]
        points = {tuple(point) for point in line.get_xydata()[1:].round(9).tolist()}
        assert points <= set(zip(recall.round(9).tolist(), precision.round(9).tolist(), strict=True))
        assert max(recall for recall, _ in points) == 1
    ordered = sorted(LABELS, key=areas.__getitem__, reverse=True)
    assert legend(drawn[0]) == [f"{areas[label]:.3f}  {label}" for label in ordered]
    title = drawn[0].axes[0].get_title(loc="left")
    assert title == f"precision by recall, AUPRC {np.mean(list(areas.values())):.3f}"


def test_many_labels_are_drawn_as_their_mean_with_the_best_and_the_worst(drawn: list[Figure], tmp_path: Path) -> None:
    labels = [f"_intent {i}" for i in range(30)]
    predictions = drawn_predictions(labels, rows=1_200)
    plots.precision_recall(predictions, labels, tmp_path / "pr.png")
    mean, best, worst = drawn[0].axes[0].lines
    names = legend(drawn[0])
    assert len(names) == 4
    assert names[0].endswith("mean of 30 labels")
    assert names[1] == "80% of the labels"
    area = np.mean(np.convolve(mean.get_ydata(), [0.5, 0.5], "valid"))
    assert area == pytest.approx(float(names[0].split()[0]), abs=0.01)
    assert best.get_ydata().mean() > mean.get_ydata().mean() > worst.get_ydata().mean()


def test_curves_of_many_rows_are_thinned(drawn: list[Figure], tmp_path: Path) -> None:
    predictions = drawn_predictions(LABELS, rows=30_000)
    plots.precision_recall(predictions, LABELS, tmp_path / "pr.png")
    for line in drawn[0].axes[0].lines:
        recall, precision = line.get_xydata().T
        assert 500 < len(recall) <= plots.MOST_POINTS + 1
        area = (np.diff(recall) * precision[1:]).sum()
        assert area == pytest.approx(float(line.get_label().split()[0]), abs=0.002)


@pytest.mark.parametrize("rows", [drawn_predictions(LABELS).with_columns(truth=pl.lit("neutral")), PREDICTIONS])
def test_no_curve_to_draw_is_said_in_words(rows: pl.DataFrame, drawn: list[Figure], tmp_path: Path) -> None:
    plots.precision_recall(rows, LABELS, tmp_path / "pr.png")
    assert texts(drawn[0]) == ["no label that some rows have and others do not"]


def test_calibration_is_drawn_before_and_after(drawn: list[Figure], tmp_path: Path) -> None:
    before, after = drawn_predictions(LABELS, sure=3), drawn_predictions(LABELS, sure=1.5)
    path = plots.reliability(before, after, tmp_path / "reliability.png")
    assert matplotlib.image.imread(path).std() > 0
    upper, lower = drawn[0].axes
    errors = [classification.score(rows, LABELS)["ece"] for rows in (before, after)]
    title = upper.get_title(loc="left")
    assert title == f"expected calibration error {errors[0]:.3f} before, {errors[1]:.3f} after calibration"
    assert [text.get_text() for text in upper.get_legend().get_texts()] == ["before", "after", "95% intervals"]
    assert [patch.get_data().values.sum() for patch in lower.patches] == [400, 400]


def test_bins_are_drawn_where_their_rows_are(drawn: list[Figure], tmp_path: Path) -> None:
    # .7 sure: 1 of 2 right; .9 sure: 2 of 2 right.
    rows = pl.DataFrame(
        {
            "truth": ["a", "b", "a", "a"],
            "prediction": ["a"] * 4,
            "probabilities": [[0.71, 0.29], [0.69, 0.31], [0.9, 0.1], [0.9, 0.1]],
        }
    )
    plots.reliability(None, rows, tmp_path / "reliability.png")
    upper, lower = drawn[0].axes
    assert upper.get_title(loc="left") == "expected calibration error 0.150"
    assert upper.lines[1].get_xydata() == pytest.approx(np.array([[0.7, 0.5], [0.9, 1]]))
    intervals = [segment[:, 1].tolist() for segment in upper.collections[0].get_segments()]
    exact = [binomtest(right, 2).proportion_ci(0.95, method="exact") for right in (1, 2)]
    assert intervals == [pytest.approx([found.low, found.high]) for found in exact]
    assert lower.patches[0].get_data().values.tolist() == [0] * 10 + [2, 0, 0, 2, 0]
    assert upper.get_xlim()[0] == pytest.approx(10 / 15)


def test_the_family_draws_what_its_predictions_have(tmp_path: Path) -> None:
    meta = {"labels": LABELS}
    drawn = TextClassification().plots(drawn_predictions(LABELS), drawn_predictions(LABELS), meta, tmp_path)
    assert [path.name for path in drawn] == ["confusion_matrix.png", "precision_recall.png", "reliability.png"]
    assert all(path.exists() for path in drawn)
    bare = TextClassification().plots(PREDICTIONS, PREDICTIONS, meta, tmp_path)
    assert [path.name for path in bare] == ["confusion_matrix.png"]


def test_the_same_picture_has_the_same_bytes(tmp_path: Path) -> None:
    one, two = (plots.confusion_matrix(PREDICTIONS, LABELS, tmp_path / f"{n}.png").read_bytes() for n in "ab")
    assert one == two
    rows = drawn_predictions(LABELS)
    one, two = (plots.precision_recall(rows, LABELS, tmp_path / f"{n}.png").read_bytes() for n in "ab")
    assert one == two


def test_no_global_state_of_matplotlib_is_touched() -> None:
    code = (
        "import sys, tempfile, pathlib, polars as pl; from tasks import plots;"
        "plots.learning_curve([{'step': 1, 'loss': 1.0}], 'f1', pathlib.Path(tempfile.mkdtemp()) / 'a.png');"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
