"""The report of a run on its pages."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flows.report import with_pictures

PAGE = "# Evaluation\n\n![confusion matrix](confusion_matrix.png)\n\n![gone](gone.png)\n\n![far](https://x.example/a.png)\n"
CONTENT = b"\x89PNG picture"


def folder(tmp_path: Path) -> Path:
    (tmp_path / "confusion_matrix.png").write_bytes(CONTENT)
    return tmp_path


def run(url: str | None) -> Any:
    return SimpleNamespace(run_id="abc", url=url)


def test_pictures_are_shown_from_the_mlflow_server(tmp_path: Path) -> None:
    page = with_pictures(PAGE, folder(tmp_path), run("http://127.0.0.1:5000/#/experiments/1/runs/abc"), "evaluation")
    address = "http://127.0.0.1:5000/get-artifact?run_uuid=abc&path=evaluation%2Fconfusion_matrix.png"
    assert f"![confusion matrix]({address})" in page
    assert "![gone](gone.png)" in page
    assert "![far](https://x.example/a.png)" in page


def test_pictures_are_in_the_page_where_no_server_has_them(tmp_path: Path) -> None:
    for nowhere in (run(None), None):
        page = with_pictures(PAGE, folder(tmp_path), nowhere, "evaluation")
        assert f"![confusion matrix](data:image/png;base64,{base64.b64encode(CONTENT).decode()})" in page
