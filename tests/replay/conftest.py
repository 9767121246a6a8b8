"""What the replay tests share."""

from __future__ import annotations

import pytest

from tests.replay.harness import Bench


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)
