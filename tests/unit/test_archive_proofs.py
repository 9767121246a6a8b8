"""What the archive does to a store changes no proof: repacked, cleaned up and copied, a run is accepted."""

import pytest
import tiny_archive
import torch

from polstore.archive.copying import copy_runs
from polstore.archive.garbage import collect
from polstore.archive.repack import repack
from polstore.codec.live.recipe import RecipeFile
from polstore.prover import prove
from polstore.reader import Run
from polstore.storage.store import open_store
from polverify.verdict import Decision
from polverify.verify import Request, verify


def quiet(*_):
    pass


@pytest.fixture
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("keyframe_every", [None, 1, 3])
def test_a_run_is_accepted_as_before(tmp_path, keyframe_every):
    recipe = tmp_path / "recipe.py"
    path = tiny_archive.make(tmp_path)
    with open_store(path) as store, open_store(tmp_path / "copy", create=True) as other:
        before = Run(store, "r").signed_root()
        done = repack(store, None, quiet, keyframe_every=keyframe_every)
        assert done.rewritten
        assert done.damages == []
        assert collect(store, quiet).blobs == ()
        copy_runs(store, other, None, quiet)
        run = Run(other, "r")
        assert run.signed_root() == before
        prove(run, [0, 2, 4]).write(tmp_path / "bundle")
    request = Request(before, tiny_archive.KEY.verifier_keys(), tmp_path / "bundle", RecipeFile.read(recipe))
    verdict = verify(request)
    assert verdict.decision is Decision.ACCEPT, verdict.reason
