"""The command line run inside the tests' own process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def unchanged_environment() -> Iterator[None]:
    """A verb decides once for its whole process which Prefect it talks to."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
