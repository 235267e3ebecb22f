from __future__ import annotations

import numpy as np
import pytest

from schemas.errors import Fault
from tasks.merging import difference

IMPOSSIBLE = -np.inf


def test_what_is_impossible_before_and_after_is_no_difference():
    before = np.array([IMPOSSIBLE, 0.5, -8.0], np.float32)
    assert difference(before, before.copy()) == 0
    assert difference(before, np.array([IMPOSSIBLE, 0.5, -8.004], np.float32)) == pytest.approx(0.0005, rel=1e-3)


@pytest.mark.parametrize("after", [[0.0, 0.5, -8.0], [IMPOSSIBLE, np.nan, -8.0], [IMPOSSIBLE, 0.502, -8.0]])
def test_what_becomes_possible_unknown_or_larger_is_a_fault(after):
    with pytest.raises(Fault, match="merging the adapters changed a prediction by"):
        difference(np.array([IMPOSSIBLE, 0.5, -8.0], np.float32), np.array(after, np.float32))
