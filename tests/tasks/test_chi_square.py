"""The same chances that scipy's own tests find."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.stats import chi2, chi2_contingency

from tasks.chi_square import independence, tail


@given(arrays(np.int64, array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6), elements=st.integers(1, 10_000)))
def test_independence_is_tested_as_scipy_does(counts: npt.NDArray[np.int64]) -> None:
    assert independence(counts) == pytest.approx(
        chi2_contingency(counts, correction=False).pvalue, rel=1e-9, abs=1e-300
    )


@pytest.mark.parametrize(("statistic", "freedom"), [(0.0, 1), (3.84, 1), (25.0, 9), (4_000.0, 200)])
def test_the_tail_is_that_of_the_distribution(statistic: float, freedom: int) -> None:
    assert tail(statistic, freedom) == pytest.approx(chi2.sf(statistic, freedom), rel=1e-12)


def test_finding_a_shift_of_labels_does_not_import_all_of_statistics() -> None:
    script = """
import sys
from tasks.split_checks import label_shift
assert label_shift({"train": {"a": 60, "b": 40}, "test": {"a": 10, "b": 30}})["test"]["p"] < 0.01
print("scipy.stats" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
