"""Recording, committing, proving and verifying in one process, on one store."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from polstore import keyfile
from polstore.codec.live.recipe import RecipeFile
from polstore.prover import commit, prove
from polstore.reader import open_archive
from polstore.recording import record_recipe
from polstore.storage.store import open_store
from polverify.verdict import Decision
from polverify.verify import Request, verify

RECIPES = Path(__file__).parent / "recipes"
SEED = 11


@contextlib.contextmanager
def threads(count):
    """Train with ``count`` threads, and leave the process as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Bench:
    """A store, a key and a recipe in a directory of their own."""

    def __init__(self, path: Path, recipe: str = "mlp.py", device: str = "cpu"):
        self.path = path
        self.device = device
        self.segments = ()
        self.store = path / "store"
        self.recipe = RECIPES / recipe
        self.key = path / "key"
        self.public = path / "key.pub"
        if not self.key.exists():
            keyfile.generate("example.com/alice", self.key)

    def record(self, run="r", *, steps=9, every=4, stop=None, **settings):
        """Record a run up to ``steps`` and return its final state digest; die of KeyboardInterrupt after ``stop``."""
        arguments = {"seed": SEED, "fidelity": "float16-writeback", "resume": False}
        arguments |= {name: settings.pop(name) for name in list(settings) if name in arguments}
        recorder, training, loaded = record_recipe(
            RecipeFile.read(self.recipe),
            every=every,
            store=self.store,
            run=run,
            config=settings,
            device=self.device,
            **arguments,
        )

        def progress(done, loss):
            if done == stop:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt) if stop is not None else contextlib.nullcontext(), recorder:
            recorder.train(training, loaded.step, steps, progress)
        return self.final(run)

    def final(self, run="r"):
        with open_archive(self.store) as archive:
            found = archive.run(run)
            return found.state(found.snapshots[-1]).digest()

    def leaves(self, run="r"):
        with open_archive(self.store) as archive:
            found = archive.run(run)
            return found.leaves(found.size())

    def prove(self, run="r"):
        """Sign a run and open its segments, all or those of ``self.segments``; return the paths of root and bundle."""
        root, bundle = self.path / f"{run}.root", self.path / f"{run}.bundle"
        with open_store(self.store) as store:
            root.write_bytes(commit(store, run, keyfile.load_signing_key(self.key)))
        with open_archive(self.store) as archive:
            found = archive.run(run)
            prove(found, self.segments or range(len(found.segments))).write(bundle)
        return root, bundle

    def verdict(self, run="r", recipe=None, jobs=1):
        root, bundle = self.prove(run)
        keys = keyfile.load_verifier_keys(self.public)
        before = torch.get_num_threads()
        try:
            own = RecipeFile.read(recipe or self.recipe)
            return verify(Request(root.read_bytes(), keys, bundle, own, device=self.device, jobs=jobs))
        finally:
            torch.set_num_threads(before)

    def require_accepted(self, run="r", recipe=None, jobs=1):
        verdict = self.verdict(run, recipe, jobs)
        if verdict.decision is not Decision.ACCEPT:
            pytest.fail(f"{verdict.decision}: {verdict.reason}")
        return verdict
