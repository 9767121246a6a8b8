"""Workers that replay several segments at once and fail: one clear error, or the verdict of what came before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from polstore.codec.live.recipe import RecipeFile
from polstore.errors import CallerError, TrainingError
from polverify.bundle_file import BundleFile
from polverify.request import Request
from polverify.verdict import Decision
from polverify.workers import open_material
from tests.attacks import forge
from tests.attacks.forge import Trainer

if TYPE_CHECKING:
    from pathlib import Path

# Added to the recipe: it does something in a worker, from the second segment on.
TRAP = """
import multiprocessing, os
_step = step


def step(training, batches):
    if multiprocessing.parent_process() is not None and training.extras["scheduler"].last_epoch >= 3:
        {}
    return _step(training, batches)
"""


@pytest.fixture
def trapped(tmp_path: Path) -> Any:
    def made(does: str, kind: type[Trainer] = Trainer) -> dict[str, Any]:
        path = tmp_path / "recipe.py"
        path.write_bytes(forge.RECIPE.source + TRAP.format(does).encode())
        recipe = RecipeFile.read(path)
        return {"evidence": kind(recipe_file=recipe).run((0, 1)), "recipe": recipe, "jobs": 2}

    return made


def test_a_worker_that_dies(judge, trapped):
    with pytest.raises(CallerError, match="the process that replayed segment 1 died, exit code 7"):
        judge(**trapped("os._exit(7)"))


def test_a_worker_whose_recipe_ends_the_program(judge, trapped):
    with pytest.raises(TrainingError, match=r"the recipe ended the program: expected a return, got exit\(0\)"):
        judge(**trapped("raise SystemExit(0)"))


class Forged(Trainer):
    def end(self, index: int) -> None:
        if index == 0:
            self.training.model[0].bias.data.add_(1)


def test_what_comes_earlier_in_the_run_decides_all_the_same(judge, trapped):
    """Even if the other worker has died long before."""
    verdict = judge(**trapped("os._exit(7)", Forged))
    assert verdict.decision is Decision.REJECT
    assert "segment 0, state after step 3" in verdict.reason


def test_a_bundle_that_was_replaced(honest, other, tmp_path):
    path = tmp_path / "bundle"
    path.write_bytes(honest.data())
    with BundleFile(path) as file:
        digest = file.digest
    path.write_bytes(other.data())
    with (
        pytest.raises(CallerError, match="bundle was replaced while it was checked"),
        open_material(Request(honest.root, (), path, forge.RECIPE), path, digest),
    ):
        pass
