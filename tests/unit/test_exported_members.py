"""The public names: pinned, each resolves to what its own module exports, and nothing else is there."""

import importlib

import pytest

import polstore

NAMES = [
    "Archive",
    "Ledger",
    "PolstoreError",
    "Recorder",
    "Run",
    "Snapshot",
    "Tensor",
    "Training",
    "__version__",
    "commit",
    "open",
    "prove",
    "record",
    "seed_initial",
]


def test_names_are_pinned():
    assert polstore.__all__ == NAMES
    assert dir(polstore) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_name_resolves(name):
    value = getattr(polstore, name)
    if name == "__version__":
        assert value.count(".") == 2
        return
    assert value.__doc__
    module = importlib.import_module(value.__module__)
    assert value.__name__ in module.__all__
    assert getattr(module, value.__name__) is value


def test_star_import_gives_them_all():
    namespace = {}
    exec("from polstore import *", namespace)
    assert set(NAMES) <= namespace.keys()


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="module 'polstore' has no attribute 'nonsense'"):
        polstore.nonsense  # noqa: B018
