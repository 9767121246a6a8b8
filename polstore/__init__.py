"""Proof-of-learning: record a training run, commit to it, and let anyone verify sampled segments by replay.

    import polstore

    with polstore.record(model, optimizer, loader, every=50, store="runs", run="first", recipe="recipe.py") as rec:
        ...                                     # the training loop as it was

    with polstore.open("runs") as archive:      # reading needs no torch
        run = archive.run("first")
        run.export(run.snapshots[-1], "weights.safetensors")

Names are loaded when they are first used, so importing polstore is cheap and never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polstore.codec.live.recipe import Training
    from polstore.codec.snapshot import Snapshot, Tensor
    from polstore.errors import PolstoreError
    from polstore.ledger import Ledger
    from polstore.prover import commit, prove
    from polstore.reader import Archive, Run
    from polstore.reader import open_archive as open  # noqa: A004 # what archive tooling calls it
    from polstore.recorder import Recorder
    from polstore.recording import record, seed_initial

__all__ = [
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

__version__ = "0.1.0"

_HOMES = {
    "Archive": ("polstore.reader", "Archive"),
    "Ledger": ("polstore.ledger", "Ledger"),
    "PolstoreError": ("polstore.errors", "PolstoreError"),
    "Recorder": ("polstore.recorder", "Recorder"),
    "Run": ("polstore.reader", "Run"),
    "Snapshot": ("polstore.codec.snapshot", "Snapshot"),
    "Tensor": ("polstore.codec.snapshot", "Tensor"),
    "Training": ("polstore.codec.live.recipe", "Training"),
    "commit": ("polstore.prover", "commit"),
    "open": ("polstore.reader", "open_archive"),
    "prove": ("polstore.prover", "prove"),
    "record": ("polstore.recording", "record"),
    "seed_initial": ("polstore.recording", "seed_initial"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
