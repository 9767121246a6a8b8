"""Stores and small runs for the tests of the archive's operations."""

from __future__ import annotations

import pytest

from polstore.storage.store import open_store
from tests import synthetic_runs


@pytest.fixture
def store(tmp_path):
    """A new store, open."""
    with open_store(tmp_path / "store", create=True) as opened:
        yield opened


@pytest.fixture
def saved(tmp_path):
    """An empty directory for trainings that were saved by other means."""
    path = tmp_path / "saved"
    path.mkdir()
    return path


@pytest.fixture
def make_run():
    """`synthetic_runs.make`, for tests."""
    return synthetic_runs.make


@pytest.fixture
def extend_run():
    """`synthetic_runs.extend`, for tests."""
    return synthetic_runs.extend


@pytest.fixture
def snapshot_of():
    """`synthetic_runs.state`, for tests."""
    return synthetic_runs.state
