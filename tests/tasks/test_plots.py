from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from tasks import plots

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
    original = plots._save

    def keep(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        return original(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
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


def test_the_same_picture_has_the_same_bytes(tmp_path: Path) -> None:
    one, two = (plots.confusion_matrix(PREDICTIONS, LABELS, tmp_path / f"{n}.png").read_bytes() for n in "ab")
    assert one == two


def test_no_global_state_of_matplotlib_is_touched() -> None:
    code = (
        "import sys, tempfile, pathlib, polars as pl; from tasks import plots;"
        "plots.learning_curve([{'step': 1, 'loss': 1.0}], 'f1', pathlib.Path(tempfile.mkdtemp()) / 'a.png');"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
